// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package fix

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// TestUnlinks: the links of the administrator, and only where nothing else starts the unit.
func TestUnlinks(t *testing.T) {
	const vendor = "/usr/lib/systemd/system"
	for _, c := range []struct {
		name  string
		files map[string]string // "-> x" is a link
		want  string            // paths, or "" for refused
	}{
		{"one", map[string]string{UnitDir + "/multi-user.target.wants/a.service": "-> " + UnitDir + "/a.service"},
			UnitDir + "/multi-user.target.wants/a.service"},
		{"two", map[string]string{UnitDir + "/multi-user.target.wants/a.service": "-> " + UnitDir + "/a.service",
			UnitDir + "/x.service.requires/a.service": "-> " + UnitDir + "/a.service"},
			UnitDir + "/multi-user.target.wants/a.service " + UnitDir + "/x.service.requires/a.service"},
		{"alias", map[string]string{UnitDir + "/b.service": "-> " + UnitDir + "/a.service",
			UnitDir + "/multi-user.target.wants/b.service": "-> " + UnitDir + "/b.service"},
			UnitDir + "/multi-user.target.wants/b.service"},
		{"none", nil, ""},
		{"of a package", map[string]string{vendor + "/multi-user.target.wants/a.service": "-> ../a.service"}, ""},
		{"a setting too", map[string]string{UnitDir + "/multi-user.target.wants/a.service": "-> " + UnitDir + "/a.service",
			UnitDir + "/multi-user.target.wants/x.service": "-> " + UnitDir + "/x.service",
			UnitDir + "/x.service":                         "[Unit]\nWants=b.service a.service\n[Service]\nExecStart=/bin/true\n"}, ""},
		{"a setting of nobody", map[string]string{UnitDir + "/multi-user.target.wants/a.service": "-> " + UnitDir + "/a.service",
			UnitDir + "/x.service": "[Unit]\nWants=b.service a.service\n[Service]\nExecStart=/bin/true\n"},
			UnitDir + "/multi-user.target.wants/a.service"},
		{"a timer, which stays", map[string]string{UnitDir + "/multi-user.target.wants/a.service": "-> " + UnitDir + "/a.service",
			UnitDir + "/a.timer": "[Timer]\nOnCalendar=daily\n"}, UnitDir + "/multi-user.target.wants/a.service"},
	} {
		root := t.TempDir()
		all := map[string]string{UnitDir + "/a.service": "[Service]\nExecStart=/bin/reboot\n",
			UnitDir + "/x.service":           "[Service]\nExecStart=/bin/true\n",
			vendor + "/multi-user.target":    "[Unit]\n",
			UnitDir + "/default.target":      "-> " + vendor + "/multi-user.target",
			vendor + "/systemd-x.service":    "[Service]\nExecStart=/bin/true\n",
			"/etc/machine-id":                "0123456789abcdef0123456789abcdef\n",
			"/usr/lib/systemd/system/a.path": "[Path]\nPathExists=/x\n"}
		for name, text := range c.files {
			all[name] = text
		}
		for name, text := range all {
			err := os.MkdirAll(filepath.Dir(root+name), 0o755)
			if to, link := strings.CutPrefix(text, "-> "); link {
				err = errors.Join(err, os.Symlink(to, root+name))
			} else {
				err = errors.Join(err, os.WriteFile(root+name, []byte(text), 0o644))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		tr, err := tree.OpenDirectory(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		set, err := units.Load(t.Context(), tr)
		if err := errors.Join(err, tr.Close()); err != nil {
			t.Fatal(err)
		}
		got, err := Unlinks(set, "a.service")
		var paths []string
		for _, g := range got {
			paths = append(paths, g.Path)
		}
		if (c.want == "") != errors.Is(err, ErrRefused) || strings.Join(paths, " ") != c.want {
			t.Errorf("%s: Unlinks = %q, %v, want %q", c.name, paths, err, c.want)
		}
	}
}
