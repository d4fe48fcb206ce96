// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package zoo

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// checked is what the zoo promises of each image.
type checked struct {
	Errors      int64  `json:"check-errors"`
	Corruptions int64  `json:"corruptions"`
	Leaks       int64  `json:"leaks"`
	Format      string `json:"format"`
}

func check(t *testing.T, img Image) checked {
	t.Helper()
	cmd := exec.Command("qemu-img", append([]string{"check", "-U", "--output=json"}, img.OpenArgs()...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, _ := cmd.Output() // the exit status says less than the document
	var c checked
	if err := json.Unmarshal(out, &c); err != nil {
		t.Errorf("qemu-img check %s: %v: %s", img.Name, err, errs.Bytes())
	}
	return c
}

func TestFill(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	images, err := Fill(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if img.Format != "qcow2" {
			continue
		}
		c := check(t, img)
		if c.Errors != 0 || (c.Corruptions != 0 && !img.Dirty) || (c.Leaks != 0 && !img.Leaks) {
			t.Errorf("%s: %+v, want clean", img.Name, c)
		}
	}
}

func TestWriter(t *testing.T) {
	testenv.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "live.qcow2")
	err := command(t.Context(), filepath.Dir(path), "qemu-img", "create", "-q", "-f", "qcow2", path, "64M")
	if err != nil {
		t.Fatal(err)
	}
	w, err := StartWriter(t.Context(), path, Load{Bytes: 64 << 20, Rate: 1000, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Minute); w.Requests() < 50; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("Requests() = %d after five minutes, want 50 or more", w.Requests())
			break
		}
	}
	if err := w.Stop(); err != nil {
		t.Fatal(err)
	}
	c := check(t, Image{Name: "after Stop", Path: path, Format: "qcow2"})
	if want := (checked{Format: "qcow2"}); c != want {
		t.Errorf("after Stop: %+v, want %+v", c, want)
	}
}
