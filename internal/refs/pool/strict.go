// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// strict reads a document whose keys are all known and all there, once, also those of the objects in it. The error
// is ErrPool with the line.
func strict(text []byte, v any, name string) error {
	if len(text) > MaxBytes {
		return fmt.Errorf("%s %w: it has more than %d bytes", name, ErrPool, MaxBytes)
	}
	k := keys{name: name, text: text, dec: json.NewDecoder(bytes.NewReader(text))}
	if err := json.Unmarshal(text, v); err != nil {
		// What has the wrong type may be no object of ours at all: its keys are told first.
		var typ *json.UnmarshalTypeError
		if errors.As(err, &typ) {
			if e := k.value(reflect.TypeOf(v).Elem()); e != nil {
				return e
			}
		}
		return k.at(offsetOf(err, text), err)
	}
	return k.value(reflect.TypeOf(v).Elem())
}

// keys goes through a document that is known to be JSON, beside the type that it was read into.
type keys struct {
	name string
	text []byte
	dec  *json.Decoder
}

// at is an error with the line of an offset.
func (k *keys) at(off int64, err error) error {
	line := 1 + bytes.Count(k.text[:max(0, min(off, int64(len(k.text))))], []byte("\n"))
	return fmt.Errorf("%s:%d: %w: %w", k.name, line, ErrPool, err)
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// value takes one value that is to be of a type. The depth is that of the type, so that it is bounded.
func (k *keys) value(t reflect.Type) error {
	nullable := t.Kind() == reflect.Pointer
	if nullable {
		t = t.Elem()
	}
	word, err := k.dec.Token()
	if err != nil {
		return k.at(k.dec.InputOffset(), err)
	}
	if text, ok := word.(string); ok && t == reflect.TypeFor[time.Time]() {
		if err := inUTC(text); err != nil {
			return k.at(k.dec.InputOffset(), err)
		}
	}
	own := !reflect.PointerTo(t).Implements(textUnmarshaler)
	switch {
	case word == nil && !nullable:
		return k.at(k.dec.InputOffset(), errors.New("null is no value here"))
	case word == json.Delim('{') && t.Kind() == reflect.Struct && own:
		return k.object(t)
	case word == json.Delim('[') && t.Kind() == reflect.Slice:
		for k.dec.More() {
			if err := k.value(t.Elem()); err != nil {
				return err
			}
		}
		_, err := k.dec.Token()
		return err
	case word == json.Delim('{') || word == json.Delim('['):
		return k.at(k.dec.InputOffset(), fmt.Errorf("want %s", t.Kind()))
	}
	return nil
}

// inUTC returns an error for a time that is in a year outside of 0 to 9999 by UTC, and so in no document that is written.
func inUTC(text string) error {
	at, err := time.Parse(time.RFC3339, text)
	if year := at.UTC().Year(); err == nil && (year < 0 || year > 9999) {
		err = fmt.Errorf("the time %q is in the year %d by UTC, want 0 to 9999", text, year)
	}
	return err
}

// object takes the keys of an object and its end.
func (k *keys) object(t reflect.Type) error {
	begin := k.dec.InputOffset()
	want := map[string]reflect.Type{}
	for i := range t.NumField() {
		tag, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		want[tag] = t.Field(i).Type
	}
	have := map[string]bool{}
	for k.dec.More() {
		word, err := k.dec.Token()
		if err != nil {
			return k.at(k.dec.InputOffset(), err)
		}
		key, _ := word.(string) // json.Unmarshal took it, so that a key is a string
		of, known := want[key]
		switch {
		case !known:
			return k.at(k.dec.InputOffset(), fmt.Errorf("the key %q is not known", key))
		case have[key]:
			return k.at(k.dec.InputOffset(), fmt.Errorf("the key %q is there twice", key))
		}
		have[key] = true
		if err := k.value(of); err != nil {
			return err
		}
	}
	if _, err := k.dec.Token(); err != nil {
		return k.at(k.dec.InputOffset(), err)
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if !have[key] {
			return k.at(begin, fmt.Errorf("%q is missing", key))
		}
	}
	return nil
}

// offsetOf is where a document is wrong, its end if the error does not tell.
func offsetOf(err error, text []byte) int64 {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return syntax.Offset
	case errors.As(err, &typ):
		return typ.Offset
	}
	return int64(len(text))
}
