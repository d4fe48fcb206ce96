// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestStoryStore is the story of guests that hang while an image has leaked clusters: the cause is a server of
// NFS that does not answer. All of it is in one guest: server, client, and the image.
func TestStoryStore(t *testing.T) {
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	testenv.Need(t, storageDaemon, "qemu-img")
	t.Parallel()
	m := umlMachine{programs: umlPrograms(t), memoryMiB: 384,
		modules: []string{"loop", "ext4", "nfsd", "nfsv4"}}
	image := killedImage(t, testenv.DiskDir(t), func(n int) string { return fmt.Sprint("write ", n) })
	m.run(t, "TestStoryStoreInside", leakyImage+"="+image)
}

// leakyImage names the image that is suspected wrongly.
const leakyImage = "SHISA_LEAKY_IMAGE"

func TestStoryStoreInside(t *testing.T) {
	testenv.NeedGuest(t)
	if os.Getenv(leakyImage) == "" {
		t.Fatalf("%s is not set: TestStoryStore runs this", leakyImage)
	}
	at := newFilesystem(t, newLoop(t))
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	stop := serve(t, at)
	const share = "/vms"
	if err := os.Mkdir(at+share, 0o755); err != nil {
		t.Fatal(err)
	}
	client := t.TempDir()
	mountNFS(t, share, client, "actimeo=600")
	cached := filepath.Join(client, "cached")
	if err := os.WriteFile(cached, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "stat", cached)
	if out := examined(t); findingOf(out, "NF01") != nil {
		t.Errorf("while the server answers it is said: %+v", findingOf(out, "NF01"))
	}
	stop()
	// One of the guests of the story lived on: it looked at what it knew.
	run(t, "stat", cached) // what the client knows already it goes on to say
	list := hangs(t, "ls", "-l", client)
	writer := hangs(t, "dd", "if=/dev/zero", "of="+cached, "conv=fsync,notrunc", "count=64")
	for _, c := range []*exec.Cmd{list, writer} {
		waitState(t, c.Process.Pid, "D")
	}
	// A client that asks its server again wakes those who wait for a moment, and who got on is not told to wait.
	r := examined(t)
	for end := time.Now().Add(patience); waiting(r) < 2 && time.Now().Before(end); {
		r = examined(t)
	}
	if len(r.Causes) == 0 {
		t.Fatalf("no cause is named: %+v", r)
	}
	first, f := r.Causes[0], findingOf(r, "NF01")
	const who = "the NFS server 127.0.0.1 does not answer this machine"
	what := ": who uses its share " + share + ", mounted at " + client + ", waits"
	if f == nil || f.ID != first.Finding || first.Object.Name != client || !strings.HasPrefix(f.Summary, who) ||
		!strings.HasSuffix(f.Summary, what) || !slices.Contains(f.Affects, doctor.Object{Kind: doctor.Share, Name: "127.0.0.1:" + share}) {
		t.Errorf("the cause is %+v with %+v, want the server and the share that do not answer", first, f)
	}
	// Nobody asked the server itself: it may be that, or what lies between.
	if first.Certainty == doctor.Alone || len(first.Explains) != 2 || len(first.Rivals) != 1 ||
		first.Rivals[0].Object != (doctor.Object{Kind: doctor.Server, Name: "127.0.0.1"}) {
		t.Errorf("the cause is %+v, want that it explains two tasks, and names the server that was not looked at", first)
	}
	// As people read it: the first cause, what else it may be, and what is to be done where.
	said := ended(t, 3, "shisa", "doctor")
	for _, want := range []string{"PERHAPS THE CAUSE  NF01 mount-stuck  mount " + client + "\n  T" + who[1:], what,
		"or       server 127.0.0.1 (not looked at)", "rpcinfo -t 127.0.0.1 nfs",
		"on 127.0.0.1 itself: does it run, is what " + share + " lies on full, does its disk answer"} {
		if at := strings.Index(said, want); at < 0 {
			t.Errorf("the doctor does not say %q, or not in its turn:\n%s", want, said)
		} else {
			said = said[at:]
		}
	}
	said = ended(t, 3, "shisa", "scan", "--host", filepath.Dir(os.Getenv(leakyImage)))
	cause, harmless, leaks := strings.Index(said, "T"+who[1:]), strings.Index(said, "\nharmless:\n"),
		strings.Index(said, "leaked clusters")
	if cause < 0 || harmless < cause || leaks < harmless || strings.Contains(said[leaks:], "DANGER") {
		t.Errorf("the cause has to come first and the leaks last, as harmless:\n%s", said)
	}
	// As shisa says of who waits for NFS: it can be killed, and that mends nothing.
	if err := list.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = list.Wait() // killed, as was meant
	again := hangs(t, "ls", "-l", client)
	waitState(t, again.Process.Pid, "D")
	serve(t, at)
	for _, c := range []*exec.Cmd{again, writer} {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
	if out := examined(t); findingOf(out, "NF01") != nil {
		t.Errorf("the server answers again, and it is said: %+v", findingOf(out, "NF01"))
	}
	run(t, "umount", client)
}

// examined is what the doctor says of this machine. It does not hang, whatever does.
func examined(t *testing.T) (r doctor.Report) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var words strings.Builder
	c := exec.CommandContext(ctx, "shisa", "doctor", "--json")
	c.Stderr = &words
	out, _ := c.Output() // its status is in what it says
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s %s", err, out, words.String())
	}
	return r
}

// ended runs a program that ends with a status of its own, and gives what it wrote.
func ended(t *testing.T, status int, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	out, _ := c.CombinedOutput() // its status is looked at
	if got := c.ProcessState.ExitCode(); got != status {
		t.Errorf("%v ended with %d, want %d: %s", c.Args, got, status, out)
	}
	return string(out)
}

// waiting is how many tasks are told to wait.
func waiting(r doctor.Report) (n int) {
	for i := range r.Findings {
		if r.Findings[i].Code == "PR01" {
			n++
		}
	}
	return n
}

// findingOf is what was found by a rule and is not over, nil for none.
func findingOf(r doctor.Report, code string) *doctor.Finding {
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Code == code && !f.Over {
			return f
		}
	}
	return nil
}

// hangs starts a program that is going to wait.
func hangs(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(name, args...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill() }) // where the test failed before it ended
	return c
}

// waitState waits until a process is in a state (proc(5)).
func waitState(t *testing.T, pid int, state string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if _, rest, ok := strings.Cut(string(text), ") "); ok && strings.HasPrefix(rest, state) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d is not in state %s: %s", pid, state, text)
		}
	}
}
