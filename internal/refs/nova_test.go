// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What sha1sum says of "img-1".
const sumOfImage = "3c9875d4ce035043f843d25f28119ae501bdd661"

// export writes an export of two machines, one of which was deleted.
func (w *world) export(name string, made time.Time) string {
	w.write(name, []byte(`{"schema":"shisa.nova-export/1","made":"`+made.Format(time.RFC3339)+`","of":"nova"}
{"uuid":"`+machineA+`","host":"nodeC","image_ref":"img-1","deleted":0,"task_state":"spawning","created_at":"2026-02-01 04:00:00"}
{"uuid":"`+machineB+`","host":"nodeC","image_ref":"img-2","deleted":7,"task_state":null}
{"instance":"`+machineA+`","image":"img-3"}
{"instance":"`+machineA+`","disk":"ephemeral","size":2}
{"instances":2,"images":1,"disks":1}
`))
	return w.path(name)
}

// TestNovaExport: what Nova's database knows is added to what the headers say, and takes nothing from it.
func TestNovaExport(t *testing.T) {
	w := newWorld(t)
	made := time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)
	at := func(d time.Duration) func() time.Time { return func() time.Time { return made.Add(d) } }
	w.base(sumOfImage)
	w.base("0000000000000000000000000000000000000000") // whose image the database does not know
	w.base("ephemeral_1_default")
	w.base("ephemeral_2_default")
	w.image("pool/"+machineB+"/disk", "qcow2", w.path("pool/_base/0000000000000000000000000000000000000000"))
	o := Options{Nova: []string{w.export("export", made)}, Now: at(23 * time.Hour)}
	bases := []string{
		"0000000000000000000000000000000000000000 live: header pool/" + machineB + "/disk 1",
		sumOfImage + " live: nova export 0",
		"ephemeral_1_default live:",
		"ephemeral_2_default live: nova export 0",
	}
	c := w.look(o)
	if d := cmp.Diff(bases, w.lines(c)); d != "" {
		t.Errorf("Look (-want +got):\n%s", d)
	}
	want := Reference{How: Nova, Holder: w.path("export"), Machine: machineA, Node: "nodeC", As: "img-1", Task: "spawning",
		Since: time.Date(2026, 2, 1, 4, 0, 0, 0, time.UTC)}
	if d := cmp.Diff(want, c.All[1].Uses[0]); d != "" || c.Looked.Instances != 2 {
		t.Errorf("Look has %d instances and (-want +got):\n%s", c.Looked.Instances, d)
	}
	for _, tt := range []struct {
		name string
		o    Options
		gap  string
	}{
		{"a day old", Options{Nova: o.Nova, Now: at(25 * time.Hour)},
			"gap export: it was made at 2026-03-01 04:00 UTC, more than a day ago: what was launched since is not in it"},
		{"to come", Options{Nova: o.Nova, Now: at(-time.Hour)},
			"gap export: it says that it was made at 2026-03-01 04:00 UTC, which is to come: how old it is cannot be told"},
		{"a little ahead", Options{Nova: o.Nova, Now: at(-time.Minute)}, ""},
	} {
		want := bases
		if tt.gap != "" {
			want = append(want[:len(want):len(want)], tt.gap)
		}
		if d := cmp.Diff(want, w.lines(w.look(tt.o))); d != "" {
			t.Errorf("%s: Look (-want +got):\n%s", tt.name, d)
		}
	}
	// Without its base an image is broken; what only the database knows is not.
	if err := os.Remove(w.path("pool/_base/" + sumOfImage)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{bases[0], bases[2], bases[3]}, w.lines(w.look(o))); d != "" {
		t.Errorf("with a base gone: Look (-want +got):\n%s", d)
	}
	w.image("pool/"+machineA+"/disk", "qcow2", w.path("pool/_base/"+sumOfImage))
	broken := sumOfImage + " missing: nova export 0 header pool/" + machineA + "/disk 1"
	if d := cmp.Diff([]string{bases[0], broken, bases[2], bases[3]}, w.lines(w.look(o))); d != "" {
		t.Errorf("with a base gone that an image rests on: Look (-want +got):\n%s", d)
	}
}

