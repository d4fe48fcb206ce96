// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// lucky are systems whose default.target lacks something, by what becomes of it.
var lucky = []struct {
	name, want string
	files      map[string]string // below /etc/systemd/system
}{
	{"to run already, not found", "never", map[string]string{"x.target": "[Unit]\nRequisite=gone.service\n",
		"multi-user.target.requires/x.target": "->../x.target"}},
	{"to run already, masked", "never", map[string]string{"x.target": "[Unit]\nRequisite=m.service\n", "m.service": "",
		"multi-user.target.requires/x.target": "->../x.target"}},
	{"to run already, refused", "never", map[string]string{"x.target": "[Unit]\nRequisite=m.service\n",
		"m.service": "[Service]\nExecStart=no/x\n", "multi-user.target.requires/x.target": "->../x.target"}},
	{"to run already, no template", "never", map[string]string{"x.target": "[Unit]\nRequisite=m@1.service\n",
		"multi-user.target.requires/x.target": "->../x.target"}},
	{"to run already, of a masked template", "never", map[string]string{"x.target": "[Unit]\nRequisite=m@1.service\n",
		"m@.service": "", "multi-user.target.requires/x.target": "->../x.target"}},
	{"to run already, lacks itself", "always", map[string]string{"x.target": "[Unit]\nRequisite=y.target\n",
		"y.target": "[Unit]\nRequires=gone.service\n", "multi-user.target.requires/x.target": "->../x.target"}},
	{"only wanted", "always", map[string]string{"x.target": "[Unit]\nRequisite=gone.service\n",
		"multi-user.target.wants/x.target": "->../x.target"}},
	{"required, and wanted by what is required", "either", map[string]string{"x.target": "[Unit]\nRequisite=gone.service\n",
		"timers.target.requires/x.target":          "->../x.target",
		"multi-user.target.requires/timers.target": "->/usr/lib/systemd/system/timers.target"}},
	{"the same with Requires=", "either", map[string]string{"x.target": "[Unit]\nRequires=gone.service\n",
		"timers.target.requires/x.target":          "->../x.target",
		"multi-user.target.requires/timers.target": "->/usr/lib/systemd/system/timers.target"}},
	{"deep below both", "either", map[string]string{"x.target": "[Unit]\nRequires=y.target\n",
		"y.target": "[Unit]\nRequires=gone.service\n", "z.target": "[Unit]\nWants=y.target\n",
		"multi-user.target.requires/x.target": "->../x.target", "multi-user.target.requires/z.target": "->../z.target"}},
	{"required before it is wanted", "never", map[string]string{"x.target": "[Unit]\nRequires=gone.service\n",
		"y.target": "[Unit]\nRequires=x.target\n", "multi-user.target.requires/x.target": "->../x.target",
		"multi-user.target.wants/y.target": "->../y.target"}},
	{"required by what all need", "never", map[string]string{"sysinit.target.requires/gone.service": "->../gone.service",
		"a.timer": "[Timer]\nOnBootSec=1\n", "a.service": "[Service]\nExecStart=/bin/true\n",
		"timers.target.wants/a.timer": "->../a.timer"}},
	{"the root itself", "never", map[string]string{"multi-user.target.requires/gone.service": "->../gone.service",
		"basic.target.wants/multi-user.target": "->/usr/lib/systemd/system/multi-user.target"}},
	{"two ways, one without luck", "never", map[string]string{"x.target": "[Unit]\nRequires=gone.service\n",
		"timers.target.requires/x.target": "->../x.target", "y.target": "[Unit]\nRequisite=gone.service\n",
		"multi-user.target.requires/timers.target": "->/usr/lib/systemd/system/timers.target",
		"multi-user.target.requires/y.target":      "->../y.target"}},
}

// startOf says what becomes of default.target.
func startOf(s *Set) string {
	sure, all := reaches(s, "default.target")
	switch {
	case len(sure) > 0:
		return "always"
	case len(all) > 0:
		return "either"
	}
	return "never"
}

// TestLuckAsSystemd holds whether a root is started that lacks something against systemd's own manager, which tries
// again and again.
func TestLuckAsSystemd(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "unshare", "setpriv", "systemctl", "/usr/lib/systemd/systemd")
	version := systemdVersion(t)
	for _, x := range lucky {
		t.Run(x.name, func(t *testing.T) {
			dir := openDir(t)
			written(t, dir, luckyFiles(x.files, version))
			roots := map[string]int{}
			for i := 0; i < 6 || x.want == "either" && version < "254" && len(roots) < 2 && i < 60; i++ {
				_, _, root := judged(t, dir)
				roots[root]++
			}
			real := "either"
			if len(roots) == 1 {
				real = "never"
				if roots["default.target"] > 0 {
					real = "always"
				}
			}
			if got := startOf(loaded(t, dir)); got != real {
				t.Errorf("default.target is started %s, systemd's is %s: %v", got, real, roots)
			}
			if version < "254" && real != x.want {
				t.Errorf("systemd starts default.target %s, want %s: %v", real, x.want, roots)
			}
		})
	}
}

// luckyFiles are those of a whole system.
func luckyFiles(etc map[string]string, version string) map[string]string {
	files := vendor()
	for name, text := range etc {
		files["etc/systemd/system/"+name] = text
	}
	files["usr/lib/systemd/libsystemd-shared-"+version+".so"] = "x"
	return files
}

// TestLuck holds the same without systemd, and that 254 knows no luck.
func TestLuck(t *testing.T) {
	for _, x := range lucky {
		for _, version := range []string{"252", "254"} {
			dir := t.TempDir()
			written(t, dir, luckyFiles(x.files, version))
			want := x.want
			if version == "254" && want == "either" {
				want = "never"
			}
			s := loaded(t, dir)
			if got := startOf(s); got != want {
				t.Errorf("%s, %s: default.target is started %s, want %s", x.name, version, got, want)
			}
			r := s.Reached("default.target", "sysinit.target")
			if chain, is := r["sysinit.target"]; want == "either" && (!is || len(chain) > 0) {
				t.Errorf("%s: sysinit.target is a root without doubt, its chain is %v", x.name, chain)
			}
			for name, chain := range r {
				if want == "either" && s.Unit("default.target").Name == name && (len(chain) != 1 || chain[0].Doubt == "") {
					t.Errorf("%s: the chain of the root is %v, want a doubt", x.name, chain)
				}
			}
		}
	}
}
