// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stories

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Score counts the answers to random worlds.
type Score struct {
	Worlds int
	// First is how often the cause came first, however sure; Named how often it was first or among those
	// that were named beside it.
	First, Named int
	// Wrong is how often something else was called the likely cause, or what should be looked at.
	Wrong int
	// Harm is how often the finding of most harm was the cause: what one gets without a ranking.
	Harm int
}

// Worlds examines so many worlds made from a seed. In hidden of 100 the cause itself is not to be seen.
//
// A world has one cause, whose signs are seen on most of what rests on it, and findings about other things. Its
// maker has the same notion of what rests on what as the ranking, so this tells that the ranking does what it
// is to do, and not that the notion is true.
func Worlds(seed uint64, n, hidden int) Score {
	s := Score{Worlds: n}
	for i := range n {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		w := makeWorld(r, r.IntN(100) < hidden)
		rep := doctor.Examine(w.all, []doctor.Rule{w.rule()})
		s.add(w, rep)
	}
	return s
}

func (s *Score) add(w *world, r *doctor.Report) {
	if w.worst() == w.cause {
		s.Harm++
	}
	c := first(r)
	switch {
	case c == nil:
	case c.Object == w.cause:
		s.First++
		s.Named++
	case slices.ContainsFunc(c.Rivals, func(x doctor.Rival) bool { return x.Object == w.cause }):
		s.Named++
	case c.Certainty == doctor.LikelyCause || c.Certainty == doctor.NotLookedAt:
		s.Wrong++
	}
}

// world is some machines with findings.
type world struct {
	all      []*evidence.Evidence
	cause    doctor.Object
	findings []doctor.Finding
}

// makeWorld makes two to five machines with a share each of one of two servers, files on a second disk, and
// programs that use either. The cause is a server's file system, or a disk of a machine.
func makeWorld(r *rand.Rand, hidden bool) *world {
	w := &world{}
	servers := []string{"s0", "s1"}
	type user struct{ share, disk []doctor.Object } // what rests on each, from below
	users := map[string][]user{}
	for i := range 2 + r.IntN(4) {
		label, server := fmt.Sprintf("m%d", i), servers[r.IntN(2)]
		e := w.machine(label)
		addMount(e, 40, "/data", linux.Mount{Type: "nfs4", Source: server + ":/export", Super: "rw,vers=4.2,hard"}, "")
		e.Mounts[len(e.Mounts)-1].NFS = &evidence.NFS{Server: server, Export: "/export", Vers: "4.2"}
		addDisk(e, 41, "/srv", "sdb")
		u := user{share: []doctor.Object{on(doctor.Mount, label, "/data")},
			disk: []doctor.Object{on(doctor.FileSystem, label, "sdb1"), on(doctor.Mount, label, "/srv")}}
		for j := range 1 + r.IntN(3) {
			t := evidence.Task{PID: 100 + j, TID: 100 + j, Comm: "p", Mounts: []string{"/data"}}
			list := &u.share
			if r.IntN(2) == 0 {
				t.Mounts, list = []string{"/srv"}, &u.disk
			}
			e.Tasks.Waiting = append(e.Tasks.Waiting, t)
			*list = append(*list, on(doctor.Task, label, fmt.Sprintf("p[%d]", t.TID)))
		}
		users[server] = append(users[server], u)
		users[label] = []user{u}
	}
	if r.IntN(2) == 0 {
		server := servers[r.IntN(2)]
		if len(users[server]) < 2 {
			server = servers[1-r.IntN(2)]
		}
		var signs []doctor.Object
		for _, u := range users[server] {
			signs = append(signs, u.share...)
		}
		w.server(server, hidden)
		w.signs(r, signs, hidden)
	} else {
		label := fmt.Sprintf("m%d", r.IntN(len(w.all)))
		w.cause = on(doctor.Device, label, "sdb")
		if hidden {
			e := w.all[slices.IndexFunc(w.all, func(e *evidence.Evidence) bool { return e.Label == label })]
			e.Devices = slices.DeleteFunc(e.Devices, func(d evidence.Device) bool { return d.Name == "sdb" })
		}
		w.signs(r, users[label][0].disk, hidden)
	}
	w.noise(r)
	return w
}

func on(k doctor.Kind, label, name string) doctor.Object {
	return doctor.Object{Kind: k, On: label, Name: name}
}

