// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bufio"
	"encoding"
	"encoding/base64"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// JSON writes v, a struct or a pointer to one, as one document that begins with its schema, for
// example "shisa.check/1". The layout is fixed: two blanks of indent, fields in the order of the
// struct, named by their json tags.
//
// It is an encoder of its own because the contract (doc/json.md) asks for more than encoding/json
// gives: a list is never null, a string that is not UTF-8 gets a twin NAME_b64 with its exact
// bytes, and nothing in a string can move the cursor of a terminal.
func JSON(w io.Writer, schema string, v any) error {
	return document(&encoder{w: bufio.NewWriterSize(w, jsonBuffer), indent: "\n"}, schema, v)
}

// jsonBuffer is how much of a document is written at once; that of a large pool has tens of megabytes.
const jsonBuffer = 64 << 10

// JSONLine is JSON on one line, for a stream of documents.
func JSONLine(w io.Writer, schema string, v any) error {
	return document(&encoder{w: bufio.NewWriter(w), flat: true}, schema, v)
}

func document(e *encoder, schema string, v any) error {
	rv := reflect.ValueOf(v)
	for rv.Kind() == reflect.Pointer && !rv.IsNil() {
		rv = rv.Elem()
	}
	if rv.Kind() != reflect.Struct {
		return fmt.Errorf("JSON document %s: %T is not a struct", schema, v)
	}
	if err := e.object(rv, schema); err != nil {
		return fmt.Errorf("JSON document %s: %w", schema, err)
	}
	e.w.WriteByte('\n')
	return e.w.Flush()
}

// maxJSONDepth is far above the deepest document; it ends a structure that holds itself.
const maxJSONDepth = 64

type encoder struct {
	w      *bufio.Writer
	indent string // newline and the blanks of the present depth
	flat   bool   // no newlines: indent stays empty
	depth  int
	types  map[reflect.Type][]field // that were met
}

func (e *encoder) deeper() {
	e.depth++
	if !e.flat {
		e.indent += "  "
	}
}

func (e *encoder) back() {
	e.depth--
	if !e.flat {
		e.indent = e.indent[:len(e.indent)-2]
	}
}

// field is one member of an object. at is where it is in its struct, also in one that is embedded there.
type field struct {
	name, key string // key is the name as it is written
	at        []int
	omitempty bool
	// twin: it may have one, which the struct has no field for.
	twin bool
}

// fields lists the fields of a struct in order, those of embedded structs in their place. Of a list of a hundred
// thousand structs they are found out once.
func (e *encoder) fields(t reflect.Type) []field {
	if fs, ok := e.types[t]; ok {
		return fs
	}
	fs := fieldsOf(t)
	for i := range fs {
		f := &fs[i]
		f.key = e.quoted(f.name)
		twin := f.name + twinSuffix
		f.twin = canTwin(t.FieldByIndex(f.at).Type) && !slices.ContainsFunc(fs, func(o field) bool { return o.name == twin })
	}
	if e.types == nil {
		e.types = map[reflect.Type][]field{}
	}
	e.types[t] = fs
	return fs
}

// twinSuffix ends the name of what has the exact bytes of a string.
const twinSuffix = "_b64"

// canTwin tells whether values of a type may need a twin.
func canTwin(t reflect.Type) bool {
	return t.Kind() == reflect.String || t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String
}

func fieldsOf(t reflect.Type) []field {
	var fs []field
	for i := range t.NumField() {
		sf := t.Field(i)
		name, opts, _ := strings.Cut(sf.Tag.Get("json"), ",")
		switch {
		case sf.Anonymous && name == "" && sf.Type.Kind() == reflect.Struct:
			for _, f := range fieldsOf(sf.Type) {
				f.at = append([]int{i}, f.at...)
				fs = append(fs, f)
			}
			continue
		case !sf.IsExported() || name == "-":
			continue
		case name == "":
			name = sf.Name
		}
		fs = append(fs, field{name: name, at: []int{i}, omitempty: opts == "omitempty"})
	}
	return fs
}

func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map, reflect.String, reflect.Array:
		return v.Len() == 0
	}
	return v.IsZero()
}

func (e *encoder) object(v reflect.Value, schema string) error {
	e.w.WriteByte('{')
	e.deeper()
	first := true
	key := func(quoted string) {
		if !first {
			e.w.WriteByte(',')
		}
		first = false
		e.w.WriteString(e.indent)
		e.w.WriteString(quoted)
		e.w.WriteString(": ")
	}
	if schema != "" {
		key(`"schema"`)
		e.string(schema)
	}
	fs := e.fields(v.Type())
	for i := range fs {
		f := &fs[i]
		// A document that is also kept in files has a field of its own for its schema.
		member := v.FieldByIndex(f.at)
		if f.omitempty && isEmpty(member) || schema != "" && f.name == "schema" {
			continue
		}
		key(f.key)
		if err := e.value(member); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if f.twin {
			e.twin(member, func() { key(e.quoted(f.name + twinSuffix)) })
		}
	}
	e.back()
	if !first {
		e.w.WriteString(e.indent)
	}
	e.w.WriteByte('}')
	return nil
}

