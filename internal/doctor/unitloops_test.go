// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab/nspawn"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// unitTree is a machine with units, what the rules say of its files, and how its boots end then: r restarted, p went
// off, s stayed.
type unitTree struct {
	name  string
	files map[string]string // a text that begins with "->" is a link
	world nspawn.World
	// says are codes with kinds, as "TM01 loop".
	says string
	ends string
}

const (
	unitDir = "/etc/systemd/system/"
	atBoot  = "[Install]\nWantedBy=multi-user.target\n"
)

// oneshot is a service that runs something once.
func oneshot(command string) string { return "[Service]\nType=oneshot\nExecStart=" + command + "\n" }

// unitTrees are fourteen trees with names, ways and guards other than those of stories, and some that are no
// loops.
func unitTrees() []unitTree {
	wants := unitDir + "multi-user.target.wants/"
	enabled := func(names ...string) nspawn.World { return nspawn.World{Enable: names} }
	return []unitTree{
		{"a wrapper of a wrapper", map[string]string{
			unitDir + "fleet-agent.service": oneshot("/usr/local/libexec/fleet --phase=post") + atBoot,
			"/usr/local/libexec/fleet":      "#!/bin/sh\nset -e\n. /usr/local/libexec/fleet.sh\nif true; then\n\tfinish\nfi\n",
			"/usr/local/libexec/fleet.sh":   "finish() {\n\texec env LANG=C systemctl --no-block \"$VERB\"\n}\nVERB=reboot\n",
		}, enabled("fleet-agent.service"), "TM01 loop", "rr"},
		{"an instance of a template", map[string]string{
			unitDir + "power@.service":     oneshot("/bin/systemctl %i"),
			wants + "power@reboot.service": "->/etc/systemd/system/power@.service",
		}, nspawn.World{}, "TM01 loop", "rr"},
		{"a drop-in takes it back", map[string]string{
			unitDir + "rotate.service":               oneshot("/sbin/shutdown -r now") + atBoot,
			unitDir + "rotate.service.d/50-off.conf": "[Service]\nExecStart=\nExecStart=/bin/true\n",
		}, enabled("rotate.service"), "", "s"},
		{"a drop-in brings it in", map[string]string{
			"/usr/lib/systemd/system/tidy.service":      oneshot("/bin/true"),
			wants + "tidy.service":                      "->/usr/lib/systemd/system/tidy.service",
			"/run/x":                                    "",
			unitDir + "service.d/zz.conf":               "[Unit]\nDescription=Ours\n",
			unitDir + "tidy.service.d/a.conf":           "[Unit]\nOnSuccess=turn-over.service\n",
			"/usr/lib/systemd/system/turn-over.service": oneshot("/sbin/init 6"),
		}, nspawn.World{}, "TM01 loop", "rr"},
		{"masked", map[string]string{
			"/usr/lib/systemd/system/rotate.service": oneshot("/sbin/shutdown -r now"),
			wants + "rotate.service":                 "->/usr/lib/systemd/system/rotate.service",
			unitDir + "rotate.service":               "->/dev/null",
		}, nspawn.World{}, "", "s"},
		{"it disarms itself", map[string]string{
			unitDir + "settle.service": "[Unit]\nConditionPathExists=!/var/lib/settled\n" +
				oneshot("/bin/touch /var/lib/settled\nExecStart=/bin/systemctl reboot") + atBoot,
		}, enabled("settle.service"), "TM01 once", "rs"},
		{"it disarms itself where nothing lasts", map[string]string{
			unitDir + "settle.service": "[Unit]\nConditionPathExists=!/run/settled\n" +
				oneshot("/bin/touch /run/settled\nExecStart=/bin/systemctl reboot") + atBoot,
		}, enabled("settle.service"), "TM01 loop", "rr"},
		{"it disables itself", map[string]string{
			unitDir + "settle.service": oneshot("/bin/sh -c 'rm -f "+wants+"settle.service; exec reboot'") + atBoot,
		}, enabled("settle.service"), "TM01 once", "rs"},
		{"every two days", map[string]string{
			unitDir + "rolling.service": oneshot("/bin/systemctl reboot"),
			unitDir + "rolling.timer":   "[Timer]\nOnBootSec=48h\n[Install]\nWantedBy=timers.target\n",
		}, enabled("rolling.timer"), "TM02 rolling", "s"},
		{"at once", map[string]string{
			unitDir + "swift.service": oneshot("/bin/sh -c 'echo sent; systemctl start reboot.target'"),
			unitDir + "eager.timer": "[Timer]\nOnActiveSec=1h\nOnActiveSec=\nOnStartupSec=1s\nAccuracySec=1us\nUnit=swift.service\n" +
				"[Install]\nWantedBy=timers.target\n",
		}, enabled("eager.timer"), "TM02 loop", "rr"},
		{"an action of an alias", map[string]string{
			unitDir + "probe.service":  "[Unit]\nFailureAction=reboot\n[Service]\nType=oneshot\nExecStart=/opt/probe/run\n",
			unitDir + "health.service": "->probe.service",
			unitDir + "edge.target":    "[Unit]\nRequires=multi-user.target\nWants=health.service\nAllowIsolate=yes\n",
			unitDir + "default.target": "->edge.target",
		}, nspawn.World{}, "TM01 loop", "rr"},
		{"the first boot enables it", map[string]string{
			"/usr/lib/systemd/system/convert.service":         oneshot("/bin/systemctl poweroff") + atBoot,
			"/usr/lib/systemd/system-preset/90-vendor.preset": "disable other.service\nenable convert*\ndisable *\n",
		}, nspawn.World{MachineID: "uninitialized"}, "TM05 loop", "p"},
		{"a preset keeps it from that", map[string]string{
			"/usr/lib/systemd/system/convert.service":      oneshot("/bin/systemctl reboot") + atBoot,
			"/usr/lib/systemd/system-preset/10-own.preset": "disable conv*\n",
		}, nspawn.World{MachineID: "uninitialized"}, "", "s"},
		{"its program is elsewhere", map[string]string{
			unitDir + "nightly-restart.service": oneshot("/usr/bin/core/systemctl reboot") + atBoot,
		}, enabled("nightly-restart.service"), "TM07 missing", "s"},
		{"it wants the target", map[string]string{
			unitDir + "wish.service": "[Unit]\nWants=reboot.target\n" + oneshot("/bin/true") + atBoot,
		}, enabled("wish.service"), "", "s"},
		{"a path that is there", map[string]string{
			unitDir + "drop.path":    "[Path]\nPathExists=/etc/machine-id\n" + atBoot,
			unitDir + "drop.service": oneshot("/sbin/reboot"),
		}, enabled("drop.path"), "TM01 loop", "rr"},
	}
}

