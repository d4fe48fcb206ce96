// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/umount"
)

// manyCures are more programs than are shown.
func manyCures() []umount.Cure {
	var all []umount.Cure
	for i := range maxCures + 3 {
		all = append(all, umount.Cure{Process: holders.Process{PID: 100 + i, Comm: "sh"}, How: umount.Holds,
			Ways: []umount.Way{{Kind: umount.WayNone, What: "end it"}}})
	}
	return all
}

// advices are what may be advised.
func advices() map[string]umount.Advice {
	agent := holders.Process{PID: 612, Comm: "vmtoolsd", Unit: "open-vm-tools.service"}
	dropin := umount.Way{Kind: umount.WayDropin, What: "its unit does not see what is mounted there, whatever the program does",
		File: "/etc/systemd/system/open-vm-tools.service.d/50-shisa-mnt-pool.conf",
		Text: "# Made by shisa holders --write-dropin\n[Service]\nInaccessiblePaths=\"-/mnt/pool\"\n",
		Commands: []string{"shisa holders --write-dropin open-vm-tools.service --apply /mnt/pool", "systemctl daemon-reload",
			"systemctl restart open-vm-tools.service"}}
	user := umount.Way{Kind: umount.WayUserDropin, What: "its unit does not see what is mounted there",
		File: "~/.config/systemd/user/tracker.service.d/50-shisa-mnt-pool.conf",
		Text: "[Service]\nPrivateUsers=yes\nInaccessiblePaths=\"-/mnt/pool\"\n",
		Commands: []string{"systemctl --user --machine=1000@ daemon-reload",
			"systemctl --user --machine=1000@ restart tracker.service"}}
	return map[string]umount.Advice{
		"nobody": {Path: "/mnt/pool", Mounted: true, Wrong: umount.WrongCure},
		"unseen": {Path: "/mnt/pool", Wrong: umount.WrongCure,
			Blind: []finding.Blind{{What: "process 7", Reason: "it does not answer"}, {What: "process 8 (x)", Reason: "no right"}}},
		"cures": {Path: "/mnt/pool", Mounted: true, Wrong: umount.WrongCure, Cures: []umount.Cure{
			{Process: agent, How: umount.Polls, PeriodNS: 704_000_000, Agent: "open-vm-tools", Ways: []umount.Way{
				{Kind: umount.WayOption, What: "it does not look at disks any more", File: "/etc/vmware-tools/tools.conf",
					Text: "[guestinfo]\ndisable-query-diskinfo=true\n", Commands: []string{"systemctl restart open-vm-tools.service"}},
				dropin}},
			{Process: holders.Process{PID: 44, Comm: "tracker", UserUnit: "tracker.service", Unit: "user@1000.service"}, How: umount.Holds,
				Ways: []umount.Way{user}},
			{Process: holders.Process{PID: 45, Comm: "exporter", Container: "docker:4f1a", Unit: "docker-4f1a.scope"}, How: umount.Runs,
				Ways: []umount.Way{{Kind: umount.WayPropagation, What: "give it the host's directories with rslave",
					Text: "-v /:/host:ro,rslave"}}},
			{Process: holders.Process{PID: 46, Comm: "bash", Unit: "session-3.scope"}, How: umount.Holds,
				Ways: []umount.Way{{Kind: umount.WayNone, What: "it belongs to no service of systemd"}}},
			{Process: holders.Process{PID: 47, Comm: "qemu", Machine: "vm-17"}, How: umount.Holds,
				Ways: []umount.Way{{Kind: umount.WayNone, What: "it is the virtual machine vm-17"}}}}},
		"many": {Path: "/mnt/pool", Mounted: true, Wrong: umount.WrongCure, Cures: manyCures()},
		"hostile": {Path: evil, Wrong: evil, Blind: []finding.Blind{{What: evil, Reason: evil}}, Cures: []umount.Cure{
			{Process: holders.Process{PID: 1, Comm: evil, Unit: evil}, How: umount.Polls, Agent: evil, Ways: []umount.Way{
				{Kind: umount.WayDropin, What: evil, File: evil, Text: evil, Commands: []string{evil, evil}},
				{Kind: umount.WayUserDropin, What: evil, File: evil, Text: evil, Commands: []string{evil}}}},
			{Process: holders.Process{PID: 2, Comm: evil, Container: evil, UserUnit: evil, Machine: evil}, How: umount.Runs}}},
	}
}

func TestAdvice(t *testing.T) {
	for name, a := range advices() {
		for _, v := range []struct {
			name  string
			style Style
		}{{"", Style{}}, {"-80", Style{Width: 80}}, {"-color", Style{Color: true}}, {"-all", Style{All: true}}} {
			var b strings.Builder
			if err := Advice(&b, &a, v.style); err != nil {
				t.Fatal(err)
			}
			if text := b.String(); !v.style.Color && strings.ContainsAny(text, "\x1b\u202e") {
				t.Errorf("%s%s lets out %q", name, v.name, text)
			}
			if v.name == "" || name == "cures" && v.name != "-all" || name == "many" && v.name == "-all" || name == "hostile" && v.name == "-80" {
				golden(t, "advise-"+name+v.name+".txt", b.String())
			}
		}
	}
}
