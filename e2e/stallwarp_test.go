// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestStallWarp has the timeouts that people set, of 30, 180 and 300 seconds, pass in a guest of QEMU whose clock
// jumps where it has nothing to do: more than an hour in some seconds. What a request takes until it fails
// is held against what shisa says in the same guest, as in TestStallPredicted.
func TestStallWarp(t *testing.T) {
	testenv.NeedVM(t)
	testenv.Need(t, vm.QEMU, "apt-get", "dpkg-deb", "go")
	t.Parallel()
	many, few := onDisk("max_medium_access_timeouts", "1000"), onDisk("max_medium_access_timeouts", "2")
	cases := []struct {
		name, stop, kind, state, timeout string
		medium                           [2]string
	}{
		{"T=30", "0x80", "medium_offline", "offline", "30", few},
		{"T=180", "0x80", "medium_offline", "offline", "180", few},
		{"T=300", "0x80", "medium_offline", "offline", "300", few},
		{"T=180, many timeouts", "0x80", "retries_used", "running", "180", many},
		{"T=300, many timeouts", "0x80", "retries_used", "running", "300", many},
		{"T=30, dead", "0x4", "dead_offline", "offline", "30", few},
		{"T=180, dead", "0x4", "dead_offline", "offline", "180", few},
	}
	dir := stallPrograms(t)
	i := warpImage(t, dir)
	for n, c := range cases {
		text, err := json.Marshal(stallScenario{Stop: c.stop, Do: "read", For: 7200, Set: [][2]string{
			{"/sys/bus/pseudo/drivers/scsi_debug/opts", "0"},
			// The one before has left it offline: this is how it comes back.
			{"/sys/block/DISK/device/state", "running"},
			onDisk("timeout", c.timeout), c.medium},
			Program: []string{"/usr/bin/shisa", "doctor", "stall", "--json", "--for", "3h", "--device", "sda"}})
		name := filepath.Join(dir, string(rune('a'+n))+".json")
		if err == nil {
			err = os.WriteFile(name, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		i.Files["/lab/"+filepath.Base(name)] = name
		i.Checks = append(i.Checks, vm.Check{Name: c.name, Timeout: 4 * time.Hour,
			Command: []string{"/lab/bin/stalls", "/lab/" + filepath.Base(name)}})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	r, err := vm.Machine{MemoryMiB: 512}.Run(ctx, i)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v of wall clock, %v of processor", r.Took.Round(time.Millisecond), r.CPU.Round(time.Millisecond))
	for _, c := range cases {
		said, _ := r.Result(c.name)
		var got stallResult
		var doc stallDocument
		if err := errors.Join(json.Unmarshal([]byte(said.Stdout), &got), json.Unmarshal(got.Predicted, &doc)); err != nil ||
			got.Failed != "" || len(doc.Machines) != 1 || len(doc.Machines[0].Disks) != 1 {
			t.Errorf("%s: %v, %s, %s%s", c.name, err, got.Failed, said.Stdout, said.Stderr)
			continue
		}
		in := map[string]string{"0x80": "answers_tests", "0x4": "answers_nothing"}[c.stop]
		e := doc.Machines[0].Disks[0].event(t, c.kind, in)
		t.Logf("%s: measured %d s, predicted %d to %d s, usually %d s", c.name, got.Took/1000, e.Earliest/1000, e.Latest/1000, e.Usual/1000)
		if off := float64(e.Usual-got.Took) / float64(got.Took); got.Took < e.Earliest || got.Took > e.Latest || off > 0.15 || off < -0.15 {
			t.Errorf("%s: the request failed after %d ms, predicted %d between %d and %d", c.name, got.Took, e.Usual, e.Earliest, e.Latest)
		}
		if got.State != c.state {
			t.Errorf("%s: the disk is %s, want %s", c.name, got.State, c.state)
		}
	}
}

// warpImage is a guest with nothing but a disk of scsi_debug, the program, and what stops the disk.
func warpImage(t *testing.T, dir string) vm.Image {
	t.Helper()
	i := imageOf(t, vm.Debian12)
	i.Modules = []string{"sd_mod", "scsi_debug"}
	i.Files = map[string]string{"/lab/bin/stalls": filepath.Join(dir, "stalls"), "/usr/bin/shisa": filepath.Join(dir, "shisa")}
	return i
}

// TestStallInert has a disk behind virtio-scsi take more than six times its timeout for a request. Nothing happens: the
// request is answered, and there is no error. That is what is predicted of it, and that setting the timeout is refused.
func TestStallInert(t *testing.T) {
	testenv.NeedVM(t)
	testenv.Need(t, vm.QEMU, "apt-get", "dpkg-deb", "go")
	t.Parallel()
	dir := stallPrograms(t)
	text, err := json.Marshal(stallScenario{Stop: "slow", Do: "read", For: 200, Burst: 4 << 20,
		Set:      [][2]string{onDisk("timeout", "2")},
		Program:  []string{"/usr/bin/shisa", "doctor", "stall", "--json", "--for", "1h", "--device", "sda"},
		Commands: [][]string{{"/usr/bin/shisa", "doctor", "stall", "--device", "sda", "--set", "300", "--apply"}}})
	name := filepath.Join(dir, "slow.json")
	if err == nil {
		err = os.WriteFile(name, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	i := warpImage(t, dir)
	i.Modules = []string{"virtio_pci", "virtio_scsi", "sd_mod"}
	i.Files["/lab/slow.json"] = name
	i.Checks = []vm.Check{{Name: "slow", Timeout: 8 * time.Minute, Command: []string{"/lab/bin/stalls", "/lab/slow.json"}}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	// After a megabyte at once the disk gives 200 bytes a second: a read of 4096 takes some twenty.
	r, err := vm.Machine{HostClock: true, MemoryMiB: 512, Args: []string{"-object",
		"throttle-group,id=slow,x-bps-total=200,x-bps-total-max=1000000,x-bps-total-max-length=1",
		"-blockdev", "null-co,node-name=nothing,size=67108864,read-zeroes=on",
		"-blockdev", "throttle,node-name=disk,throttle-group=slow,file=nothing",
		"-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk"}}.Run(ctx, i)
	if err != nil {
		t.Fatal(err)
	}
	said, _ := r.Result("slow")
	var got stallResult
	var doc stallDocument
	if err := errors.Join(json.Unmarshal([]byte(said.Stdout), &got), json.Unmarshal(got.Predicted, &doc)); err != nil || got.Failed != "" {
		t.Fatalf("%v, %s, %s%s", err, got.Failed, said.Stdout, said.Stderr)
	}
	t.Logf("with a timeout of 2 s a request took %d ms", got.Took)
	if got.Took < 13000 || got.Errno != 0 || got.State != "running" {
		t.Errorf("it took %d ms, error %d, the disk is %s; want more than six timeouts, no error, and one that runs", got.Took,
			got.Errno, got.State)
	}
	d := doc.Machines[0].Disks[0]
	if d.Effective || d.Adapter != "virtio_scsi" || d.Timeout != 2 || d.Outcomes[0].Word != "recovers" {
		t.Errorf("predicted %+v, want a timeout without effect", d)
	}
	if out := got.Outputs[0]; !strings.Contains(out, "exit status 5") || !strings.Contains(out, "has no timeout that does something") {
		t.Errorf("setting it is not refused: %s", out)
	}
}
