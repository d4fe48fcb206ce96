// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"encoding/json"
	"io"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
)

// The parts of a SARIF log that are written (OASIS, "Static Analysis Results Interchange Format (SARIF)
// Version 2.1.0", sections 3.13 to 3.58).
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool        sarifTool         `json:"tool"`
		Invocations []sarifInvocation `json:"invocations"`
		Results     []sarifResult     `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name    string      `json:"name"`
		Version string      `json:"version"`
		Rules   []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID               string    `json:"id"`
		Name             string    `json:"name"`
		ShortDescription sarifText `json:"shortDescription"`
		Help             sarifText `json:"help"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifInvocation struct {
		ExecutionSuccessful bool                `json:"executionSuccessful"`
		ExitCode            int                 `json:"exitCode"`
		Notifications       []sarifNotification `json:"toolExecutionNotifications"`
	}
	sarifNotification struct {
		Level   string    `json:"level"`
		Message sarifText `json:"message"`
	}
	sarifResult struct {
		RuleID       string            `json:"ruleId"`
		Kind         string            `json:"kind"`
		Level        string            `json:"level"`
		Message      sarifText         `json:"message"`
		Locations    []sarifLocation   `json:"locations"`
		Related      []sarifLocation   `json:"relatedLocations,omitempty"`
		Fingerprints map[string]string `json:"partialFingerprints,omitempty"`
	}
	sarifLocation struct {
		Physical *sarifPhysical `json:"physicalLocation,omitempty"`
		Logical  []sarifLogical `json:"logicalLocations,omitempty"`
		Message  *sarifText     `json:"message,omitempty"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   *sarifRegion  `json:"region,omitempty"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		Line int `json:"startLine"`
	}
	sarifLogical struct {
		Name string `json:"fullyQualifiedName"`
		Kind string `json:"kind"`
	}
)

const sarifSchema = "https://json.schemastore.org/sarif-2.1.0.json"

// DoctorSARIF writes a report for tools that collect results of checks. What a rule could not tell is a
// result of the kind "open"; evidence that was not read is a notification, and the run is then not
// successful.
func DoctorSARIF(w io.Writer, r *doctor.Report, version string) error {
	run := sarifRun{Tool: sarifTool{sarifDriver{Name: "shisa", Version: version, Rules: []sarifRule{}}},
		Results: []sarifResult{}}
	run.rules(r)
	run.results(r)
	run.Invocations = []sarifInvocation{invocation(r)}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(sarifLog{Schema: sarifSchema, Version: "2.1.0", Runs: []sarifRun{run}})
}

// rules describes each rule once that says something.
func (run *sarifRun) rules(r *doctor.Report) {
	about := map[string]finding.Rule{}
	for _, rule := range finding.Rules() {
		about[rule.Code] = rule
	}
	for _, a := range r.Rules {
		rule := about[a.Code]
		title := rule.Title
		if title == "" {
			title = a.Name
		}
		run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRule{ID: Text(a.Code), Name: Text(a.Name),
			ShortDescription: sarifText{Text(title)}, Help: sarifText{Text(rule.Next)}})
	}
}

func (run *sarifRun) results(r *doctor.Report) {
	for i := range r.Findings {
		f := &r.Findings[i]
		kind := "fail"
		if levelOf(f.Severity) == "none" {
			kind = "informational"
		}
		run.Results = append(run.Results, sarifResult{RuleID: Text(f.Code), Kind: kind,
			Level: levelOf(f.Severity), Message: sarifText{Text(f.Summary)}, Locations: located(f.Object),
			Fingerprints: map[string]string{"shisa/v1": f.ID}})
	}
	for _, a := range r.Rules {
		for _, d := range a.Reasons {
			run.Results = append(run.Results, sarifResult{RuleID: Text(a.Code), Kind: "open", Level: "none",
				Message: sarifText{"cannot tell: " + Text(d.Why)}, Locations: located(d.Object)})
		}
	}
}

// levelOf gives the level of a severity. A result that is no failure has none (section 3.27.10).
func levelOf(s finding.Severity) string {
	switch s {
	case finding.Lost, finding.Danger:
		return "error"
	case finding.Warning:
		return "warning"
	case finding.Waste:
		return "note"
	}
	return "none"
}

func located(o doctor.Object) []sarifLocation {
	return []sarifLocation{{Logical: []sarifLogical{{Name: Text(o.String()), Kind: Text(string(o.Kind))}}}}
}

func invocation(r *doctor.Report) sarifInvocation {
	in := sarifInvocation{ExecutionSuccessful: true, ExitCode: r.Status[0], Notifications: []sarifNotification{}}
	for _, m := range r.NotLookedAt {
		in.ExecutionSuccessful = false
		text := Text(m.Machine) + ": " + Text(string(m.Part))
		if m.Object != "" {
			text += ": " + Name(m.Object)
		}
		in.Notifications = append(in.Notifications, sarifNotification{Level: "warning",
			Message: sarifText{"not looked at: " + text + ": " + Text(m.Reason)}})
	}
	return in
}