// machine adds one on which all is well.
func (w *world) machine(label string) *evidence.Evidence {
	e := &evidence.Evidence{Kind: tree.Bundle, Label: label, Host: evidence.Host{Name: label}, Now: Noon(),
		Tasks: evidence.Tasks{Looked: 50}, Memory: evidence.Memory{OOMKills: -1}}
	e.Log.Sources = []evidence.LogSource{{Path: "/var/log/syslog", Persistent: true}}
	addDisk(e, 22, "/", "sda")
	w.all = append(w.all, e)
	return e
}

func addDisk(e *evidence.Evidence, id int, point, disk string) {
	for _, d := range []linux.Block{{Name: disk, Disk: disk}, {Name: disk + "1", Disk: disk, Partition: 1}} {
		e.Devices = append(e.Devices, evidence.Device{Block: d, Driver: "sd", State: "running", MaxRetries: -2, Timeouts: -1,
			Errors: -1})
	}
	addMount(e, id, point, linux.Mount{Type: "ext4", Source: "/dev/" + disk + "1", Super: "rw"}, disk+"1")
	e.FSs[len(e.FSs)-1].Super = &evidence.Super{}
}

func addMount(e *evidence.Evidence, id int, point string, m linux.Mount, device string) {
	m.ID, m.Point, m.Root, m.Options = id, point, "/", "rw"
	a := ask.Answer(*answer(50))
	e.Mounts = append(e.Mounts, evidence.Mount{Mount: m, Own: true, FS: len(e.FSs), Probe: &a})
	e.FSs = append(e.FSs, evidence.FS{Type: m.Type, Source: m.Source, Device: device, Mounts: []int{len(e.Mounts) - 1}})
}

// server makes a server the cause: its file system, or itself where that is not to be seen.
func (w *world) server(name string, hidden bool) {
	if w.cause = on(doctor.Server, "", name); hidden {
		return
	}
	e := w.machine(name)
	addDisk(e, 41, "/export", "sdb")
	e.Config.Exports = []string{"/export"}
	w.cause = on(doctor.FileSystem, name, "sdb1")
}

// signs finds the cause, and most of what it does.
func (w *world) signs(r *rand.Rand, signs []doctor.Object, hidden bool) {
	if !hidden {
		w.find(w.cause, .7+.25*r.Float64(), finding.Danger, doctor.Upward)
	}
	for _, o := range signs {
		if r.IntN(100) < 85 {
			w.find(o, .6+.35*r.Float64(), []finding.Severity{finding.Lost, finding.Danger, finding.Warning}[r.IntN(3)],
				doctor.Upward)
		}
	}
}

// noise finds two to eight other things.
func (w *world) noise(r *rand.Rand) {
	for range 2 + r.IntN(7) {
		e := w.all[r.IntN(len(w.all))]
		o := []doctor.Object{on(doctor.Device, e.Label, "sda"), on(doctor.FileSystem, e.Label, "sda1"),
			on(doctor.Mount, e.Label, "/"), on(doctor.Host, e.Label, e.Label), on(doctor.Unit, e.Label, "u")}[r.IntN(5)]
		severity := []finding.Severity{finding.Lost, finding.Danger, finding.Warning, finding.Waste, finding.Note}[r.IntN(5)]
		reach := []doctor.Reach{doctor.Upward, doctor.Local, doctor.Hint}[r.IntN(3)]
		w.find(o, .3+.6*r.Float64(), severity, reach)
	}
}

func (w *world) find(o doctor.Object, confidence float64, s finding.Severity, reach doctor.Reach) {
	w.findings = append(w.findings, doctor.Finding{ID: fmt.Sprintf("%s %d", o, len(w.findings)), Code: "X", Name: "x",
		Severity: s, Confidence: confidence, Reach: reach, Object: o, Kind: "x", Summary: "x"})
}

// rule finds what is in the world.
func (w *world) rule() doctor.Rule {
	r := doctor.Rule{Rule: finding.Rule{Code: "X", Name: "x"}}
	r.Judge = func(e *evidence.Evidence) []doctor.Result {
		var all []doctor.Result
		for i := range w.findings {
			if f := w.findings[i]; f.Object.On == e.Label {
				all = append(all, doctor.Result{Outcome: doctor.Fail, Object: f.Object, Finding: &f})
			}
		}
		return all
	}
	return r
}

// worst is what the finding of most harm is about; of those the surest.
func (w *world) worst() doctor.Object {
	worst := &w.findings[0]
	for i := range w.findings {
		f := &w.findings[i]
		if d := f.Severity.Rank() - worst.Severity.Rank(); d < 0 || d == 0 && f.Confidence > worst.Confidence {
			worst = f
		}
	}
	return worst.Object
}
