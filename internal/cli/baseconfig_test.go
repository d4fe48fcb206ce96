// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/refs"
)

// TestCensusBy: who scans all of a host knows what the configuration says of a pool that is met.
func TestCensusBy(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"pool/_base", "far"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("far/file", "no image")
	config := write("base.yaml", fmt.Sprintf("pools:\n  - path: %[1]s/pool\n    roots: [%[1]s/far]\n", dir))
	s := newStdio(strings.NewReader(""), io.Discard, io.Discard)
	o := refs.Options{Pool: filepath.Join(dir, "pool", "_base"), BaseName: "_base"}
	c, err := censusBy(config, s)(t.Context(), o)
	if err != nil || len(c.Roots) != 2 || c.Roots[1] != filepath.Join(dir, "far") {
		t.Errorf("with the configuration the census looks at %+v, %v, want far too", c, err)
	}
	wrong := write("wrong.yaml", fmt.Sprintf("pools:\n  - path: %s/pool\n    uuid: 0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e\n", dir))
	if _, err = censusBy(wrong, s)(t.Context(), o); err == nil || !strings.Contains(err.Error(), "is another pool") {
		t.Errorf("a pool that should be another one: %v", err)
	}
	if _, err = censusBy(filepath.Join(dir, "nowhere.yaml"), s)(t.Context(), o); err == nil {
		t.Error("a configuration that is not there gives no error")
	}
}
