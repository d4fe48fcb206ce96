// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/linux/logs"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// keptJournal is where the journal of a row is kept.
func (row *loopRow) keptJournal() string {
	return filepath.Join("testdata", "boots", row.kept+".tar.gz")
}

// keep keeps the journal that systemd wrote of a row, with SHISA_UPDATE=1. Take it only for what it shows: each has
// other numbers and times.
func (row *loopRow) keep(after string) error {
	if row.kept == "" || os.Getenv("SHISA_UPDATE") != "1" {
		return nil
	}
	found, err := filepath.Glob(filepath.Join(after, "var/log/journal/*/system*"))
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	w := tar.NewWriter(z)
	for _, name := range found {
		text, err := os.ReadFile(name)
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: filepath.Base(name), Mode: 0o644, Size: int64(len(text))})
		}
		if err == nil {
			_, err = w.Write(text)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), z.Close(), os.WriteFile(row.keptJournal(), packed.Bytes(), 0o644))
}

// unpack gives the journals that are kept, by their names.
func (row *loopRow) unpack(t *testing.T) map[string]string {
	t.Helper()
	packed, err := os.Open(row.keptJournal())
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = string(text)
	}
}

// TestKeptLoops holds the same of journals that systemd wrote before: it needs no root, and systemd may be another.
func TestKeptLoops(t *testing.T) {
	n := 0
	for _, row := range loops() {
		if row.kept == "" {
			continue
		}
		n++
		files := map[string]string{"etc/machine-id": labMachine + "\n", "usr/bin/systemctl": "", "usr/bin/false": "",
			"etc/hostname": "guest\n"}
		for name, text := range row.unpack(t) {
			files["var/log/journal/"+labMachine+"/"+name] = text
		}
		for name, f := range row.world.Files {
			files[strings.TrimPrefix(name, "/")] = f.Text
		}
		dir := machine(t, files, time.Now())
		row.judge(t, bootsAt(t, dir))
		sameByIndex(t, row.name, dir)
	}
	if n < 4 {
		t.Errorf("%d journals are kept, want more", n)
	}
}

// sameByIndex holds that the boots are the same where journals are so large that only some entries are looked up.
func sameByIndex(t *testing.T, name, dir string) {
	t.Helper()
	var all [2][]logs.Boot
	for i, whole := range []int64{0, 1} {
		files, err := tree.OpenDirectory(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		l, err := logs.Read(t.Context(), files, logs.Options{Now: time.Now(), MachineID: labMachine, WholeBytes: whole})
		if err := errors.Join(err, files.Close()); err != nil {
			t.Fatal(err)
		}
		all[i] = l.Boots
	}
	if diff := cmp.Diff(all[0], all[1]); diff != "" || len(all[0]) < 4 {
		t.Errorf("%s: %d boots, by the index they are (-whole +index):\n%s", name, len(all[0]), diff)
	}
}
