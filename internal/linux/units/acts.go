// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import "strings"

// program is what is known of a program on the system.
type program struct{}

// actions are the settings by which a unit acts on the machine itself (systemd.unit(5)), with when.
func actions() [][2]string {
	return [][2]string{
		{"FailureAction", "it fails"}, {"SuccessAction", "it succeeds"},
		{"StartLimitAction", "it is started too often"}, {"JobTimeoutAction", "its start takes too long"},
	}
}

// Acts gives what running a unit does to the machine.
func (s *Set) Acts(name string) []Act {
	u := s.Unit(name)
	if u == nil || u.State != Loaded {
		return nil
	}
	var all []Act
	for _, a := range actions() {
		v, ok := u.Last("Unit", a[0])
		if !ok {
			continue
		}
		what, _, _ := strings.Cut(v.Value, "-")
		if what == Reboot || what == PowerOff || what == Halt || what == Kexec {
			all = append(all, Act{What: what, Unit: u.Name, Setting: v, If: a[1],
				Chain: []Step{{v.Key + "=" + v.Value, v.From}}})
		}
	}
	return all
}
