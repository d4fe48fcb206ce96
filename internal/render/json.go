// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
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
	return document(&encoder{w: w, indent: "\n"}, schema, v)
}

// jsonBuffer is how much of a document is written at once; that of a large pool has tens of megabytes.
const jsonBuffer = 64 << 10

// JSONLine is JSON on one line, for a stream of documents.
func JSONLine(w io.Writer, schema string, v any) error {
	return document(&encoder{w: w, flat: true}, schema, v)
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
	e.b = append(e.b, '\n')
	e.flush()
	return e.err
}

// maxJSONDepth is far above the deepest document; it ends a structure that holds itself.
const maxJSONDepth = 64

type encoder struct {
	w io.Writer
	// b is what is yet to be written, err why it could not be.
	b      []byte
	err    error
	indent string // newline and the blanks of the present depth, of indents
	flat   bool   // no newlines: indent stays empty
	depth  int
	types  map[reflect.Type][]field // that were met
}

// indents is a newline and the blanks of the greatest depth.
var indents = "\n" + strings.Repeat("  ", maxJSONDepth+1)

// flush writes what there is.
func (e *encoder) flush() {
	if e.err == nil {
		_, e.err = e.w.Write(e.b)
	}
	e.b = e.b[:0]
}

func (e *encoder) deeper() {
	e.depth++
	if !e.flat {
		e.indent = indents[:1+2*e.depth]
	}
}

func (e *encoder) back() {
	e.depth--
	if !e.flat {
		e.indent = indents[:1+2*e.depth]
	}
}

// field is one member of an object. at is where it is in its struct, also in one that is embedded there.
type field struct {
	name, key string // key is the name as it is written, with what follows it
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
		f.key = key(f.name)
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
	e.b = append(e.b, '{')
	e.deeper()
	first := true
	if schema != "" {
		e.member(&first, key("schema"))
		e.string(schema)
	}
	fs := e.fields(v.Type())
	for i := range fs {
		f := &fs[i]
		member := v.Field(f.at[0])
		if len(f.at) > 1 {
			member = v.FieldByIndex(f.at)
		}
		// A document that is also kept in files has a field of its own for its schema.
		if f.omitempty && isEmpty(member) || schema != "" && f.name == "schema" {
			continue
		}
		e.member(&first, f.key)
		if member.Kind() == reflect.String {
			if e.string(member.String()) {
				continue // it has no twin
			}
		} else if err := e.value(member); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if f.twin {
			e.twin(member, func() { e.member(&first, key(f.name+twinSuffix)) })
		}
	}
	e.back()
	if !first {
		e.b = append(e.b, e.indent...)
	}
	e.b = append(e.b, '}')
	return nil
}

// member begins a member of an object.
func (e *encoder) member(first *bool, key string) {
	if !*first {
		e.b = append(e.b, ',')
	}
	*first = false
	e.b = append(append(e.b, e.indent...), key...)
}

// key is a name as it is written before its value.
func key(name string) string {
	var e encoder
	e.string(name)
	return string(e.b) + ": "
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

// time writes a time.Time. Its address, where it has one, spares a copy of it.
func (e *encoder) time(v reflect.Value) {
	var t time.Time
	if v.CanAddr() {
		t = *v.Addr().Interface().(*time.Time)
	} else {
		t = v.Interface().(time.Time)
	}
	e.b = append(t.UTC().AppendFormat(append(e.b, '"'), time.RFC3339), '"')
}

func (e *encoder) value(v reflect.Value) error {
	if e.depth >= maxJSONDepth {
		return fmt.Errorf("nested deeper than %d", maxJSONDepth)
	}
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == timeType {
			e.time(v)
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
		e.b = strconv.AppendBool(e.b, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		e.b = strconv.AppendInt(e.b, v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		e.b = strconv.AppendUint(e.b, v.Uint(), 10)
	case reflect.Float64:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("%g has no place in a document", f)
		}
		e.b = strconv.AppendFloat(e.b, v.Float(), 'f', -1, 64)
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
			e.b = append(e.b, "null"...)
			return nil
		}
		return e.value(v.Elem())
	default:
		return fmt.Errorf("%s has no place in a document", v.Type())
	}
	return nil
}

func (e *encoder) list(v reflect.Value) error {
	e.b = append(e.b, '[')
	e.deeper()
	for i := range v.Len() {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.b = append(e.b, e.indent...)
		if err := e.value(v.Index(i)); err != nil {
			return err
		}
		if len(e.b) < jsonBuffer {
			continue
		}
		if e.flush(); e.err != nil {
			return e.err
		}
	}
	e.back()
	if v.Len() > 0 {
		e.b = append(e.b, e.indent...)
	}
	e.b = append(e.b, ']')
	return nil
}

// dict writes a map with its keys in order.
func (e *encoder) dict(v reflect.Value) error {
	if v.Type().Key().Kind() != reflect.String {
		return fmt.Errorf("%s has no place in a document", v.Type())
	}
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	e.b = append(e.b, '{')
	e.deeper()
	for i, k := range keys {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.b = append(e.b, e.indent...)
		e.string(k.String())
		e.b = append(e.b, ": "...)
		if err := e.value(v.MapIndex(k)); err != nil {
			return fmt.Errorf("%s: %w", k.String(), err)
		}
	}
	e.back()
	if len(keys) > 0 {
		e.b = append(e.b, e.indent...)
	}
	e.b = append(e.b, '}')
	return nil
}

// string writes s with every character escaped that cannot be seen, so that a document can be
// looked at on a terminal. What is not UTF-8 becomes U+FFFD; its twin has the bytes. plain: it is ASCII,
// and written as it is.
func (e *encoder) string(s string) (plain bool) {
	e.b = append(e.b, '"')
	start, wide := 0, false
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
		wide = true
		if r != '"' && r != '\\' && r != utf8.RuneError && strconv.IsPrint(r) {
			i += n
			continue
		}
		e.b = append(e.b, s[start:i]...)
		switch {
		case r == '"' || r == '\\':
			e.b = append(e.b, '\\', byte(r))
		case r == '\n':
			e.b = append(e.b, `\n`...)
		case r == '\t':
			e.b = append(e.b, `\t`...)
		case r < 0x10000:
			e.b = fmt.Appendf(e.b, `\u%04x`, r)
		default:
			// JSON names what lies above 16 bits by two surrogates.
			e.b = fmt.Appendf(e.b, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		}
		i += n
		start = i
	}
	e.b = append(append(e.b, s[start:]...), '"')
	return !wide
}
