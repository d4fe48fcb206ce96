// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import "strings"

// redirects takes what goes into and out of a command.
func (p *shellParser) redirects(n *node) {
	for {
		p.space()
		at := p.at
		for at < len(p.text) && p.text[at] >= '0' && p.text[at] <= '9' {
			at++
		}
		rest := p.text[at:]
		if strings.HasPrefix(rest, "&>") {
			rest, at = rest[1:], at+1
		}
		if rest == "" || rest[0] != '<' && rest[0] != '>' || strings.HasPrefix(rest, "<(") || strings.HasPrefix(rest, ">(") {
			return
		}
		p.at = at
		op := rest[:len(rest)-len(strings.TrimLeft(rest, "<>"))]
		p.at += len(op)
		if p.at < len(p.text) && strings.IndexByte("&|-", p.text[p.at]) >= 0 {
			op += p.text[p.at : p.at+1]
			p.at++
		}
		p.space()
		w, ok := p.word()
		switch {
		case !ok && !strings.HasSuffix(op, "-"):
			p.bad = true
			return
		case op == "<<" || op == "<<-":
			p.heredocs = append(p.heredocs, w)
		case op[0] == '>' && !strings.HasSuffix(op, "&"):
			n.to = append(n.to, w)
		}
	}
}

// aheadWord gives the next word and stays before it.
func (p *shellParser) aheadWord() (string, bool) {
	at, line := p.at, p.line
	w, ok := p.word()
	p.at, p.line = at, line
	return w, ok
}

// word takes one word. Quotes are taken off; variables stand in it as unknown, but for those that have their
// name between two of them: \x00NAME\x00.
func (p *shellParser) word() (string, bool) {
	p.space()
	var b strings.Builder
	start := p.at
	for p.at < len(p.text) && b.Len() < maxScriptBytes {
		switch c := p.text[p.at]; c {
		case ' ', '\t', '\n', '\r', ';', '&', '|', '(', ')', '<', '>':
			return b.String(), p.at > start
		case '\'':
			p.single(&b)
		case '"':
			p.double(&b)
		case '\\':
			p.at++
			if p.at < len(p.text) {
				if p.text[p.at] == '\n' {
					p.line++
				} else {
					b.WriteByte(p.text[p.at])
				}
				p.at++
			}
		case '$':
			p.dollar(&b)
		case '`':
			p.skipTo('`')
			b.WriteString(unknown + unknown)
		default:
			b.WriteByte(c)
			p.at++
		}
	}
	return b.String(), p.at > start
}

func (p *shellParser) single(b *strings.Builder) {
	p.at++
	i := strings.IndexByte(p.text[p.at:], '\'')
	if i < 0 {
		p.bad, p.at = true, len(p.text)
		return
	}
	b.WriteString(strings.ReplaceAll(p.text[p.at:p.at+i], unknown, ""))
	p.line += strings.Count(p.text[p.at:p.at+i], "\n")
	p.at += i + 1
}

func (p *shellParser) double(b *strings.Builder) {
	for p.at++; p.at < len(p.text); {
		switch c := p.text[p.at]; c {
		case '"':
			p.at++
			return
		case '\\':
			p.at++
			if p.at < len(p.text) {
				if strings.IndexByte("$`\"\\\n", p.text[p.at]) < 0 {
					b.WriteByte('\\')
				}
				if p.text[p.at] == '\n' {
					p.line++
				} else {
					b.WriteByte(p.text[p.at])
				}
				p.at++
			}
		case '$':
			b.WriteString(whole)
			p.dollar(b)
		case '`':
			p.skipTo('`')
			b.WriteString(whole + unknown + unknown)
		case '\n':
			p.line++
			fallthrough
		default:
			b.WriteByte(c)
			p.at++
		}
	}
	p.bad, p.at = true, len(p.text)
}

// skipTo skips up to a character, which a backslash hides.
func (p *shellParser) skipTo(end byte) {
	for p.at++; p.at < len(p.text); p.at++ {
		switch p.text[p.at] {
		case '\\':
			p.at++
		case '\n':
			p.line++
		case end:
			p.at++
			return
		}
	}
	p.bad, p.at = true, len(p.text)
}

// dollar takes an expansion.
func (p *shellParser) dollar(b *strings.Builder) {
	p.at++
	if p.at >= len(p.text) {
		b.WriteByte('$')
		return
	}
	switch c := p.text[p.at]; {
	case c == '(':
		p.balanced('(', ')')
		b.WriteString(unknown + unknown)
	case c == '{':
		from := p.at + 1
		p.balanced('{', '}')
		name := ""
		if p.at-1 > from {
			name = p.text[from : p.at-1]
		}
		if !isName(name) {
			name = ""
		}
		b.WriteString(unknown + name + unknown)
	case c == '\'' || c == '"':
		return // $'...' and $"...": read as a quoted word
	case isName(p.text[p.at : p.at+1]):
		from := p.at
		for p.at < len(p.text) && isName(p.text[from:p.at+1]) {
			p.at++
		}
		b.WriteString(unknown + p.text[from:p.at] + unknown)
	case strings.IndexByte("0123456789@*#?-$!", c) >= 0:
		p.at++
		b.WriteString(unknown + unknown)
	default:
		b.WriteByte('$')
	}
}

// balanced skips up to the bracket that closes.
func (p *shellParser) balanced(open, end byte) {
	depth := 0
	for ; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; c {
		case '\\':
			p.at++
		case '\'':
			if i := strings.IndexByte(p.text[p.at+1:], '\''); i >= 0 && open == '(' {
				p.line += strings.Count(p.text[p.at:p.at+i+1], "\n")
				p.at += i + 1
			}
		case '\n':
			p.line++
		case open:
			depth++
		case end:
			if depth--; depth == 0 {
				p.at++
				return
			}
		}
	}
	p.bad, p.at = true, len(p.text)
}

// isName tells whether a text is the name of a variable.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && c >= '0' && c <= '9') {
			return false
		}
	}
	return s != ""
}
