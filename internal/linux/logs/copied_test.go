// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// TestCopiedLater holds that the logs of a copy which did not keep the times of files are read all the
// same: its last entry, not the copy's time, is the end of the time that is looked at.
func TestCopiedLater(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "var/log"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "2021-03-01T10:00:00+00:00 h kernel: [  100.000000] Aborting journal on device sda1-8.\n" +
		"2021-03-01T10:00:01+00:00 h kernel: [  101.000000] EXT4-fs (sda1): Remounting filesystem read-only\n"
	if err := os.WriteFile(filepath.Join(dir, "var/log/syslog"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := tree.OpenDirectory(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := Read(context.Background(), d, Options{Now: time.Now()})
	if err != nil || len(l.Messages) != 2 {
		t.Errorf("Read = %d messages, %v, gaps %v; want both", len(l.Messages), err, l.Gaps)
	}
}
