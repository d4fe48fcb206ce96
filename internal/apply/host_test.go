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

// A hard link is the same image, wherever it lies, and locked by whatever name it is opened.
func TestHardLink(t *testing.T) {
	p, o, before, after := onHost(t)
	dir := filepath.Join(filepath.Dir(p.Object.Path), "else")
	link := filepath.Join(dir, "link.img")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Link(p.Object.Path, link)); err != nil {
		t.Fatal(err)
	}
	w, err := diskio.Host().OpenForRepair(link)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(t.Context(), p, o); !errors.Is(err, diskio.ErrInUse) {
		t.Errorf("Apply while the other name is in use = %v, want %v", err, diskio.ErrInUse)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(t.Context(), p, o); err != nil {
		t.Fatal(err)
	}
	mustHold(t, link, after)
	if _, err := Undo(t.Context(), link, "", o); err != nil {
		t.Error(err)
	}
	mustHold(t, p.Object.Path, before)
	if _, err := os.Stat(link + vault.Suffix); err == nil {
		t.Error("a hard link was taken for a copy")
	}
}

// What was put in the place of an image since the plan was made is left alone.
func TestReplacedImage(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"by a copy": func(path string) error {
			b, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path+".new", b, 0o644), os.Rename(path+".new", path))
		},
		"by a symbolic link": func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.Symlink(path+".old", path))
		},
	} {
		p, o, before, _ := onHost(t)
		if err := replace(p.Object.Path); err != nil {
			t.Fatal(err)
		}
		_, err := Apply(t.Context(), p, o)
		if !errors.Is(err, ErrChanged) && !errors.Is(err, diskio.ErrChanged) {
			t.Errorf("Apply to an image that was replaced %s = %v, want %v", name, err, ErrChanged)
		}
		mustHold(t, p.Object.Path, before)
	}
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
