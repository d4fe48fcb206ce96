// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestStoryStall is the story of storage that stops answering, and of a file system that takes no writes then: what
// will happen is told before, and what did afterwards, though the mount says rw. A rule of udev is suspected wrongly.
func TestStoryStall(t *testing.T) {
	testenv.NeedVM(t)
	testenv.Need(t, "mkfs.ext4")
	t.Parallel()
	m := umlMachine{programs: umlPrograms(t), memoryMiB: 384,
		modules: []string{"sd_mod", "scsi_debug", "ext4"}, parameters: map[string]string{
			"scsi_debug": `delay=0 dev_size_mb=64 inq_vendor=VMware inq_product="Virtual disk"`}}
	m.run(t, "TestStoryStallInside")
}

func TestStoryStallInside(t *testing.T) {
	testenv.NeedGuest(t)
	const dev, debug = "/dev/sda", "/sys/bus/pseudo/drivers/scsi_debug/"
	run(t, "mount", "-t", "tmpfs", "tmpfs", "/etc/udev/rules.d")
	// It is the one of VMware's tools until 2017: "SUBSYSTEMS" and "ATTRS" were misspelt, it never did anything.
	if err := os.WriteFile("/etc/udev/rules.d/99-vmware-scsi-udev.rules", []byte(`ACTION=="add", SUBSYSTEMS=="scsi", `+
		`ATTRS{vendor}=="VMware*", ATTRS{model}=="Virtual disk*", RUN+="/bin/sh -c 'echo 180 >/sys$DEVPATH/timeout'"`+"\n"),
		0o644); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(dev); err == nil {
			break
		}
	}
	run(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev)
	at := t.TempDir()
	if err := unix.Mount(dev, at, "ext4", 0, "errors=remount-ro"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	time.Sleep(time.Second) // what mounting began has ended
	put(t, "/sys/block/sda/device/timeout", "1\n")
	var doc stallDocument
	said := ended(t, 3, "shisa", "doctor", "stall", "--json", "--for", "1h", "--device", "sda")
	if err := json.Unmarshal([]byte(said[strings.Index(said, "{"):]), &doc); err != nil || len(doc.Machines) != 1 {
		t.Fatalf("%v: %s", err, said)
	}
	abort := doc.Machines[0].Disks[0].event(t, "ext4_journal_abort", "answers_tests")
	put(t, debug+"every_nth", "-1\n")
	put(t, debug+"opts", "0x80\n") // reads, writes and flushes are never answered
	begun := time.Now()
	f, err := os.Create(filepath.Join(at, "new"))
	if err == nil {
		_, err = f.WriteString("new\n")
	}
	if err == nil {
		err = f.Sync()
	}
	took := time.Since(begun).Milliseconds()
	put(t, debug+"opts", "0\n") // the storage answers again; nobody asks it
	t.Logf("the write ended after %d ms with %v, predicted between %d and %d", took, err, abort.Earliest, abort.Latest)
	// A guest that runs on a busy machine is late, and never early.
	if err == nil || took < abort.Earliest*85/100 {
		t.Errorf("a write ended after %d ms with %v, predicted is an error between %d and %d", took, err, abort.Earliest,
			abort.Latest)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || !strings.Contains(string(mounts), dev+" "+at+" ext4 rw,") {
		t.Errorf("the mount shows %s (%v), want rw, as this kernel says of one that takes no writes", mounts, err)
	}
	r := examined(t)
	fs, device, rule := findingOf(r, "FS01"), findingOf(r, "BL01"), findingOf(r, "BL05")
	if fs == nil || device == nil || rule == nil {
		t.Fatalf("want that the file system takes no writes, that the disk is offline, and that the rule does nothing: %+v",
			r.Findings)
	}
	if len(r.Causes) == 0 || r.Causes[0].Finding != device.ID || !slices.Contains(r.Causes[0].Explains, fs.ID) {
		t.Errorf("the first cause is %+v, want the disk, which explains the file system", r.Causes)
	}
	for _, c := range r.Causes {
		if c.Finding == rule.ID && len(c.Explains)+len(c.Affects) > 0 {
			t.Errorf("the rule of udev is blamed: %+v", c)
		}
	}
}
