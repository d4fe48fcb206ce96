// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

// textPlans are plans for text files.
func textPlans() map[string]*plan.Texts {
	then := []plan.Told{{Command: "systemctl daemon-reload", Why: "systemd reads the drop-in"},
		{Command: "systemctl restart agent.service", Why: "the unit gets its own view of the mounts"}}
	long := ""
	for i := range maxTextLines + 2 {
		long += fmt.Sprintf("line %d\n", i+1)
	}
	dropin := plan.Text{Path: "/etc/systemd/system/agent.service.d/50-shisa-mnt.conf", Mode: "0644",
		Content: "[Service]\nInaccessiblePaths=\"-/mnt\"\n"}
	same := dropin
	same.Before = dropin.After()
	wasLink := plan.LinkState("/opt/x")
	return map[string]*plan.Texts{
		"plan": {Why: "agent.service is kept from /mnt", Then: then, Files: []plan.Text{dropin,
			{Path: "/etc/other.conf", Mode: "0600", Content: long, Before: &plan.TextState{SHA256: "00", Mode: "0600"}}, same,
			{Path: "/etc/new-link", Link: true, Mode: plan.LinkMode, Content: "/dev/null"},
			{Path: "/etc/other-link", Link: true, Mode: plan.LinkMode, Content: "/dev/null", Before: &wasLink},
			{Path: "/etc/file", Link: true, Mode: plan.LinkMode, Content: "/dev/null",
				Before: &plan.TextState{SHA256: "00", Mode: "0600"}},
			{Path: "/etc/gone-link", Gone: true, Before: &wasLink}}},
		"done": {Why: "agent.service is kept from /mnt", Then: then, Files: []plan.Text{same}},
		"hostile": {Why: evil, Then: []plan.Told{{Command: evil, Why: evil}},
			Files: []plan.Text{{Path: "/etc/" + evil, Mode: plan.Mode(evil), Content: evil}}},
	}
}

func textGolden(t *testing.T, name string, write func(b *strings.Builder, s Style) error) {
	t.Helper()
	for _, v := range []struct {
		name  string
		style Style
	}{{"", Style{}}, {"-80", Style{Width: 80}}, {"-color", Style{Color: true}}, {"-all", Style{All: true}}} {
		var b strings.Builder
		if err := write(&b, v.style); err != nil {
			t.Fatal(err)
		}
		if text := b.String(); !v.style.Color && strings.ContainsAny(text, "\x1b\u202e") {
			t.Errorf("%s%s lets out %q", name, v.name, text)
		}
		if v.name == "" || name == "plan" {
			golden(t, "texts-"+name+v.name+".txt", b.String())
		}
	}
}

func TestTexts(t *testing.T) {
	for name, p := range textPlans() {
		saved := ""
		if name == "plan" {
			saved = "plan a.json"
		}
		textGolden(t, name, func(b *strings.Builder, s Style) error { return Texts(b, p, saved, "shisa apply 'plan a.json'", s) })
	}
}

// TestTextReceipt: what became of a change, in each state that it may be in.
func TestTextReceipt(t *testing.T) {
	for name, state := range map[string]vault.State{"committed": vault.Committed, "rolled-back": vault.RolledBack, "undone": vault.Undone,
		"set-aside": vault.SetAside, "unfinished": vault.Applying} {
		r := &vault.TextReceipt{ID: "0123456789abcdef0123456789abcdef", State: state, Plan: textPlans()["plan"]}
		if state == vault.RolledBack || state == vault.SetAside {
			r.Failure = "write /etc/other.conf: no space left on device"
		}
		textGolden(t, "receipt-"+name, func(b *strings.Builder, s Style) error {
			return TextReceipt(b, r, "shisa undo "+r.ID, s)
		})
	}
	r := &vault.TextReceipt{ID: evil, State: vault.SetAside, Failure: evil, Plan: textPlans()["hostile"]}
	textGolden(t, "receipt-hostile", func(b *strings.Builder, s Style) error { return TextReceipt(b, r, "shisa undo x", s) })
}
