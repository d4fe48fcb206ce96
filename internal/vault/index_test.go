// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vault

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestIndex(t *testing.T) {
	dir := t.TempDir()
	v, err := New(Options{StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	const key = "00112233445566778899aabbccddeeff"
	if b, err := v.Index(key, 10); b != nil || err != nil {
		t.Errorf("Index of nothing = %q, %v", b, err)
	}
	for _, text := range []string{"first", "second"} {
		if err := v.PutIndex(key, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err := v.Index(key, 10); string(b) != text || err != nil {
			t.Errorf("Index = %q, %v, want %q", b, err, text)
		}
	}
	if b, err := v.Index(key, 5); err == nil {
		t.Errorf("Index of at most 5 bytes = %q", b)
	}
	fi, err := os.Stat(v.indexPath(key))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", fi.Mode(), err)
	}
	for _, bad := range []string{"", "../../../../etc/passwd", "x"} {
		if _, err := v.Index(bad, 10); !errors.Is(err, ErrNotFound) {
			t.Errorf("Index(%q) = %v", bad, err)
		}
		if err := v.PutIndex(bad, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("PutIndex(%q) = %v", bad, err)
		}
	}
}
