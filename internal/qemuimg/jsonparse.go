// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxNesting bounds how deep objects and lists nest, as in qemu; the parser is recursive. The
// length is bounded by that of an argument or of a backing file's name.
const maxNesting = 1024

// parseJSON reads one JSON value in qemu's dialect (strings may stand in single quotes), with
// qemu's messages.
func parseJSON(text string) (any, *fault) {
	l := jsonLexer{rest: text}
	var toks []jsonToken
	var values []any
	braces, brackets := 0, 0
	for {
		t, err := l.next()
		if err != nil && len(values) > 0 {
			return nil, oneValue()
		}
		if err != nil {
			return nil, err
		}
		switch t.kind {
		case '{', '}':
			braces += 1 - 2*strings.IndexByte("{}", t.kind)
		case '[', ']':
			brackets += 1 - 2*strings.IndexByte("[]", t.kind)
		}
		if braces+brackets > maxNesting {
			return nil, faultf("JSON nesting depth limit exceeded")
		}
		if t.kind != 0 {
			toks = append(toks, t)
		}
		// A value ends where all brackets are closed, or more than were opened.
		open := (braces > 0 || brackets > 0) && braces >= 0 && brackets >= 0
		if len(toks) > 0 && (!open || t.kind == 0) {
			p := jsonParser{toks: toks}
			v, err := p.value()
			switch {
			case len(values) > 0:
				return nil, oneValue()
			case err != nil:
				return nil, err
			}
			values, toks, braces, brackets = append(values, v), nil, 0, 0
		}
		if t.kind == 0 {
			break
		}
	}
	if len(values) == 0 {
		return nil, faultf("Expecting a JSON value")
	}
	return values[0], nil
}

func oneValue() *fault { return faultf("Expecting at most one JSON value") }

// jsonToken is a word of JSON. kind is the character itself for punctuation, otherwise '"' for a
// string, '0' for a number, 'a' for a keyword; 0 is the end.
type jsonToken struct {
	kind byte
	text string
}

type jsonLexer struct{ rest string }

func (l *jsonLexer) next() (jsonToken, *fault) {
	l.rest = strings.TrimLeft(l.rest, " \t\r\n")
	if l.rest == "" {
		return jsonToken{}, nil
	}
	c, n := l.rest[0], 1
	switch {
	case strings.IndexByte("{}[]:,", c) >= 0:
		return l.token(c, 1), nil
	case c == '"' || c == '\'':
		for ; n < len(l.rest); n++ {
			switch d := l.rest[n]; {
			case d == c:
				return l.token('"', n+1), nil
			case d < 0x20 || d >= 0xfe:
				return jsonToken{}, l.stray(n + 1)
			case d == '\\':
				n++
			}
		}
		return jsonToken{}, l.stray(n)
	case c >= 'a' && c <= 'z':
		for n < len(l.rest) && l.rest[n] >= 'a' && l.rest[n] <= 'z' {
			n++
		}
		return l.token('a', n), nil
	case c == '-' || c >= '0' && c <= '9':
		return l.number()
	}
	return jsonToken{}, l.stray(1)
}

// number follows RFC 8259, section 6: no leading zeros, digits behind a point and behind an e.
func (l *jsonLexer) number() (jsonToken, *fault) {
	n := 0
	digits := func() bool {
		from := n
		for n < len(l.rest) && l.rest[n] >= '0' && l.rest[n] <= '9' {
			n++
		}
		return n > from
	}
	at := func(chars string) bool {
		return n < len(l.rest) && strings.IndexByte(chars, l.rest[n]) >= 0
	}
	if at("-") {
		n++
	}
	switch {
	case at("0"):
		n++
		if at("0123456789") {
			return jsonToken{}, l.stray(n + 1)
		}
	case !digits():
		return jsonToken{}, l.stray(n + 1)
	}
	if at(".") {
		n++
		if !digits() {
			return jsonToken{}, l.stray(n + 1)
		}
	}
	if at("eE") {
		n++
		if at("+-") {
			n++
		}
		if !digits() {
			return jsonToken{}, l.stray(n + 1)
		}
	}
	return l.token('0', n), nil
}

func (l *jsonLexer) token(kind byte, n int) jsonToken {
	t := jsonToken{kind, l.rest[:n]}
	l.rest = l.rest[n:]
	return t
}

func (l *jsonLexer) stray(n int) *fault {
	return faultf("JSON parse error, stray '%s'", l.rest[:min(n, len(l.rest))])
}

type jsonParser struct{ toks []jsonToken }

func (p *jsonParser) peek() byte {
	if len(p.toks) == 0 {
		return 0
	}
	return p.toks[0].kind
}