// TestUnitLoops asks the rules about the files of machines, and then boots them.
func TestUnitLoops(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "systemd-nspawn", "systemctl", "journalctl", "dbus-daemon")
	r, err := nspawn.NewRoot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range unitTrees() {
		t.Run(c.name, func(t *testing.T) {
			w := c.world
			w.Files = map[string]nspawn.File{}
			for name, text := range c.files {
				f := nspawn.File{Text: text}
				if to, link := strings.CutPrefix(text, "->"); link {
					f = nspawn.File{Link: to}
				} else if strings.HasPrefix(text, "#!") {
					f.Mode = 0o755
				}
				w.Files[name] = f
			}
			dir := filepath.Join(t.TempDir(), "root")
			if err := r.Write(t.Context(), w, dir); err != nil {
				t.Fatal(err)
			}
			if got := unitRules(t, dir); got != c.says {
				t.Errorf("the rules say %q, want %q", got, c.says)
			}
			o, err := r.Boot(t.Context(), w, nspawn.Limits{Boots: 2, Hold: 2 * time.Second, Wall: 20 * time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			ends := ""
			for _, b := range o.Boots {
				ends += b.End[:1]
			}
			if ends != c.ends {
				t.Errorf("its boots end %q, want %q", ends, c.ends)
			}
			if loop := strings.Contains(c.says, "loop"); loop != (ends == "rr" || ends == "p") {
				t.Errorf("the rules say %q, and systemd %q", c.says, ends)
			}
		})
	}
}

// unitRules asks all rules about units, as "TM01 loop".
func unitRules(t *testing.T, dir string) string {
	t.Helper()
	l, err := tree.OpenDirectory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e, err := evidence.Gather(t.Context(), l, evidence.Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, rule := range []Rule{ruleTM01(), ruleTM02(), ruleTM05(), ruleTM07()} {
		for _, got := range rule.judge(e) {
			switch {
			case got.Finding != nil:
				all = append(all, got.Finding.Code+" "+got.Finding.Kind)
				if len(got.Finding.Evidence) == 0 || got.Finding.Severity == finding.Danger && len(got.Finding.Remedies) == 0 {
					t.Errorf("%+v has no evidence or no remedy", got.Finding)
				}
			case got.Outcome == Unknown:
				all = append(all, rule.Code+" unknown: "+got.Why)
			}
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
