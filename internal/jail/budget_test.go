// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/volume"
)

// TestReadsForEver has a child that reads on and on and never answers, nothing or much at a time, in
// or behind the disk.
func TestReadsForEver(t *testing.T) {
	for name, tc := range map[string]struct {
		off, want int64
		call      func(*Jail) error
	}{
		"nothing": {0, 0, func(j *Jail) error { _, err := j.Layout(t.Context()); return err }},
		"much":    {0, windowBytes, func(j *Jail) error { _, err := j.FS(t.Context(), 0); return err }},
		"behind": {1 << 40, 512, func(j *Jail) error {
			_, err := (&FS{j: j}).Open(t.Context(), 2)
			return err
		}},
		"content": {100, 1, func(j *Jail) error {
			f := &file{fs: &FS{j: j}, stat: &files.Stat{Ino: 12, Size: 1 << 20}}
			_, err := f.ReadAt(make([]byte, 512), 0)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			// It takes the call and reads at once.
			called := make(chan struct{}, lanes)
			j := fake(t, func(fd int) {
				buf := make([]byte, maxMessage)
				for {
					if _, err := receive(fd, buf); err != nil {
						return
					}
					called <- struct{}{}
				}
			})
			j.disks = []volume.Disk{{Data: bytes.NewReader(make([]byte, 1<<20)), Size: 1 << 20}}
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			ours, theirs := os.NewFile(uintptr(fds[0]), "feed"), os.NewFile(uintptr(fds[1]), "feed")
			fed, read := make(chan struct{}), make(chan int64)
			go func() {
				defer close(fed)
				j.feed(ours, make([]byte, windowBytes))
				ours.Close()
			}()
			go func() {
				<-called
				buf, n := make([]byte, 8<<10), int64(0)
				q := new(message)
				q.putInt(0)
				q.putInt(tc.off)
				q.putInt(tc.want)
				for {
					if send(int(theirs.Fd()), q.b) != nil {
						break
					}
					if _, err := receive(int(theirs.Fd()), buf); err != nil {
						break
					}
					n++
				}
				read <- n
			}()
			err = tc.call(j)
			crash := new(CrashError)
			if !errors.As(err, &crash) || !strings.Contains(crash.How, "bytes and gave no answer") {
				t.Errorf("the call ends with %v", err)
			}
			n := <-read
			theirs.Close()
			<-fed
			if most := int64(lanes * roomBytes / readCost); n < 100 || n > most {
				t.Errorf("it read %d times, want at most %d", n, most)
			}
		})
	}
}

// TestBudget: a call has the room of the one that it waits along with, and what was read before it or
// is read when none waits does not count.
func TestBudget(t *testing.T) {
	ask := func(op int64) *message {
		q := new(message)
		q.putInt(op)
		return q
	}
	b := newBudget([]volume.Disk{{Size: 4 << 30}, {Size: 1 << 62}, {Size: -1}})
	if b.size != maxShared {
		t.Errorf("the disks count as %d bytes, want %d", b.size, int64(maxShared))
	}
	b = newBudget([]volume.Disk{{Size: 4 << 30}})
	small, large := int64(lanes*(roomBytes+1<<30)), int64(lanes*(roomBytes+32<<30))
	one, two := new(lane), new(lane)
	must := func(n int64, fits bool) {
		t.Helper()
		if err := b.read(n); (err == nil) != fits {
			t.Errorf("reading %d: %v, want that it is allowed: %v", n, err, fits)
		}
	}
	must(1<<50, true)
	b.begin(one, ask(opRead))
	must(small, true)
	must(1, false)
	b.done(one)
	b.begin(one, ask(opRead))
	b.begin(two, ask(opOwners))
	must(large, true)
	b.done(two)
	must(0, false)
	b.done(one)
	must(1<<50, true)
}
