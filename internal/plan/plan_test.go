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

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// sample is a plan with something in every list, and what only a plan in memory has.
func sample() *plan.Plan {
	return &plan.Plan{
		Schema: plan.Schema, ID: strings.Repeat("0f", 16), Tool: "shisa test",
		Created: time.Unix(1, 5).In(time.FixedZone("far", 3600)),
		Object: plan.Object{Path: "/pool/a\xff.qcow2", PathB64: "L3Bvb2wvYf8ucWNvdzI=", Format: "qcow2",
			SizeBytes: 4096, ModTime: time.Unix(2, 7)},
		Steps: []plan.Step{{Code: "QC05", Summary: "snapshot \xfe", Count: 1}},
		Remains: []finding.Finding{{Code: "QC03", Object: "/pool/a\xff.qcow2",
			Host: []finding.Range{{Offset: 1, Length: 2}}}},
		Hurt:   []plan.Hurt{{Code: "QC06"}},
		Relies: []plan.Digest{{Offset: 0, Length: 512, CRC32C: 7}},
		Fence:  &plan.Fence{Offset: 72, Old: make([]byte, 8), New: bytes.Repeat([]byte{2}, 8)},
		Writes: []plan.Write{
			{Phase: plan.Point, Offset: 1024, Old: make([]byte, 1000), New: bytes.Repeat([]byte{1}, 1000)},
			{Phase: plan.Switch, Offset: 0, Old: make([]byte, 512), New: make([]byte, 512)},
		},
		SizeAfterBytes: 4096,
	}
}

func document(t *testing.T, p *plan.Plan) []byte {
	t.Helper()
	raw, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestReadGivesTheSealedPlan holds that a document has all of a plan, and its digest.
func TestReadGivesTheSealedPlan(t *testing.T) {
	p := sample()
	if err := p.Seal(); err != nil {
		t.Fatal(err)
	}
	got, err := plan.Read(bytes.NewReader(document(t, p)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, got); diff != "" {
		t.Errorf("Read gives another plan (-sealed +read):\n%s", diff)
	}
	again, err := got.Digest()
	if err != nil || again != p.SHA256 {
		t.Errorf("Digest of what was read = %s, %v, want %s", again, err, p.SHA256)
	}
}

// TestReadRefuses changes documents by hand.
func TestReadRefuses(t *testing.T) {
	p := sample()
	if err := p.Seal(); err != nil {
		t.Fatal(err)
	}
	raw := string(document(t, p))
	for _, c := range []struct {
		name, old, new string
		want           error
	}{
		{"not JSON", "{", "", plan.ErrNotPlan},
		{"another schema", "shisa.plan/1", "shisa.check/1", plan.ErrNotPlan},
		{"a newer schema", "shisa.plan/1", "shisa.plan/2", plan.ErrNewer},
		{"an unknown field", `"tool"`, `"tools"`, plan.ErrNotPlan},
		{"another sentence", "shisa test", "shisa tset", plan.ErrEdited},
		{"other bytes", `hex:0202`, `hex:0203`, plan.ErrEdited},
		{"no digest", p.SHA256, "", plan.ErrEdited},
		{"a write moved", `"offset": 1024`, `"offset": 1536`, plan.ErrEdited},
		{"more behind", "", raw, plan.ErrNotPlan},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := raw + c.new
			if c.old != "" {
				if text = strings.Replace(raw, c.old, c.new, 1); text == raw {
					t.Fatalf("the document has no %q", c.old)
				}
			}
			if _, err := plan.Read(strings.NewReader(text)); !errors.Is(err, c.want) {
				t.Errorf("Read = %v, want %v", err, c.want)
			}
		})
	}
	// A digest that fits makes no plan of what breaks the rules of one.
	p.Writes[0].Offset = 1 << 40
	if err := p.Seal(); err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Read(bytes.NewReader(document(t, p))); !errors.Is(err, plan.ErrNotPlan) {
		t.Errorf("Read of a sealed plan that writes past the end = %v, want %v", err, plan.ErrNotPlan)
	}
	// How it is laid out does not count.
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(raw)); err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Read(&compact); err != nil {
		t.Errorf("Read of the same document without blanks = %v, want none", err)
	}
}
