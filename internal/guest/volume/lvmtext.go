// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package volume

import (
	"bytes"
	"fmt"
	"slices"
)

const (
	// maxLVMDepth bounds the sections in sections of LVM's text.
	maxLVMDepth = 8
	// maxLVMParts bounds the sections and values of all texts together: each takes some 200 bytes. A
	// logical volume has about 15.
	maxLVMParts = 1 << 19
)

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

// put adds an inner section.
func (s *section) put(name string) *section {
	inner := &section{}
	if s.sections == nil {
		s.sections = map[string]*section{}
	}
	s.sections[name] = inner
	return inner
}

// set gives a value to a name.
func (s *section) set(name string, list []lvmValue) {
	if s.lists == nil {
		s.lists = map[string][]lvmValue{}
	}
	s.lists[name] = list
}

// parseLVM reads LVM's text, of which at most so many parts. It tells what is wrong with a text that
// is none; its checksum is right, so that it may be of another version of LVM.
func parseLVM(text []byte, parts *int) (*section, string) {
	root := &section{}
	open := []*section{root}
	var name string
	var list []lvmValue
	assigned, inList := false, false
	for {
		word, value, rest := lvmToken(text)
		if len(rest) >= len(text) {
			if len(open) > 1 {
				return root, "it ends inside of a section"
			}
			return root, ""
		}
		if *parts--; *parts < 0 {
			return root, fmt.Sprintf("with others it has more than %d parts", maxLVMParts)
		}
		text = rest
		here := open[len(open)-1]
		switch {
		case word == "{":
			if len(open) == maxLVMDepth {
				return root, fmt.Sprintf("its sections are more than %d deep", maxLVMDepth-1)
			}
			open = append(open, here.put(name))
		case word == "}":
			if open = open[:len(open)-1]; len(open) == 0 {
				return root, "it ends more sections than it begins"
			}
		case word == "=":
			assigned, list = true, nil
		case word == "[":
			inList = true
		case word == "]":
			here.set(name, list)
			assigned, inList = false, false
		case word == ",":
		case inList:
			list = append(list, value)
		case assigned:
			here.set(name, []lvmValue{value})
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
