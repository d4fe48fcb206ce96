// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package plan_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/plan"
)

func sampleTexts(t testing.TB) *plan.Texts {
	t.Helper()
	was, wasLink := plan.StateOf([]byte("a = 1\n"), "0600"), plan.LinkState("../x")
	p := &plan.Texts{
		Schema: plan.TextsSchema, ID: "00112233445566778899aabbccddeeff",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Tool: "test", Why: "keep the agent away",
		Files: []plan.Text{
			{Path: "/etc/a.conf", Before: &was, Mode: "0600", Content: "a = 2\n"},
			{Path: "/etc/b.d/b ü.conf", Mode: "0644", Content: "x\t\"y\"\\\u202e\n"},
			{Path: "/etc/l", Mode: plan.LinkMode, Content: "/dev/null", Link: true},
			{Path: "/etc/m", Before: &wasLink, Gone: true},
		},
		Then: []plan.Told{{Command: "systemctl daemon-reload", Why: "read it"}},
	}
	if err := p.Seal(); err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return p
}

// textsDocument is the JSON of a plan.
func textsDocument(t testing.TB, p *plan.Texts) []byte {
	t.Helper()
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestReadTexts(t *testing.T) {
	p := sampleTexts(t)
	raw := textsDocument(t, p)
	got, err := plan.ReadTexts(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p, got); d != "" {
		t.Errorf("ReadTexts (-want +got):\n%s", d)
	}
	if q, again, err := plan.ReadAny(bytes.NewReader(raw)); err != nil || q != nil || !cmp.Equal(p, again) {
		t.Errorf("ReadAny = %v, %v, %v", q, again, err)
	}
	if !strings.Contains(string(raw), `"mode":"0644"`) || !strings.Contains(string(raw), `"before":null`) {
		t.Errorf("the document is %s", raw)
	}
	if _, err := plan.Read(bytes.NewReader(raw)); !errors.Is(err, plan.ErrNotPlan) {
		t.Errorf("Read = %v, want %v", err, plan.ErrNotPlan)
	}
	for _, c := range []struct {
		name, old, new string
		want           error
	}{
		{"edited", "a = 2", "a = 3", plan.ErrEdited},
		{"another mode", `"mode":"0644"`, `"mode":"0755"`, plan.ErrEdited},
		{"newer", "text-plan/1", "text-plan/2", plan.ErrNewer},
		{"no version", "text-plan/1", "text-plan/x", plan.ErrNotPlan},
		{"unknown field", `"why"`, `"run":"x","why"`, plan.ErrNotPlan},
		{"no mode", `"0644"`, `"rw"`, plan.ErrEdited},
	} {
		edited := bytes.Replace(raw, []byte(c.old), []byte(c.new), 1)
		if bytes.Equal(edited, raw) {
			t.Fatalf("%s: nothing was replaced", c.name)
		}
		if _, err := plan.ReadTexts(bytes.NewReader(edited)); !errors.Is(err, c.want) {
			t.Errorf("%s: ReadTexts = %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := plan.ReadTexts(strings.NewReader(string(raw) + "{}")); !errors.Is(err, plan.ErrNotPlan) {
		t.Errorf("ReadTexts with more = %v", err)
	}
}

func TestTextsValidate(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(p *plan.Texts)
	}{
		{"no id", func(p *plan.Texts) { p.ID = "x" }},
		{"capital id", func(p *plan.Texts) { p.ID = strings.ToUpper(p.ID) }},
		{"no reason", func(p *plan.Texts) { p.Why = "" }},
		{"reason of two lines", func(p *plan.Texts) { p.Why = "a\nb" }},
		{"no files", func(p *plan.Texts) { p.Files = nil }},
		{"many files", func(p *plan.Texts) { p.Files = make([]plan.Text, plan.MaxTexts+1) }},
		{"command of two lines", func(p *plan.Texts) { p.Then[0].Command = "a\nrm -r x" }},
		{"command without a reason", func(p *plan.Texts) { p.Then[0].Why = "" }},
		{"relative", func(p *plan.Texts) { p.Files[0].Path = "etc/a" }},
		{"not clean", func(p *plan.Texts) { p.Files[0].Path = "/etc/../a" }},
		{"trailing slash", func(p *plan.Texts) { p.Files[0].Path = "/etc/a/" }},
		{"the root", func(p *plan.Texts) { p.Files[0].Path = "/" }},
		{"newline in the name", func(p *plan.Texts) { p.Files[0].Path = "/etc/a\nb" }},
		{"long name", func(p *plan.Texts) { p.Files[0].Path = "/" + strings.Repeat("a", plan.MaxTextName+1) }},
		{"no UTF-8 in the name", func(p *plan.Texts) { p.Files[0].Path = "/etc/\xff" }},
		{"twice", func(p *plan.Texts) { p.Files[1].Path = p.Files[0].Path }},
		{"one below another", func(p *plan.Texts) { p.Files[0].Path = "/etc/b.d" }},
		{"all may write", func(p *plan.Texts) { p.Files[0].Mode = "0666" }},
		{"setuid", func(p *plan.Texts) { p.Files[0].Mode = "4755" }},
		{"unreadable", func(p *plan.Texts) { p.Files[0].Mode = "0200" }},
		{"longer mode", func(p *plan.Texts) { p.Files[0].Mode = "00644" }},
		{"no mode", func(p *plan.Texts) { p.Files[0].Mode = "rw" }},
		{"no mode before", func(p *plan.Texts) { p.Files[0].Before.Mode = "0888" }},
		{"setuid before", func(p *plan.Texts) { p.Files[0].Before.Mode = "4755" }},
		{"no digest before", func(p *plan.Texts) { p.Files[0].Before.SHA256 = "00" }},
		{"too long", func(p *plan.Texts) { p.Files[0].Content = strings.Repeat("a", plan.MaxTextBytes+1) }},
		{"no UTF-8", func(p *plan.Texts) { p.Files[0].Content = "\xff" }},
		{"zero byte", func(p *plan.Texts) { p.Files[0].Content = "a\x00" }},
		{"link with a mode", func(p *plan.Texts) { p.Files[1].Link = true }},
		{"link to nothing", func(p *plan.Texts) { p.Files[1] = plan.Text{Path: "/etc/l", Link: true, Mode: plan.LinkMode} }},
		{"link of two lines", func(p *plan.Texts) {
			p.Files[1] = plan.Text{Path: "/etc/l", Link: true, Mode: plan.LinkMode, Content: "a\nb"}
		}},
		{"long link", func(p *plan.Texts) {
			p.Files[1] = plan.Text{Path: "/etc/l", Link: true, Mode: plan.LinkMode, Content: strings.Repeat("a", 4096)}
		}},
		{"gone with content", func(p *plan.Texts) { p.Files[0].Gone = true }},
		{"gone and a link", func(p *plan.Texts) { p.Files[0] = plan.Text{Path: "/etc/l", Link: true, Gone: true} }},
		{"a link became a file", func(p *plan.Texts) { *p.Files[0].Before = plan.LinkState("/x") }},
		{"a link had a mode", func(p *plan.Texts) {
			s := plan.LinkState("/x")
			s.Mode = "0644"
			p.Files[0] = plan.Text{Path: "/etc/l", Gone: true, Before: &s}
		}},
	} {
		p := sampleTexts(t)
		c.edit(p)
		if err := p.Validate(); !errors.Is(err, plan.ErrNotPlan) {
			t.Errorf("%s: Validate = %v, want %v", c.name, err, plan.ErrNotPlan)
		}
	}
}

func TestTextsEmpty(t *testing.T) {
	p := sampleTexts(t)
	if p.Empty() {
		t.Error("Empty = true for a plan that changes files")
	}
	for i := range p.Files {
		p.Files[i].Before = p.Files[i].After()
	}
	if !p.Empty() {
		t.Error("Empty = false for a plan that changes nothing")
	}
}

func FuzzTexts(f *testing.F) {
	f.Add(textsDocument(f, sampleTexts(f)))
	f.Add([]byte(`{"schema":"shisa.text-plan/1","files":[{"mode":"0644"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := plan.ReadTexts(bytes.NewReader(raw))
		if err != nil {
			return
		}
		again, err := plan.ReadTexts(bytes.NewReader(textsDocument(t, p)))
		if err != nil || !cmp.Equal(p, again) {
			t.Errorf("a plan that was read reads back as %+v, %v", again, err)
		}
	})
}
