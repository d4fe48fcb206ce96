// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/journal/journaltest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// record is an entry as journalctl exports it.
func record(e *Entry, into *journaltest.Record) {
	*into = journaltest.Record{Realtime: e.Realtime.UnixMicro(), Monotonic: e.Monotonic.Microseconds(),
		Fields: into.Fields[:0]}
	into.Cursor = fmt.Sprintf("s=%s;i=%x;b=%s;m=%x;t=%x;x=%x", e.SeqnumID, e.Seqnum, e.Boot,
		into.Monotonic, into.Realtime, e.XorHash)
	for _, f := range e.Fields {
		if f.Name != "_BOOT_ID" {
			into.Fields = append(into.Fields, journaltest.Pair{Name: f.Name, Value: f.Value})
		}
	}
}

// digests is what journalctl and Entries make of the same file.
func digests(t *testing.T, path string) (theirs, ours journaltest.Digest, damage Damage) {
	t.Helper()
	exported(t, func(r *journaltest.Record) { theirs.Add(r) }, path)
	var rec journaltest.Record
	damage, err := opened(t, path).Entries(t.Context(), Options{}, func(e *Entry) error {
		record(e, &rec)
		ours.Add(&rec)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return theirs, ours, damage
}

// exported hands what journalctl exports of files to fn.
func exported(t *testing.T, fn func(*journaltest.Record), paths ...string) {
	t.Helper()
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := journaltest.Journalctl(t.Context(), write, paths...)
		write.CloseWithError(err)
		done <- err
	}()
	err := journaltest.Parse(read, func(r *journaltest.Record) error { fn(r); return nil })
	read.Close()
	if err2 := <-done; err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
}

func opened(t testing.TB, path string) *File {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// made has systemd write a journal of a stream.
func made(t testing.TB, form journaltest.Form, s journaltest.Stream) string {
	t.Helper()
	testenv.Need(t, journaltest.Remote, "gcc", "journalctl")
	var stream bytes.Buffer
	if err := s.Write(&stream); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), form.Name+".journal")
	if err := journaltest.Make(t.Context(), path, form, &stream); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestAsJournalctl: all fields of all entries are those that journalctl exports, in every form.
func TestAsJournalctl(t *testing.T) {
	n := 1500
	if testenv.Long() {
		n = 20_000
	}
	for _, form := range journaltest.Forms() {
		t.Run(form.Name, func(t *testing.T) {
			t.Parallel()
			theirs, ours, damage := digests(t, made(t, form, journaltest.Stream{N: n, SetBack: 30 * time.Second}))
			if theirs.N != n || ours != theirs {
				t.Errorf("Entries = %v, want journalctl's %v", &ours, &theirs)
			}
			if !damage.Complete() || damage.Unclean || damage.ClockBack != 1 {
				t.Errorf("damage %+v, want none, and the clock set back once", damage)
			}
		})
	}
}
