// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
)

// TestBootsHostile holds that no text of a report gets out as it came in: each field of each value is filled with what
// a terminal would obey.
func TestBootsHostile(t *testing.T) {
	const hostile = "a\x1b[31mb\u202ec\nd"
	var r doctor.BootsReport
	fill(reflect.ValueOf(&r).Elem(), hostile, 0)
	for _, all := range []bool{false, true} {
		var b bytes.Buffer
		if err := Boots(&b, &r, Style{All: all}); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(b.String(), "\x1b\u202e") || strings.Contains(b.String(), "\nd") {
			t.Errorf("Boots = %q, want nothing hostile in it", b.String())
		}
		if !strings.Contains(b.String(), "to blame: ") || !strings.Contains(b.String(), "not looked at:") {
			t.Errorf("Boots = %q, want all parts of it", b.String())
		}
	}
}

// fill gives each string of a value a text, each list two elements, and each pointer something to lead to.
func fill(v reflect.Value, text string, depth int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Float64:
		v.SetFloat(7)
	case reflect.Pointer:
		if v.CanSet() && depth < 9 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), text, depth+1)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), text, depth+1)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), text, depth+1)
			}
		}
	}
}
