// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if hold.IsChild(os.Args) {
		hold.Serve()
	}
	if err := hold.Apart(); err != nil {
		fmt.Fprintln(os.Stderr, err) // the tests that need it say so, too
	}
	testenv.Main(m)
}

func openRefs(t testing.TB) *Refs {
	t.Helper()
	return openEdited(t, nil)
}

// openEdited loads the programs of mounts.c as edit makes them.
func openEdited(t testing.TB, edit func(*ebpf.CollectionSpec) error) *Refs {
	t.Helper()
	testenv.NeedRoot(t)
	r, err := openWith(edit)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Uncounted(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// mounted is a line of mountinfo.
type mounted struct {
	id, parent  int
	dev         string
	root, point string

	group, master int
}

func mountinfo(t testing.TB) []mounted {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var ms []mounted
	for l := range strings.Lines(string(text)) {
		var m mounted
		if _, err := fmt.Sscan(l, &m.id, &m.parent, &m.dev, &m.root, &m.point); err != nil {
			t.Fatal(err)
		}
		for _, f := range strings.Fields(l)[6:] {
			if f == "-" {
				break
			}
			fmt.Sscanf(f, "shared:%d", &m.group)
			fmt.Sscanf(f, "master:%d", &m.master)
		}
		ms = append(ms, m)
	}
	return ms
}

// TestRefused holds that without rights there is an error that says so.
func TestRefused(t *testing.T) {
	if testenv.AsUser(t) {
		return
	}
	if r, err := OpenRefs(); !errors.Is(err, ErrRefused) {
		t.Errorf("OpenRefs without rights = %v, %v, want %v", r, err, ErrRefused)
	} else {
		t.Log(err)
	}
}

// FuzzSplit holds that no bytes make records of more than they are.
func FuzzSplit(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0, 2, 0, 8, 0, 1, 0, 0, 0, 2, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9})
	f.Add([]byte{1, 0, 0, 0, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		rest, err := split(data, func(r record) error {
			n += len(r.data)
			var any found
			if err := r.into(&any); err == nil && len(r.data) < 48 {
				t.Errorf("a record of %d bytes is decoded, want 48 at least", len(r.data))
			}
			return nil
		})
		if err == nil && n+len(rest) != len(data) {
			t.Errorf("split gave %d bytes and left %d of %d", n, len(rest), len(data))
		}
	})
}
