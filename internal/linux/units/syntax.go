// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"fmt"
	"strings"
)

// Bounds of one file, far above what anybody writes. systemd takes lines of 1 MiB.
const (
	maxFileBytes = 1 << 20
	maxSettings  = 4096
)

const blanks = " \t\n\r"

// parse reads a unit file (systemd.syntax(7); config_parse() and parse_line() in src/shared/conf-parser.c):
//
//	# comment, also between lines that are continued
//	[Section]
//	Key=value \
//	    goes on
//
// bad says why systemd refuses the file as a whole; the settings are those before that. cut tells that
// there are more settings than are read.
func parse(name, text string) (all []Setting, bad string, cut bool) {
	p := parser{name: name}
	var held strings.Builder
	number, first := 0, 0
	for line := range lines(strings.TrimPrefix(text, "\ufeff")) {
		number++
		line = strings.TrimLeft(line, blanks)
		if line != "" && (line[0] == '#' || line[0] == ';') {
			continue
		}
		if first == 0 {
			first = number
		}
		if part, on := goesOn(line); on {
			held.WriteString(part)
			continue
		}
		if held.Len() > 0 {
			held.WriteString(line)
			line = held.String()
			held.Reset()
		}
		p.put(line, first)
		first = 0
	}
	if held.Len() > 0 {
		p.put(held.String(), first)
	}
	return p.all, p.bad, p.cut
}

// parser takes whole lines.
type parser struct {
	name, section string
	all           []Setting
	bad           string
	cut           bool
}

func (p *parser) put(line string, at int) {
	line = strings.Trim(line, blanks)
	if line == "" || p.bad != "" {
		return
	}
	if line[0] == '[' {
		if line[len(line)-1] != ']' {
			p.bad = fmt.Sprintf("line %d: the header of the section does not end", at)
			return
		}
		p.section = line[1 : len(line)-1]
		return
	}
	key, value, ok := strings.Cut(line, "=")
	if key = strings.TrimRight(key, blanks); !ok || key == "" || p.section == "" {
		return // systemd ignores it
	}
	if len(p.all) == maxSettings {
		p.cut = true
		return
	}
	p.all = append(p.all, Setting{p.section, key, strings.Trim(value, blanks), Source{p.name, at}})
}

// goesOn tells whether a line ends with a backslash that nothing escapes, and gives it with a space instead.
func goesOn(line string) (string, bool) {
	n := len(line) - len(strings.TrimRight(line, `\`))
	if n%2 == 0 {
		return "", false
	}
	return line[:len(line)-1] + " ", true
}

// lines cuts a text at ends of lines; systemd takes NUL for one too.
func lines(text string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for text != "" {
			i := strings.IndexAny(text, "\n\r\x00")
			if i < 0 {
				yield(text)
				return
			}
			line := text[:i]
			if strings.HasPrefix(text[i:], "\r\n") || strings.HasPrefix(text[i:], "\n\r") {
				i++
			}
			if !yield(line) {
				return
			}
			text = text[i+1:]
		}
	}
}
