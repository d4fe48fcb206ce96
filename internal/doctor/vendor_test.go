// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// packages are the units of packages of Debian that restart machines, watch over them, or are run while they go
// down: the files of each by its name.
func packages(t *testing.T) map[string]map[string]string {
	t.Helper()
	a, err := txtar.ParseFile("testdata/vendor.txt")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string]string{}
	for _, f := range a.Files {
		name, rest, _ := strings.Cut(f.Name, "/")
		if all[name] == nil {
			all[name] = map[string]string{}
		}
		all[name][rest] = string(f.Data)
	}
	return all
}

// laid writes files below a directory. A text that begins with "->" is a link.
func laid(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		at := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		if to, link := strings.CutPrefix(text, "->"); link {
			err = errors.Join(err, os.Symlink(strings.TrimSpace(to), at))
		} else {
			err = errors.Join(err, os.WriteFile(at, []byte(text), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// linted judges a directory.
func linted(t *testing.T, dir string) *LintReport {
	t.Helper()
	l, err := tree.OpenDirectory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, err := Lint(t.Context(), l, "d", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// alarms are the findings that are no notes, and what could not be read.
func alarms(r *LintReport) (all []string) {
	for i := range r.Findings {
		if f := &r.Findings[i]; f.Severity != finding.Note {
			all = append(all, f.Code+" "+f.Kind+" "+f.Object.Name)
		}
	}
	for _, m := range r.NotLookedAt {
		all = append(all, "not looked at: "+m.Object+": "+m.Reason)
	}
	return all
}

// TestVendorUnits holds that nothing is said of units that Debian ships: of each package alone, all of them enabled, and of
// a system that has them all, at its first boot.
func TestVendorUnits(t *testing.T) {
	all := packages(t)
	if len(all) < 20 {
		t.Fatalf("there are %d packages, want 20 at least", len(all))
	}
	for name, files := range all {
		dir := t.TempDir()
		laid(t, dir, files)
		if got := alarms(linted(t, dir)); len(got) > 0 {
			t.Errorf("of %s is said: %q", name, got)
		}
	}
	dir := everything(t, all)
	r := linted(t, dir)
	if got := alarms(r); len(got) > 0 || r.Kind != "system" || r.Units < 200 {
		t.Errorf("of %d units of a %s is said: %q", r.Units, r.Kind, got)
	}
	// The same system with one thing wrong is not passed.
	for _, wrong := range []struct {
		name, gone, want string
		files            map[string]string
	}{
		{"the default target", "usr/lib/systemd/system/default.target", "TM01 loop reboot.target",
			map[string]string{"usr/lib/systemd/system/default.target": "->reboot.target"}},
		{"a drop-in restarts it when a service fails, whose program is missing", "usr/lib/apcupsd/prestart",
			"TM01 loop apcupsd.service", map[string]string{
				"etc/systemd/system/multi-user.target.wants/apcupsd.service": "->/usr/lib/systemd/system/apcupsd.service",
				"etc/systemd/system/apcupsd.service.d/fail.conf":             "[Unit]\nFailureAction=reboot\n"}},
	} {
		dir := everything(t, all)
		if err := os.Remove(filepath.Join(dir, wrong.gone)); err != nil {
			t.Fatal(err)
		}
		laid(t, dir, wrong.files)
		if got := alarms(linted(t, dir)); !slices.Contains(got, wrong.want) {
			t.Errorf("%s: it is said %q, want %q", wrong.name, got, wrong.want)
		}
	}
}

// TestVendorUnitsOfThisHost holds the same of the units that the machine has from its packages, whichever those are.
func TestVendorUnitsOfThisHost(t *testing.T) {
	const units = "/usr/lib/systemd/system"
	if _, err := os.Stat(filepath.Join(units, "reboot.target")); err != nil {
		testenv.Lacks(t, "systemd's units: "+err.Error())
	}
	r := linted(t, units)
	if got := alarms(r); len(got) > 0 || r.Units < 50 {
		t.Errorf("of %d units in %s is said: %q", r.Units, units, got)
	}
}

// everything is a system with all packages, and with the programs that their units run, which do nothing.
func everything(t *testing.T, all map[string]map[string]string) string {
	dir := t.TempDir()
	files := map[string]string{"lib": "->usr/lib", "bin": "->usr/bin", "sbin": "->usr/sbin", "etc/fstab": ""}
	for _, some := range all {
		for name, text := range some {
			files[name] = text
			for line := range strings.Lines(text) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				word := strings.TrimLeft(strings.Fields(value + " x")[0], "-@:+!|")
				if !strings.HasPrefix(key, "Exec") || !path.IsAbs(word) {
					continue
				}
				for _, link := range []string{"lib", "bin", "sbin"} {
					if rest, is := strings.CutPrefix(word, "/"+link+"/"); is {
						word = "/usr/" + link + "/" + rest
					}
				}
				if _, known := files[word[1:]]; !known {
					files[word[1:]] = "\x7fELF"
				}
			}
		}
	}
	laid(t, dir, files)
	return dir
}

// TestVendorPackages does the same with whole packages as they are in the archive today, scripts and all.
func TestVendorPackages(t *testing.T) {
	testenv.NeedLong(t)
	testenv.Need(t, "apt-get", "dpkg-deb")
	for name := range packages(t) {
		debs, dir := t.TempDir(), t.TempDir()
		c := exec.Command("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name)
		c.Dir = debs
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("download %s: %v, %s", name, err, out)
			continue
		}
		files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		if out, err := exec.Command("dpkg-deb", "-x", files[0], dir).CombinedOutput(); err != nil {
			t.Fatalf("%v, %s", err, out)
		}
		if got := alarms(linted(t, dir)); len(got) > 0 {
			t.Errorf("of %s is said: %q", filepath.Base(files[0]), got)
		}
	}
}
