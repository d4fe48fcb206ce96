// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestUnpacked holds that a bundle answers the same packed and unpacked by tar.
func TestUnpacked(t *testing.T) {
	testenv.Need(t, "tar", "zstd")
	from := Overlay(opened(t, made(t, map[string]string{"etc/short": "short", "etc/long": "longer than ten", "etc/x\xff": "odd"})),
		map[string][]byte{"/shisa/meta.json": []byte("{}")})
	rec := Record(from)
	questions := [][2]string{{"read", "/etc/short"}, {"read", "/etc/long"}, {"read", "/etc/none"}, {"read", "/proc/x"},
		{"list", "/etc"}, {"link", "/etc/none"}, {"read", "/etc/x\xff"}, {"read", "/shisa/meta.json"}}
	for _, q := range questions {
		asked(rec, q[0], q[1])
	}
	var b bytes.Buffer
	err := rec.WriteBundle(&b, Info{Kind: Live, Made: time.Unix(1_700_000_000, 0), Label: "h"},
		func(_ string, text []byte) ([]byte, []LeftOut) { return text, nil })
	if err != nil {
		t.Fatal(err)
	}
	packed, _, err := ReadBundle(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := exec.Command("tar", "--zstd", "-xf", "-", "-C", dir)
	c.Stdin = bytes.NewReader(b.Bytes())
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	for _, at := range []string{dir, filepath.Join(dir, "root")} {
		got, info, err := ReadUnpacked(context.Background(), at)
		if err != nil || info.Label != "h" || got.Kind() != Bundle {
			t.Fatalf("ReadUnpacked(%s) = %v, %+v", at, err, info)
		}
		for _, q := range append(questions, [2]string{"read", "/never/asked"}) {
			if a, b := asked(got, q[0], q[1]), asked(packed, q[0], q[1]); a != b {
				t.Errorf("%s %s: unpacked %q, packed %q", q[0], q[1], a, b)
			}
		}
	}
	index := filepath.Join(dir, indexName)
	text, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		with string
		do   func(dir string) error
	}{
		"a system":      {"is a system", func(d string) error { return os.Mkdir(filepath.Join(d, "etc"), 0o755) }},
		"no index":      {"has no", func(string) error { return os.Remove(index) }},
		"another index": {"its index", func(string) error { return os.WriteFile(index, []byte("{"), 0o600) }},
		"a later one": {"its schema", func(string) error {
			return os.WriteFile(index, bytes.Replace(text, []byte("bundle/1"), []byte("bundle/9"), 1), 0o600)
		}},
		"a file that is gone": {"is not in it", func(d string) error {
			return os.Rename(filepath.Join(d, "root/etc/short"), filepath.Join(d, "away"))
		}},
		"a name that leads out": {"is not in it", func(string) error {
			return os.WriteFile(index, bytes.ReplaceAll(text, []byte("root/etc/short"), []byte("../../../etc/hostname")), 0o600)
		}},
	} {
		if err := c.do(dir); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ReadUnpacked(context.Background(), dir); !errors.Is(err, ErrNotBundle) || !strings.Contains(err.Error(), c.with) {
			t.Errorf("%s: %v, want ErrNotBundle, %q", name, err, c.with)
		}
		os.Remove(filepath.Join(dir, "etc"))
		os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, "root/etc/short"))
		if err := os.WriteFile(index, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
