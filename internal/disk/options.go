// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxOptionDepth bounds how deep objects nest; what qemu itself writes has two levels.
const maxOptionDepth = 16

// parseOptions reads a JSON object in qemu's dialect, which allows strings in single quotes, and
// flattens it as qemu does: {"a":{"b":1}} becomes a.b = "1", an element of a list has its index as
// key. A null stands as "null".
func parseOptions(text string) (map[string]string, error) {
	p := optionParser{text: text, out: map[string]string{}}
	p.space()
	if !p.eat('{') {
		return nil, errors.New("an object is wanted")
	}
	if err := p.object("", 1); err != nil {
		return nil, err
	}
	if p.space(); p.pos < len(p.text) {
		return nil, p.fault("something follows the object")
	}
	return p.out, nil
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

type optionParser struct {
	text string
	pos  int
	out  map[string]string
}

func (p *optionParser) fault(what string) error {
	return fmt.Errorf("%s at byte %d", what, p.pos)
}

func (p *optionParser) space() {
	for p.pos < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.pos]) >= 0 {
		p.pos++
	}
}

// eat skips blanks and then c, if it comes next.
func (p *optionParser) eat(c byte) bool {
	p.space()
	if p.pos < len(p.text) && p.text[p.pos] == c {
		p.pos++
		return true
	}
	return false
}

// object reads what follows a "{".
func (p *optionParser) object(prefix string, depth int) error {
	if p.eat('}') {
		return nil
	}
	for {
		p.space()
		key, err := p.string()
		if err != nil {
			return err
		}
		if !p.eat(':') {
			return p.fault("a colon is missing")
		}
		if err := p.value(prefix+key, depth); err != nil {
			return err
		}
		switch {
		case p.eat(','):
		case p.eat('}'):
			return nil
		default:
			return p.fault("a comma or brace is missing")
		}
	}
}

// list reads what follows a "[".
func (p *optionParser) list(prefix string, depth int) error {
	if p.eat(']') {
		return nil
	}
	for i := 0; ; i++ {
		if err := p.value(prefix+strconv.Itoa(i), depth); err != nil {
			return err
		}
		switch {
		case p.eat(','):
		case p.eat(']'):
			return nil
		default:
			return p.fault("a comma or bracket is missing")
		}
	}
}

func (p *optionParser) value(key string, depth int) error {
	if depth > maxOptionDepth {
		return p.fault("nested too deep")
	}
	switch {
	case p.eat('{'):
		return p.object(key+".", depth+1)
	case p.eat('['):
		return p.list(key+".", depth+1)
	}
	if _, twice := p.out[key]; twice {
		return p.fault(fmt.Sprintf("%q stands twice", key))
	}
	var err error
	if p.pos < len(p.text) && (p.text[p.pos] == '"' || p.text[p.pos] == '\'') {
		p.out[key], err = p.string()
		return err
	}
	start := p.pos
	for p.pos < len(p.text) && strings.IndexByte(" \t\r\n,}]", p.text[p.pos]) < 0 {
		p.pos++
	}
	word := p.text[start:p.pos]
	if _, err := strconv.ParseFloat(word, 64); err != nil && word != "true" && word != "false" && word != "null" {
		p.pos = start
		return p.fault("a value is missing")
	}
	p.out[key] = word
	return nil
}

func (p *optionParser) string() (string, error) {
	if p.pos >= len(p.text) || p.text[p.pos] != '"' && p.text[p.pos] != '\'' {
		return "", p.fault("a string is missing")
	}
	quote := p.text[p.pos]
	p.pos++
	var b strings.Builder
	for p.pos < len(p.text) {
		c := p.text[p.pos]
		p.pos++
		switch {
		case c == quote:
			return b.String(), nil
		case c < ' ':
			return "", p.fault("a control character stands in a string")
		case c != '\\':
			b.WriteByte(c)
		default:
			if err := p.escape(&b); err != nil {
				return "", err
			}
		}
	}
	return "", p.fault("a string has no end")
}

// escape reads what follows a backslash.
func (p *optionParser) escape(b *strings.Builder) error {
	if p.pos >= len(p.text) {
		return p.fault("a string has no end")
	}
	c := p.text[p.pos]
	p.pos++
	if i := strings.IndexByte(`"'\/bfnrt`, c); i >= 0 {
		b.WriteByte("\"'\\/\b\f\n\r\t"[i])
		return nil
	}
	if c != 'u' || len(p.text)-p.pos < 4 {
		return p.fault("an escape is not known")
	}
	n, err := strconv.ParseUint(p.text[p.pos:p.pos+4], 16, 16)
	// A zero would end the name for qemu. Pairs of surrogates are no part of a name that a header
	// can hold by mistake; they are refused rather than guessed.
	if r := rune(n); err == nil && r != 0 && utf8.ValidRune(r) {
		p.pos += 4
		b.WriteRune(r)
		return nil
	}
	return p.fault("an escape is not known")
}
