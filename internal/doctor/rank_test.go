// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// guestOf is a machine with an NFS mount at /data.
func guestOf(label, server string) *evidence.Evidence {
	return &evidence.Evidence{Kind: tree.Bundle, Label: label, Host: evidence.Host{Name: label}, Now: noon,
		Mounts: []evidence.Mount{
			{Mount: linux.Mount{Point: "/", Type: "ext4"}, Own: true, FS: 0},
			{Mount: linux.Mount{Point: "/data", Type: "nfs4"}, Own: true, FS: 1,
				NFS: &evidence.NFS{Server: server, Export: "/export"}},
		},
		FSs: []evidence.FS{{Type: "ext4", Device: "vda1", Mounts: []int{0}},
			{Type: "nfs4", Source: server + ":/export", Mounts: []int{1}}},
		Devices: []evidence.Device{{Block: linux.Block{Name: "vda1"}}},
	}
}

// saying is a rule that says what stands in a table.
func saying(code string, reach Reach, severity finding.Severity, results map[Object]Outcome) Rule {
	r := Rule{Rule: finding.Rule{Code: code, Name: strings.ToLower(code), Severity: severity}, Reach: reach}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for o, outcome := range results {
			if o.On != e.Label {
				continue
			}
			switch outcome {
			case Fail:
				out = append(out, fail(found(&r, o, 0.9, "kind", code+" of "+o.Name)))
			case Pass:
				out = append(out, pass(o))
			default:
				out = append(out, unknown(o, "for a test"))
			}
		}
		return out
	}
	return r
}

// TestStoryOfTheFullServer is the first story: two guests hang, an image of one of them has leaks, a
// third guest has mounted the same share, does not write, and is well.
func TestStoryOfTheFullServer(t *testing.T) {
	mount := func(label string) Object { return Object{Mount, label, "/data"} }
	task := func(label string) Object { return Object{Task, label, "ls[17]"} }
	server := &evidence.Evidence{Label: "nfs01", Host: evidence.Host{Name: "nfs01", Addresses: []string{"10.0.0.5"}},
		Mounts: []evidence.Mount{{Mount: linux.Mount{Point: "/export", Type: "xfs"}, Own: true, FS: 0}},
		FSs:    []evidence.FS{{Type: "xfs", Device: "sdb1", Mounts: []int{0}}}}
	hang := saying("NF01", Upward, finding.Lost, map[Object]Outcome{
		mount("g1"): Fail, mount("g2"): Fail, mount("g3"): Pass})
	wait := saying("PR01", Local, finding.Danger, map[Object]Outcome{task("g1"): Fail, task("g2"): Fail})
	full := saying("FS08", Upward, finding.Danger, map[Object]Outcome{
		{FileSystem, "nfs01", "sdb1"}: Fail, {FileSystem, "g1", "vda1"}: Pass, {FileSystem, "g3", "vda1"}: Pass})
	leak := saying("IM03", Hint, finding.Waste, map[Object]Outcome{{FileSystem, "g1", "vda1"}: Fail})
	for _, c := range []struct {
		name   string
		server bool
		leaks  bool
		sure   Certainty
		object Object
	}{
		{"the server was looked at", true, true, LikelyCause, Object{FileSystem, "nfs01", "sdb1"}},
		{"leaks were repaired", true, false, LikelyCause, Object{FileSystem, "nfs01", "sdb1"}},
		{"the server was not looked at", false, true, NotLookedAt, Object{Server, "", "10.0.0.5"}},
		{"nor then", false, false, NotLookedAt, Object{Server, "", "10.0.0.5"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := []*evidence.Evidence{guestOf("g1", "10.0.0.5"), guestOf("g2", "10.0.0.5"),
				guestOf("g3", "10.0.0.5")}
			for _, e := range all[:2] {
				e.Tasks.Waiting = []evidence.Task{{PID: 17, TID: 17, Comm: "ls", Mounts: []string{"/data"}}}
			}
			rules := []Rule{hang, wait, full}
			if c.server {
				all = append(all, server)
			}
			if c.leaks {
				rules = append(rules, leak)
			}
			rep := Examine(all, rules)
			if len(rep.Causes) == 0 {
				t.Fatal("Examine names no cause")
			}
			got := rep.Causes[0]
			if got.Certainty != c.sure || got.Object != c.object {
				t.Errorf("Examine says %s %s, want %s %s\n%s", got.Certainty, got.Object, c.sure, c.object, sums(rep))
			}
			if n := len(got.Explains); n != 4 {
				t.Errorf("it explains %d findings, want 4\n%s", n, sums(rep))
			}
			if c.leaks && rep.Causes[len(rep.Causes)-1].Object.Name != "vda1" {
				t.Errorf("the leaks do not come last\n%s", sums(rep))
			}
		})
	}
}

// TestDoubtedIsOpen: what was looked at, and of which rules could not tell, may be the cause of all that depends on it, as
// what was not looked at may.
func TestDoubtedIsOpen(t *testing.T) {
	share := func(on string) Object { return Object{Mount, on, "/data"} }
	hang := saying("NF01", Upward, finding.Lost, map[Object]Outcome{share("g1"): Fail, share("g2"): Fail})
	server := &evidence.Evidence{Label: "nfs01", Host: evidence.Host{Name: "nfs01", Addresses: []string{"10.0.0.5"}},
		Mounts:  []evidence.Mount{{Mount: linux.Mount{Point: "/export", Type: "xfs"}, Own: true, FS: 0}},
		FSs:     []evidence.FS{{Type: "xfs", Device: "sdb1", Mounts: []int{0}}},
		Devices: []evidence.Device{{Block: linux.Block{Name: "sdb1"}}, {Block: linux.Block{Name: "sdb"}}}}
	o := Object{FileSystem, "nfs01", "sdb1"}
	rep := Examine([]*evidence.Evidence{guestOf("g1", "10.0.0.5"), guestOf("g2", "10.0.0.5"), server}, []Rule{hang})
	if i := slices.IndexFunc(rep.Objects, func(x Seen) bool { return x.Object == o }); i < 0 || rep.Objects[i].State != Doubted {
		t.Fatalf("objects %+v, want %s among them, of which rules could not tell", rep.Objects, o)
	}
	if len(rep.Causes) == 0 || rep.Causes[0].Object != o || len(rep.Causes[0].Explains) != 2 {
		t.Errorf("want %s first, for both mounts\n%s", o, sums(rep))
	}
}

// sums prints all scores.
func sums(rep *Report) string {
	var b strings.Builder
	for _, c := range rep.Causes {
		b.WriteString(strings.Join([]string{string(c.Certainty), c.Object.String()}, " ") + "\n")
		for _, x := range c.Terms {
			b.WriteString("    " + x.Object.String() + ": " + x.Text + "\n")
		}
	}
	return b.String()
}
