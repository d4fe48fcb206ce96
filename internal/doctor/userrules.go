// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// Rules of users are files of YAML (doc/doctor.md, "Rules of your own"):
//
//	rules:
//	  - code: SITE1
//	    name: short-timeout
//	    severity: warning
//	    title: a disk has a timeout that is too short for our storage
//	    for: device
//	    match:
//	      - {fact: driver, op: equals, value: sd}
//	      - {fact: timeout_seconds, op: below, value: 180}
//	    text: "{name} gives up after {timeout_seconds} s"
//	    next: install the package site-udev
const (
	maxRuleBytes  = 1 << 20
	maxUserRules  = 1000
	maxConditions = 50
)

// userFile is a file of rules.
type userFile struct {
	Rules []userRule `yaml:"rules"`
}

// userRule is one rule, with the line that it begins on.
type userRule struct {
	Code     string      `yaml:"code"`
	Name     string      `yaml:"name"`
	Severity string      `yaml:"severity"`
	Title    string      `yaml:"title"`
	For      string      `yaml:"for"`
	Match    []condition `yaml:"match"`
	Text     string      `yaml:"text"`
	Next     string      `yaml:"next"`

	line int
	at   map[string]int // the lines of its fields
}

// condition is one thing that has to be so.
type condition struct {
	Fact  string    `yaml:"fact"`
	Op    string    `yaml:"op"`
	Value yaml.Node `yaml:"value"`

	line   int
	at     map[string]int // the lines of its fields
	text   string
	number float64
	list   []string
}

