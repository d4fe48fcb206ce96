// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// Rules lists every rule, in the order of their codes.
func Rules() []Rule {
	return []Rule{
		ruleBL01(), ruleBL02(), ruleBL03(), ruleBL04(), ruleBL05(), ruleBL06(), ruleBL07(), ruleBL08(),
		ruleCL01(), ruleCL02(),
		ruleFS01(), ruleFS02(), ruleFS03(), ruleFS04(), ruleFS05(), ruleFS06(), ruleFS07(), ruleFS08(), ruleFS09(), ruleFS10(),
		ruleIM01(), ruleIM02(), ruleIM03(), ruleIM04(), ruleIM05(),
		ruleLC01(), ruleLC02(),
		ruleME01(), ruleME02(),
		ruleNF01(), ruleNF02(), ruleNF03(), ruleNF04(),
		rulePR01(), rulePR02(),
		ruleTM01(), ruleTM02(), ruleTM03(), ruleTM04(), ruleTM05(), ruleTM06(), ruleTM07(), ruleTM08(),
		ruleTM09(),
		ruleUM01(),
	}
}

// judge asks a rule. Where a part that it needs is not known it can tell nothing, of the machine as a
// whole.
func (r *Rule) judge(e *evidence.Evidence) []Result {
	for _, p := range r.Needs {
		if why, known := e.Known(p); !known {
			out := []Result{unknown(hostObject(e), string(p)+": "+why)}
			if r.LogAlone && p == evidence.PartFSs {
				out = append(out, r.heardOf(e)...)
			}
			return out
		}
	}
	return r.Judge(e)
}

// fail makes the result for a finding.
func fail(f *Finding) Result { return Result{Outcome: Fail, Object: f.Object, Finding: f} }

func pass(o Object) Result { return Result{Outcome: Pass, Object: o} }

func unknown(o Object, why string) Result { return Result{Outcome: Unknown, Object: o, Why: why} }

// found makes a finding of a rule about an object, with the rule's severity and reach.
func found(r *Rule, o Object, confidence float64, kind, summary string, facts ...Fact) *Finding {
	f := &Finding{
		ID: idOf(r.Code, kind, o), Code: r.Code, Name: r.Name, Severity: r.Severity,
		Confidence: confidence, Reach: r.Reach, Object: o, Kind: kind, Summary: summary,
		Evidence: append([]Fact{}, facts...), Affects: []Object{}, Because: []Reason{},
		NotBecause: []Reason{}, Remedies: []Remedy{}, Guard: r.Guard,
	}
	f.seen(facts)
	return f
}

// seen takes the times of facts.
func (f *Finding) seen(facts []Fact) {
	for _, x := range facts {
		at := x.Source.Time
		if at.IsZero() {
			continue
		}
		if f.FirstSeen.IsZero() || at.Before(f.FirstSeen) {
			f.FirstSeen = at
		}
		if at.After(f.LastSeen) {
			f.LastSeen = at
		}
	}
}

// over says that a fault is no more: it is told as a note, and causes nothing.
func (f *Finding) over() *Finding {
	f.Over, f.Severity, f.Reach = true, finding.Note, Hint
	return f
}

// idOf gives a finding its name for good.
func idOf(code, kind string, o Object) string {
	sum := sha256.Sum256([]byte(code + "\x00" + kind + "\x00" + o.String()))
	return hex.EncodeToString(sum[:8])
}
