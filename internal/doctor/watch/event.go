// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// Kind is what an event tells.
type Kind string

// The kinds.
const (
	Message    Kind = "message"     // the kernel said something whose form is known
	Found      Kind = "found"       // something is wrong that was not before, or is worse than before
	Over       Kind = "over"        // what was found is no more, or what could not be told can be
	CannotTell Kind = "cannot_tell" // something cannot be told that could be before
	Lost       Kind = "lost"        // messages of the kernel were overwritten before they were read
	Memory     Kind = "memory"      // a point of memory was kept
)

// Event is something that changed (schema shisa.doctor-event/1).
type Event struct {
	Time    time.Time `json:"time"`
	Machine string    `json:"machine"`
	Kind    Kind      `json:"kind"`
	// Code is that of the rule, Finding the ID of the finding; "" where there is none.
	Code     string           `json:"code"`
	Finding  string           `json:"finding"`
	Severity finding.Severity `json:"severity"`
	// Object is what it is about, as "mount:host:/srv"; "" if that is not known.
	Object  string `json:"object"`
	Summary string `json:"summary"`
	// Form is that of a message, Fields are what it names, Text is its text; Fields of a point of memory
	// are its values.
	Form   string       `json:"form"`
	Fields []EventField `json:"fields"`
	Text   string       `json:"text"`
	// Count is how many messages were lost, or were said and not told one by one; 1 for others.
	Count int64 `json:"count"`
}

// EventField is a name and a value.
type EventField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// said makes an event of a message.
func said(m *evidence.Event, severity finding.Severity, names []string) Event {
	e := Event{Time: m.Time, Kind: Message, Severity: severity, Form: m.Form, Text: m.Text, Summary: m.Text, Count: 1,
		Fields: []EventField{}}
	for _, name := range names {
		e.Fields = append(e.Fields, EventField{name, m.Fields[name]})
	}
	if device := m.Fields["device"]; device != "" {
		e.Object = device
	}
	return e
}
