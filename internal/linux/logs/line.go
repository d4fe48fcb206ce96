// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/klog"
)

// said is a line of a log in text without its time.
type said struct{ host, program, pid, text string }

// parseSaid reads what follows the time in a log that a syslog daemon, journalctl, corosync or pacemaker
// wrote:
//
//	host program[123]: text
//	host program: text
//	[123] host crmd:    error: text            pacemaker 1.1
//	host pacemaker-fenced [123] (func)  notice: text
//	[123] host corosync notice  [TOTEM ] text
//	host 2013-01-01 12:00:00.123 456 INFO nova.virt... [-] text   OpenStack through syslog
func parseSaid(rest string) (said, bool) {
	rest = skipNumber(rest)
	host, rest, ok := strings.Cut(rest, " ")
	if !ok || host == "" {
		return said{}, false
	}
	rest = strings.TrimLeft(rest, " ")
	if len(rest) > 5 && rest[4] == '-' && rest[0] >= '0' && rest[0] <= '9' && strings.Contains(rest, " nova.") {
		return said{host: host, program: "nova", text: novaText(rest)}, true
	}
	end := strings.IndexAny(rest, ":[ ")
	if end <= 0 {
		return said{host: host, text: rest}, true
	}
	program, pid, after := rest[:end], "", rest[end:]
	if after[0] == '[' {
		if number, tail, ok := strings.Cut(after[1:], "]"); ok {
			pid, after = number, tail
		}
	}
	text := strings.TrimLeft(strings.TrimPrefix(after, ":"), " ")
	return said{host, program, pid, clean(program, text)}, true
}

// skipNumber takes "[123] " from the beginning.
func skipNumber(s string) string {
	if strings.HasPrefix(s, "[") {
		if n, rest, ok := strings.Cut(s[1:], "]"); ok && n != "" && strings.Trim(n, "0123456789") == "" {
			return strings.TrimLeft(rest, " ")
		}
	}
	return s
}

// clean takes from a message what its program puts before each.
func clean(program, text string) string {
	switch klog.Program(program) {
	case "nova":
		return novaText(text)
	case "sudo":
		return strings.TrimLeft(text, " ")
	case "pacemaker", "corosync", "fencing":
		text = strings.TrimLeft(skipNumber(text), " \t")
		if strings.HasPrefix(text, "(") {
			if _, rest, ok := strings.Cut(text, ")"); ok {
				text = strings.TrimLeft(rest, " \t")
			}
		}
		for _, level := range []string{"emerg", "alert", "crit", "error", "warning", "notice", "info", "debug"} {
			if rest, ok := strings.CutPrefix(text, level); ok && rest != "" && (rest[0] == ':' || rest[0] == ' ') {
				return strings.TrimLeft(rest[1:], " \t")
			}
		}
	}
	return text
}

// novaText takes time, process, level, module and request from a line of OpenStack (oslo.log):
// "2013-01-01 12:00:00.123 456 INFO nova.virt.libvirt.imagecache [req-1 - -] text".
func novaText(s string) string {
	_, after, ok := strings.Cut(s, " nova.")
	if !ok {
		if after, ok = strings.CutPrefix(s, "nova."); !ok {
			return s
		}
	}
	_, text, ok := strings.Cut(after, " ")
	if !ok {
		return s
	}
	for _, mark := range []string{"[req-", "[-", "[None", "[instance: "} {
		if strings.HasPrefix(text, mark) {
			if _, rest, ok := strings.Cut(text, "]"); ok {
				text = strings.TrimLeft(rest, " ")
			}
		}
	}
	return text
}

// libvirtText takes thread, level and place from a line of libvirt: "123: error : virFoo:45 : text".
func libvirtText(s string) string {
	parts := strings.SplitN(s, " : ", 3)
	if len(parts) == 3 && strings.Contains(parts[0], ": ") {
		return parts[2]
	}
	return s
}

// priority takes "<34>1 " of RFC 5424 or "<34>" of RFC 3164 from a line as it came over the network.
func priority(line string) (rest string, version bool) {
	if !strings.HasPrefix(line, "<") {
		return line, false
	}
	n, rest, ok := strings.Cut(line[1:], ">")
	if !ok || len(n) > 3 || strings.Trim(n, "0123456789") != "" {
		return line, false
	}
	if after, ok := strings.CutPrefix(rest, "1 "); ok {
		return after, true
	}
	return rest, false
}

// parse5424 reads what follows the time in a line of RFC 5424: "host app procid msgid [data] text".
func parse5424(rest string) (said, bool) {
	f := strings.SplitN(rest, " ", 5)
	if len(f) < 5 {
		return said{}, false
	}
	text := f[4]
	if after, ok := strings.CutPrefix(text, "- "); ok {
		text = after
	} else if strings.HasPrefix(text, "[") {
		if _, after, ok := strings.Cut(text, "] "); ok {
			text = after
		}
	}
	return said{f[0], f[1], f[2], clean(f[1], strings.TrimPrefix(text, "\ufeff"))}, true
}
