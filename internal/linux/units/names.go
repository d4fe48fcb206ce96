// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import "strings"

// maxNameBytes is the longest name of a unit (UNIT_NAME_MAX in src/basic/unit-name.h).
const maxNameBytes = 255

// unitTypes are the types of units (systemd.unit(5)).
const unitTypes = " service socket device mount automount swap target path timer slice scope "

// typeOf gives the type of a unit by its name, "" if it is none.
func typeOf(name string) string {
	i := strings.LastIndexByte(name, '.')
	if i < 0 || !strings.Contains(unitTypes, " "+name[i+1:]+" ") || name[i+1:] == "" {
		return ""
	}
	return name[i+1:]
}

// valid tells whether a name is one of a unit, a template or an instance (unit_name_is_valid()).
func valid(name string) bool {
	if len(name) > maxNameBytes || typeOf(name) == "" || name[0] == '@' {
		return false
	}
	stem := name[:strings.LastIndexByte(name, '.')]
	for i := range len(stem) {
		c := stem[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(":-_.\\@", c) >= 0:
		default:
			return false
		}
	}
	return stem != ""
}

// parts cuts "foo@bar.service" into foo, bar and service. at tells that there is an @.
func parts(name string) (prefix, instance, kind string, at bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return name, "", "", false
	}
	prefix, instance, at = strings.Cut(name[:i], "@")
	return prefix, instance, name[i+1:], at
}

func isTemplate(name string) bool {
	_, instance, _, at := parts(name)
	return at && instance == ""
}

func isInstance(name string) bool {
	_, instance, _, at := parts(name)
	return at && instance != ""
}

// templateOf gives the template of an instance, "" for what is none.
func templateOf(name string) string {
	prefix, instance, kind, at := parts(name)
	if !at || instance == "" {
		return ""
	}
	return prefix + "@." + kind
}

// withInstance gives the instance of a template.
func withInstance(template, instance string) string {
	prefix, _, kind, _ := parts(template)
	return prefix + "@" + instance + "." + kind
}

// unescape gives what an escaped string stands for: "-" is "/", "\x2d" is "-" (unit_name_unescape()).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '-':
			b.WriteByte('/')
		case s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' && hex(s[i+2]) >= 0 && hex(s[i+3]) >= 0:
			b.WriteByte(byte(hex(s[i+2])<<4 | hex(s[i+3])))
			i += 3
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func hex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
