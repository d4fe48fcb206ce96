// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"bytes"
	"slices"
)

// maxLVMDepth bounds the sections in sections of LVM's text.
const maxLVMDepth = 8

// section is a named part of LVM's text: values, lists of values and sections in it.
type section struct {
	sections map[string]*section
	lists    map[string][]lvmValue // a single value is a list of one
}

// lvmValue is a string or an integer.
type lvmValue struct {
	text   string
	number int64
}

func (s *section) number(name string) int64 {
	if l := s.lists[name]; len(l) == 1 {
		return l[0].number
	}
	return -1
}

func (s *section) text(name string) string {
	if l := s.lists[name]; len(l) == 1 {
		return l[0].text
	}
	return ""
}

// has tells whether a list of s has a text.
func (s *section) has(name, text string) bool {
	return slices.ContainsFunc(s.lists[name], func(v lvmValue) bool { return v.text == text })
}

// parseLVM reads LVM's text as far as it is one. The checksum is right, so what is not understood
// is of another version of LVM: it is left out.
func parseLVM(text []byte) *section {
	newSection := func() *section {
		return &section{sections: map[string]*section{}, lists: map[string][]lvmValue{}}
	}
	root := newSection()
	open := []*section{root}
	var name string
	var list []lvmValue
	assigned, inList := false, false
	for {
		word, value, rest := lvmToken(text)
		if len(rest) >= len(text) {
			return root
		}
		text = rest
		here := open[len(open)-1]
		switch {
		case word == "{" && len(open) < maxLVMDepth:
			inner := newSection()
			here.sections[name] = inner
			open = append(open, inner)
		case word == "{":
			return root
		case word == "}":
			if open = open[:len(open)-1]; len(open) == 0 {
				return root
			}
		case word == "=":
			assigned, list = true, nil
		case word == "[":
			inList = true
		case word == "]":
			here.lists[name] = list
			assigned, inList = false, false
		case word == ",":
		case inList:
			list = append(list, value)
		case assigned:
			here.lists[name] = []lvmValue{value}
			assigned = false
		default:
			name = value.text
		}
	}
}

// lvmToken takes the first word, string or sign off a text. What is left is as long as the text at
// its end.
func lvmToken(text []byte) (word string, value lvmValue, rest []byte) {
	for {
		trimmed := bytes.TrimLeft(text, " \t\r\n\x00")
		if len(trimmed) == 0 {
			return "", lvmValue{}, text
		}
		if trimmed[0] != '#' {
			text = trimmed
			break
		}
		end := bytes.IndexByte(trimmed, '\n')
		if end < 0 {
			return "", lvmValue{}, text
		}
		text = trimmed[end:]
	}
	switch c := text[0]; {
	case bytes.IndexByte([]byte("{}[]=,"), c) >= 0:
		return string(c), lvmValue{}, text[1:]
	case c == '"':
		end := 1
		for end < len(text) && text[end] != '"' {
			if text[end] == '\\' {
				end++
			}
			end++
		}
		end = min(end, len(text))
		return "", lvmValue{text: string(text[1:end])}, text[min(end+1, len(text)):]
	}
	end := bytes.IndexAny(text, " \t\r\n\x00{}[]=,\"#")
	if end < 0 {
		end = len(text)
	}
	v := lvmValue{text: string(text[:end])}
	for _, c := range text[:end] {
		if c < '0' || c > '9' || v.number > maxBytes {
			v.number = -1
			break
		}
		v.number = v.number*10 + int64(c-'0')
	}
	return "", v, text[end:]
}
