// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// apart makes a pool whose directory of bases is a symbolic link to another one.
func apart(t *testing.T, bases string) *world {
	w := newWorld(t)
	if err := errors.Join(os.MkdirAll(w.path(bases), 0o755), os.Remove(w.path("pool/_base")),
		os.Symlink("../"+bases, w.path("pool/_base"))); err != nil {
		t.Fatal(err)
	}
	w.base(sumOfImage)
	w.base("alone")
	w.image("pool/i/disk", "qcow2", w.path("pool/_base/"+sumOfImage))
	w.write("pool/compute_nodes", []byte(`{"n1": 1700000000, "n2": 1700000000}`))
	return w
}

// TestTargetOfLink: a pool may be named by what its symbolic link leads to. Who rests on its bases lies beside the link.
func TestTargetOfLink(t *testing.T) {
	used := []string{sumOfImage + " live: header pool/i/disk 1", "alone live:"}
	for _, bases := range []string{"store/all", "store/_base"} {
		w := apart(t, bases)
		root := w.path("root")
		w.link(w.path("pool"), "inst")
		w.mkdir("root")
		w.link("../inst", "root/inst")
		w.write("root/etc/nova/nova.conf", []byte("[DEFAULT]\ninstances_path = /inst\n"))
		tr, err := tree.OpenDirectory(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		for name, o := range map[string]Options{
			"by the configuration": {BaseDirs: []string{w.path("inst/_base")}},
			"by a further root":    {Roots: []string{w.path("pool")}},
			"by Nova":              {Host: &Host{Tree: tr, Root: root}},
		} {
			o.Pool = w.path(bases)
			c := w.look(o)
			if d := cmp.Diff(used, w.lines(c)); d != "" {
				t.Errorf("%s, %s: Look (-want +got):\n%s", bases, name, d)
			}
			if len(c.Hosts) != 2 || c.Bases != w.path(bases) || c.Instances[len(c.Instances)-1] != w.path("pool") {
				t.Errorf("%s, %s: hosts %v, bases in %s of %q", bases, name, c.Hosts, c.Bases, c.Instances)
			}
		}
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	}
	w := apart(t, "store/all")
	want := []string{"gap store/all: there are bases of Nova in it, and the directory of instances that they belong to is not known: " +
		"name the pool by that"}
	if d := cmp.Diff(want, w.lines(w.look(Options{Pool: w.path("store/all")}))); d != "" {
		t.Errorf("nothing known: Look (-want +got):\n%s", d)
	}
	// Of what is mounted somewhere else nothing can be said.
	w.link(w.path("round"), "round")
	c := w.look(Options{Pool: w.path("pool"), BaseDirs: []string{w.path("round/_base")}})
	if got := strings.Join(w.lines(c), "|"); !strings.HasSuffix(got, "|gap round/_base: whether it is that of this pool could not be told") {
		t.Errorf("one that cannot be looked at: Look = %s", got)
	}
	w.mkdir("away")
	c = w.look(Options{Pool: w.path("pool"), BaseDirs: []string{w.path("away/_base")}})
	if got := strings.Join(w.lines(c), "|"); !strings.HasSuffix(got, "|gap away: its directory of bases is not there: is its storage mounted?") {
		t.Errorf("one whose storage is not mounted: Look = %s", got)
	}
	// One of images has none, and is that of the bases itself.
	w.write("images/base", make([]byte, 4096))
	w.image("images/disk", "qcow2", w.path("images/base"))
	if c = w.look(Options{Pool: w.path("images"), BaseDirs: []string{w.path("images/_base")}}); strings.Contains(strings.Join(w.lines(c), "|"), "gap ") {
		t.Errorf("one of images: Look = %q", w.lines(c))
	}
}

// TestListsOfHosts: of a host that stands in several lists the latest time counts.
func TestListsOfHosts(t *testing.T) {
	w := apart(t, "store/_base")
	w.write("store/compute_nodes", []byte(`{"n2": 1800000000, "n3": 1700000000}`))
	got := ""
	for _, h := range w.look(Options{Pool: w.path("store"), BaseDirs: []string{w.path("pool/_base")}}).Hosts {
		got += " " + h.Name + h.Heard.Format(" 2006")
	}
	if got != " n1 2023 n2 2027 n3 2023" {
		t.Errorf("hosts%s", got)
	}
}

// TestMountedBases: a directory of bases may be mounted at another place, by which the pool is named.
func TestMountedBases(t *testing.T) {
	testenv.NeedRoot(t)
	w := newWorld(t)
	w.image("pool/i/disk", "qcow2", w.base("b"))
	w.mkdir("far")
	if err := unix.Mount(w.path("pool/_base"), w.path("far"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(w.path("far"), 0); err != nil {
			t.Error(err)
		}
	}()
	// Below the pool it is met by one of its names, whichever that is.
	w.mkdir("pool/more")
	if err := unix.Mount(w.path("pool/_base"), w.path("pool/more"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(w.path("pool/more"), 0); err != nil {
			t.Error(err)
		}
	}()
	var kept []byte
	for _, o := range []Options{{Pool: w.path("far")}, {Pool: w.path("pool/more")}, {}, {Index: func(string) ([]byte, error) { return nil, nil }},
		{Index: func(string) ([]byte, error) { return kept, nil }}} {
		o.BaseDirs = []string{w.path("pool/_base")}
		c := w.look(o)
		if d := cmp.Diff([]string{"b live: header pool/i/disk 1"}, w.lines(c)); d != "" {
			t.Errorf("%s, with an index: %v: Look (-want +got):\n%s", o.Pool, c.Indexed, d)
		}
		if _, next := c.Next(); next != nil {
			kept = next
		}
	}
	if kept == nil {
		t.Error("there was no index")
	}
}
