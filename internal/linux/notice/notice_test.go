// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package notice

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// removes is what a child of the tests is called with that removes a file and ends: guests have no rm.
const removes = "remove"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == removes {
		if err := os.Remove(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testenv.Main(m)
}

func watch(t *testing.T, dir string) *Watcher {
	t.Helper()
	testenv.NeedRoot(t)
	w, err := Watch(dir, linux.Open(""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	w := watch(t, dir)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	f := filepath.Join(dir, "a name\nof two lines")
	do(os.WriteFile(f, nil, 0o644))
	do(os.Rename(f, dir+"/b"))
	do(os.Remove(dir + "/b"))
	do(os.Mkdir(dir+"/d", 0o755))
	do(os.Remove(dir + "/d"))
	do(os.Remove(dir))
	want := []Event{
		{Kind: Appeared, Name: "a name\nof two lines"}, {Kind: MovedAway, Name: "a name\nof two lines"},
		{Kind: Appeared, Name: "b"}, {Kind: Removed, Name: "b"},
		{Kind: Appeared, Name: "d"}, {Kind: Removed, Name: "d"}, {Kind: Gone},
	}
	var got []Event
	for {
		e, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e.PID != os.Getpid() || e.Command == "" || e.Time.IsZero() {
			t.Errorf("%+v: want it by this process, %d", e, os.Getpid())
		}
		got = append(got, Event{Kind: e.Kind, Name: e.Name})
		if e.Kind == Gone {
			break
		}
	}
	// The kernel may tell what one process did to one name at once, as one event: each name has its last end.
	last := func(all []Event) map[string]Kind {
		m := map[string]Kind{}
		for _, e := range all {
			if m[e.Name] == "" || e.Kind != Appeared {
				m[e.Name] = e.Kind
			}
		}
		return m
	}
	for name, kind := range last(want) {
		if last(got)[name] != kind {
			t.Errorf("%q = %v, want %v; all: %+v", name, last(got)[name], kind, got)
		}
	}
}

// removedBy has children remove files of a directory one by one, and gives what is told of each.
func removedBy(t *testing.T, w *Watcher, dir string, n int) (all []Event) {
	t.Helper()
	for i := range n {
		f := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(os.Args[0], removes, f).CombinedOutput(); err != nil {
			t.Fatalf("remove: %v\n%s", err, out)
		}
	}
	for len(all) < n {
		e, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == Removed {
			all = append(all, e)
		}
	}
	return all
}

// TestEnded: a process that ended long before its event is read is named by its command line.
func TestEnded(t *testing.T) {
	dir := t.TempDir()
	w := watch(t, dir)
	if err := w.Unsure(); err != nil {
		t.Fatal(err)
	}
	for i, e := range removedBy(t, w, dir, 50) {
		if want := os.Args[0] + " " + removes + " " + filepath.Join(dir, strconv.Itoa(i)); e.PID <= 0 || e.Command != want {
			t.Errorf("%+v: want it by %q", e, want)
		}
	}
}

// TestEndedUnknown: where the kernel writes nothing down, no other process is taken for the one that ended.
func TestEndedUnknown(t *testing.T) {
	dir := t.TempDir()
	w := watch(t, dir)
	if w.removers != nil {
		if err := w.removers.Close(); err != nil {
			t.Fatal(err)
		}
		w.removers = nil
	}
	for _, e := range removedBy(t, w, dir, 5) {
		if e.PID <= 0 || e.Command != "" || e.Unit != "" {
			t.Errorf("%+v: want a process that has ended", e)
		}
	}
	// It is not taken for the one that has its number now either.
	e := parsed{Event: Event{Kind: Removed, PID: os.Getpid()}, pidfd: -1}
	if w.who(t.Context(), &e); w.told && e.Command != "" {
		t.Errorf("%+v: want a process that has ended", e.Event)
	}
}

func TestEnds(t *testing.T) {
	w := watch(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next = %v, want that it was ended", err)
	}
	if _, err := Watch(filepath.Join(t.TempDir(), "nothing"), linux.Open("")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Watch of nothing = %v, want %v", err, os.ErrNotExist)
	}
}

func FuzzParse(f *testing.F) {
	b := make([]byte, 64)
	binary.NativeEndian.PutUint32(b, 64)
	b[4] = unix.FANOTIFY_METADATA_VERSION
	binary.NativeEndian.PutUint16(b[6:], 24)
	binary.NativeEndian.PutUint64(b[8:], unix.FAN_DELETE)
	b[24] = dfidName
	binary.NativeEndian.PutUint16(b[26:], 40)
	binary.NativeEndian.PutUint32(b[36:], 8)
	copy(b[52:], "name")
	if e, ok, n := parse(b); !ok || e.Kind != Removed || e.Name != "name" || n != 64 {
		f.Fatalf("parse = %+v, %v, %d", e, ok, n)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) >= metadataBytes {
			_, _, n := parse(b)
			if n < metadataBytes || n > len(b) {
				t.Fatalf("an event of %d bytes in %d", n, len(b))
			}
			b = b[n:]
		}
	})
}
