// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package refs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestEmptyDrive: a drive of the host without a disk in it, which a machine has, rests on nothing. e2e runs it where there is one.
func TestEmptyDrive(t *testing.T) {
	testenv.NeedGuest(t)
	start, dir := time.Now(), t.TempDir()
	for name, text := range map[string]string{"pool/_base/b": strings.Repeat("\x00", 1<<16), "libvirt/qemu/m.xml": `<domain><name>m</name>` +
		`<devices><disk type="block" device="cdrom"><source dev="/dev/sr0"/><target dev="sda"/></disk></devices></domain>`} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := os.Stat("/dev/sr0"); err != nil; _, err = os.Stat("/dev/sr0") { // the kernel looks for drives by itself
		if t.Context().Err() != nil || time.Since(start) > 5*time.Minute {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	tr, err := tree.OpenLive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Look(t.Context(), Options{Pool: filepath.Join(dir, "pool"), Libvirt: []string{filepath.Join(dir, "libvirt")},
		Host: &Host{Linux: linux.Open(""), Tree: tr}})
	if err != nil || len(c.Gaps) > 0 || c.Looked.Domains != 1 {
		t.Errorf("Look = %+v, %v, want one machine and no gaps", c, err)
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
}
