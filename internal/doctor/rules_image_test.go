// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
)

func TestImageRules(t *testing.T) {
	img := func(name string, change func(*evidence.Image)) evidence.Image {
		x := evidence.Image{Path: name, Format: "qcow2", Mount: -1}
		if change != nil {
			change(&x)
		}
		return x
	}
	over := func(state string) evidence.Image {
		return img("/v/over", func(x *evidence.Image) {
			x.Backing, x.BackingPath, x.BackingState = "base", "/v/base", state
		})
	}
	images := func(all ...evidence.Image) evidence.Evidence { return evidence.Evidence{Images: all} }
	gone := func(x *evidence.Image) {
		*x = evidence.Image{Path: x.Path, Mount: -1, Unread: "is not there"}
	}
	machine := func(m evidence.Machine) evidence.Evidence {
		m.Name = "web"
		return evidence.Evidence{Machines: []evidence.Machine{m}}
	}
	use := func(pid int, machine string, writing bool) evidence.ImageUser {
		return evidence.ImageUser{PID: pid, Command: "qemu", Machine: machine, Writing: writing}
	}
	far := func(machine, state string, before time.Duration) evidence.ImageUser {
		u := evidence.ImageUser{PID: 7, Command: "qemu", Machine: machine, State: state, Writing: true}
		if before > 0 {
			u.Host, u.Time = "h2", noon.Add(-before)
		}
		return u
	}
	lost := images(img("/v/disk", gone))
	lost.Machines = []evidence.Machine{{Name: "web", Disks: []int{0}}}
	newer := images(over("ok"), img("/v/base", nil))
	newer.Images[0].Made, newer.Images[1].Changed = noon.Add(-time.Hour), noon
	touched := images(over("ok"), img("/v/base", nil))
	touched.Images[0].Made, touched.Images[1].Changed = noon.Add(-time.Hour), noon
	touched.Config.Nova = &evidence.Nova{}
	round := func(third time.Time) evidence.Evidence {
		e := newer
		e.Images = slices.Clone(newer.Images)
		for i, at := range []time.Time{noon.Add(-20 * time.Second), third} {
			base, over := img(fmt.Sprintf("/v/base%d", i), nil), img(fmt.Sprintf("/w/over%d", i), nil)
			base.Changed, over.BackingPath, over.BackingState = at, base.Path, "unreadable"
			e.Images = append(e.Images, over, base)
		}
		return e
	}
	for _, c := range []struct {
		name string
		rule Rule
		e    evidence.Evidence
		want []says
	}{
		{"a whole chain", ruleIM01(), images(over("ok"), img("/v/base", nil)),
			[]says{{"image:h:/v/over", Pass, "", ""}, {"image:h:/v/base", Pass, "", ""}}},
		{"no base", ruleIM01(), images(over("missing"), img("/v/base", gone), over("missing")),
			[]says{{"image:h:/v/base", Fail, "base_gone", finding.Lost}}},
		{"no disk", ruleIM01(), lost, []says{{"image:h:/v/disk", Fail, "gone", finding.Lost}}},
		{"a base that was not looked at", ruleIM01(), images(over("unreadable")), []says{{"image:h:/v/over", Unknown, "", ""}}},
		{"a base that is no file", ruleIM01(), images(over("not_followed")), []says{{"image:h:/v/over", Unknown, "", ""}}},
		{"storage that does not answer", ruleIM01(), images(img("/v/x", func(x *evidence.Image) { x.Unread = "did not answer" })),
			[]says{{"image:h:/v/x", Unknown, "", ""}}},

		{"an old base", ruleIM02(), images(over("ok"), img("/v/base", nil)), []says{{"image:h:/v/base", Pass, "", ""}}},
		{"a newer base", ruleIM02(), newer, []says{{"image:h:/v/base", Fail, "newer", finding.Warning}}},
		{"a base that nova touches", ruleIM02(), touched, []says{{"image:h:/v/base", Fail, "newer", finding.Note}}},
		{"bases that somebody touches", ruleIM02(), round(noon), []says{{"image:h:/v/base", Fail, "newer", finding.Note}}},
		{"one of several bases", ruleIM02(), round(noon.Add(-time.Hour)), []says{{"image:h:/v/base", Fail, "newer", finding.Warning}}},
		{"a base that is written to", ruleIM02(), images(over("ok"), img("/v/base", func(x *evidence.Image) {
			x.Users = []evidence.ImageUser{use(7, "db", true)}
		})), []says{{"image:h:/v/base", Fail, "written_now", finding.Lost}}},
		{"a base with readers", ruleIM02(), images(over("ok"), img("/v/base", func(x *evidence.Image) {
			x.Users = []evidence.ImageUser{use(7, "db", false), use(8, "web", false)}
		})), []says{{"image:h:/v/base", Pass, "", ""}}},

		{"an image without marks", ruleIM03(), images(img("/v/x", nil)), []says{{"image:h:/v/x", Pass, "", ""}}},
		{"marked as corrupt", ruleIM03(), images(img("/v/x", func(x *evidence.Image) { x.Corrupt = true })),
			[]says{{"image:h:/v/x", Fail, "marked", finding.Danger}}},
		{"not closed", ruleIM03(), images(img("/v/x", func(x *evidence.Image) { x.Dirty = true })),
			[]says{{"image:h:/v/x", Fail, "not_closed", finding.Note}}},
		{"open, so not closed", ruleIM03(), images(img("/v/x", func(x *evidence.Image) {
			x.Dirty, x.Users = true, []evidence.ImageUser{use(7, "web", true)}
		})), []says{{"image:h:/v/x", Pass, "", ""}}},
		{"leaks", ruleIM03(), images(img("/v/x", func(x *evidence.Image) { x.Checked = &evidence.Checked{Leaks: 4} })),
			[]says{{"image:h:/v/x", Fail, "leaks", finding.Waste}}},
		{"damaged, with leaks", ruleIM03(), images(img("/v/x", func(x *evidence.Image) {
			x.Checked = &evidence.Checked{Leaks: 4, Corruptions: 2, Codes: []string{"QC02"}}
		})), []says{{"image:h:/v/x", Fail, "damaged", finding.Danger}, {"image:h:/v/x", Fail, "leaks", finding.Waste}}},
		{"a raw image", ruleIM03(), images(img("/v/x", func(x *evidence.Image) { x.Format = "raw" })), nil},

		{"one writer", ruleIM04(), images(img("/v/x", func(x *evidence.Image) {
			x.Users = []evidence.ImageUser{use(7, "web", true), use(8, "backup", false)}
		})), []says{{"image:h:/v/x", Pass, "", ""}}},
		{"two writers", ruleIM04(), images(img("/v/x", func(x *evidence.Image) {
			x.Users = []evidence.ImageUser{use(7, "web", true), use(8, "db", true)}
		})), []says{{"image:h:/v/x", Fail, "two_writers", finding.Lost}}},
		{"a machine of two hosts", ruleIM04(), images(img("/v/x", func(x *evidence.Image) {
			x.Users = []evidence.ImageUser{far("web", "running", 0), far("web", "running", time.Minute)}
		})), []says{{"image:h:/v/x", Fail, "two_writers", finding.Lost}}},
		{"a machine that moves", ruleIM04(), images(img("/v/x", func(x *evidence.Image) {
			x.Users = []evidence.ImageUser{far("web", "running", 0), far("web", "paused", time.Minute)}
		})), []says{{"image:h:/v/x", Fail, "two_writers", finding.Warning}}},
		{"a machine that may have moved between", ruleIM04(), images(img("/v/x", func(x *evidence.Image) {
			x.Users = []evidence.ImageUser{far("web", "running", 0), far("web", "running", time.Hour)}
		})), []says{{"image:h:/v/x", Unknown, "", ""}}},
		{"two machines at different times", ruleIM04(), images(img("/v/x", func(x *evidence.Image) {
			x.Users = []evidence.ImageUser{far("web", "running", 0), far("db", "running", time.Hour)}
		})), []says{{"image:h:/v/x", Fail, "two_writers", finding.Lost}}},
		{"a disk that is shared", ruleIM04(), images(img("/v/x", func(x *evidence.Image) {
			x.Users = []evidence.ImageUser{{Machine: "a", Writing: true, Shared: true}, {Machine: "b", Writing: true, Shared: true}}
		})), []says{{"image:h:/v/x", Pass, "", ""}}},
		{"nobody", ruleIM04(), images(img("/v/x", nil)), nil},

		{"runs", ruleIM05(), machine(evidence.Machine{State: "running", PID: 7, QMP: &evidence.QMP{Status: "running"}}),
			[]says{{"machine:h:web", Pass, "", ""}}},
		{"no room", ruleIM05(), machine(evidence.Machine{State: "running", QMP: &evidence.QMP{Status: "io-error",
			Stopped: map[string]string{"vda": "nospace"}}}), []says{{"machine:h:web", Fail, "nospace", finding.Danger}}},
		{"an error", ruleIM05(), machine(evidence.Machine{State: "paused", QMP: &evidence.QMP{Status: "io-error"}}),
			[]says{{"machine:h:web", Fail, "failed", finding.Danger}}},
		{"paused by somebody", ruleIM05(), machine(evidence.Machine{State: "paused", QMP: &evidence.QMP{Status: "paused"}}),
			[]says{{"machine:h:web", Pass, "", ""}}},
		{"paused, and not asked", ruleIM05(), machine(evidence.Machine{State: "paused", QMPWhy: "its monitor belongs to libvirt"}),
			[]says{{"machine:h:web", Unknown, "", ""}}},
		{"a process whose monitor says nothing", ruleIM05(), machine(evidence.Machine{State: "unknown", PID: 7,
			QMPWhy: "it has no monitor on a socket"}), []says{{"machine:h:web", Unknown, "", ""}}},
		{"off", ruleIM05(), machine(evidence.Machine{State: "shut off"}), []says{{"machine:h:web", Pass, "", ""}}},
	} {
		t.Run(c.rule.Code+"/"+c.name, func(t *testing.T) { ask(t, c.rule, &c.e, c.want...) })
	}
}

