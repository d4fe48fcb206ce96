// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"path"
	"slices"
	"strings"
)

// replace puts in the values of specifiers (systemd.unit(5), "Specifiers"). What only the running system
// knows is left as it is written.
func (l *loader) replace(u *Unit) {
	if !slices.ContainsFunc(u.Settings, func(s Setting) bool { return strings.Contains(s.Value, "%") }) {
		return
	}
	u.Settings = slices.Clone(u.Settings)
	for i := range u.Settings {
		s := &u.Settings[i]
		if strings.Contains(s.Value, "%") {
			s.Value = expand(s.Value, func(c byte) (string, bool) { return l.specifier(u, c) })
		}
	}
}

// expand replaces specifiers in a text.
func expand(text string, value func(byte) (string, bool)) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '%' || i+1 == len(text) || b.Len() > maxFileBytes {
			b.WriteByte(text[i])
			continue
		}
		i++
		if v, known := value(text[i]); known {
			b.WriteString(v)
		} else {
			b.WriteByte('%')
			b.WriteByte(text[i])
		}
	}
	return b.String()
}

// specifier gives the value of one specifier.
func (l *loader) specifier(u *Unit, c byte) (value string, known bool) {
	prefix, instance, _, _ := parts(u.Name)
	last := prefix[strings.LastIndexByte(prefix, '-')+1:]
	switch c {
	case '%':
		return "%", true
	case 'n':
		return u.Name, true
	case 'N':
		return strings.TrimSuffix(u.Name, "."+u.Type()), true
	case 'p':
		return prefix, true
	case 'P':
		return unescape(prefix), true
	case 'i':
		return instance, true
	case 'I':
		return unescape(instance), true
	case 'j':
		return last, true
	case 'J':
		return unescape(last), true
	case 'f':
		if instance == "" {
			return "/" + unescape(prefix), true
		}
		return "/" + unescape(instance), true
	case 'y':
		return u.Path, true
	case 'Y':
		return path.Dir(u.Path), true
	case 'm':
		return l.MachineID, len(l.MachineID) == 32
	}
	// Of the system's manager, as systemd is built for every distribution known to us.
	i := strings.IndexByte("tSCLETVhuUgGs", c)
	if i < 0 {
		return "", false
	}
	return [...]string{"/run", "/var/lib", "/var/cache", "/var/log", "/etc", "/tmp", "/var/tmp", "/root", "root", "0",
		"root", "0", "/bin/sh"}[i], true
}
