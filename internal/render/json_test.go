// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type inner struct {
	A int      `json:"a"`
	B []string `json:"b"`
}

type Embedded struct {
	Deep bool `json:"deep"`
}

type sample struct {
	Text  string `json:"text"`
	Cut   string `json:"cut,omitempty"`
	Count int64  `json:"count"`
	Word  uint64 `json:"word"`
	Embedded
	List   []inner        `json:"list"`
	Ptr    *inner         `json:"ptr"`
	Map    map[string]int `json:"map"`
	Hidden string         `json:"-"`
	When   time.Time      `json:"when"`
	own    int
}

func encode(t *testing.T, v any) string {
	t.Helper()
	var b strings.Builder
	if err := JSON(&b, "shisa.test/1", v); err != nil {
		t.Fatalf("JSON(%T): %v", v, err)
	}
	return b.String()
}

func TestJSONLayout(t *testing.T) {
	v := sample{Text: "a", Count: -1, Map: map[string]int{"b": 2, "a": 1}, own: 1,
		List: []inner{{A: 1}}, When: time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))}
	want := `{
  "schema": "shisa.test/1",
  "text": "a",
  "count": -1,
  "word": 0,
  "deep": false,
  "list": [
    {
      "a": 1,
      "b": []
    }
  ],
  "ptr": null,
  "map": {
    "a": 1,
    "b": 2
  },
  "when": "2026-01-02T02:04:05Z"
}
`
	if diff := cmp.Diff(want, encode(t, &v)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	if got, want := encode(t, struct{}{}), "{\n  \"schema\": \"shisa.test/1\"\n}\n"; got != want {
		t.Errorf("JSON(empty) = %q, want %q", got, want)
	}
}

// A document of a stream is the same on one line.
func TestJSONLine(t *testing.T) {
	var b strings.Builder
	v := sample{Text: "a\nb", List: []inner{{A: 1, B: []string{"p"}}}, Map: map[string]int{"a": 1}}
	if err := JSONLine(&b, "shisa.test/1", v); err != nil {
		t.Fatal(err)
	}
	if line := b.String(); strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "}\n") {
		t.Errorf("JSONLine = %q, want one line", line)
	}
	var flat, whole sample
	if err := errors.Join(json.Unmarshal([]byte(b.String()), &flat),
		json.Unmarshal([]byte(encode(t, v)), &whole)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(whole, flat, cmp.AllowUnexported(sample{})); diff != "" {
		t.Errorf("JSONLine says something else (-want +got):\n%s", diff)
	}
}

// What another reader of JSON gets must be what went in.
func TestJSONReadBack(t *testing.T) {
	v := sample{Text: "\x00\x1b[2J\t\n\r\"\\/<&>\u007f\u009b\u2028\u202e é 🦁 \U000e0001", Cut: "x",
		Count: 1<<63 - 1, Word: 1<<64 - 1, List: []inner{{A: 1, B: []string{"p", "q"}}, {B: []string{}}},
		Ptr: &inner{A: 2, B: []string{}}, Map: map[string]int{"\n": 1}, When: time.Unix(0, 0).UTC()}
	out := encode(t, v)
	var got sample
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("Unmarshal: %v\n%s", err, out)
	}
	if diff := cmp.Diff(v, got, cmp.AllowUnexported(sample{})); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	if i := strings.IndexFunc(out, func(r rune) bool {
		return r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 || r == 0x202e
	}); i >= 0 {
		t.Errorf("JSON has a character at %d that a terminal obeys: %q", i, out[i:])
	}
}

func TestJSONTwins(t *testing.T) {
	type twins struct {
		Path    string   `json:"path"`
		Own     string   `json:"own"`
		OwnB64  string   `json:"own_b64,omitempty"`
		Names   []string `json:"names"`
		Regular []string `json:"regular"`
	}
	out := encode(t, twins{Path: "caf\xe9", Own: "x\xff", OwnB64: "eP8=", Names: []string{"ok", "\xfe"},
		Regular: []string{"a"}})
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("Unmarshal: %v\n%s", err, out)
	}
	b64 := base64.StdEncoding.EncodeToString
	want := map[string]any{
		"schema": "shisa.test/1", "path": "caf\ufffd", "path_b64": b64([]byte("caf\xe9")),
		"own": "x\ufffd", "own_b64": "eP8=", "names": []any{"ok", "\ufffd"},
		"names_b64": []any{b64([]byte("ok")), b64([]byte("\xfe"))}, "regular": []any{"a"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("twins (-want +got):\n%s", diff)
	}
}

func TestJSONRefuses(t *testing.T) {
	type loop struct {
		Next *loop `json:"next"`
	}
	endless := &loop{}
	endless.Next = endless
	for name, v := range map[string]any{
		"no struct": 3, "no number": struct{ F float64 }{math.NaN()}, "map of numbers": struct{ M map[int]int }{},
		"endless": endless, "function": struct{ F func() }{}, "nil": (*sample)(nil),
	} {
		if err := JSONLine(&strings.Builder{}, "shisa.test/1", v); err == nil {
			t.Errorf("JSONLine(%s) = nil, want an error", name)
		}
		if err := JSON(&strings.Builder{}, "shisa.test/1", v); err == nil {
			t.Errorf("JSON(%s) = nil, want an error", name)
		}
	}
	if err := JSON(fullDisk{}, "shisa.test/1", sample{}); !errors.Is(err, errFull) {
		t.Errorf("JSON on a full disk = %v, want %v", err, errFull)
	}
}

var errFull = errors.New("no space left")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

// small is a writer that takes so many bytes.
type small struct{ left, writes int }

func (f *small) Write(b []byte) (int, error) {
	f.writes++
	if f.left -= len(b); f.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}

// TestJSONWritten: a document that is larger than what is written at once is whole; one that nobody takes ends with the
// reason, and is not put together to its end.
func TestJSONWritten(t *testing.T) {
	type doc struct {
		All []string `json:"all"`
	}
	d := doc{slices.Repeat([]string{strings.Repeat("x", 1000)}, 1000)}
	var b bytes.Buffer
	if err := JSON(&b, "shisa.test/1", d); err != nil {
		t.Fatal(err)
	}
	var got doc
	if err := json.Unmarshal(b.Bytes(), &got); err != nil || !slices.Equal(got.All, d.All) {
		t.Errorf("a list of %d is read as one of %d, %v", len(d.All), len(got.All), err)
	}
	for _, left := range []int{0, 500_000, b.Len() - 1} {
		f := &small{left: left}
		if err := JSON(f, "shisa.test/1", d); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("a writer that takes %d bytes of %d: %v", left, b.Len(), err)
		}
		if want := left/jsonBuffer + 1; f.writes > want {
			t.Errorf("a writer that takes %d bytes was asked %d times, want %d at most", left, f.writes, want)
		}
	}
}
