// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"strings"
)

// markup is text that is written to a page as it stands. Only constants become markup: a string
// from anywhere else has another type and goes through text.
type markup string

// page writes a page of HTML element by element. There is no template: every string but markup is
// escaped in one place, whatever it stands in, and the program does not carry a template engine.
type page struct {
	w    *bufio.Writer
	open []string
	// all lists everything instead of at most maxOfAKind.
	all bool
}

func newPage(w io.Writer, all bool) *page { return &page{w: bufio.NewWriter(w), all: all} }

func (p *page) raw(m markup) { p.w.WriteString(string(m)) }

// text writes a text, with what cannot be seen escaped as [Text] does.
func (p *page) text(s string) { p.w.WriteString(html.EscapeString(Text(s))) }

// start opens an element; attrs are names and values in turn. An attribute whose value is empty is
// left out.
func (p *page) start(name markup, attrs ...string) {
	p.tag(name, attrs)
	p.raw(">")
	p.open = append(p.open, string(name))
}

func (p *page) tag(name markup, attrs []string) {
	p.raw("<" + name)
	for i := 0; i+1 < len(attrs); i += 2 {
		if attrs[i+1] != "" {
			p.w.WriteString(" " + attrs[i] + `="` + html.EscapeString(Text(attrs[i+1])) + `"`)
		}
	}
}

// end closes the innermost element.
func (p *page) end() {
	last := len(p.open) - 1
	p.w.WriteString("</" + p.open[last] + ">")
	p.open = p.open[:last]
}

// void writes an element that has no content.
func (p *page) void(name markup, attrs ...string) {
	p.tag(name, attrs)
	p.raw("/>")
}

// el writes an element that holds only text.
func (p *page) el(name markup, class, text string) {
	p.start(name, "class", class)
	p.text(text)
	p.end()
}

// list writes texts as an unordered list.
func (p *page) list(class string, items []string) {
	p.start("ul", "class", class)
	for _, s := range items {
		p.el("li", "", s)
	}
	p.end()
}

// finish closes what is open.
func (p *page) finish() error {
	for len(p.open) > 0 {
		p.end()
	}
	p.raw("\n")
	return p.w.Flush()
}

// head writes everything up to the body's content. The policy forbids the page to load anything, so
// that even a fault in the escaping could not.
func (p *page) head(title string) {
	p.raw("<!DOCTYPE html>\n")
	p.start("html", "lang", "en")
	p.raw(`<head><meta charset="utf-8"/>` +
		`<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>` +
		`<meta name="viewport" content="width=device-width, initial-scale=1"/>`)
	p.el("title", "", title)
	p.raw("<style>" + pageStyle + "</style></head>\n")
	p.start("body")
}

// num writes a coordinate.
func num(v float64) string {
	s := fmt.Sprintf("%.1f", v)
	return strings.TrimSuffix(s, ".0")
}

// middle shortens s to n columns by leaving out its middle: names differ at both ends.
func middle(s string, n int) string {
	if columns(s) <= n {
		return s
	}
	rs := []rune(s)
	head, tail := (n-1)/2, n-1-(n-1)/2
	i, w := 0, 0
	for i < len(rs) && w+columns(string(rs[i])) <= head {
		w += columns(string(rs[i]))
		i++
	}
	j, w := len(rs), 0
	for j > i && w+columns(string(rs[j-1])) <= tail {
		w += columns(string(rs[j-1]))
		j--
	}
	return string(rs[:i]) + "…" + string(rs[j:])
}
