// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package doctor says what is wrong with a machine between its files and the storage that they live on,
// and what the likely cause is. Its rules are functions over typed evidence; what they find is joined
// along what rests on what.
//
// A rule answers for each object that it concerns: it fails, it passes, or it cannot tell, with the
// reason. What no rule could tell about is never taken for healthy.
package doctor

import (
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// Rule is one thing that the doctor knows how to find.
type Rule struct {
	finding.Rule
	// Needs are the parts of the evidence without which it can tell nothing: it is not asked then, and
	// its answer is that it cannot tell, with the reason of the part.
	Needs []evidence.Part
	// LogAlone: what logs say is enough for it to find something, where file systems themselves show nothing.
	LogAlone bool
	// Reach says how far what it finds is felt.
	Reach Reach
	// Guard says against which false alarms it stands, in a sentence.
	Guard string
	// Test says how it was tested, in a sentence.
	Test string
	// Judge gives one result for each object that the rule concerns, none if it concerns nothing that
	// is there.
	Judge func(*evidence.Evidence) []Result
}

// Reach is how far a fault is felt.
type Reach string

// The reaches.
const (
	// Upward: all that rests on the object may suffer.
	Upward Reach = "upward"
	// Local: it hurts the object itself.
	Local Reach = "local"
	// Hint: harmless by its nature; never a cause.
	Hint Reach = "hint"
)

// Outcome is what a rule says of an object.
type Outcome string

// The outcomes.
const (
	Fail    Outcome = "fail"
	Pass    Outcome = "pass"
	Unknown Outcome = "unknown"
)

// Result is what a rule says of one object.
type Result struct {
	Outcome Outcome
	Object  Object
	// Why is the reason of Unknown.
	Why string
	// Finding is set for Fail.
	Finding *Finding
}

// Finding is something that is wrong, or worth knowing, about one object.
type Finding struct {
	// ID is the same wherever and whenever the same rule finds the same about the same object.
	ID       string           `json:"id"`
	Code     string           `json:"code"`
	Name     string           `json:"name"`
	Severity finding.Severity `json:"severity"`
	// Confidence is from 0 to 1: how sure it is that the object has this fault.
	Confidence float64 `json:"confidence"`
	Reach      Reach   `json:"reach"`
	Object     Object  `json:"object"`
	// Kind is a short word for what the summary says; it never changes its meaning.
	Kind    string `json:"kind"`
	Summary string `json:"summary"`
	// Evidence is what it rests on.
	Evidence []Fact `json:"evidence"`
	// FirstSeen and LastSeen are the times of the evidence, zero where there is none.
	FirstSeen time.Time `json:"first_seen,omitempty"`
	LastSeen  time.Time `json:"last_seen,omitempty"`
	// Over: it was so, and is no longer, as far as the evidence goes.
	Over bool `json:"over"`
	// Affects are the objects that suffer, as the rule knows by itself; those that rest on the object
	// are added by the picture.
	Affects []Object `json:"affects"`
	// Because are the findings that explain it, NotBecause those that look like it and do not.
	Because    []Reason `json:"because"`
	NotBecause []Reason `json:"not_because"`
	Remedies   []Remedy `json:"remedies"`
	Guard      string   `json:"guard"`
}

// Fact is one observation.
type Fact struct {
	Source evidence.Source `json:"source"`
	Value  string          `json:"value"`
	// Text says what follows from it, "" if that is plain.
	Text string `json:"text"`
}

// Reason leads to another finding.
type Reason struct {
	Finding string `json:"finding"`
	Text    string `json:"text"`
}

// Remedy is one step of what to do, in the order of the steps.
type Remedy struct {
	Text string `json:"text"`
	// Command can be run as it stands; "" if it is for a person to do. Undo takes it back, "" if
	// nothing does.
	Command string `json:"command"`
	Undo    string `json:"undo"`
	// Risk says what may go wrong, "" if nothing does.
	Risk string `json:"risk"`
}

// Kind is what an object is.
type Kind string

// The kinds.
const (
	File       Kind = "file"
	FileSystem Kind = "filesystem"
	Mount      Kind = "mount"
	Device     Kind = "device"
	Image      Kind = "image"
	Share      Kind = "share"
	Server     Kind = "server"
	Host       Kind = "host"
	Unit       Kind = "unit"
	Task       Kind = "task"
	Machine    Kind = "machine"
	Cluster    Kind = "cluster"
)

// Object is a thing that can be hurt. On is the machine that it is seen on, "" for what several see:
// servers, their shares, and images on those.
type Object struct {
	Kind Kind   `json:"kind"`
	On   string `json:"on"`
	Name string `json:"name"`
}

// String gives "mount:host1:/srv", by which an object is named in text and JSON.
func (o Object) String() string { return string(o.Kind) + ":" + o.On + ":" + o.Name }