// quoted is a string as it is written.
func (e *encoder) quoted(s string) string {
	var b strings.Builder
	q := encoder{w: bufio.NewWriter(&b)}
	q.string(s)
	q.w.Flush()
	return b.String()
}

// twin writes the exact bytes of a string that is not UTF-8. The twin of a list of strings is a
// list as long, if any of them is not UTF-8.
func (e *encoder) twin(v reflect.Value, key func()) {
	switch {
	case v.Kind() == reflect.String && !utf8.ValidString(v.String()):
		key()
		e.string(base64.StdEncoding.EncodeToString([]byte(v.String())))
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		all, bad := make([]string, v.Len()), false
		for i := range all {
			s := v.Index(i).String()
			bad = bad || !utf8.ValidString(s)
			all[i] = base64.StdEncoding.EncodeToString([]byte(s))
		}
		if bad {
			key()
			// A list of strings has nothing that could fail.
			_ = e.list(reflect.ValueOf(all))
		}
	}
}

var timeType = reflect.TypeFor[time.Time]()

func (e *encoder) value(v reflect.Value) error {
	if e.depth >= maxJSONDepth {
		return fmt.Errorf("nested deeper than %d", maxJSONDepth)
	}
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == timeType {
			e.string(v.Interface().(time.Time).UTC().Format(time.RFC3339))
			return nil
		}
	case reflect.Slice:
		if m, ok := v.Interface().(encoding.TextMarshaler); ok {
			text, err := m.MarshalText()
			e.string(string(text))
			return err
		}
	}
	switch v.Kind() {
	case reflect.Bool:
		e.w.WriteString(strconv.FormatBool(v.Bool()))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		e.w.WriteString(strconv.FormatInt(v.Int(), 10))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		e.w.WriteString(strconv.FormatUint(v.Uint(), 10))
	case reflect.Float64:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("%g has no place in a document", f)
		}
		e.w.WriteString(strconv.FormatFloat(v.Float(), 'f', -1, 64))
	case reflect.String:
		e.string(v.String())
	case reflect.Slice, reflect.Array:
		return e.list(v)
	case reflect.Struct:
		return e.object(v, "")
	case reflect.Map:
		return e.dict(v)
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			e.w.WriteString("null")
			return nil
		}
		return e.value(v.Elem())
	default:
		return fmt.Errorf("%s has no place in a document", v.Type())
	}
	return nil
}

func (e *encoder) list(v reflect.Value) error {
	e.w.WriteByte('[')
	e.deeper()
	for i := range v.Len() {
		if i > 0 {
			e.w.WriteByte(',')
		}
		e.w.WriteString(e.indent)
		if err := e.value(v.Index(i)); err != nil {
			return err
		}
	}
	e.back()
	if v.Len() > 0 {
		e.w.WriteString(e.indent)
	}
	e.w.WriteByte(']')
	return nil
}

// dict writes a map with its keys in order.
func (e *encoder) dict(v reflect.Value) error {
	if v.Type().Key().Kind() != reflect.String {
		return fmt.Errorf("%s has no place in a document", v.Type())
	}
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	e.w.WriteByte('{')
	e.deeper()
	for i, k := range keys {
		if i > 0 {
			e.w.WriteByte(',')
		}
		e.w.WriteString(e.indent)
		e.string(k.String())
		e.w.WriteString(": ")
		if err := e.value(v.MapIndex(k)); err != nil {
			return fmt.Errorf("%s: %w", k.String(), err)
		}
	}
	e.back()
	if len(keys) > 0 {
		e.w.WriteString(e.indent)
	}
	e.w.WriteByte('}')
	return nil
}

// string writes s with every character escaped that cannot be seen, so that a document can be
// looked at on a terminal. What is not UTF-8 becomes U+FFFD; its twin has the bytes.
func (e *encoder) string(s string) {
	e.w.WriteByte('"')
	start := 0
	for i := 0; i < len(s); {
		r, n := rune(s[i]), 1
		if r < utf8.RuneSelf {
			if r >= ' ' && r != '"' && r != '\\' && r != 0x7f {
				i++
				continue
			}
		} else {
			r, n = utf8.DecodeRuneInString(s[i:])
		}
		if r != '"' && r != '\\' && r != utf8.RuneError && strconv.IsPrint(r) {
			i += n
			continue
		}
		e.w.WriteString(s[start:i])
		switch {
		case r == '"' || r == '\\':
			e.w.WriteByte('\\')
			e.w.WriteByte(byte(r))
		case r == '\n':
			e.w.WriteString(`\n`)
		case r == '\t':
			e.w.WriteString(`\t`)
		case r < 0x10000:
			fmt.Fprintf(e.w, `\u%04x`, r)
		default:
			// JSON names what lies above 16 bits by two surrogates.
			fmt.Fprintf(e.w, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		}
		i += n
		start = i
	}
	e.w.WriteString(s[start:])
	e.w.WriteByte('"')
}
