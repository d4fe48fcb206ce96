// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package tree

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestAttributes holds that what chattr sets is seen, in a bundle too, and that a copy does not know.
func TestAttributes(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "chattr")
	dir := testenv.DiskDir(t)
	l := opened(t, dir)
	for file, flag := range map[string]string{"fixed": "+i", "longer": "+a", "free": ""} {
		at := filepath.Join(dir, file)
		if err := exec.Command("touch", at).Run(); err != nil {
			t.Fatal(err)
		}
		if flag == "" {
			continue
		}
		if out, err := exec.Command("chattr", flag, at).CombinedOutput(); err != nil {
			t.Fatalf("chattr %s: %s", flag, out)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("chattr", "-ia", at).CombinedOutput(); err != nil {
				t.Errorf("chattr -ia: %s", out)
			}
		})
	}
	if _, err := l.Attributes(t.Context(), "/fixed"); !errors.Is(err, ErrNotCollected) {
		t.Errorf("Attributes in a copy: %v, want that they are not known", err)
	}
	l.copied = false
	r := Record(Overlay(l, nil))
	want := map[string]Attributes{"/fixed": {Immutable: true}, "/longer": {AppendOnly: true}, "/free": {}}
	for name, a := range want {
		if got, err := AttributesOf(t.Context(), r, name); got != a || err != nil {
			t.Errorf("AttributesOf(%s) = %v, %v, want %v", name, got, err, a)
		}
	}
	var out bytes.Buffer
	err := r.WriteBundle(&out, Info{Kind: Live}, func(_ string, b []byte) ([]byte, []LeftOut) { return b, nil })
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := ReadBundle(&out)
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range want {
		if got, err := AttributesOf(context.Background(), b, name); got != a || err != nil {
			t.Errorf("AttributesOf(%s) of the bundle = %v, %v, want %v", name, got, err, a)
		}
	}
	if _, err := AttributesOf(context.Background(), b, "/other"); !errors.Is(err, ErrNotCollected) {
		t.Errorf("AttributesOf of what nobody asked for: %v", err)
	}
}
