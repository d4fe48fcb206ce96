// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/filestest"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestWhoseLog asks whose a block of a journal is, with nothing in it and with a transaction.
func TestWhoseLog(t *testing.T) {
	testenv.Need(t, "debugfs")
	dir := t.TempDir()
	disk := filestest.Make(t, dir, 32<<20, "mkfs.ext4", "-q", "-F", "-b", "1024", "DISK")
	out, err := exec.Command("debugfs", "-R", "bmap <8> 5", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	block, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	what := func() string {
		t.Helper()
		g, err := Open(t.Context(), Name{Disk: disk}, Options{Format: "raw"})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		hurt, err := g.Who(t.Context(), 0, []finding.Range{{Offset: block * 1024, Length: 512}})
		if err != nil || len(hurt) != 1 || hurt[0].Use != "journal" {
			t.Fatalf("%+v, %v", hurt, err)
		}
		return hurt[0].What
	}
	if got := what(); got != "journal" {
		t.Errorf("an empty journal is %q", got)
	}
	data := filepath.Join(dir, "data")
	if err := os.WriteFile(data, make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("debugfs", "-w", "-f", "-", disk)
	c.Stdin = strings.NewReader(fmt.Sprintf("jo\njw -b 20000 %s\njc\n", data))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v %s", err, out)
	}
	if got := what(); got != logWaiting {
		t.Errorf("a journal with a transaction is %q, want %q", got, logWaiting)
	}
}
