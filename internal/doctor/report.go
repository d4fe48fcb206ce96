// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Report is what the doctor says (schema shisa.doctor/1).
type Report struct {
	Verdict finding.Verdict `json:"verdict"`
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
	// Machines are those whose evidence was looked at.
	Machines []Patient `json:"machines"`
	// Causes are what is wrong, each with all that it explains, the one that explains most first. An
	// object that was not looked at may be one.
	Causes []Cause `json:"causes"`
	// Findings are all that was found, in the order of the causes and then of harm.
	Findings []Finding `json:"findings"`
	// Rules are all that was asked, with what could not be told.
	Rules []Asked `json:"rules"`
	// Shared is what the sick have and the healthy do not, where several machines were looked at.
	Shared []Common `json:"shared"`
	// Objects and Edges are the picture: an edge leads to what an object rests on.
	Objects []Seen `json:"objects"`
	Edges   []Edge `json:"edges"`
	// NotLookedAt is what could not be read of the evidence.
	NotLookedAt []Missing `json:"not_looked_at"`
}

// Patient is a machine whose evidence was looked at.
type Patient struct {
	Label  string    `json:"label"`
	Kind   tree.Kind `json:"kind"`
	Kernel string    `json:"kernel"`
	OS     string    `json:"os"`
	// Now is the time that the evidence is of.
	Now time.Time `json:"now"`
	// Sick: something worse than a note was found on it.
	Sick bool `json:"sick"`
}

// Certainty is how sure a cause is.
type Certainty string

// The certainties of causes.
const (
	// LikelyCause explains other findings, and better than anything else does.
	LikelyCause Certainty = "likely"
	// NotCertain explains them, but something else does almost as well.
	NotCertain Certainty = "not_certain"
	// NotLookedAt: what the others have in common was not looked at.
	NotLookedAt Certainty = "not_looked_at"
	// Alone: it explains nothing but itself.
	Alone Certainty = "alone"
)

// Cause is one thing that is wrong, with what it explains.
type Cause struct {
	Certainty Certainty `json:"certainty"`
	Object    Object    `json:"object"`
	// Finding is its ID, "" for an object that was not looked at.
	Finding string `json:"finding"`
	// Score is the sum of Terms.
	Score float64 `json:"score"`
	Terms []Term  `json:"terms"`
	// Explains are the IDs of the findings that it explains, Affects the objects that rest on it.
	Explains []string `json:"explains"`
	Affects  []Object `json:"affects"`
	// Rivals explain some of the same almost as well, the best first.
	Rivals []Rival `json:"rivals"`
}

// Term is one part of a score.
type Term struct {
	Value  float64 `json:"value"`
	Object Object  `json:"object"`
	Text   string  `json:"text"`
}

// Rival is another explanation.
type Rival struct {
	Object  Object  `json:"object"`
	Finding string  `json:"finding"`
	Score   float64 `json:"score"`
}

// Asked is a rule with what it said.
type Asked struct {
	Code string `json:"code"`
	Name string `json:"name"`
	// Failed, Passed and Unknown count objects.
	Failed  int `json:"failed"`
	Passed  int `json:"passed"`
	Unknown int `json:"unknown"`
	// Reasons are why it could not tell, one for each object.
	Reasons []Doubt `json:"reasons"`
}

// Doubt is why a rule could not tell about an object.
type Doubt struct {
	Object Object `json:"object"`
	Why    string `json:"why"`
}

// Common is an object that machines rest on.
type Common struct {
	Object Object `json:"object"`
	// Sick and Healthy are the labels of the machines that rest on it.
	Sick    []string `json:"sick"`
	Healthy []string `json:"healthy"`
	// Seen: there is evidence about the object itself.
	Seen bool `json:"seen"`
}

// State is what is known of an object.
type State string

// The states of objects.
const (
	Hurt    State = "hurt"    // a rule failed
	Healthy State = "healthy" // rules passed, none failed
	Doubted State = "unknown" // rules could not tell
	Unseen  State = "unseen"  // it was not looked at
	Plain   State = "plain"   // there is evidence, and no rule for it
)

// Seen is an object of the picture.
type Seen struct {
	Object Object `json:"object"`
	State  State  `json:"state"`
	// Findings are the IDs of those about it.
	Findings []string `json:"findings"`
}

// Edge leads from an object to what it rests on.
type Edge struct {
	From Object `json:"from"`
	To   Object `json:"to"`
}

// Missing is evidence that could not be read.
type Missing struct {
	Machine string `json:"machine"`
	evidence.Gap
}
