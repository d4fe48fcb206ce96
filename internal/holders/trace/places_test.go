// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"fmt"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/linux"
)

// TestPlaces holds that a mount is found at its time, whatever its number, and when that it was
// unmounted is told of before and after another one was found in its place.
func TestPlaces(t *testing.T) {
	p := placesOf([]linux.Mount{{ID: 40, Source: "first"}, {ID: 50, Source: "other"}})
	p.ended(40, 100)
	if !p.away() {
		t.Error("none is away, want the first")
	}
	p.put(0, linux.Mount{ID: 40, Source: "second"}, 200)
	if p.away() {
		t.Error("one is away, want none")
	}
	p.put(0, linux.Mount{ID: 40, Source: "third"}, 400)
	p.ended(40, 300) // of the second
	if p.away() {
		t.Error("one is away by what was told late, want none")
	}
	for _, c := range []struct {
		ts   int64
		want []string
	}{
		{50, []string{"other", "first"}}, {100, []string{"other", "first"}}, {150, []string{"other"}},
		{250, []string{"other", "second"}}, {350, []string{"other"}}, {450, []string{"third", "other"}},
	} {
		var got []string
		for _, m := range p.at(c.ts) {
			got = append(got, m.Source)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("at %d: %q, want %q", c.ts, got, c.want)
		}
	}
	for i := range 2 * maxPast {
		p.put(1, linux.Mount{ID: 60, Source: fmt.Sprint(i)}, int64(1000+i))
	}
	if len(p.past) != maxPast {
		t.Errorf("%d are remembered, want %d", len(p.past), maxPast)
	}
}
