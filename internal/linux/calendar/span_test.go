// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package calendar

import (
	"math"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestSpan(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"1h 30min": 90 * time.Minute, "2weeks": 14 * 24 * time.Hour, "1.5h": 90 * time.Minute, "90": 90 * time.Second,
		"infinity": Infinity, " infinity ": Infinity, "1us": time.Microsecond, "0": 0, "300y": Infinity, "5m": 5 * time.Minute,
		"1M": 2629800 * time.Second, "500ms": 500 * time.Millisecond, ".5s": 500 * time.Millisecond,
	} {
		if got, err := ParseSpan(text); got != want || err != nil {
			t.Errorf("ParseSpan(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", " ", "-1", "infinitys", "5mins", "1..5", "1.", "h", "1 fortnight", "99999999999999999999"} {
		if got, err := ParseSpan(text); err == nil {
			t.Errorf("ParseSpan(%q) = %v, want an error", text, got)
		}
	}
}

// TestSpanAgainstSystemd holds random spans against systemd.
func TestSpanAgainstSystemd(t *testing.T) {
	testenv.Need(t, "systemd-analyze")
	r := rand.New(rand.NewPCG(2, 2))
	seen, texts := map[string]bool{}, []string{}
	for len(texts) < testenv.Rounds(200, 2000, 20000) {
		if s := randomSpan(r); !seen[s] {
			seen[s] = true
			texts = append(texts, s)
		}
	}
	refused := 0
	for i := 0; i < len(texts); {
		// It stops at the first that it refuses.
		micros := spans(t, texts[i:min(len(texts), i+400)])
		for ; len(micros) > 0; i, micros = i+1, micros[1:] {
			compareSpan(t, texts[i], micros[0])
		}
		if i < len(texts) && len(spans(t, texts[i:i+1])) == 0 {
			refused++
			if got, err := ParseSpan(texts[i]); err == nil {
				t.Errorf("ParseSpan(%q) = %v, systemd-analyze refuses it", texts[i], got)
			}
			i++
		}
	}
	if refused*20 < len(texts) || refused*2 > len(texts) {
		t.Errorf("systemd-analyze refuses %d of %d", refused, len(texts))
	}
}

// spans asks about many at once, and gives the microseconds of those before the first that is refused.
func spans(t *testing.T, texts []string) (micros []uint64) {
	c := exec.Command("systemd-analyze", append([]string{"timespan", "--"}, texts...)...)
	c.Env = []string{"LC_ALL=C.UTF-8"}
	out, _ := c.Output()
	for line := range strings.Lines(string(out)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "μs: "); ok {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			micros = append(micros, n)
		}
	}
	return micros
}

func compareSpan(t *testing.T, text string, micros uint64) {
	t.Helper()
	got, err := ParseSpan(text)
	switch {
	case err != nil:
		t.Errorf("ParseSpan(%q): %v; systemd-analyze says %d", text, err, micros)
	case micros > math.MaxInt64/1000 && got != Infinity, micros <= math.MaxInt64/1000 && got.Microseconds() != int64(micros):
		t.Errorf("ParseSpan(%q) = %v, systemd-analyze says %d microseconds", text, got, micros)
	}
}

func randomSpan(r *rand.Rand) string {
	pieces := []string{"1", "5", "30", "90", "007", "123456789", "9223372036854775808", "584554", ".", ".5", ".123456789", "-", "+", " ", "  ",
		"infinity", "x"}
	for _, u := range units {
		pieces = append(pieces, u.name)
	}
	var b strings.Builder
	for range 1 + r.IntN(3) {
		if r.IntN(12) > 0 {
			b.WriteString(pieces[r.IntN(5+2*r.IntN(2))])
		}
		if r.IntN(12) == 0 {
			b.WriteString(pieces[8+r.IntN(9)])
		}
		if r.IntN(4) > 0 {
			b.WriteString([]string{"", " "}[r.IntN(2)] + units[r.IntN(len(units))].name)
		}
		b.WriteString([]string{"", " "}[r.IntN(2)])
	}
	return strings.TrimRight(b.String(), "\n")
}