func (p *jsonParser) pop() (jsonToken, *fault) {
	if len(p.toks) == 0 {
		return jsonToken{}, syntax("premature EOI")
	}
	t := p.toks[0]
	p.toks = p.toks[1:]
	return t, nil
}

func syntax(format string, args ...any) *fault {
	return faultf("JSON parse error, %s", fmt.Sprintf(format, args...))
}

func (p *jsonParser) value() (any, *fault) {
	t, err := p.pop()
	if err != nil {
		return nil, err
	}
	switch t.kind {
	case '{':
		return p.object()
	case '[':
		return p.list()
	case '"':
		return unquote(t.text)
	case '0':
		return number(t.text), nil
	case 'a':
		switch t.text {
		case "true", "false":
			return t.text == "true", nil
		case "null":
			return nil, nil
		}
		return nil, syntax("invalid keyword '%s'", t.text)
	}
	return nil, syntax("expecting value")
}

// number is an int64 if it can be, else a uint64, else a float64.
func number(text string) any {
	if i, err := strconv.ParseInt(text, 10, 64); err == nil {
		return i
	}
	if u, err := strconv.ParseUint(text, 10, 64); err == nil {
		return u
	}
	// Out of range it is infinite, as strtod has it.
	f, _ := strconv.ParseFloat(text, 64)
	return f
}

// elements reads what stands between brackets, calling one for each element.
func (p *jsonParser) elements(end byte, what string, one func() *fault) *fault {
	if p.peek() == end {
		_, err := p.pop()
		return err
	}
	for {
		if err := one(); err != nil {
			return err
		}
		t, err := p.pop()
		switch {
		case err != nil:
			return err
		case t.kind == end:
			return nil
		case t.kind != ',':
			return syntax("expected separator in %s", what)
		}
	}
}

func (p *jsonParser) list() (any, *fault) {
	list := []any{}
	err := p.elements(']', "list", func() *fault {
		v, err := p.value()
		list = append(list, v)
		return err
	})
	return list, err
}

func (p *jsonParser) object() (any, *fault) {
	d := &dict{}
	err := p.elements('}', "dict", func() *fault {
		isText := p.peek() == '"'
		key, err := p.value()
		if err != nil {
			return err
		}
		name, ok := key.(string)
		if !isText || !ok {
			return syntax("key is not a string in object")
		}
		t, err := p.pop()
		if err != nil {
			return err
		}
		if t.kind != ':' {
			return syntax("missing : in object pair")
		}
		v, err := p.value()
		if err != nil {
			return err
		}
		if d.has(name) {
			return syntax("duplicate key")
		}
		d.put(name, v)
		return nil
	})
	return d, err
}

// unquote decodes a string token with its quotes.
func unquote(tok string) (any, *fault) {
	s := tok[1 : len(tok)-1]
	var b strings.Builder
	for s != "" {
		if s[0] != '\\' {
			cp, n := codepoint(s)
			if cp == utf8.RuneError && s[:n] != string(utf8.RuneError) {
				return nil, syntax("invalid UTF-8 sequence in string")
			}
			b.WriteString(s[:n])
			s = s[n:]
			continue
		}
		if len(s) < 2 {
			return nil, syntax("invalid escape sequence in string")
		}
		if i := strings.IndexByte(`"'\/bfnrt`, s[1]); i >= 0 {
			b.WriteByte("\"'\\/\b\f\n\r\t"[i])
			s = s[2:]
			continue
		}
		if s[1] != 'u' {
			return nil, syntax("invalid escape sequence in string")
		}
		cp, n := hexEscape(s)
		if !utf8.ValidRune(cp) || cp >= 0xfdd0 && cp <= 0xfdef || cp&0xfffe == 0xfffe {
			return nil, syntax("%s is not a valid Unicode character", s[:n])
		}
		if cp == 0 {
			b.WriteString("\xc0\x80")
		} else {
			b.WriteRune(cp)
		}
		s = s[n:]
	}
	return b.String(), nil
}

// hexEscape decodes \uXXXX at the start of s, or two of them that are a surrogate pair; -1 is no
// character.
func hexEscape(s string) (cp rune, n int) {
	four := func(s string) rune {
		if len(s) < 6 || s[:2] != `\u` {
			return -1
		}
		v, err := strconv.ParseUint(s[2:6], 16, 32)
		if err != nil {
			return -1
		}
		return rune(v)
	}
	n = min(6, len(s))
	cp = four(s)
	if cp < 0xd800 || cp > 0xdbff || !strings.HasPrefix(s[n:], `\u`) {
		return cp, n
	}
	low := four(s[n:])
	if low < 0xdc00 || low > 0xdfff {
		return -1, n
	}
	return 0x10000 + (cp&0x3ff)<<10 + low&0x3ff, n + 6
}
