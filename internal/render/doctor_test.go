// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	machine "github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

var doctorNoon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// hung is the report of two guests that hang and a third that does not, with one server in common.
func hung(seen bool) *doctor.Report {
	object := func(k doctor.Kind, on, name string) doctor.Object { return doctor.Object{Kind: k, On: on, Name: name} }
	server, share := object(doctor.Server, "", "nfs01"), object(doctor.Share, "", "nfs01:/export")
	r := &doctor.Report{Verdict: finding.Found, Status: []int{finding.StatusFound, finding.StatusCannotTell}}
	look := func(o doctor.Object, st doctor.State, on ...doctor.Object) {
		r.Objects = append(r.Objects, doctor.Seen{Object: o, State: st})
		for _, x := range on {
			r.Edges = append(r.Edges, doctor.Edge{From: o, To: x})
		}
	}
	find := func(o doctor.Object, code, name, id string, sev finding.Severity, text string) {
		r.Findings = append(r.Findings, doctor.Finding{ID: id, Code: code, Name: name, Severity: sev, Confidence: 0.9,
			Object: o, Summary: text, Guard: "none", Evidence: []doctor.Fact{{Source: machine.Source{
				Path: "/proc/self/mountstats", Line: 12, Time: doctorNoon}, Value: "xprt: tcp 0 1 1 0 312", Text: "waits"}},
			Remedies: []doctor.Remedy{{Text: "look at the server first", Command: "df /export", Undo: "nothing", Risk: "none"}}})
	}
	c := doctor.Cause{Certainty: doctor.NotLookedAt, Object: server, Score: 3.1,
		Terms: []doctor.Term{{Value: 0.9, Object: server, Text: "explains"}}}
	for _, on := range []string{"web1", "web2"} {
		m, t := object(doctor.Mount, on, "/data"), object(doctor.Task, on, "ls[17]")
		look(m, doctor.Hurt, share)
		look(t, doctor.Hurt, m)
		find(m, "ZZ01", "nfs-stuck", "m"+on, finding.Lost, "the server does not answer")
		find(t, "ZZ02", "d-state", "t"+on, finding.Danger, "waits for storage\x1b[2J<script>")
		c.Explains = append(c.Explains, "m"+on, "t"+on)
		r.Machines = append(r.Machines, doctor.Patient{Label: on, Kind: "bundle", Now: doctorNoon, Sick: true})
	}
	well := object(doctor.Mount, "web3", "/data")
	look(well, doctor.Healthy, share)
	c.Affects = append(c.Affects, well)
	look(share, doctor.Unseen, server)
	look(server, doctor.Unseen)
	r.Machines = append(r.Machines, doctor.Patient{Label: "web3", Kind: "bundle", Now: doctorNoon})
	r.Shared = []doctor.Common{{Object: server, Sick: []string{"web1", "web2"}, Healthy: []string{"web3"}}}
	if seen {
		c.Certainty, c.Finding = doctor.LikelyCause, "full"
		find(server, "ZZ03", "nfs-server-full", "full", finding.Lost, "its file system is full")
	}
	leak := object(doctor.Image, "web1", "/var/lib/x.qcow2")
	look(leak, doctor.Hurt)
	find(leak, "ZZ04", "leaks", "leak", finding.Waste, "4 leaked clusters")
	r.Causes = []doctor.Cause{c, {Certainty: doctor.Alone, Object: leak, Finding: "leak", Score: 0.03}}
	r.Rules = []doctor.Asked{{Code: "ZZ01", Name: "nfs-stuck", Failed: 2, Passed: 1}, {Code: "ZZ03", Name: "nfs-server-full",
		Unknown: 1, Reasons: []doctor.Doubt{{Object: server, Why: "nothing is known of the server"}}}}
	r.NotLookedAt = []doctor.Missing{{Machine: "web1", Gap: machine.Gap{Part: machine.PartLog, Object: "/var/log/x", Reason: "x"}}}
	return r
}

func TestDoctorReports(t *testing.T) {
	info := PageInfo{Host: "here", Version: "v1", When: doctorNoon}
	for _, c := range []struct {
		name  string
		write func(*strings.Builder, *doctor.Report) error
	}{
		{"txt", func(b *strings.Builder, r *doctor.Report) error { return Doctor(b, r, Style{Width: 100}) }},
		{"all.txt", func(b *strings.Builder, r *doctor.Report) error { return Doctor(b, r, Style{Width: 100, All: true}) }},
		{"sarif", func(b *strings.Builder, r *doctor.Report) error { return DoctorSARIF(b, r, "v1") }},
		{"metrics", func(b *strings.Builder, r *doctor.Report) error { return DoctorMetrics(b, r) }},
		{"html", func(b *strings.Builder, r *doctor.Report) error { return DoctorHTML(b, r, info) }},
	} {
		for _, seen := range []bool{true, false} {
			name := "doctor-unseen." + c.name
			if seen {
				name = "doctor-seen." + c.name
			}
			t.Run(name, func(t *testing.T) {
				var b strings.Builder
				if err := c.write(&b, hung(seen)); err != nil {
					t.Fatal(err)
				}
				if strings.Contains(b.String(), "\x1b") || strings.Contains(b.String(), "<script") && c.name == "html" {
					t.Error("a string got out as it came in")
				}
				golden(t, name, b.String())
			})
		}
	}
}

// TestNamesStayAsTheyAre holds that a summary begins with a capital letter, but for the name of something.
func TestNamesStayAsTheyAre(t *testing.T) {
	for _, c := range []struct {
		object        doctor.Object
		summary, want string
	}{
		{doctor.Object{Kind: doctor.Device, Name: "sda"}, "sda is offline", "sda is offline"},
		{doctor.Object{Kind: doctor.Device, Name: "sda"}, "the kernel does not use sda any more", "The kernel does not use sda any more"},
		{doctor.Object{Kind: doctor.FileSystem, Name: "vg-data"}, "vg-data (/srv) shut itself down", "vg-data (/srv) shut itself down"},
		{doctor.Object{Kind: doctor.Task, Name: "ls[17]"}, "ls waits", "ls waits"},
		{doctor.Object{Kind: doctor.Image, Name: "/v/x"}, "nbdkit [9] writes to /v/x", "nbdkit [9] writes to /v/x"},
		{doctor.Object{Kind: doctor.Image, Name: "/v/x"}, "requests wait", "Requests wait"},
		{doctor.Object{Kind: doctor.Machine, Name: "web"}, "web runs on 2 hosts at once", "web runs on 2 hosts at once"},
	} {
		if got := summary(&doctor.Finding{Object: c.object, Summary: c.summary}); got != c.want {
			t.Errorf("summary of %q = %q, want %q", c.summary, got, c.want)
		}
	}
}
