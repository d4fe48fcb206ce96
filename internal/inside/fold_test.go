// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestFold looks for names in other cases, in a directory of ext4 that does not care for them.
func TestFold(t *testing.T) {
	testenv.Need(t, "debugfs")
	from := t.TempDir()
	for _, name := range []string{"any/Readme.TXT", "any/readme.TXT", "any/Ärger/File", "exact/Readme.TXT",
		"ascii/File", "bytes/\xffA"} {
		name = filepath.Join(from, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	disk := filestest.Make(t, t.TempDir(), 16<<20, "mkfs.ext4", "-q", "-F", "-O", "casefold", "-E", "encoding=utf8",
		"-d", from, "DISK")
	c := exec.Command("debugfs", "-w", "-f", "-", disk)
	c.Stdin = strings.NewReader("sif /any flags 0x40080000\nsif /ascii flags 0x40080000\n" +
		"sif /bytes flags 0x40080000\nsif /any/Ärger flags 0x40080000\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v %s", err, out)
	}
	g, err := Open(t.Context(), Name{Disk: disk}, Options{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	fs, err := g.FS(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/any/Readme.TXT": "/any/Readme.TXT", "/any/readme.TXT": "/any/readme.TXT", "/ascii/FILE": "/ascii/File",
		"/any/ärger/file": "/any/Ärger/File", "/exact/readme.TXT": "", "/ANY/readme.TXT": "", "/ascii/other": "",
		"/bytes/\xffA": "/bytes/\xffA", "/bytes/\xffa": "", "/bytes/\xfea": "",
	} {
		f, err := Lookup(t.Context(), fs, path, true)
		switch {
		case want == "" && !errors.Is(err, ErrPath), want != "" && (err != nil || f.Path != want):
			t.Errorf("Lookup(%q) = %+v, %v; want %q", path, f, err, want)
		}
	}
	const note = "rules of Unicode that are not known here"
	for path, noted := range map[string]bool{"/any/A\u0308rger": true, "/any/other": false, "/any/Andere\u0308": true, "/ascii/other": false,
		"/exact/A\u0308": false} {
		if _, err := Lookup(t.Context(), fs, path, true); !errors.Is(err, ErrPath) ||
			strings.Contains(err.Error(), note) != noted {
			t.Errorf("Lookup(%q) = %v, want a note: %v", path, err, noted)
		}
	}
}
