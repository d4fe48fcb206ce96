// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hypervisor

import (
	"encoding/json"
	"strings"
)

// namer is given the paths in an argument for QEMU, whole ones by its own rules and parts of its values that may be paths too, as
// those of nbd:unix:/SOCKET:exportname=NAME and blkdebug:FILE:FILE. It says whether it wants more.
type namer func(path string, whole bool) bool

// argument reads an argument for QEMU: a path, JSON, or options between commas, where two are one that ends no option
// (qemu(1), "-drive"; util/qemu-option.c, get_opt_value).
func (n namer) argument(text string) bool {
	switch document := strings.TrimPrefix(text, "json:"); {
	case strings.HasPrefix(text, "/"): // as behind -kernel and -cdrom, where a comma is one of the name
		return n(text, true) && eachOption(text, func(o string) bool { return n.part(o) && n.parts(o) })
	case isObject(document):
		return n.json(document)
	}
	return eachOption(text, n.value)
}

// value reads a value, or an option with its name: a path may have any letters behind the first slash.
func (n namer) value(v string) bool {
	if _, document, found := strings.Cut(v, "json:"); found && isObject(document) {
		return n.json(document)
	}
	i := strings.IndexByte(v, '/')
	return i < 0 || n(v[i:], true) && n.parts(v)
}

// parts gives what stands between letters that may end a path.
func (n namer) parts(v string) bool {
	for word := range strings.FieldsFuncSeq(v, func(c rune) bool { return strings.ContainsRune(" \t\r\n,=:;\"'{}[]", c) }) {
		if !n.part(word) {
			return false
		}
	}
	return true
}

func (n namer) part(word string) bool { return !strings.HasPrefix(word, "/") || n(word, false) }

func isObject(text string) bool {
	return strings.HasPrefix(strings.TrimSpace(text), "{") && json.Valid([]byte(text))
}

// json reads all texts of a document. One of them may be another document behind json:, which has half its length at most.
func (n namer) json(document string) bool {
	d := json.NewDecoder(strings.NewReader(document))
	for {
		t, err := d.Token()
		if err != nil {
			return true // its end: it is sound
		}
		if text, is := t.(string); is && !n.value(text) {
			return false
		}
	}
}

// eachOption splits a text at single commas, and makes one of two. It ends when fn returns false, which it returns then.
func eachOption(text string, fn func(string) bool) bool {
	var option strings.Builder
	for {
		before, after, found := strings.Cut(text, ",")
		option.WriteString(before)
		switch {
		case strings.HasPrefix(after, ","):
			option.WriteByte(',')
			text = after[1:]
			continue
		case !fn(option.String()):
			return false
		case !found:
			return true
		}
		option.Reset()
		text = after
	}
}
