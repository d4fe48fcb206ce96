// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bufio"
	"io"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/doctor"
)

// maxMetrics bounds the series of findings: a thousand hurt files must not become a thousand series.
// Those that are left out are counted.
const maxMetrics = 200

// DoctorMetrics writes a report as OpenMetrics text (version 1.0.0 of the specification), with # EOF at
// its end.
func DoctorMetrics(w io.Writer, r *doctor.Report) error {
	m := &metrics{bufio.NewWriter(w)}
	m.report(r)
	return m.end()
}

func (m *metrics) report(r *doctor.Report) {
	m.family("shisa_finding", "What was found: 1 for each object and rule.")
	cut, told := 0, map[string]bool{}
	for i := range r.Findings {
		f := &r.Findings[i]
		// A rule may find two things about one object; a series may be there once.
		key := f.Code + "\x00" + string(f.Severity) + "\x00" + f.Object.String()
		if told[key] {
			continue
		}
		if len(told) >= maxMetrics {
			cut++
			continue
		}
		told[key] = true
		m.sample("shisa_finding", 1, "rule", f.Code, "severity", string(f.Severity), "machine", f.Object.On,
			"kind", string(f.Object.Kind), "object", f.Object.Name)
	}
	m.family("shisa_findings_left_out", "How many findings have no series of their own.")
	m.sample("shisa_findings_left_out", float64(cut))
	m.family("shisa_rule_objects", "What a rule said of how many objects.")
	for _, a := range r.Rules {
		for _, v := range []struct {
			outcome string
			n       int
		}{{"fail", a.Failed}, {"pass", a.Passed}, {"unknown", a.Unknown}} {
			m.sample("shisa_rule_objects", float64(v.n), "rule", a.Code, "outcome", v.outcome)
		}
	}
	m.family("shisa_not_looked_at", "How much of the evidence could not be read.")
	m.sample("shisa_not_looked_at", float64(len(r.NotLookedAt)))
	m.family("shisa_status", "The exit status of the examination.")
	m.sample("shisa_status", float64(r.Status[0]))
}

type metrics struct{ w *bufio.Writer }

func (m *metrics) end() error {
	m.w.WriteString("# EOF\n")
	return m.w.Flush()
}

func (m *metrics) family(name, help string) {
	m.w.WriteString("# TYPE " + name + " gauge\n# HELP " + name + " " + help + "\n")
}

// gauge writes a family of one sample.
func (m *metrics) gauge(name, help string, value float64) {
	m.family(name, help)
	m.sample(name, value)
}

// counter writes a family of one sample that only grows.
func (m *metrics) counter(name, help string, value float64) {
	m.w.WriteString("# TYPE " + name + " counter\n# HELP " + name + " " + help + "\n")
	m.sample(name+"_total", value)
}

// sample writes one line; labels are names and values in turn.
func (m *metrics) sample(name string, value float64, labels ...string) {
	pairs := make([]string, 0, len(labels)/2)
	for i := 0; i+1 < len(labels); i += 2 {
		pairs = append(pairs, labels[i]+`="`+labelValue(labels[i+1])+`"`)
	}
	m.w.WriteString(name)
	if len(pairs) > 0 {
		m.w.WriteString("{" + strings.Join(pairs, ",") + "}")
	}
	m.w.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

// labelValue escapes what may not stand in a label.
func labelValue(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(Text(s))
}