var userCode = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Z][A-Z0-9_-]{1,31}$`) })

// ReadRules reads the rules in the files *.yaml of a directory. A file with anything wrong is an error,
// with its line.
func ReadRules(dir string) ([]Rule, error) {
	files, err := diskio.Files(context.Background(), dir, func(name string) bool {
		return strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml")
	})
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	var all []Rule
	known := map[string]string{}
	for _, r := range Rules() {
		known[r.Code], known[r.Name] = "a rule of shisa", "a rule of shisa"
	}
	for _, file := range files {
		rules, err := readRuleFile(file, known)
		if err != nil {
			return nil, err
		}
		all = append(all, rules...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("read rules: %s has no file *.yaml with rules", dir)
	}
	return all, nil
}

func readRuleFile(file string, known map[string]string) ([]Rule, error) {
	f, err := diskio.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	defer f.Close()
	if f.Size() > maxRuleBytes {
		return nil, fmt.Errorf("read rules: %s has %d bytes, want at most %d", file, f.Size(), maxRuleBytes)
	}
	text, err := io.ReadAll(io.NewSectionReader(f, 0, maxRuleBytes))
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	return ParseRules(file, text, known)
}

// ParseRules reads a file of rules. known are codes and names that are taken, each with by whom; those of
// the file are added.
func ParseRules(file string, text []byte, known map[string]string) ([]Rule, error) {
	var u userFile
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&u); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: is empty, want a list named rules", file)
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(u.Rules) > maxUserRules {
		return nil, fmt.Errorf("%s: has %d rules, want at most %d", file, len(u.Rules), maxUserRules)
	}
	rules := make([]Rule, 0, len(u.Rules))
	for i := range u.Rules {
		r := &u.Rules[i]
		if line, why := r.wrong(known); why != "" {
			return nil, fmt.Errorf("%s:%d: %s", file, line, why)
		}
		place := fmt.Sprintf("%s:%d", file, r.line)
		known[r.Code], known[r.Name] = place, place
		rules = append(rules, r.rule(place))
	}
	return rules, nil
}

// UnmarshalYAML keeps the line.
func (r *userRule) UnmarshalYAML(n *yaml.Node) error {
	type plain userRule
	if err := strict(n, (*plain)(r), "code", "name", "severity", "title", "for", "match", "text", "next"); err != nil {
		return err
	}
	r.line, r.at = n.Line, fieldLines(n)
	return nil
}

// UnmarshalYAML keeps the line.
func (c *condition) UnmarshalYAML(n *yaml.Node) error {
	type plain condition
	if err := strict(n, (*plain)(c), "fact", "op", "value"); err != nil {
		return err
	}
	c.line, c.at = n.Line, fieldLines(n)
	return nil
}

// fieldLines gives the line of each value of a map.
func fieldLines(n *yaml.Node) map[string]int {
	at := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		at[n.Content[i].Value] = n.Content[i+1].Line
	}
	return at
}

// strict decodes a map that has only these keys: what a type decodes itself is not held to the decoder's
// strictness.
func strict(n *yaml.Node, to any, keys ...string) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: want %s", n.Line, strings.Join(keys, ", "))
	}
	for i := 0; i < len(n.Content); i += 2 {
		if key := n.Content[i]; !slices.Contains(keys, key.Value) {
			return fmt.Errorf("line %d: %q is not known, want one of %s", key.Line, key.Value, strings.Join(keys, ", "))
		}
	}
	return n.Decode(to)
}

// wrong says what is wrong about a rule, and on which line; "" if nothing is.
func (r *userRule) wrong(known map[string]string) (int, string) {
	severities := []string{string(finding.Lost), string(finding.Danger), string(finding.Warning),
		string(finding.Note)}
	field := ""
	why := ""
	switch {
	case !userCode().MatchString(r.Code):
		field, why = "code", fmt.Sprintf("the code %q, want capitals and digits", r.Code)
	case known[r.Code] != "":
		field, why = "code", fmt.Sprintf("the code %s is taken by %s", r.Code, known[r.Code])
	case r.Name == "" || known[r.Name] != "":
		field, why = "name", fmt.Sprintf("the name %q is missing or taken", r.Name)
	case !slices.Contains(severities, r.Severity):
		field, why = "severity", fmt.Sprintf("the severity %q, want one of %s", r.Severity, strings.Join(severities, ", "))
	case r.Title == "":
		field, why = "title", "title and next are wanted: what is wrong, and what to do about it"
	case r.Next == "":
		field, why = "next", "title and next are wanted: what is wrong, and what to do about it"
	case factNames(Kind(r.For)) == nil:
		field, why = "for", fmt.Sprintf("for: %q, want one of %s", r.For, strings.Join(factKinds(), ", "))
	case len(r.Match) == 0 || len(r.Match) > maxConditions:
		field, why = "match", fmt.Sprintf("%d conditions, want 1 to %d", len(r.Match), maxConditions)
	}
	if why != "" {
		return cmp.Or(r.at[field], r.line), why // of one that is not there the rule is all there is
	}
	for i := range r.Match {
		c := &r.Match[i]
		if field, why := c.wrong(Kind(r.For)); why != "" {
			return cmp.Or(c.at[field], c.line), why
		}
	}
	return 0, ""
}

// ops are the ways of comparing.
var ops = []string{"equals", "not_equals", "contains", "matches", "in", "above", "below"}

// wrong says what is wrong about a condition, and of which field, and takes its value.
func (c *condition) wrong(of Kind) (field, why string) {
	names := factNames(of)
	prefix, _, dotted := strings.Cut(c.Fact, ".")
	if !slices.Contains(names, c.Fact) && (!dotted || !slices.Contains(names, prefix+".*")) {
		return "fact", fmt.Sprintf("the fact %q is not known of a %s, want one of %s", c.Fact, of, strings.Join(names, ", "))
	}
	if !slices.Contains(ops, c.Op) {
		return "op", fmt.Sprintf("the operator %q, want one of %s", c.Op, strings.Join(ops, ", "))
	}
	return "value", c.wrongValue()
}

func (c *condition) wrongValue() string {
	c.text = c.Value.Value
	switch c.Op {
	case "in":
		if c.Value.Kind != yaml.SequenceNode || c.Value.Decode(&c.list) != nil {
			return "in wants a list of values"
		}
	case "above", "below":
		n, err := strconv.ParseFloat(c.text, 64)
		if err != nil || c.Value.Kind != yaml.ScalarNode {
			return fmt.Sprintf("%s wants a number, not %q", c.Op, c.text)
		}
		c.number = n
	case "matches":
		if _, err := path.Match(c.text, ""); err != nil {
			return fmt.Sprintf("the pattern %q: %v", c.text, err)
		}
	}
	if c.Op != "in" && c.Value.Kind != yaml.ScalarNode {
		return "the value is wanted, a text or a number"
	}
	return ""
}

// rule makes a rule of it.
func (u *userRule) rule(place string) Rule {
	r := Rule{Rule: finding.Rule{Code: u.Code, Name: u.Name, Severity: finding.Severity(u.Severity), Title: u.Title,
		Next: u.Next}, Reach: Local, Guard: "that of who wrote it", Test: "by who wrote it: " + filepath.Clean(place)}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for _, x := range factsOf(e, Kind(u.For)) {
			out = append(out, u.judge(&r, x))
		}
		return out
	}
	return r
}

// judge holds one object against all conditions: one that is not so is enough to pass, and one that is
// not known makes it unknown if all others are so.
func (u *userRule) judge(r *Rule, x facts) Result {
	why := ""
	var seen []Fact
	for i := range u.Match {
		c := &u.Match[i]
		value, known := x.values[c.Fact]
		if !known {
			why = c.Fact + " is not known"
			continue
		}
		if !c.holds(value) {
			return pass(x.object)
		}
		seen = append(seen, Fact{Source: x.from, Value: c.Fact + " = " + value})
	}
	if why != "" {
		return unknown(x.object, why)
	}
	text := u.Text
	if text == "" {
		text = u.Title
	}
	var named []string
	for name, value := range x.values {
		named = append(named, "{"+name+"}", value)
	}
	text = strings.NewReplacer(named...).Replace(text) // what stands in a value is not replaced again
	return fail(found(r, x.object, 0.8, "match", text, seen...))
}

// holds tells whether a value is as the condition wants it. Values that are no numbers are neither above
// nor below one.
func (c *condition) holds(value string) bool {
	switch c.Op {
	case "equals":
		return value == c.text
	case "not_equals":
		return value != c.text
	case "contains":
		return strings.Contains(value, c.text)
	case "matches":
		ok, err := path.Match(c.text, value)
		return ok && err == nil
	case "in":
		return slices.Contains(c.list, value)
	}
	n, err := strconv.ParseFloat(value, 64)
	return err == nil && (c.Op == "above" && n > c.number || c.Op == "below" && n < c.number)
}
