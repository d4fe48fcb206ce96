// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// optKind is the type of an option of a driver.
type optKind uint8

const (
	optText optKind = iota
	optBool
	optNumber
	optSize
)

// optValues are options as they were given, each checked against its kind.
type optValues map[string]string

// absorb moves the options named in kinds out of d, and checks them.
func (d *dict) absorb(kinds map[string]optKind) (optValues, *fault) {
	vals := optValues{}
	for key, val := range d.clone().all() {
		kind, ok := kinds[key]
		if !ok {
			continue
		}
		d.del(key)
		text, ok := optString(val)
		if !ok {
			continue
		}
		if err := checkOpt(kind, key, text); err != nil {
			return nil, err
		}
		vals[key] = text
	}
	return vals, nil
}

// optString is a value as text. Objects, lists and null are passed over.
func optString(val any) (string, bool) {
	switch v := val.(type) {
	case string:
		return v, true
	case bool:
		if v {
			return "on", true
		}
		return "off", true
	case int64, uint64:
		return fmt.Sprint(v), true
	case float64:
		return strconv.FormatFloat(v, 'g', 17, 64), true
	}
	return "", false
}

func checkOpt(kind optKind, name, text string) *fault {
	switch kind {
	case optBool:
		if _, ok := parseBool(text); !ok {
			return faultf("Parameter '%s' expects 'on' or 'off'", name)
		}
	case optNumber:
		_, err := strconv.ParseUint(text, 0, 64)
		if errors.Is(err, strconv.ErrRange) {
			return faultf("Value '%s' is too large for parameter '%s'", text, name)
		}
		if err != nil {
			return faultf("Parameter '%s' expects a number", name)
		}
	case optSize:
		_, _, err := parseSize(text)
		if errors.Is(err, errSizeRange) {
			return faultf("Value '%s' is out of range for parameter '%s'", text, name)
		}
		if err != nil {
			f := faultf("Parameter '%s' expects a non-negative number below 2^64", name)
			f.hint = "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n" +
				"and exabytes, respectively.\n"
			return f
		}
	}
	return nil
}

func parseBool(text string) (v, ok bool) {
	switch text {
	case "on", "yes", "true", "y":
		return true, true
	case "off", "no", "false", "n":
		return false, true
	}
	return false, false
}

func (o optValues) bool(name string) bool {
	v, _ := parseBool(o[name])
	return v
}

// size is 0 where the option was not given; checkOpt passed it.
func (o optValues) size(name string) uint64 {
	n, _, _ := parseSize(o[name])
	return n
}

// parseImageOpts reads the argument of --image-opts: key=value,... with commas doubled in values.
// The first value may stand without its key, which is "file" then.
func (s *session) parseImageOpts(text string) (*dict, *fault) {
	id, hasID := imageOptsID(text)
	if hasID && !wellFormedID(id) {
		f := faultf("Parameter 'id' expects an identifier")
		f.hint = idHint
		return nil, f
	}
	d := &dict{}
	implied := "file"
	for text != "" {
		var key, val string
		var flag bool
		key, val, flag, text = cutOpt(text, implied)
		if flag {
			no := map[string]string{"off": "no"}[val]
			s.warn("short-form boolean option '%s%s' deprecated", no, key)
			if key == "delay" {
				s.stderr("Please use nodelay=%s instead\n", map[string]string{"on": "off", "off": "on"}[val])
			} else {
				s.stderr("Please use %s=%s instead\n", key, val)
			}
		}
		implied = ""
		if key != "id" {
			d.put(key, val)
		}
	}
	if hasID {
		d.put("id", id)
	}
	return d, nil
}

const idHint = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.\n"

func imageOptsID(text string) (string, bool) {
	for text != "" {
		var key, val string
		key, val, _, text = cutOpt(text, "")
		if key == "id" {
			return val, true
		}
	}
	return "", false
}

// cutOpt takes the first key=value from text. flag is set for a key without a value, which is "on",
// or "off" for a key that begins with "no".
func cutOpt(text, implied string) (key, val string, flag bool, rest string) {
	n := strings.IndexAny(text, "=,")
	if n >= 0 && text[n] == '=' {
		key = text[:n]
		val, rest = cutValue(text[n+1:])
		return key, val, false, rest
	}
	if implied != "" {
		val, rest = cutValue(text)
		return implied, val, false, rest
	}
	key, rest, _ = strings.Cut(text, ",")
	if k, ok := strings.CutPrefix(key, "no"); ok {
		return k, "off", true, rest
	}
	return key, "on", true, rest
}

// cutValue takes a value in which commas are doubled.
func cutValue(text string) (val, rest string) {
	var b strings.Builder
	for {
		n := strings.IndexByte(text, ',')
		if n < 0 {
			b.WriteString(text)
			return b.String(), ""
		}
		b.WriteString(text[:n])
		text = text[n+1:]
		if !strings.HasPrefix(text, ",") {
			return b.String(), text
		}
		b.WriteByte(',')
		text = text[1:]
	}
}

// wellFormedID tells whether qemu takes id as the name of an object.
func wellFormedID(id string) bool {
	for i := range len(id) {
		c := id[i]
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (i == 0 || (c < '0' || c > '9') && strings.IndexByte("-._", c) < 0) {
			return false
		}
	}
	return id != ""
}