// TestNovaExportUnread: an export that cannot be read is a gap, and what it says before that counts.
func TestNovaExportUnread(t *testing.T) {
	w := newWorld(t)
	w.base(sumOfImage)
	whole, err := os.ReadFile(w.export("export", time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	w.write("cut", whole[:len(whole)-30])
	w.write("empty", nil)
	w.mkdir("dir")
	used, unused := sumOfImage+" live: nova export 0 nova cut 0", sumOfImage+" live:"
	for _, tt := range []struct {
		name string
		nova []string
		want []string
	}{
		{"cut off", []string{"export", "cut"}, []string{strings.Replace(used, "nova export 0 nova cut 0", "nova cut 0 nova export 0", 1),
			"gap cut: line 6: is no whole export of Nova: it is cut off"}},
		{"empty", []string{"empty"}, []string{unused, "gap empty: line 1: is no whole export of Nova: the line that ends it is missing"}},
		{"not there", []string{"none"}, []string{unused, "gap none: no such file or directory"}},
		{"a directory", []string{"dir"}, []string{unused, "gap dir: is a directory"}},
	} {
		o := Options{}
		for _, n := range tt.nova {
			o.Nova = append(o.Nova, w.path(n))
		}
		c := w.look(o)
		if d := cmp.Diff(tt.want, w.lines(c)); d != "" {
			t.Errorf("%s: Look (-want +got):\n%s", tt.name, d)
		}
	}
	// One that is read in several parts is whole.
	var b strings.Builder
	fmt.Fprintln(&b, strings.SplitN(string(whole), "\n", 2)[0])
	const many = 9000
	for i := range many {
		fmt.Fprintf(&b, `{"uuid":"%08x%s","host":"node%0100d","image_ref":"img-1","deleted":0,"task_state":null}`+"\n", i, machineA[8:], i)
	}
	fmt.Fprintf(&b, `{"instances":%d,"images":0,"disks":0}`, many)
	if b.Len() <= readBytes {
		t.Fatalf("%d bytes are no more than one part", b.Len())
	}
	w.write("large", []byte(b.String()))
	c := w.look(Options{Nova: []string{w.path("large")}})
	if n := len(c.All[0].Uses); n != many || len(w.lines(c)) != 1 {
		t.Errorf("Look = %d uses, want %d; %v", n, many, c.Gaps)
	}
}

// TestHosts: the list of hosts beside the instances is read, and one that is torn is a gap.
func TestHosts(t *testing.T) {
	for _, tt := range []struct{ name, text, want, gap string }{
		{"whole", `{"nodeB": 1.5, "nodeA": 2.5}`, "nodeA nodeB", ""},
		{"torn", `{"nodeA": 2.5, "node`, "nodeA", "gap pool/compute_nodes: is no whole list of hosts: it is cut off"},
		{"empty", ``, "", "gap pool/compute_nodes: is no whole list of hosts: it is cut off"},
	} {
		w := newWorld(t)
		w.write("pool/compute_nodes", []byte(tt.text))
		if c := w.look(Options{}); hostNames(c) != tt.want || strings.Join(w.lines(c), " ") != tt.gap {
			t.Errorf("%s: Look = %q %v, want %q %q", tt.name, hostNames(c), w.lines(c), tt.want, tt.gap)
		}
		if c := w.look(Options{Pool: w.path("pool/_base")}); hostNames(c) != tt.want {
			t.Errorf("%s: Look of the bases = %q, want %q", tt.name, hostNames(c), tt.want)
		}
	}
	w := newWorld(t)
	if c := w.look(Options{}); c.Hosts == nil || len(c.Hosts) > 0 || len(w.lines(c)) > 0 {
		t.Errorf("without a list: Look = %v %v, want none", c.Hosts, w.lines(c))
	}
	o := Options{ComputeNodes: w.path("elsewhere/list")}
	if d := cmp.Diff([]string{"gap elsewhere/list: no such file or directory"}, w.lines(w.look(o))); d != "" {
		t.Errorf("without the list that was named: Look (-want +got):\n%s", d)
	}
	w.write("elsewhere/list", []byte(`{"nodeC": 1}`))
	if c := w.look(o); hostNames(c) != "nodeC" {
		t.Errorf("with a list that was named: Look = %q, want nodeC", hostNames(c))
	}
}

// TestHostsWritten: Nova empties its list before it writes it. One that is whole a moment later is no gap.
func TestHostsWritten(t *testing.T) {
	w := newWorld(t)
	for range 100 {
		w.write("pool/compute_nodes", nil)
		tk := &taking{o: Options{Now: time.Now, Timeout: time.Minute}, c: &Census{Instances: []string{w.path("pool")}}}
		begun := time.Now()
		wrote := make(chan error)
		var done time.Time
		go func() {
			time.Sleep(writingHosts / 4)
			err := os.WriteFile(w.path("new"), []byte(`{"nodeA": 1.5}`), 0o644)
			err = errors.Join(err, os.Rename(w.path("new"), w.path("pool/compute_nodes")))
			done = time.Now()
			wrote <- err
		}()
		if err := errors.Join(tk.hosts(t.Context()), <-wrote); err != nil {
			t.Fatal(err)
		}
		if done.Sub(begun) >= writingHosts {
			continue // this machine has much to do, and wrote too late
		}
		if len(tk.c.Gaps) > 0 || hostNames(tk.c) != "nodeA" {
			t.Errorf("hosts = %q, %v, want nodeA", hostNames(tk.c), tk.c.Gaps)
		}
		return
	}
	t.Error("this machine was too slow a hundred times")
}

func hostNames(c *Census) string {
	var names []string
	for _, h := range c.Hosts {
		names = append(names, h.Name)
	}
	return strings.Join(names, " ")
}

// TestHostsAhead: a host that registered at a time to come has a clock that is ahead, unless that is a few minutes.
func TestHostsAhead(t *testing.T) {
	w := newWorld(t)
	now := time.Unix(1700000000, 0)
	w.write("pool/compute_nodes", []byte(`{"a": 1700000000, "b": 1700000299, "c": 1700090000.5, "d": 1600000000}`))
	want := map[string]int64{"c": 90000}
	c := w.look(Options{Now: func() time.Time { return now }})
	for _, h := range c.Hosts {
		if h.AheadSeconds != want[h.Name] {
			t.Errorf("%s is %d s ahead, want %d", h.Name, h.AheadSeconds, want[h.Name])
		}
	}
	if hostNames(c) != "a b c d" {
		t.Errorf("hosts = %s", hostNames(c))
	}
}
