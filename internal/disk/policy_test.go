// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package disk

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// tree makes files with some content; a name that ends in a slash is a directory, one with -> a
// symbolic link.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range names {
		link, target, isLink := strings.Cut(name, "->")
		path := filepath.Join(root, link)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			switch {
			case isLink:
				err = os.Symlink(target, path)
			case strings.HasSuffix(name, "/"):
				err = os.MkdirAll(path, 0o755)
			default:
				err = os.WriteFile(path, []byte(name), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestResolve(t *testing.T) {
	root := tree(t, "pool/top", "pool/base", "pool/sub/low", "pool/dir/", "pool/out->../other/base",
		"pool/in->sub/low", "pool/dangling->sub/gone", "pool/circle->circle", "other/base",
		"alias->pool", "pool/sub/link->../../other/base", "linked->pool/top")
	if err := unix.Mkfifo(filepath.Join(root, "pool/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	top, other := filepath.Join(root, "pool/top"), filepath.Join(root, "other")
	tests := []struct {
		label, overlay, name string
		policy               Policy
		state                LinkState
		path                 string // relative to root
		reason               string // part of it
	}{
		{"beside", top, "base", Policy{}, LinkOK, "pool/base", ""},
		{"below", top, "sub/low", Policy{}, LinkOK, "pool/sub/low", ""},
		{"absolute beside", top, filepath.Join(root, "pool/base"), Policy{}, LinkOK, "pool/base", ""},
		{"link that stays inside", top, "in", Policy{}, LinkOK, "pool/in", ""},
		{"missing", top, "gone", Policy{}, LinkMissing, "pool/gone", ""},
		{"missing outside", top, "../other/gone", Policy{}, LinkMissing, "pool/../other/gone", ""},
		{"missing directory", top, "mnt/x/base", Policy{}, LinkMissing, "pool/mnt/x/base", "pool/mnt: no such"},
		{"dangling link", top, "dangling", Policy{}, LinkMissing, "pool/dangling", "sub/gone: no such"},
		{"below a file", top, "base/x", Policy{}, LinkMissing, "pool/base/x", ""},
		{"link to itself", top, "circle", Policy{}, LinkUnreadable, "pool/circle", "too many levels"},
		{"outside", top, "../other/base", Policy{}, LinkNotFollowed, "pool/../other/base", "outside"},
		{"outside, absolute", top, filepath.Join(other, "base"), Policy{}, LinkNotFollowed, "other/base", "outside"},
		{"link that leads out", top, "out", Policy{}, LinkNotFollowed, "pool/out", "outside"},
		{"outside, followed", top, "../other/base", Policy{Follow: true}, LinkOK, "pool/../other/base", ""},
		{"outside, named", top, "../other/base", Policy{Dirs: []string{other}}, LinkOK, "pool/../other/base", ""},
		{"link that leads out, named", top, "out", Policy{Dirs: []string{other}}, LinkOK, "pool/out", ""},
		{"named by a link", filepath.Join(other, "base"), "../pool/base", Policy{Dirs: []string{filepath.Join(root, "alias")}},
			LinkOK, "other/../pool/base", ""},
		{"similar name", top, "../pool2", Policy{Dirs: []string{filepath.Join(root, "poo")}}, LinkMissing, "pool/../pool2", ""},
		{"back out of a link", filepath.Join(root, "pool/sub/low"), "link", Policy{}, LinkNotFollowed, "pool/sub/link", ""},
		{"dot dot from below", filepath.Join(root, "pool/sub/low"), "../base", Policy{}, LinkNotFollowed, "pool/sub/../base", ""},
		{"image named by a link", filepath.Join(root, "linked"), "pool/base", Policy{}, LinkOK, "pool/base", ""},
		{"image named by a link, its own place", filepath.Join(root, "linked"), filepath.Join(root, "pool/base"), Policy{}, LinkOK, "pool/base", ""},
		{"directory", top, "dir", Policy{}, LinkUnreadable, "pool/dir", "is a directory"},
		{"fifo", top, "fifo", Policy{}, LinkUnreadable, "pool/fifo", "not a regular file"},
		{"fifo, followed", top, "fifo", Policy{Follow: true}, LinkUnreadable, "pool/fifo", "not a regular file"},
		{"character device", top, "/dev/null", Policy{Follow: true}, LinkUnreadable, "", "not a regular file"},
		{"itself", top, "top", Policy{}, LinkLoop, "pool/top", ""},
		{"itself by another name", top, "../alias/top", Policy{}, LinkLoop, "pool/../alias/top", ""},
		{"proc", top, "/proc/version", Policy{}, LinkNotFollowed, "", "outside"},
		{"proc, everything named", top, "/proc/version", Policy{Dirs: []string{"/"}}, LinkNotFollowed, "", "file system of the kernel"},
		{"proc, named", top, "/proc/version", Policy{Roots: []string{"/proc"}}, LinkNotFollowed, "", "file system of the kernel"},
		{"sys", top, "/sys/kernel/notes", Policy{Dirs: []string{"/"}}, LinkNotFollowed, "", "file system of the kernel"},
		{"proc, followed", top, "/proc/version", Policy{Follow: true}, LinkOK, "", ""},
		{"proc, from a link there", top, "/proc/self/cwd/policy_test.go", Policy{Dirs: []string{"/"}}, LinkOK, "", ""},
		{"everything named", top, "../other/base", Policy{Dirs: []string{"/"}}, LinkOK, "", ""},
		{"nbd", top, "nbd:unix:/run/x", Policy{}, LinkProtocol, "", `protocol "nbd"`},
		{"json", top, `json:{"driver":"qcow2","file":{"driver":"file","filename":"` + root + `/pool/base"}}`, Policy{}, LinkOK, "pool/base", ""},
		{"json outside", top, `json:{"file.filename":"` + root + `/other/base"}`, Policy{}, LinkNotFollowed, "other/base", ""},
		{"json broken", top, `json:{`, Policy{}, LinkUnreadable, "", "json"},
	}
	seen, err := diskio.Look(top)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.label, func(t *testing.T) {
			l := tt.policy.Resolve(tt.overlay, tt.name, "", []diskio.ID{seen.ID})
			if l.State != tt.state || !strings.Contains(l.Reason, tt.reason) || tt.reason == "" && l.State == LinkOK && l.Reason != "" {
				t.Errorf("Resolve(%q) = %s (%q), want %s (%q)", tt.name, l.State, l.Reason, tt.state, tt.reason)
			}
			if want := root + "/" + tt.path; tt.path != "" && l.Path != want {
				t.Errorf("Resolve(%q).Path = %q, want %q", tt.name, l.Path, want)
			}
		})
	}
}

// The format of the header comes before that of a json: name, as in qemu.
func TestResolveFormat(t *testing.T) {
	root := tree(t, "top", "base")
	name := `json:{"driver":"raw","file":{"filename":"` + root + `/base"}}`
	for _, tt := range []struct{ header, want string }{{"qcow2", "qcow2"}, {"", "raw"}} {
		l := Policy{}.Resolve(filepath.Join(root, "top"), name, tt.header, nil)
		if l.Format != tt.want || l.State != LinkOK {
			t.Errorf("Resolve(json, %q) = format %q, %s, want %q", tt.header, l.Format, l.State, tt.want)
		}
	}
}

// A block device is opened by no directory that holds its name.
func TestResolveBlockDevice(t *testing.T) {
	device := ""
	err := filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeDevice != 0 && d.Type()&fs.ModeCharDevice == 0 {
			device = path
			return fs.SkipAll
		}
		return nil // what cannot be read is none
	})
	if err != nil || device == "" {
		testenv.Lacks(t, "a block device below /dev")
	}
	top := filepath.Join(tree(t, "top"), "top")
	for _, tt := range []struct {
		policy Policy
		state  LinkState
	}{
		{Policy{}, LinkNotFollowed},
		{Policy{Dirs: []string{"/"}}, LinkNotFollowed},
		{Policy{Dirs: []string{"/dev"}}, LinkNotFollowed},
		{Policy{Roots: []string{"/dev"}}, LinkNotFollowed},
		{Policy{Follow: true}, LinkOK},
	} {
		l := tt.policy.Resolve(top, device, "", nil)
		if l.State != tt.state || l.State != LinkOK && !strings.Contains(l.Reason, "block device") {
			t.Errorf("Resolve(%q) with %+v = %s (%q), want %s", device, tt.policy, l.State, l.Reason, tt.state)
		}
		if l := tt.policy.ResolveData(top, device, nil); l.State != tt.state {
			t.Errorf("ResolveData(%q) with %+v = %s (%q), want %s", device, tt.policy, l.State, l.Reason, tt.state)
		}
	}
}

