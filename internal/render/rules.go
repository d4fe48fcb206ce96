// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"io"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
)

// RulesSchema is the schema of a RulesDocument.
const RulesSchema = "shisa.doctor-rules/1"

// RulesDocument lists rules of the doctor.
type RulesDocument struct {
	Rules []RuleInfo `json:"rules"`
}

// RuleInfo describes a rule.
type RuleInfo struct {
	Code     string           `json:"code"`
	Name     string           `json:"name"`
	Severity finding.Severity `json:"severity"`
	Title    string           `json:"title"`
	Reach    doctor.Reach     `json:"reach"`
	// Needs are the parts of the evidence without which it can tell nothing.
	Needs []string `json:"needs"`
	Guard string   `json:"guard"`
	Test  string   `json:"test"`
	Next  string   `json:"next"`
}

// NewRules makes a document of rules.
func NewRules(all []doctor.Rule) RulesDocument {
	d := RulesDocument{Rules: []RuleInfo{}}
	for _, r := range all {
		needs := []string{}
		for _, p := range r.Needs {
			needs = append(needs, string(p))
		}
		d.Rules = append(d.Rules, RuleInfo{r.Code, r.Name, r.Severity, r.Title, r.Reach, needs, r.Guard, r.Test, r.Next})
	}
	return d
}

// Rules writes a list of rules for people, or explains them.
func Rules(w io.Writer, all []doctor.Rule, explain bool, s Style) error {
	o := newOut(w, s)
	if !explain {
		rows, colors := [][]string{}, []string{}
		for _, r := range all {
			st := stateOf(r.Severity)
			rows = append(rows, []string{Text(r.Code), st.word, Text(r.Name), Text(r.Title)})
			colors = append(colors, st.color)
		}
		o.table([]string{"CODE", "HARM", "NAME", "WHAT IS WRONG"}, rows, colors, []string{"NAME"})
		return o.flush()
	}
	for _, r := range NewRules(all).Rules {
		o.line(o.paint(bold, Text(r.Code)), "  ", Text(r.Name), "  ", o.paint(stateOf(r.Severity).color,
			stateOf(r.Severity).word))
		o.prose("  ", sentence(r.Title))
		reach := map[doctor.Reach]string{doctor.Upward: "all that rests on it may suffer", doctor.Local: "it alone suffers",
			doctor.Hint: "none by its nature; it is never a cause"}[r.Reach]
		o.prose(label("  ", "reach"), reach)
		if len(r.Needs) > 0 {
			o.flow(label("  ", "needs"), r.Needs, ", ")
		}
		o.prose(label("  ", "guard"), Text(r.Guard))
		o.prose(label("  ", "tested"), Text(r.Test))
		o.prose(label("  ", "next"), Text(r.Next))
	}
	return o.flush()
}
