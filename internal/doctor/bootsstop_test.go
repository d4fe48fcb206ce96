// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/evidence"
)

// TestMenuSteps holds that each kind of boot menu has its own way to the command line.
func TestMenuSteps(t *testing.T) {
	grub := func(m evidence.BootMenu) evidence.BootMenu {
		m.Loader, m.From = "grub", evidence.Source{Path: "/boot/grub/grub.cfg"}
		return m
	}
	for _, c := range []struct {
		name string
		menu evidence.BootMenu
		has  []string
		not  []string
	}{
		{"a menu that waits", grub(evidence.BootMenu{Set: true, Timeout: 5}), []string{"waits for 5 s", "press e", "Ctrl-X"},
			[]string{"Shift", "password"}},
		{"one that waits for ever", grub(evidence.BootMenu{Set: true, Timeout: -1}), []string{"until a key is pressed", "press e"}, nil},
		{"one that does not wait", grub(evidence.BootMenu{Set: true}), []string{"hold Shift (BIOS)", "Esc", "press e"}, nil},
		{"a hidden one", grub(evidence.BootMenu{Set: true, Timeout: 5, Hidden: true}), []string{"hold Shift (BIOS)"}, []string{"waits for"}},
		{"one on a serial line", grub(evidence.BootMenu{Set: true, Timeout: 5, Serial: "serial --unit=0"}),
			[]string{"virsh console", "serial --unit=0"}, []string{"virt-viewer"}},
		{"a locked one", grub(evidence.BootMenu{Set: true, Timeout: 5, Locked: true}), []string{"a password", "press e"}, nil},
		{"one of which the time is not known", grub(evidence.BootMenu{}), []string{"is not known", "press e"}, nil},
		{"systemd-boot", evidence.BootMenu{Loader: "systemd-boot", Set: true, Timeout: 3}, []string{"press e"}, []string{"space bar"}},
		{"systemd-boot without a menu", evidence.BootMenu{Loader: "systemd-boot", Set: true, Hidden: true}, []string{"space bar", "press e"}, nil},
		{"systemd-boot without an editor", evidence.BootMenu{Loader: "systemd-boot", NoEditor: true}, []string{"switched off"}, []string{"press e"}},
		{"EXTLINUX", evidence.BootMenu{Loader: "extlinux"}, []string{"Tab"}, []string{"press e"}},
		{"EXTLINUX that is shut", evidence.BootMenu{Loader: "extlinux", NoEditor: true}, []string{"does not let"}, []string{"Tab"}},
		{"none", evidence.BootMenu{}, []string{"no boot loader was found", "Ctrl-X"}, nil},
		{"one that may not be read", evidence.BootMenu{Unread: "/boot/grub/grub.cfg: may not be read without more rights"},
			[]string{"is not known", "may not be read"}, []string{"no boot loader"}},
		{"one elsewhere", evidence.BootMenu{Apart: true}, []string{"was not read"}, []string{"no boot loader"}},
	} {
		got := strings.Join(menuSteps(&c.menu), "\n")
		for _, want := range c.has {
			if !strings.Contains(got, want) {
				t.Errorf("the way to the command line of %s has no %q:\n%s", c.name, want, got)
			}
		}
		for _, other := range c.not {
			if strings.Contains(got, other) {
				t.Errorf("the way to the command line of %s has %q:\n%s", c.name, other, got)
			}
		}
	}
}

// TestBackslash: GRUB would swallow those of escaped names.
func TestBackslash(t *testing.T) {
	for loader, want := range map[string]bool{"grub": true, "systemd-boot": false} {
		e := &evidence.Evidence{Menu: evidence.BootMenu{Loader: loader}}
		s := newCourts(e).stop(&Blame{Masks: []string{`a\x2db.service`}})
		if got := strings.Contains(strings.Join(s.Menu, "\n"), "backslash"); got != want || s.Arguments[0] != `systemd.mask=a\x2db.service` {
			t.Errorf("%s: stop = %q, %q", loader, s.Arguments, s.Menu)
		}
	}
}
