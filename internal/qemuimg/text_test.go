// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSizeText(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1: "1 B", 999: "999 B", 1000: "0.977 KiB", 1023: "0.999 KiB", 1024: "1 KiB", 197120: "192 KiB",
		1048575: "1 MiB", 1048576: "1 MiB", 2297856: "2.19 MiB", 1023 << 10: "0.999 MiB", 999 << 10: "999 KiB",
		1023999: "1e+03 KiB", 1 << 40: "1 TiB", 3 << 59: "1.5 EiB", math.MaxUint64: "16 EiB",
	} {
		if got := sizeText(n); got != want {
			t.Errorf("sizeText(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		text string
		want uint64
		hex  bool
		err  error
	}{
		{"0", 0, false, nil}, {"12345", 12345, false, nil}, {"1k", 1024, false, nil}, {"1K", 1024, false, nil},
		{"5b", 5, false, nil}, {"1.5k", 1536, false, nil}, {"1.k", 1024, false, nil}, {"0.0001k", 0, false, nil},
		{"0.9999k", 1024, false, nil}, {"0x10", 16, false, nil}, {"0x10k", 16384, true, nil}, {"15E", 15 << 60, false, nil},
		{"15.5E", 31 << 59, false, nil}, {" 7", 7, false, nil}, {"+7", 7, false, nil},
		{"", 0, false, errSizeInvalid}, {"-1", 0, false, errSizeInvalid}, {"k", 0, false, errSizeInvalid},
		{"1e3", 0, false, errSizeInvalid}, {"1.5", 0, false, errSizeInvalid}, {"1.5B", 0, false, errSizeInvalid},
		{"7 ", 0, false, errSizeInvalid}, {"0x", 0, false, errSizeInvalid}, {"1kk", 0, false, errSizeInvalid},
		{"16E", 0, false, errSizeRange}, {"99999999999999999999", 0, false, errSizeRange},
		{"99999999999999999999z", 0, false, errSizeInvalid},
	} {
		got, hex, err := parseSize(c.text)
		if got != c.want || hex != c.hex || !errors.Is(err, c.err) {
			t.Errorf("parseSize(%q) = %d, %v, %v, want %d, %v, %v", c.text, got, hex, err, c.want, c.hex, c.err)
		}
	}
}

// The keys are in the order of qemu-img info and check, which is that of a hash table.
func TestDictOrder(t *testing.T) {
	d := &dict{}
	for _, key := range []string{"filename", "format", "dirty-flag", "actual-size", "virtual-size", "cluster-size",
		"encrypted", "format-specific"} {
		d.put(key, int64(1))
	}
	var got []string
	for key := range d.all() {
		got = append(got, key)
	}
	want := strings.Fields("virtual-size filename cluster-size format actual-size format-specific encrypted dirty-flag")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of keys (-want +got):\n%s", diff)
	}
}

func TestJSONText(t *testing.T) {
	d := &dict{}
	d.put("a", []any{int64(-1), uint64(math.MaxUint64), true, nil, 0.5})
	d.put("b", "q\"\\/\b\f\n\r\t\x01\x7fü€😀\xff\xc0\x80\xed\xa0\x80")
	d.put("c", &dict{})
	d.put("d", []any{})
	const line = `{"d": [], "a": [-1, 18446744073709551615, true, null, 0.5], "b": ` +
		`"q\"\\/\b\f\n\r\t\u0001\u007F\u00FC\u20AC\uD83D\uDE00\uFFFD\u0000\uFFFD", "c": {}}`
	if got := jsonText(d, false); got != line {
		t.Errorf("jsonText(d, false) = %s, want %s", got, line)
	}
	v, err := parseJSON(line)
	if err != nil {
		t.Fatalf("parseJSON(%s) = %v, want no error", line, err)
	}
	if got := jsonText(v, false); got != line {
		t.Errorf("jsonText(parseJSON(s)) = %s, want s, which is %s", got, line)
	}
	want := "[\n    1,\n    [\n    ]\n]"
	if got := jsonText([]any{int64(1), []any{}}, true); got != want {
		t.Errorf("jsonText of lists = %q, want %q", got, want)
	}
}

func TestParseJSONDepth(t *testing.T) {
	deep := strings.Repeat("[", maxNesting+1)
	if _, err := parseJSON(deep); err == nil || err.msg != "JSON nesting depth limit exceeded" {
		t.Errorf("parseJSON of %d brackets = %v, want a limit", maxNesting+1, err)
	}
	fine := strings.Repeat("[", maxNesting) + strings.Repeat("]", maxNesting)
	if _, err := parseJSON(fine); err != nil {
		t.Errorf("parseJSON of %d brackets = %v, want a list", maxNesting, err)
	}
}

func FuzzJSON(f *testing.F) {
	for _, seed := range []string{`{"a":[1,{'b':"c"}]}`, `{"a":"\ud83d\ude00"}`, `[-0.5e+3,1e,]`, `nul`, `{"a":1}{}`, "]", `"\u0000"`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parseJSON(text)
		if err != nil {
			return
		}
		if d, ok := v.(*dict); ok {
			d.flatten()
		}
		jsonText(v, true)
	})
}

func FuzzOptions(f *testing.F) {
	for _, seed := range []string{"driver=qcow2,file.filename=x", "a,b=c,,d,no", "id=5,", ",=,", "x=1e999,size=0x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := &dict{}
		for rest := text; rest != ""; {
			var key, val string
			key, val, _, rest = cutOpt(rest, "")
			d.put(key, val)
		}
		if _, err := d.absorb(qcow2Options); err == nil {
			d.take("file.")
		}
		if _, _, err := parseSize(text); err == nil && text == "" {
			t.Error("parseSize of nothing = nil, want an error")
		}
	})
}
