// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// writer is a boot sector that writes one sector in each 64 KiB of the first 32 MiB of its disk, and halts.
// The packet for the BIOS (int 13h, function 43h) stands at 0x7c1c, the sector to be written 8 bytes behind.
func writer() []byte {
	b := make([]byte, 512)
	copy(b, []byte{
		0x31, 0xc0, // 7c00 xor ax, ax
		0x8e, 0xd8, // 7c02 mov ds, ax
		0xbe, 0x1c, 0x7c, // 7c04 mov si, 0x7c1c
		0xb8, 0x00, 0x43, // 7c07 mov ax, 0x4300
		0xb2, 0x80, // 7c0a mov dl, 0x80
		0xcd, 0x13, // 7c0c int 0x13
		0x81, 0x06, 0x24, 0x7c, 0x80, 0x00, // 7c0e add word [0x7c24], 128
		0x75, 0xee, // 7c14 jnz 0x7c04
		0xfa,       // 7c16 cli
		0xf4,       // 7c17 hlt
		0xeb, 0xfc, // 7c18 jmp 0x7c16
		0x90, 0x90,
		0x10, 0, 1, 0, 0x00, 0x7c, 0, 0, // 7c1c one sector from 0000:7c00
	})
	binary.LittleEndian.PutUint16(b[510:], 0xaa55)
	return b
}

// machine is a QEMU whose disk lies on a small file system.
type machine struct {
	t    *testing.T
	name string
	// store is the file system, own the socket of a monitor that the test has, shared that for others.
	store, shared string
	own           *json.Decoder
	to            net.Conn
	asker         *ask.Asker
}

// TestStoppedByItsStorage has a real QEMU write until its store is full, and holds what the doctor says against what
// QEMU does: stopped for want of room, on again, and with a monitor that somebody else uses.
func TestStoppedByItsStorage(t *testing.T) {
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	testenv.Need(t, vm.QEMU, "qemu-img")
	m := startQEMU(t)
	m.until("STOP")
	r := m.known()
	if r.Outcome != doctor.Fail || r.Finding.Kind != "nospace" {
		t.Fatalf("its store is full: %+v", r)
	}
	if value := r.Finding.Evidence[0].Value; !strings.Contains(value, "status io-error") || !strings.Contains(value, "nospace") {
		t.Errorf("it is said that %q", value)
	}
	if err := unix.Mount("", m.store, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	m.say("cont")
	m.until("RESUME")
	for m.status() != "running" || m.size() < 32<<20 {
		if t.Context().Err() != nil {
			t.Fatal("it does not go on")
		}
		time.Sleep(100 * time.Millisecond)
	}
	if r := m.known(); r.Outcome != doctor.Pass {
		t.Errorf("it has room and goes on: %+v", r)
	}
	// QEMU takes one client for each monitor.
	other, err := (&net.Dialer{}).DialContext(t.Context(), "unix", m.shared)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if r := m.verdict(); r.Outcome != doctor.Unknown || !strings.Contains(r.Why, m.shared) {
		t.Errorf("another uses its monitor: %+v", r)
	}
}

// startQEMU starts one that is ended with the test.
func startQEMU(t *testing.T) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "qemu-") // the names of sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	m := &machine{t: t, name: "shisa-test-" + filepath.Base(dir), store: filepath.Join(dir, "store"),
		shared: filepath.Join(dir, "shared"), asker: &ask.Asker{}}
	boot, own := filepath.Join(dir, "boot"), filepath.Join(dir, "own")
	if err := os.WriteFile(boot, writer(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(boot, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(m.store, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("shisa-test", m.store, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(m.store, 0); err != nil {
			t.Error(err)
		}
	})
	disk := filepath.Join(m.store, "disk.qcow2")
	convert := exec.CommandContext(t.Context(), "qemu-img", "convert", "-f", "raw", "-O", "qcow2", boot, disk)
	if out, err := convert.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", convert.Args, err, out)
	}
	c := exec.Command(vm.QEMU, "-name", "guest="+m.name, "-machine", "pc,accel=tcg", "-m", "32", "-nodefaults",
		"-display", "none", "-drive", "file="+disk+",format=qcow2,if=ide,werror=enospc", "-qmp",
		"unix:"+m.shared+",server=on,wait=off", "-chardev", "socket,id=own,path="+own+",server=on,wait=off", "-mon",
		"chardev=own,mode=control", "-S")
	said := &strings.Builder{}
	c.Stdout, c.Stderr = said, said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_ = c.Wait() // killed, as is meant
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-gone
		if t.Failed() {
			t.Log(said)
		}
	})
	for m.to == nil {
		m.to, err = (&net.Dialer{}).DialContext(t.Context(), "unix", own)
		select {
		case <-gone:
			t.Fatalf("%s has ended: %v", vm.QEMU, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Cleanup(func() { m.to.Close() })
	if err := m.to.SetDeadline(time.Now().Add(20 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	m.own = json.NewDecoder(m.to)
	m.say("qmp_capabilities")
	m.say("cont")
	return m
}

// say says a command to QEMU.
func (m *machine) say(command string) {
	m.t.Helper()
	if _, err := fmt.Fprintf(m.to, "{\"execute\":%q}\n", command); err != nil {
		m.t.Fatal(err)
	}
}

// answer is one line of QEMU's.
type answer struct {
	Event  string
	Return struct{ Status string }
	Error  *struct{ Desc string }
}

func (m *machine) hear() (a answer) {
	m.t.Helper()
	if err := m.own.Decode(&a); err != nil {
		m.t.Fatal(err)
	}
	if a.Error != nil {
		m.t.Fatal(a.Error.Desc)
	}
	return a
}

// until waits for an event.
func (m *machine) until(event string) {
	m.t.Helper()
	for m.hear().Event != event {
		continue
	}
}

func (m *machine) status() string {
	m.t.Helper()
	m.say("query-status")
	for {
		if a := m.hear(); a.Return.Status != "" {
			return a.Return.Status
		}
	}
}

// size is how large its disk has become.
func (m *machine) size() int64 {
	m.t.Helper()
	s, err := os.Stat(filepath.Join(m.store, "disk.qcow2"))
	if err != nil {
		m.t.Fatal(err)
	}
	return s.Size()
}

// known is the verdict when there is one: QEMU may have no turn to answer in time.
func (m *machine) known() doctor.Result {
	m.t.Helper()
	r := m.verdict()
	for r.Outcome == doctor.Unknown {
		m.t.Log(r.Why)
		r = m.verdict()
	}
	return r
}

// verdict is what IM05 says of it, from all evidence of this machine.
func (m *machine) verdict() doctor.Result {
	m.t.Helper()
	ctx := context.WithoutCancel(m.t.Context())
	l, err := tree.OpenLive(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	defer l.Close()
	now := time.Now()
	files, err := evidence.Probe(ctx, l, evidence.ProbeOptions{Now: now, Asker: m.asker})
	if err != nil {
		m.t.Fatal(err)
	}
	e, err := evidence.Gather(ctx, tree.Overlay(l, files), evidence.Options{Now: now})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, rule := range doctor.Rules() {
		if rule.Code != "IM05" {
			continue
		}
		all := rule.Judge(e)
		i := slices.IndexFunc(all, func(r doctor.Result) bool { return r.Object.Name == m.name })
		if i >= 0 {
			return all[i]
		}
	}
	m.t.Fatalf("nothing is said of %s", m.name)
	return doctor.Result{}
}
