// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package plan

import (
	"reflect"
	"strings"
	"time"
)

// tidy gives the plan the form that it has when its document is read back.
func (p *Plan) tidy() {
	p.Created = p.Created.UTC().Truncate(time.Second)
	p.Object.ModTime = p.Object.ModTime.UTC().Truncate(time.Second)
	writes := p.Writes // bytes and the names of phases: nothing to tidy, and there may be very many
	p.Writes = nil
	tidyValue(reflect.ValueOf(p).Elem())
	if writes != nil {
		p.Writes = writes
	}
}

// tidyValue makes strings UTF-8 and lists that are nil empty. The depth is that of the types.
func tidyValue(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(strings.ToValidUTF8(v.String(), "\uFFFD"))
	case reflect.Pointer:
		if !v.IsNil() {
			tidyValue(v.Elem())
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			tidyValue(v.Field(i))
		}
	case reflect.Slice:
		if v.IsNil() {
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		}
		switch v.Type().Elem() {
		case reflect.TypeFor[Digest](), reflect.TypeFor[byte](), reflect.TypeFor[int]():
			return // there may be millions, and there is nothing in them to tidy
		}
		for i := range v.Len() {
			tidyValue(v.Index(i))
		}
	}
}
