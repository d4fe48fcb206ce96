// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestPieces: where volumes lie is told as in this process.
func TestPieces(t *testing.T) {
	testenv.Need(t, "sfdisk")
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sfdisk", "-q", name)
	c.Stdin = strings.NewReader("label: gpt\nstart=2048, size=2048\nstart=6144, size=4096\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	disks := []volume.Disk{{Name: name, Data: f, Size: 8 << 20}}
	want, err := volume.Find(t.Context(), disks)
	if err != nil {
		t.Fatal(err)
	}
	j, err := Start(t.Context(), disks)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	l, err := j.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(want.Volumes) != 2 {
		t.Fatalf("there are %d volumes, want 2", len(want.Volumes))
	}
	for i, v := range want.Volumes {
		got, err := j.Pieces(t.Context(), i)
		if all := slices.Collect(v.Pieces(0, v.Size)); err != nil || !slices.Equal(got, all) {
			t.Errorf("Pieces of %s = %+v, %v, want %+v", v.Name, got, err, all)
		}
	}
	if _, err := j.Pieces(t.Context(), len(l.Volumes)); err == nil {
		t.Error("Pieces of a volume that is not there went through")
	}
}
