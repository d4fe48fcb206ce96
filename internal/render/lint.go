// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"encoding/json"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
)

// LintSchema is the schema of a doctor.LintReport in JSON.
const LintSchema = "shisa.reboot.lint/1"

// maxLintFacts is how many lines of evidence are told of one finding; Style.All shows the rest.
const maxLintFacts = 4

// Lint writes what the rules about restarts say of unit files: a finding with its place, the lines that it rests on, and what
// to do.
func Lint(w io.Writer, r *doctor.LintReport, s Style) error {
	o := newOut(w, s)
	notes := 0
	for i := range r.Findings {
		f := &r.Findings[i]
		if f.Severity == finding.Note && !s.All {
			notes++
			continue
		}
		o.lint(f)
	}
	for _, g := range r.NotLookedAt {
		text := Text(g.Reason)
		if g.Object != "" {
			text = Name(g.Object) + ": " + text
		}
		o.prose(o.paint(magenta, "NOT LOOKED AT")+"  ", text)
	}
	word, text := o.paint(green, "CLEAN"), Count(int64(r.Units), "unit file", "unit files")
	switch r.Status[0] {
	case finding.StatusFound:
		word = o.paint(red, "FOUND")
	case finding.StatusCannotTell:
		word = o.paint(magenta, "CANNOT TELL")
	}
	text += " in " + Name(r.Directory)
	if r.Kind == "files" {
		text += ", judged as though all were enabled"
	}
	if notes > 0 {
		text += "; " + Count(int64(notes), "note", "notes") + " (--verbose tells)"
	}
	o.prose(word+"  ", text)
	return o.flush()
}

func (o *out) lint(f *doctor.Finding) {
	const in = "  "
	st := stateOf(f.Severity)
	o.line(o.paint(st.color, st.word), "  ", Text(f.Code), " ", o.paint(dim, Text(f.Name)), "  ", o.paint(bold, lintPlace(f)))
	o.prose(in, summary(f))
	for i, x := range f.Evidence {
		if i == maxLintFacts && !o.s.All {
			o.line(in, "... and ", Count(int64(len(f.Evidence)-i), "more line", "more lines"), " (--verbose tells all)")
			break
		}
		o.prose(in+in, placed(x)+": "+Text(x.Value))
	}
	for _, m := range f.Remedies {
		text := Text(m.Text)
		if m.Command != "" {
			text += ": " + Text(m.Command)
		}
		o.prose(in+"- ", text)
	}
	o.line()
}

// placed gives the file and line of a fact.
func placed(x doctor.Fact) string {
	if x.Source.Line == 0 {
		return Name(x.Source.Path)
	}
	return Name(x.Source.Path) + ":" + strconv.Itoa(x.Source.Line)
}

// lintPlace is where a finding is shown.
func lintPlace(f *doctor.Finding) string {
	if len(f.Evidence) == 0 {
		return Name(f.Object.Name)
	}
	return placed(f.Evidence[0])
}

// LintSARIF writes the same for tools that collect results of checks, each with the file, below the directory that was
// judged, and the line.
func LintSARIF(w io.Writer, r *doctor.LintReport, version string) error {
	run := sarifRun{Tool: sarifTool{sarifDriver{Name: "shisa", Version: version, Rules: []sarifRule{}}}, Results: []sarifResult{}}
	in := sarifInvocation{ExecutionSuccessful: len(r.NotLookedAt) == 0, ExitCode: r.Status[0], Notifications: []sarifNotification{}}
	for _, rule := range finding.Rules() {
		for i := range r.Findings {
			if r.Findings[i].Code == rule.Code {
				run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRule{ID: Text(rule.Code), Name: Text(rule.Name),
					ShortDescription: sarifText{Text(rule.Title)}, Help: sarifText{Text(rule.Next)}})
				break
			}
		}
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		kind := "fail"
		if levelOf(f.Severity) == "none" {
			kind = "informational"
		}
		one := sarifResult{RuleID: Text(f.Code), Kind: kind, Level: levelOf(f.Severity), Message: sarifText{Text(f.Summary)},
			Locations: located(f.Object), Fingerprints: map[string]string{"shisa/v1": f.ID}}
		for n, x := range f.Evidence {
			p := physical(x.Source.Path, x.Source.Line)
			if n == 0 {
				one.Locations[0].Physical = p
			} else if n < 20 {
				one.Related = append(one.Related, sarifLocation{Physical: p, Message: &sarifText{Text(x.Value)}})
			}
		}
		run.Results = append(run.Results, one)
	}
	for _, g := range r.NotLookedAt {
		in.Notifications = append(in.Notifications, sarifNotification{Level: "warning",
			Message: sarifText{strings.TrimPrefix("not looked at: "+Name(g.Object)+": "+Text(g.Reason), ": ")}})
	}
	run.Invocations = []sarifInvocation{in}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(sarifLog{Schema: sarifSchema, Version: "2.1.0", Runs: []sarifRun{run}})
}

// physical is a place in a file below the directory (SARIF, 3.29): a relative reference, encoded as RFC 3986 wants.
func physical(name string, line int) *sarifPhysical {
	p := &sarifPhysical{Artifact: sarifArtifact{URI: (&url.URL{Path: strings.TrimPrefix(name, "/")}).String()}}
	if line > 0 {
		p.Region = &sarifRegion{Line: line}
	}
	return p
}
