// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package finding

import (
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestOrderStatus(t *testing.T) {
	for _, c := range []struct {
		name       string
		have, want []int
	}{
		{"nothing", nil, []int{0}},
		{"clean", []int{0, 0}, []int{0}},
		{"clean and found", []int{0, 3}, []int{3}},
		{"the contract's order", []int{1, 4, 5, 3, 6}, []int{6, 3, 5, 4, 1}},
		{"each once", []int{4, 4, 3, 4}, []int{3, 4}},
		{"interrupted first", []int{3, 130}, []int{130, 3}},
		{"never 2, and not clean", []int{2, 0}, []int{1}},
	} {
		if got := OrderStatus(c.have...); !slices.Equal(got, c.want) {
			t.Errorf("%s: OrderStatus(%v) = %v, want %v", c.name, c.have, got, c.want)
		}
	}
}

func TestVerdictOf(t *testing.T) {
	leak, note := New(QC03, "a", Sure, "k", "s"), New(CH06, "a", Sure, "k", "s")
	blind := []Blind{{Object: "a"}}
	for _, c := range []struct {
		name  string
		fs    []Finding
		blind []Blind
		want  Verdict
	}{
		{"nothing", nil, nil, Clean},
		{"a note is no fault", []Finding{note}, nil, Clean},
		{"a leak is one", []Finding{note, leak}, nil, Found},
		{"found beside what was not seen", []Finding{leak}, blind, Found},
		{"what was not seen is not clean", []Finding{note}, blind, CannotTell},
	} {
		if got := VerdictOf(c.fs, c.blind); got != c.want {
			t.Errorf("%s: VerdictOf() = %s, want %s", c.name, got, c.want)
		}
	}
}

func TestSort(t *testing.T) {
	at := func(f Finding, off int64) Finding {
		f.Host = []Range{{Offset: off, Length: 1}}
		return f
	}
	fs := []Finding{
		New(QC03, "a", Sure, "k", ""), at(New(QC06, "b", Likely, "k", ""), 1), at(New(QC06, "a", Likely, "k", ""), 9),
		at(New(QC06, "a", Likely, "k", ""), 2), New(QC02, "a", Sure, "k", ""), New(QC10, "z", Sure, "k", ""),
	}
	Sort(fs)
	var got []string
	for _, f := range fs {
		got = append(got, f.Code+f.Object)
	}
	want := []string{"QC10z", "QC06a", "QC06a", "QC06b", "QC02a", "QC03a"}
	if !slices.Equal(got, want) || fs[1].Host[0].Offset != 2 {
		t.Errorf("Sort() = %q, want %q, by place within", got, want)
	}
}

func TestHint(t *testing.T) {
	if WithHint(nil, "x") != nil {
		t.Error("WithHint(nil) is an error, want none")
	}
}
