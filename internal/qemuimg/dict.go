// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// dict is a JSON object that is walked in qemu's order: qemu keeps objects in a hash table of 512
// chains (qobject/qdict.c) and prints them chain by chain. Values are string, bool, int64, uint64,
// float64, nil, *dict and []any.
type dict struct {
	entries []entry // in the order of insertion
}

type entry struct {
	key string
	val any
}

const dictChains = 512

// chain is the number of the chain that key belongs to: the hash function of gdbm, as used in tdb.
func chain(key string) uint32 {
	value := uint32(0x238F13AF) * uint32(len(key))
	for i := range len(key) {
		value += uint32(key[i]) << (uint(i) * 5 % 24)
	}
	return (1103515243*value + 12345) % dictChains
}

func (d *dict) index(key string) int {
	return slices.IndexFunc(d.entries, func(e entry) bool { return e.key == key })
}

// put sets key; what was there is replaced and keeps its place.
func (d *dict) put(key string, val any) {
	if i := d.index(key); i >= 0 {
		d.entries[i].val = val
		return
	}
	d.entries = append(d.entries, entry{key, val})
}

// putDefault is put where key is not there yet.
func (d *dict) putDefault(key string, val any) {
	if !d.has(key) {
		d.put(key, val)
	}
}

func (d *dict) get(key string) (any, bool) {
	if i := d.index(key); i >= 0 {
		return d.entries[i].val, true
	}
	return nil, false
}

func (d *dict) has(key string) bool { return d.index(key) >= 0 }

// text is the string at key, "" and false where there is none or it is of another type.
func (d *dict) text(key string) (string, bool) {
	v, _ := d.get(key)
	s, ok := v.(string)
	return s, ok
}

// on reports whether an option is there and says yes.
func (d *dict) on(key string) bool {
	v, _ := d.get(key)
	text, _ := optString(v)
	yes, _ := parseBool(text)
	return yes
}

func (d *dict) del(key string) {
	if i := d.index(key); i >= 0 {
		d.entries = slices.Delete(d.entries, i, i+1)
	}
}

func (d *dict) clone() *dict { return &dict{slices.Clone(d.entries)} }

// all walks the entries in qemu's order. New entries go to the front of their chain.
func (d *dict) all() iter.Seq2[string, any] {
	order := make([]int, len(d.entries))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(chain(d.entries[a].key), chain(d.entries[b].key)), b-a)
	})
	return func(yield func(string, any) bool) {
		for _, i := range order {
			if !yield(d.entries[i].key, d.entries[i].val) {
				return
			}
		}
	}
}

// take moves the entries whose keys begin with prefix to a new dict, without the prefix.
func (d *dict) take(prefix string) *dict {
	sub := &dict{}
	for key, val := range d.all() {
		if rest, ok := strings.CutPrefix(key, prefix); ok {
			sub.put(rest, val)
		}
	}
	d.entries = slices.DeleteFunc(d.entries, func(e entry) bool {
		return strings.HasPrefix(e.key, prefix)
	})
	return sub
}

// join adds the entries of other that d does not have.
func (d *dict) join(other *dict) {
	for key, val := range other.all() {
		d.putDefault(key, val)
	}
}

// flatten gives a dict without nested objects and lists: {"a": {"b": 1}} becomes {"a.b": 1}. Empty
// ones below the top stay, as in qemu.
func (d *dict) flatten() *dict {
	flat := &dict{}
	flattenInto(flat, "", d)
	return flat
}

// flattenInto adds v, which stands at key. The parser bounds how deep it nests.
func flattenInto(flat *dict, key string, v any) {
	sub := func(name string) string {
		if key == "" {
			return name
		}
		return key + "." + name
	}
	switch v := v.(type) {
	case *dict:
		if len(v.entries) > 0 {
			for name, val := range v.all() {
				flattenInto(flat, sub(name), val)
			}
			return
		}
	case []any:
		if len(v) > 0 {
			for i, val := range v {
				flattenInto(flat, sub(fmt.Sprint(i)), val)
			}
			return
		}
	}
	if key != "" {
		flat.put(key, v)
	}
}
