// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"errors"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
)

func checkReports() map[string]*check.Report {
	nothing := reportOf()
	nothing.Verdict, nothing.Status, nothing.Summary.Skipped = finding.CannotTell, []int{4}, 3
	nothing.Blind = []finding.Blind{{Object: "/pool", What: "", Reason: "permission denied"}}
	raw := cleanImage("/pool/vm.raw")
	raw.Format, raw.Checked, raw.ClusterBytes = "raw", false, 0
	both := lostImage("/pool/vm-17.qcow2")
	both.Blind = blindImage("/pool/vm-17.qcow2").Blind
	return map[string]*check.Report{
		"empty":       reportOf(),
		"clean":       reportOf(cleanImage("/pool/vm-01.qcow2")),
		"raw":         reportOf(raw),
		"lost":        reportOf(lostImage("/pool/vm-17.qcow2")),
		"lost-blind":  reportOf(both),
		"leak":        reportOf(leakImage("/pool/vm-02.qcow2")),
		"cannot-tell": reportOf(blindImage("/pool/vm-18.qcow2")),
		"nothing":     nothing,
		"running":     reportOf(runningImage("/pool/vm-19.qcow2")),
		"orphan":      reportOf(orphanImage("/pool/vm-20.qcow2", "/pool/_base/debian-12.qcow2")),
		"hostile":     reportOf(hostileImage()),
		"crowded":     reportOf(crowdedImage("/pool/vm-21.qcow2")),
		"pool":        poolReport(),
		"hostile-two": reportOf(hostileImage(), cleanImage("/pool/vm-01.qcow2")),
	}
}

func TestCheckText(t *testing.T) {
	styles := map[string]Style{"": {}, "-80": {Width: 80}, "-color": {Width: 100, Color: true}}
	for name, r := range checkReports() {
		for suffix, style := range styles {
			if suffix == "-color" && name != "pool" && name != "hostile" {
				continue
			}
			t.Run(name+suffix, func(t *testing.T) {
				var b strings.Builder
				if err := Check(&b, r, style); err != nil {
					t.Fatal(err)
				}
				golden(t, "check-"+name+suffix+".txt", b.String())
				harmlessText(t, b.String(), style)
			})
		}
	}
}

// TestDangerOf: what qemu refuses is not destroyed by the next write, and that is not what is said of it.
func TestDangerOf(t *testing.T) {
	of := func(r finding.Rule, kind string, s finding.Severity) finding.Finding {
		f := finding.New(r, "/pool/disk", finding.Sure, kind, "it is so")
		f.Severity = s
		return f
	}
	bitmap, mark := of(finding.QC17, "refused", finding.Danger), of(finding.QC22, "marked", finding.Danger)
	shared, unsaved := of(finding.QC02, "x", finding.Danger), of(finding.QC17, "not_saved", finding.Warning)
	const refused, written, destroyed = "lost, but qemu refuses to open the image", "lost, but qemu refuses to write", "lost yet, but the next write may destroy"
	for _, c := range []struct {
		name  string
		all   []finding.Finding
		want  string
		title string
	}{
		{"a bitmap", []finding.Finding{bitmap, unsaved}, refused, "Images cannot be used"},
		{"no data file", []finding.Finding{of(finding.QC01, "no_data_file", finding.Danger)}, refused, "Images cannot be used"},
		{"the mark", []finding.Finding{mark}, written, "Images cannot be used"},
		{"a bitmap and the mark", []finding.Finding{mark, bitmap}, refused, "Images cannot be used"},
		{"a cluster of two users", []finding.Finding{shared}, destroyed, "Data is in danger"},
		{"all of it", []finding.Finding{bitmap, shared, mark}, destroyed, "Data is in danger"},
	} {
		img := cleanImage("/pool/disk")
		img.Verdict, img.Findings = finding.Found, c.all
		r := reportOf(img)
		r.Verdict = finding.Found
		var text, page strings.Builder
		if err := errors.Join(Check(&text, r, Style{}), CheckHTML(&page, r, PageInfo{})); err != nil {
			t.Fatal(err)
		}
		for _, said := range []string{refused, written, destroyed} {
			if strings.Contains(text.String(), said) != (said == c.want) {
				t.Errorf("%s: want %q alone\n%s", c.name, c.want, text.String())
			}
		}
		if !strings.Contains(page.String(), "<h1>"+c.title+"</h1>") {
			t.Errorf("%s: the page has not the title %q", c.name, c.title)
		}
	}
}

// harmlessText fails if a terminal would do anything but show the text.
func harmlessText(t *testing.T, text string, s Style) {
	t.Helper()
	if s.Color {
		for _, c := range []string{bold, dim, red, yellow, amber, green, magenta, "0"} {
			text = strings.ReplaceAll(text, "\x1b["+c+"m", "")
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if !seen(line) {
			t.Errorf("a line holds what a terminal obeys: %q", line)
		}
		if s.Width > 0 && columns(line) > s.Width && strings.Count(strings.TrimSpace(line), " ") > 1 &&
			!strings.Contains(line, "/pool/") {
			t.Errorf("a line takes %d columns, want %d at most: %q", columns(line), s.Width, line)
		}
		if strings.HasSuffix(line, " ") {
			t.Errorf("a line ends with a blank: %q", line)
		}
	}
}

func TestCheckTextAll(t *testing.T) {
	var short, all strings.Builder
	r := reportOf(crowdedImage("/pool/vm-21.qcow2"))
	if err := errors.Join(Check(&short, r, Style{}), Check(&all, r, Style{All: true})); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(short.String(), "cannot be right"); n != 2*maxOfAKind {
		t.Errorf("Check = %d findings listed, want %d", n, 2*maxOfAKind)
	}
	if n := strings.Count(all.String(), "cannot be right"); n != 3000 {
		t.Errorf("Check(all) = %d findings listed, want 3000", n)
	}
	if want := "... and 68 more observations (--all)\n"; !strings.Contains(short.String(), want) {
		t.Errorf("Check does not say %q", want)
	}
	if want := "... and 7 more observations\n"; !strings.Contains(all.String(), want) {
		t.Errorf("Check(all) does not say %q", want)
	}
	if err := Check(fullDisk{}, r, Style{}); !errors.Is(err, errFull) {
		t.Errorf("Check on a full disk = %v, want %v", err, errFull)
	}
}

func TestCausesFirst(t *testing.T) {
	f := func(code string, s finding.Severity, on ...string) finding.Finding {
		return finding.Finding{Code: code, Severity: s, Certainty: finding.Sure, DependsOn: on}
	}
	for _, tt := range []struct {
		name string
		in   []finding.Finding
		want string
	}{
		{"by harm", []finding.Finding{f("a", finding.Waste), f("b", finding.Lost)}, "b a"},
		{"a cause stands first", []finding.Finding{f("a", finding.Lost, "c"), f("b", finding.Danger),
			f("c", finding.Warning)}, "c a b"},
		{"a circle ends", []finding.Finding{f("a", finding.Lost, "b"), f("b", finding.Lost, "a")}, "b a"},
		{"its own cause", []finding.Finding{f("a", finding.Lost, "a"), f("a", finding.Lost)}, "a a"},
		{"unknown cause", []finding.Finding{f("a", finding.Lost, "x")}, "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := []string{}
			for _, f := range causesFirst(tt.in) {
				got = append(got, f.Code)
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("causesFirst = %q, want %q", s, tt.want)
			}
		})
	}
}
