// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package apply

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/vault"
)

// onHost makes an image on the machine, and a plan of a change of it.
func onHost(t *testing.T) (p *plan.Plan, o Options, before, after []byte) {
	t.Helper()
	dir, err := diskio.RealPath(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a.img")
	_, before, _ = makeUp(t, 0, 0, path)
	if err := os.WriteFile(path, before, 0o644); err != nil {
		t.Fatal(err)
	}
	st, err := diskio.Look(path)
	if err != nil {
		t.Fatal(err)
	}
	p, before, after = makeUp(t, st.Dev, st.Ino, path)
	return p, Options{StateDir: filepath.Join(dir, "state")}, before, after
}

func mustHold(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s does not hold what it should: %v", path, err)
	}
}

func TestOnTheMachine(t *testing.T) {
	p, o, before, after := onHost(t)
	path := p.Object.Path
	o.Verify = isNew(after)
	if _, err := Apply(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	mustHold(t, path, after)
	copied, moved, link := path+".copy", path+".moved", path+".link"
	if err := errors.Join(os.WriteFile(copied, after, 0o644), os.Rename(path, moved), os.Symlink(moved, link)); err != nil {
		t.Fatal(err)
	}
	for image, to := range map[string]string{link: moved, copied: copied} {
		if _, err := Undo(t.Context(), image, "", o); err != nil {
			t.Errorf("Undo(%s) = %v", image, err)
		}
		mustHold(t, to, before)
	}
	if out, err := Recover(t.Context(), filepath.Dir(path), o); err != nil {
		t.Errorf("Recover = %+v, %v", out, err)
	}
	mustHold(t, moved, before)
}

func TestJournalOnTheMachine(t *testing.T) {
	p, o, before, after := onHost(t)
	o.JournalDir = t.TempDir()
	if _, err := Apply(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	mustHold(t, p.Object.Path, after)
	if _, err := os.Stat(p.Object.Path + vault.Suffix); err == nil {
		t.Error("the undo file lies beside the image")
	}
	o.JournalDir = ""
	if _, err := Undo(t.Context(), p.Object.Path, "", o); err != nil {
		t.Error(err)
	}
	mustHold(t, p.Object.Path, before)
}

// An image that a machine uses is left alone.
func TestImageInUse(t *testing.T) {
	testenv.Need(t, "qemu-io")
	p, o, before, _ := onHost(t)
	cmd := exec.Command("qemu-io", "-f", "raw", p.Object.Path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		cmd.Wait()
	}()
	for {
		f, err := diskio.Open(p.Object.Path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := f.Locks()
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if s.Writer() {
			break
		}
	}
	if _, err := Apply(t.Context(), p, o); !errors.Is(err, diskio.ErrInUse) {
		t.Errorf("Apply = %v, want %v", err, diskio.ErrInUse)
	}
	mustHold(t, p.Object.Path, before)
}