func TestLifeAndClusterRules(t *testing.T) {
	const base = "/var/lib/nova/instances/_base/1a2b"
	removed := func(state string) evidence.Evidence {
		e := evidence.Evidence{Log: evidence.Log{Events: []evidence.Event{
			event("nova.removed", time.Hour, map[string]string{"path": base})}}}
		e.Log.Events[0].Host = "node2"
		if state != "" {
			e.Images = []evidence.Image{{Path: "/var/lib/nova/instances/x/disk", Mount: -1, BackingPath: base, BackingState: state}}
		}
		return e
	}
	nova := func(n evidence.Nova) evidence.Evidence {
		n.Instances = "/i"
		return evidence.Evidence{Config: evidence.Config{Nova: &n}}
	}
	alive := map[string]time.Time{"a": noon.Add(-time.Minute), "b": noon.Add(-time.Hour)}
	silent := map[string]time.Time{"a": noon.Add(-time.Minute), "b": noon.Add(-30 * 24 * time.Hour)}
	gfs := func(s *evidence.Super, events ...evidence.Event) evidence.Evidence {
		return evidence.Evidence{FSs: []evidence.FS{{Type: "gfs2", Device: "dm-1", Super: s}}, Log: evidence.Log{Events: events}}
	}
	withdraw := event("gfs2.withdraw", time.Hour, map[string]string{"device": "c:fs"})
	booted := evidence.Evidence{Log: evidence.Log{Events: []evidence.Event{withdraw}}, Host: evidence.Host{Booted: noon}}
	cluster := func(c evidence.Cluster) evidence.Evidence {
		c.Present = true
		return evidence.Evidence{Cluster: c}
	}
	for _, c := range []struct {
		name string
		rule Rule
		e    evidence.Evidence
		want []says
	}{
		{"removed and missed", ruleLC01(), removed("missing"), []says{{"image:h:" + base, Fail, "removed", finding.Lost}}},
		{"removed and back", ruleLC01(), removed("ok"), []says{{"image:h:" + base, Pass, "", ""}}},
		{"removed and unused", ruleLC01(), removed(""), []says{{"image:h:" + base, Pass, "", ""}}},
		{"its own directory", ruleLC02(), nova(evidence.Nova{RemoveUnused: true, Nodes: alive}),
			[]says{{"file:h:/i/_base", Pass, "", ""}}},
		{"shared, all alive", ruleLC02(), nova(evidence.Nova{RemoveUnused: true, Shared: true, Nodes: alive}),
			[]says{{"file:h:/i/_base", Fail, "removes_shared", finding.Warning}}},
		{"shared, one silent", ruleLC02(), nova(evidence.Nova{RemoveUnused: true, Shared: true, Nodes: silent}),
			[]says{{"file:h:/i/_base", Fail, "node_silent", finding.Danger}}},
		{"shared, nothing is removed", ruleLC02(), nova(evidence.Nova{Shared: true, Nodes: silent}),
			[]says{{"file:h:/i/_base", Pass, "", ""}}},
		{"nodes that were not read", ruleLC02(), nova(evidence.Nova{RemoveUnused: true, NodesUnread: "may not be read"}),
			[]says{{"file:h:/i/_base", Unknown, "", ""}}},
		{"no nova", ruleLC02(), evidence.Evidence{}, nil},

		{"a GFS2 that is well", ruleCL01(), gfs(&evidence.Super{}), []says{{"filesystem:h:dm-1", Pass, "", ""}}},
		{"withdrawn", ruleCL01(), gfs(&evidence.Super{Withdrawn: true}, withdraw),
			[]says{{"filesystem:h:dm-1", Fail, "withdrawn", finding.Lost}}},
		{"locks that are blocked", ruleCL01(), gfs(&evidence.Super{Blocked: true, Frozen: true}),
			[]says{{"filesystem:h:dm-1", Fail, "locks_blocked", finding.Danger}}},
		{"frozen", ruleCL01(), gfs(&evidence.Super{Frozen: true}), []says{{"filesystem:h:dm-1", Fail, "frozen", finding.Warning}}},
		{"nothing was read", ruleCL01(), gfs(nil), []says{{"filesystem:h:dm-1", Unknown, "", ""}}},
		{"before the last start", ruleCL01(), booted, []says{{"filesystem:h:c:fs", Fail, "withdrawn", finding.Note}}},
		{"no cluster", ruleCL02(), evidence.Evidence{}, nil},
		{"a cluster that is well", ruleCL02(), cluster(evidence.Cluster{Quorum: "yes"}),
			[]says{{"cluster:h:cluster", Pass, "", ""}}},
		{"a node is to be fenced", ruleCL02(), cluster(evidence.Cluster{Pending: []string{"n2", "n3"}}),
			[]says{{"cluster:h:cluster", Fail, "fencing", finding.Lost}}},
		{"no quorum", ruleCL02(), cluster(evidence.Cluster{Quorum: "no"}),
			[]says{{"cluster:h:cluster", Fail, "no_quorum", finding.Lost}}},
		{"locks wait", ruleCL02(), cluster(evidence.Cluster{Waiting: map[string]string{"clvmd": "fencing"}}),
			[]says{{"cluster:h:cluster", Fail, "locks_wait", finding.Lost}}},
	} {
		t.Run(c.rule.Code+"/"+c.name, func(t *testing.T) { ask(t, c.rule, &c.e, c.want...) })
	}
}

// TestCL01Says: a file system is named as the kernel does, as people do, and by where it is mounted.
func TestCL01Says(t *testing.T) {
	e := evidence.Evidence{FSs: []evidence.FS{{Type: "gfs2", Device: "dm-1", Names: []string{"mapper/vg-gfs"}, Mounts: []int{0},
		Super: &evidence.Super{Withdrawn: true}}}}
	e.Mounts = []evidence.Mount{{Own: true, Mount: linux.Mount{Point: "/shared", Type: "gfs2"}}}
	r := ruleCL01()
	all := r.judge(&e)
	if len(all) != 1 || all[0].Finding == nil || !strings.Contains(all[0].Finding.Summary, "from dm-1 (mapper/vg-gfs, /shared): ") {
		t.Errorf("%+v, want that it names dm-1 (mapper/vg-gfs, /shared)", all[0].Finding)
	}
}
