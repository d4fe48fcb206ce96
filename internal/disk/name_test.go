// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"errors"
	"strings"
	"testing"
)

func TestParseName(t *testing.T) {
	tests := []struct {
		name, in     string
		path, format string
		err          error
	}{
		{"plain", "base.qcow2", "base.qcow2", "", nil},
		{"absolute", "/a/b:c", "/a/b:c", "", nil},
		{"colon behind a slash", "./a:b", "./a:b", "", nil},
		{"file prefix", "file:base", "base", "", nil},
		{"file prefix, absolute", "file:///x", "///x", "", nil},
		{"file prefix, another colon", "file:a:b", "./a:b", "", nil},
		{"device prefix", "host_device:/dev/vg/lv", "/dev/vg/lv", "", nil},
		{"nbd", "nbd:localhost:10809", "", "", ErrProtocol},
		{"nbd url", "nbd://h/x", "", "", ErrProtocol},
		{"http", "http://h/x.qcow2", "", "", ErrProtocol},
		{"ssh", "ssh://h/x.qcow2", "", "", ErrProtocol},
		{"fat", "fat:/tmp", "", "", ErrProtocol},
		{"unknown protocol", "a:b", "", "", ErrProtocol},
		{"json nested", `json:{"driver":"qcow2","file":{"driver":"file","filename":"x"}}`, "x", "qcow2", nil},
		{"json flat", `json:{"file.filename":"x"}`, "x", "", nil},
		{"json flat with driver", `json:{"driver":"raw","file.driver":"host_device","file.filename":"/dev/x"}`, "/dev/x", "raw", nil},
		{"json single quotes", `json:{'driver':'qcow2', 'file': {'filename': 'it\'s'}}`, "it's", "qcow2", nil},
		{"json protocol alone", `json:{"driver":"file","filename":"x"}`, "x", "raw", nil},
		{"json file name alone", `json:{"filename":"x"}`, "", "", ErrName},
		{"json harmless options", `json:{"read-only":true,"cache":{"direct":false},"file":{"aio":"native","filename":"x"}}`, "x", "", nil},
		{"json escapes", `json:{"file.filename":"a\u002fb\\c"}`, `a/b\c`, "", nil},
		{"json nbd", `json:{"driver":"qcow2","file":{"driver":"nbd","host":"h"}}`, "", "", ErrProtocol},
		{"json nbd alone", `json:{"driver":"nbd","host":"h"}`, "", "", ErrProtocol},
		{"json offset", `json:{"driver":"raw","offset":512,"file":{"filename":"x"}}`, "", "", ErrName},
		{"json backing", `json:{"driver":"qcow2","backing":null,"file":{"filename":"x"}}`, "", "", ErrName},
		{"json file reference", `json:{"driver":"qcow2","file":"node0"}`, "", "", ErrName},
		{"json layers of formats", `json:{"driver":"qcow2","file":{"driver":"raw","file":{"filename":"x"}}}`, "", "", ErrName},
		{"json nothing", `json:{}`, "", "", ErrName},
		{"json broken", `json:{"file.filename":"x"`, "", "", ErrName},
		{"json no object", `json:[]`, "", "", ErrName},
		{"json twice", `json:{"file.filename":"x","file":{"filename":"y"}}`, "", "", ErrName},
		{"json behind", `json:{"file.filename":"x"} x`, "", "", ErrName},
		{"json deep", `json:` + strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200), "", "", ErrName},
		{"json zero byte", `json:{"file.filename":"x\u0000y"}`, "", "", ErrName},
		{"json control character", "json:{\"file.filename\":\"x\ny\"}", "", "", ErrName},
		{"json no value", `json:{"file.filename":}`, "", "", ErrName},
		{"json list", `json:{"driver":"quorum","children":["a",{"b":1}]}`, "", "", ErrProtocol},
		{"too long", strings.Repeat("x", maxNameBytes+1), "", "", ErrName},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path, format, err := ParseName(tt.in)
			if path != tt.path || format != tt.format || !errors.Is(err, tt.err) {
				t.Errorf("ParseName(%.60q) = %q, %q, %v, want %q, %q, %v", tt.in, path, format, err,
					tt.path, tt.format, tt.err)
			}
		})
	}
}

func TestPartName(t *testing.T) {
	for _, tt := range []struct {
		in, path string
		inner    bool
		err      error
	}{
		{"base.qcow2", "base.qcow2", false, nil},
		{"nbd:h:1", "", false, ErrProtocol},
		{`json:{"driver":"raw","file":{"filename":"x"}}`, "x", false, nil},
		{`json:{"driver":"raw","offset":512,"size":1024,"file":{"filename":"x"}}`, "x", false, nil},
		{`json:{"driver":"raw","offset":512,"file":{"driver":"nbd","filename":"x"}}`, "", false, ErrProtocol},
		{`json:{"driver":"raw","offset":512,"file":{"driver":"raw","offset":1,"file":{"filename":"x"}}}`, "", false, ErrName},
		{`json:{"driver":"qcow2","offset":512,"file":{"filename":"x"}}`, "", false, ErrName},
		{`json:{"driver":"qcow2","file":{"filename":"x"}}`, "x", false, nil},
		{`json:{"driver":"raw","offset":512`, "", false, ErrName},
		// As libvirt 9.0 writes them.
		{`json:{"file":{"driver":"raw","offset":0,"size":65536,"file":{"driver":"file","filename":"x"}}}`, "x", false, nil},
		{`json:{"file":{"driver":"raw","offset":512,"size":65536,"file":{"driver":"file","filename":"x"}}}`, "x", true, nil},
		{`json:{"driver":"qcow2","file":{"driver":"raw","offset":512,"file":{"driver":"host_device","filename":"x"}}}`, "x", true, nil},
		{`json:{"driver":"qcow2","file":{"driver":"raw","y":1,"file":{"driver":"file","filename":"x"}}}`, "", false, ErrName},
	} {
		path, inner, err := PartName(tt.in)
		if path != tt.path || !errors.Is(err, tt.err) || err == nil && inner != tt.inner {
			t.Errorf("PartName(%q) = %q, %v, %v, want %q, %v, %v", tt.in, path, inner, err, tt.path, tt.inner, tt.err)
		}
	}
}

func TestFullName(t *testing.T) {
	tests := []struct{ overlay, name, want string }{
		{"top", "base", "base"},
		{"a/top", "base", "a/base"},
		{"./a/top", "../base", "./a/../base"},
		{"/a/top", "/b/base", "/b/base"},
		{"/a/top", "file:base", "file:base"},
		{"/a/top", "x/y:z", "/a/x/y:z"},
		{"/top", "base", "/base"},
	}
	for _, tt := range tests {
		if got := fullName(tt.overlay, tt.name); got != tt.want {
			t.Errorf("fullName(%q, %q) = %q, want %q", tt.overlay, tt.name, got, tt.want)
		}
	}
}

func FuzzParseName(f *testing.F) {
	f.Add(`json:{"driver":"qcow2","file":{"driver":"file","filename":"x"}}`)
	f.Add(`json:{'a':[1,-2.5e3,true,null,{"b":"\u00e9"}]}`)
	f.Add("file:a:b")
	f.Add("nbd://h/x")
	f.Fuzz(func(t *testing.T, name string) {
		path, _, err := ParseName(name)
		if err == nil && path == "" && name != "" && name != "file:" && name != "host_device:" {
			t.Errorf("ParseName(%q) = no path and no error", name)
		}
	})
}
