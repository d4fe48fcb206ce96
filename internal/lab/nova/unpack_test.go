// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nova

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestUnpack has programs in the place of apt's: what cannot be had is told as that and leaves nothing behind, and
// what was unpacked once is not fetched again.
func TestUnpack(t *testing.T) {
	const known, unknown = "#!/bin/sh\necho Version: 2:26.2.2-1\n", "#!/bin/sh\nexit 100\n"
	// The archive is made by apt-get, which is told where by its options.
	const fetches = "#!/bin/sh\nfor a; do case $a in Dir::Cache::archives=*) : >\"${a#*=}/a.deb\";; esac; done\n"
	const unpacks = "#!/bin/sh\nmkdir -p \"$3/usr/share/doc\" \"$3/usr/lib/python3\"\n"
	for _, c := range []struct {
		name, cache, get, deb string
		want                  error
		there                 bool
	}{
		{"not known", unknown, unknown, unknown, ErrUnavailable, false},
		{"known by another name", "#!/bin/sh\necho Version:\n", fetches, unpacks, ErrUnavailable, false},
		{"out of reach", known, unknown, unpacks, ErrUnavailable, false},
		{"cannot be unpacked", known, fetches, unknown, nil, false},
		{"there", known, fetches, unpacks, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache, bin := t.TempDir(), t.TempDir()
			t.Setenv("XDG_CACHE_HOME", cache)
			t.Setenv("PATH", bin+":/usr/bin:/bin")
			program := func(name, text string) {
				if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			program("apt-cache", c.cache)
			program("apt-get", c.get)
			program("dpkg-deb", c.deb)
			p, err := Unpack(t.Context())
			if (err == nil) != c.there || errors.Is(err, ErrUnavailable) != (c.want != nil) {
				t.Fatalf("Unpack = %+v, %v, want %v", p, err, c.want)
			}
			kept, err := filepath.Glob(filepath.Join(cache, "shisa-lab", "*"))
			hidden, err2 := filepath.Glob(filepath.Join(cache, "shisa-lab", ".*"))
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			if len(hidden) > 0 || (len(kept) > 0) != c.there {
				t.Errorf("the cache has %q %q", kept, hidden)
			}
			if !c.there {
				return
			}
			if want := filepath.Join(cache, "shisa-lab", "python3-nova_2.26.2.2-1"); p.Root != want || p.Version != "2:26.2.2-1" {
				t.Errorf("Unpack = %+v, want it in %s", p, want)
			}
			if _, err := os.Stat(filepath.Join(p.Root, "usr/share/doc")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("documents are kept: %v", err)
			}
			program("apt-get", unknown)
			if again, err := Unpack(t.Context()); err != nil || again != p {
				t.Errorf("Unpack of what is there = %+v, %v", again, err)
			}
		})
	}
}