// An image in the root directory must not open all of the machine.
func TestPolicyRoot(t *testing.T) {
	for _, tt := range []struct {
		real string
		dirs []string
		want bool
	}{
		{"/base", nil, true},
		{"/etc/shadow", nil, false},
		{"/etc/shadow", []string{"/"}, true},
	} {
		if got := (Policy{Dirs: tt.dirs}).allows(tt.real, "/no-such-image"); got != tt.want {
			t.Errorf("allows(%q) below %v from / = %v, want %v", tt.real, tt.dirs, got, tt.want)
		}
	}
}

func TestResolveData(t *testing.T) {
	root := tree(t, "run/", "img/top", "img/data", "run/here")
	t.Chdir(filepath.Join(root, "run"))
	top := filepath.Join(root, "img/top")
	tests := []struct {
		label, name string
		policy      Policy
		state       LinkState
		reason      string
	}{
		// qemu takes the name as it is: relative to the directory that it runs in.
		{"from here", "here", Policy{Follow: true}, LinkOK, ""},
		{"from here, not named", "here", Policy{}, LinkNotFollowed, ""},
		{"beside the image", "data", Policy{Follow: true}, LinkMissing, "would fit " + filepath.Join(root, "img/data")},
		{"absolute", filepath.Join(root, "img/data"), Policy{}, LinkOK, ""},
		{"no name", "", Policy{}, LinkMissing, "does not name"},
		{"no protocol", "nbd:x", Policy{}, LinkMissing, ""},
		{"the image itself", top, Policy{}, LinkLoop, ""},
	}
	st, err := diskio.Look(top)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.label, func(t *testing.T) {
			l := tt.policy.ResolveData(top, tt.name, []diskio.ID{st.ID})
			if l.State != tt.state || !strings.Contains(l.Reason, tt.reason) {
				t.Errorf("ResolveData(%q) = %s (%q), want %s (%q)", tt.name, l.State, l.Reason, tt.state, tt.reason)
			}
		})
	}
}
