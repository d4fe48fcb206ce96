// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package klog_test

import (
	"os"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/linux/klog"
)

// sample is one line of testdata.
type sample struct {
	forms   []string
	program string
	line    string
	fields  string
	where   string
}

// samples reads a file of testdata: a head, "> line", and "= fields" where it has fields.
func samples(t testing.TB, name string) []sample {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var out []sample
	for _, l := range strings.Split(string(b), "\n") {
		switch {
		case l == "" || strings.HasPrefix(l, "#"):
		case strings.HasPrefix(l, "> "):
			out[len(out)-1].line = l[2:]
		case strings.HasPrefix(l, "="):
			out[len(out)-1].fields = strings.TrimPrefix(strings.TrimPrefix(l, "="), " ")
		default:
			out = append(out, head(name, strings.Fields(l)))
		}
	}
	return out
}

func head(name string, f []string) sample {
	s := sample{forms: f[:1], program: "kernel", where: strings.Join(f, " ")}
	switch name {
	case "programs.txt":
		s.program, _, _ = strings.Cut(f[1], ":")
	case "other.txt":
		s.forms, s.program = f[:len(f)-1], f[len(f)-1]
	}
	return s
}

// fieldsOf writes fields as testdata does.
func fieldsOf(m klog.Match) string {
	var out []string
	for _, f := range m.Fields {
		if f.Value != "" {
			out = append(out, f.Name+"="+strings.ReplaceAll(f.Value, "|", `\|`))
		}
	}
	return squeeze(strings.Join(out, " | "))
}

// squeeze makes white space the same.
func squeeze(s string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(s, "= ", "=")), " ")
}

func TestEverySampleHasItsForm(t *testing.T) {
	m := klog.New()
	for _, name := range []string{"kernel.txt", "devices.txt", "programs.txt"} {
		for _, s := range samples(t, name) {
			got, ok := m.Match(s.program, s.line)
			if s.fields == "none" {
				if ok && got.Form.Name == s.forms[0] {
					t.Errorf("%s: %q has the form %s, and should not", s.program, s.line, got.Form.Name)
				}
				continue
			}
			if !ok || got.Form.Name != s.forms[0] {
				t.Errorf("%s\n%s: %q = %v, want %s", s.where, s.program, s.line, got.Form, s.forms[0])
				continue
			}
			if f := fieldsOf(got); f != squeeze(s.fields) {
				t.Errorf("%q\n got %s\nwant %s", s.line, f, s.fields)
			}
		}
	}
}

func TestWhatLooksAlikeHasNot(t *testing.T) {
	m := klog.New()
	for _, s := range samples(t, "other.txt") {
		got, ok := m.Match(s.program, s.line)
		for _, f := range s.forms {
			if ok && (f == "any" || f == got.Form.Name) {
				t.Errorf("%s: %q has the form %s", s.program, s.line, got.Form.Name)
			}
		}
	}
}
