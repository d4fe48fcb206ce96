// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shisa-vm/shisa/internal/linux/journal/journaltest"
)

// kept is a journal in testdata. Each was written by systemd-journal-remote of the version in its
// name, with journaltest.Stream of 100 entries.
func kept(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".journal.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestKept: journals that other versions of systemd wrote are read as their own journalctl exports
// them, whose digest is kept here.
func TestKept(t *testing.T) {
	for name, want := range map[string]string{
		"247-lz4-jenkins": "100 records, 561abcd1897f8110",
		"247-lz4-keyed":   "100 records, dde034a3e320b25f",
		"257-lz4-compact": "100 records, 09fa2efe62fc8912",
		"257-xz-compact":  "100 records, 92be40edc9bb6e82",
		"257-xz-regular":  "100 records, 5328519b0053ec79",
	} {
		var digest journaltest.Digest
		var rec journaltest.Record
		f := open(t, kept(t, name))
		damage, err := f.Entries(t.Context(), Options{}, func(e *Entry) error {
			record(e, &rec)
			digest.Add(&rec)
			return nil
		})
		if err != nil || digest.String() != want || !damage.Complete() || damage.ClockBack != 1 {
			t.Errorf("%s: %v, %v, %v, want %s", name, &digest, err, &damage, want)
		}
		h := f.Header()
		if h.Entries != 100 || h.State != Offline || h.FirstSeqnum != 1 || h.LastSeqnum != 100 ||
			h.First.UnixMicro() < journaltest.Start || h.Compact != strings.Contains(name, "compact") ||
			h.Keyed == (name == "247-lz4-jenkins" || name == "257-xz-regular") ||
			!slices.Equal(h.Compression, []string{name[4:7]}) && name[4:6] != "xz" {
			t.Errorf("%s: header %+v", name, h)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	good := seeded(true, true, 3).bytes()
	changed := func(at int, b byte) []byte {
		c := bytes.Clone(good)
		c[at] = b
		return c
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
		text string
	}{
		"empty":   {nil, ErrNotJournal, "0 bytes"},
		"short":   {good[:headerMin-1], ErrNotJournal, "207 bytes"},
		"magic":   {changed(0, 'X'), ErrNotJournal, `"XPKSHHRH"`},
		"feature": {changed(atIncompatible, 0x20), ErrUnsupported, "0x20"},
	} {
		_, err := Open(bytes.NewReader(c.b), int64(len(c.b)))
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: Open = %v, want %v with %q", name, err, c.want, c.text)
		}
	}
	if _, err := Open(bytes.NewReader(good[:100]), int64(len(good))); err == nil {
		t.Error("Open of a file that became shorter succeeded")
	}
}

// walks are ways of looking at a file, each with what it must give of all.
var walks = map[string]struct {
	o    Options
	want func(e *Entry) bool
}{
	"all":   {Options{}, func(*Entry) bool { return true }},
	"since": {Options{Since: at(300)}, func(e *Entry) bool { return !e.Realtime.Before(at(300)) }},
	"between": {Options{Since: at(100), Until: at(800)}, func(e *Entry) bool {
		return !e.Realtime.Before(at(100)) && !e.Realtime.After(at(800))
	}},
	"until":  {Options{Until: at(555)}, func(e *Entry) bool { return !e.Realtime.After(at(555)) }},
	"never":  {Options{Since: at(1e9)}, func(e *Entry) bool { return !e.Realtime.Before(at(1e9)) }},
	"before": {Options{Until: at(-5)}, func(e *Entry) bool { return !e.Realtime.After(at(-5)) }},
	"after":  {Options{After: 700}, func(e *Entry) bool { return e.Seqnum > 700 }},
	"kernel": {Options{Match: []string{"_TRANSPORT=kernel"}}, func(e *Entry) bool {
		return has(e, "_TRANSPORT", "kernel")
	}},
	"two values": {Options{Match: []string{"PRIORITY=3", "PRIORITY=1", "PRIORITY=99"}}, func(e *Entry) bool {
		return has(e, "PRIORITY", "1") || has(e, "PRIORITY", "3")
	}},
	"two names": {Options{Match: []string{"PRIORITY=3", "_TRANSPORT=kernel"}, Since: at(50)},
		func(e *Entry) bool {
			return has(e, "PRIORITY", "3") && has(e, "_TRANSPORT", "kernel") && !e.Realtime.Before(at(50))
		}},
	"none": {Options{Match: []string{"PRIORITY=9"}}, func(*Entry) bool { return false }},
}

// at is the time of entry i of a journal by seeded.
func at(i int64) time.Time { return time.UnixMicro(1_700_000_000_000_000 + i*1000).UTC() }

func has(e *Entry, name, value string) bool {
	return slices.ContainsFunc(e.Fields, func(f Field) bool { return f.Name == name && string(f.Value) == value })
}

// wanted is what a walk must give of a sound file.
func wanted(t testing.TB, f *File, want func(e *Entry) bool) []string {
	t.Helper()
	all := []string{}
	if _, err := f.Entries(t.Context(), Options{}, func(e *Entry) error {
		if want(e) {
			all = append(all, text(e))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestWalks: every walk gives what a filter over all entries does, in both directions.
func TestWalks(t *testing.T) {
	for _, form := range [][2]bool{{false, false}, {false, true}, {true, false}, {true, true}} {
		f := open(t, seeded(form[0], form[1], 1000).bytes())
		if h := f.Header(); !h.Sealed || h.Compact != form[0] || h.Keyed != form[1] || h.Entries != 1000 ||
			!h.First.Equal(at(0)) || !h.Last.Equal(at(999)) || h.State.String() != "offline" {
			t.Errorf("header %+v", h)
		}
		for name, w := range walks {
			want := wanted(t, f, w.want)
			got, damage := given(t, f, w.o)
			if d := cmp.Diff(want, got); d != "" || !damage.Complete() || damage.ClockBack > 0 {
				t.Errorf("%s %v: %v\n%s", name, form, &damage, d)
			}
			w.o.Backward = true
			got, damage = given(t, f, w.o)
			slices.Reverse(got)
			if d := cmp.Diff(want, got); d != "" || !damage.Complete() || damage.ClockBack > 0 {
				t.Errorf("%s %v backward: %v\n%s", name, form, &damage, d)
			}
		}
	}
}

// TestSetBack: no entry is missed by its time in a file whose clock was set back.
func TestSetBack(t *testing.T) {
	m := newMaker(true, true)
	for i := range uint64(2000) {
		when := i
		if i >= 900 {
			when -= 600
		}
		m.entry(i+1, uint64(at(int64(when)).UnixMicro()), i, ID{1}, fmt.Sprint("MESSAGE=", i))
	}
	f := open(t, m.bytes())
	for _, o := range []Options{{Since: at(700)}, {Until: at(600)}, {Since: at(350), Until: at(880)},
		{Since: at(700), Backward: true}} {
		until := o.Until
		if until.IsZero() {
			until = at(1e9)
		}
		want := wanted(t, f, func(e *Entry) bool {
			return !e.Realtime.Before(o.Since) && !e.Realtime.After(until)
		})
		if o.Backward {
			slices.Reverse(want)
		}
		got, damage := given(t, f, o)
		if d := cmp.Diff(want, got); d != "" || damage.ClockBack != 1 {
			t.Errorf("%v: %+v\n%s", o, damage, d)
		}
	}
}

func TestFields(t *testing.T) {
	f := open(t, seeded(true, true, 5).bytes())
	got := []string{}
	if _, err := f.Entries(t.Context(), Options{Fields: []string{"MESSAGE", "PRIORITY"}}, func(e *Entry) error {
		m, ok := e.Get("MESSAGE")
		_, other := e.Get("_TRANSPORT")
		got = append(got, fmt.Sprintf("%s %v %v %d", m, ok, other, len(e.Fields)))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"message 0 true false 2", "message 1 true false 2", "message 2 true false 2",
		"message 3 true false 2", "message 4 true false 2"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := f.Entries(t.Context(), Options{Match: []string{"kernel"}}, nil); err == nil {
		t.Error("a match without a name was taken")
	}
	if _, err := f.Entries(t.Context(), Options{Match: make([]string, 65)}, nil); err == nil {
		t.Error("65 matches were taken")
	}
}

func TestStops(t *testing.T) {
	f := open(t, seeded(false, true, 2000).bytes())
	n := 0
	_, err := f.Entries(t.Context(), Options{}, func(*Entry) error {
		if n++; n == 7 {
			return ErrStop
		}
		return nil
	})
	if n != 7 || err != nil {
		t.Errorf("stopped after %d entries with %v, want 7", n, err)
	}
	if _, err = f.Entries(t.Context(), Options{}, func(*Entry) error { return io.ErrNoProgress }); err != io.ErrNoProgress {
		t.Errorf("error of the function: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = f.Entries(ctx, Options{}, func(*Entry) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
}

// counted counts what is read.
type counted struct {
	r io.ReaderAt
	n int64
}

func (c *counted) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(b, off)
	c.n += int64(n)
	return n, err
}

// TestReadsLittle: the newest entries, those of a short time, and those with a rare value are found
// without reading all of a file.
func TestReadsLittle(t *testing.T) {
	m := newMaker(true, true)
	pad := strings.Repeat("x", 300)
	const n = 40_000
	for i := range uint64(n) {
		rare := "_TRANSPORT=journal"
		if i%(n/4) == 17 {
			rare = "_TRANSPORT=kernel"
		}
		m.entry(i+1, uint64(at(int64(i)).UnixMicro()), i, ID{1}, rare, fmt.Sprint("MESSAGE=", i, pad))
	}
	b := m.bytes()
	for name, c := range map[string]struct {
		o    Options
		want int
	}{
		"newest":          {Options{Backward: true}, 100},
		"between":         {Options{Since: at(20_000), Until: at(20_099)}, 100},
		"rare":            {Options{Match: []string{"_TRANSPORT=kernel"}}, 4},
		"rare and newest": {Options{Match: []string{"_TRANSPORT=kernel"}, Backward: true}, 4},
	} {
		r := &counted{r: bytes.NewReader(b)}
		f, err := Open(r, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		damage, err := f.Entries(t.Context(), c.o, func(*Entry) error {
			if got++; got == 100 {
				return ErrStop
			}
			return nil
		})
		if got != c.want || err != nil || !damage.Complete() {
			t.Errorf("%s: %d entries, %v, %v, want %d", name, got, err, &damage, c.want)
		}
		if most := int64(len(b)) / 4; r.n > most {
			t.Errorf("%s: read %d bytes of %d, want %d at most", name, r.n, len(b), most)
		}
	}
}

// TestNeedsLittle: a walk through 20,000 entries allocates no more than its caches, whatever it is asked.
func TestNeedsLittle(t *testing.T) {
	f := open(t, seeded(true, true, 20_000).bytes())
	for name, o := range map[string]Options{"all": {}, "backward": {Backward: true},
		"kernel": {Match: []string{"_TRANSPORT=kernel"}}} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n := 0
		if _, err := f.Entries(t.Context(), o, func(*Entry) error { n++; return nil }); err != nil || n < 6000 {
			t.Errorf("%s: %d entries, %v", name, n, err)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
			t.Errorf("%s: %d bytes allocated, want 8 MiB at most", name, got)
		}
	}
}
