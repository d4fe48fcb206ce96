// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/linux/loop"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestRecoverBesideLoopThatHangs holds that what a killed process left is taken away while another loop device is on
// a file whose storage does not answer: that device is asked for nothing.
func TestRecoverBesideLoopThatHangs(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	at, store := filepath.Join(dir, "mnt"), filepath.Join(dir, "store")
	if err := errors.Join(os.Mkdir(at, 0o755), os.WriteFile(store, make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	served, err := faultfs.Mount(at, faultfs.Stored{Name: "data", Store: store})
	if errors.Is(err, faultfs.ErrUnavailable) {
		testenv.Lacks(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := served.Close(); err != nil {
			t.Error(err)
		}
	}()
	f, err := os.OpenFile(filepath.Join(at, "data"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd, _, err := loop.Attach(int(f.Fd()), loop.Options{Name: "another's"})
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	hang, err := served.Set("data", "look hang")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan error, 1)
	go func() {
		_, err := unix.IoctlLoopGetStatus64(fd)
		asked <- err
	}()
	if err := hang.Waiting(); err != nil {
		t.Fatalf("to ask the device for its state does not hang, so this shows nothing: %v", err)
	}
	state := t.TempDir()
	b, err := begin(state, record{Kind: kindKernel, Dir: []byte(dir)})
	if err != nil {
		t.Fatal(err)
	}
	b.PID, b.Marker = 1<<30, "shisa-mark"
	if err := b.write(); err != nil {
		t.Fatal(err)
	}
	type result struct {
		gone []Gone
		err  error
	}
	done := make(chan result, 1)
	go func() {
		gone, err := Recover(state)
		done <- result{gone, err}
	}()
	hung := false
	select {
	case r := <-done:
		if r.err != nil || len(r.gone) != 1 {
			t.Errorf("Recover = %+v, %v, want the one mount", r.gone, r.err)
		}
	case <-time.After(time.Minute): // no measure of time: it would not come back at all
		hung = true
		t.Error("Recover waits for the storage of a loop device that is not ours")
	}
	if err := served.Clear(""); err != nil {
		t.Error(err)
	}
	if err := <-asked; err != nil {
		t.Error(err)
	}
	if hung {
		<-done
	}
}
