// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// asked is how a question ended.
func asked(t Tree, op, name string) string {
	ctx := context.Background()
	var text string
	var err error
	switch op {
	case "read":
		var b []byte
		b, err = t.Read(ctx, name, 10)
		text = string(b)
	case "list":
		var all []Entry
		all, err = t.List(ctx, name)
		for _, e := range all {
			text += e.Name + " " + e.Type.String() + ";"
		}
	case "link":
		text, err = t.Link(ctx, name)
	case "open":
		var f File
		if f, err = t.Open(ctx, name); err == nil {
			f.Close()
		}
	}
	for _, o := range outcomes {
		if errors.Is(err, o.err) {
			return text + " " + o.word
		}
	}
	if err != nil {
		return text + " failed"
	}
	return text
}

// TestBundle holds that a bundle answers as what was recorded did, and knows what was not asked.
func TestBundle(t *testing.T) {
	dir := made(t, map[string]string{"etc/short": "short", "etc/long": "longer than ten", "etc/x\xff": "odd name"})
	from := Overlay(opened(t, dir), map[string][]byte{"/shisa/meta.json": []byte("{}")})
	rec := Record(from)
	questions := [][2]string{{"read", "/etc/short"}, {"read", "/etc/long"}, {"read", "/etc/none"}, {"read", "/proc/x"},
		{"read", "/etc"}, {"list", "/etc"}, {"list", "/none"}, {"link", "/etc/short"}, {"link", "/etc/none"},
		{"read", "/etc/x\xff"}, {"read", "/shisa/meta.json"}, {"list", "/shisa"}}
	want := map[string]string{}
	for _, q := range questions {
		want[q[0]+q[1]] = asked(rec, q[0], q[1])
	}
	asked(rec, "open", "/etc/short")
	var out bytes.Buffer
	info := Info{Kind: Directory, Made: time.Unix(1_700_000_000, 0).UTC(), Version: "v1", Label: "h"}
	err := rec.WriteBundle(&out, info, func(name string, text []byte) ([]byte, []LeftOut) {
		if name == "/etc/short" {
			return []byte("sh..t"), []LeftOut{{Name: name, What: "letters", Count: 2}}
		}
		return text, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b, got, err := ReadBundle(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	info.LeftOut = []LeftOut{{Name: "/etc/short", What: "letters", Count: 2}}
	if d := cmp.Diff(info, got); d != "" {
		t.Errorf("the bundle says of itself (-want +got):\n%s", d)
	}
	want["read/etc/short"] = "sh..t"
	for _, q := range questions {
		if got := asked(b, q[0], q[1]); got != want[q[0]+q[1]] {
			t.Errorf("%s %q of the bundle gives %q, want %q", q[0], q[1], got, want[q[0]+q[1]])
		}
	}
	for _, q := range [][2]string{{"read", "/etc/other"}, {"list", "/other"}, {"link", "/other"}, {"open", "/etc/short"}} {
		if got := asked(b, q[0], q[1]); got != " not_collected" {
			t.Errorf("%s %q, which is not in the bundle, gives %q", q[0], q[1], got)
		}
	}
	if b.Kind() != Directory {
		t.Errorf("the kind of the bundle is %s", b.Kind())
	}
}

func TestNotBundle(t *testing.T) {
	var good bytes.Buffer
	if err := Record(Overlay(opened(t, made(t, nil)), nil)).WriteBundle(&good, Info{Kind: Live}, nil); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"nothing": nil, "text": []byte("hello"),
		"cut": good.Bytes()[:good.Len()/2]} {
		if _, _, err := ReadBundle(bytes.NewReader(text)); err == nil {
			t.Errorf("ReadBundle of %s is no error", name)
		}
	}
	// One that was cut on its way is one, and no other file.
	for _, n := range []int{good.Len() / 2, good.Len() - 5} {
		_, _, err := ReadBundle(bytes.NewReader(good.Bytes()[:n]))
		if err == nil || errors.Is(err, ErrNotBundle) || !strings.Contains(err.Error(), "cut or damaged") {
			t.Errorf("ReadBundle of %d of %d bytes = %v, want that it is cut", n, good.Len(), err)
		}
	}
	if b, _, err := ReadBundle(bytes.NewReader(good.Bytes())); err != nil || b.Kind() != Bundle {
		t.Errorf("ReadBundle of an empty one = %v", err)
	}
}

func FuzzBundle(f *testing.F) {
	rec := Record(Overlay(&bundle{}, map[string][]byte{"/shisa/a": []byte("text")}))
	asked(rec, "read", "/shisa/a")
	asked(rec, "list", "/shisa")
	var good bytes.Buffer
	if err := rec.WriteBundle(&good, Info{}, func(_ string, b []byte) ([]byte, []LeftOut) { return b, nil }); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Fuzz(func(t *testing.T, text []byte) {
		b, _, err := ReadBundle(bytes.NewReader(text))
		if err != nil {
			return
		}
		asked(b, "read", "/shisa/a")
		asked(b, "list", "/shisa")
		if _, err := b.Open(context.Background(), "/none"); !errors.Is(err, ErrNotCollected) && !errors.Is(err, fs.ErrNotExist) &&
			!strings.Contains(err.Error(), "/none") {
			t.Errorf("Open of what is not there = %v", err)
		}
	})
}
