// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journal

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/journal/journaltest"
)

// killed gives copies of a journal: three while it was being written, and one after its writer was
// killed.
func killed(t *testing.T) (copies []string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "live.journal")
	var stream bytes.Buffer
	if err := (journaltest.Stream{N: 3000, SetBack: time.Second}).Write(&stream); err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(journaltest.Remote, "--split-mode=none", "--output="+path, "-")
	cmd.Stdin = read
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read.Close()
	defer cmd.Wait()
	defer cmd.Process.Kill()
	defer write.Close()
	piece := stream.Len() / 4
	for i, name := range []string{"first", "second", "third", "killed"} {
		if _, err := io.CopyN(write, &stream, int64(piece)); err != nil {
			t.Fatal(err)
		}
		waitFor(t, path, int64(i*700+300))
		if name == "killed" {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, name+".journal")
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
		copies = append(copies, to)
	}
	return copies
}

// waitFor waits until the file has so many entries.
func waitFor(t *testing.T, path string, n int64) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil && len(b) > headerMin && open(t, b).Header().Entries >= n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s has not %d entries after minutes", path, n)
		}
	}
}
