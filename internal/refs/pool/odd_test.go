// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOddEntries: what is no regular file in a directory of the pool is told, and hides nothing beside it: it may stand in the
// place of what somebody needs.
func TestOddEntries(t *testing.T) {
	for _, part := range []string{Shields, Objects, Audit, Pins, Quarantine, Purge, Journal, Members, Gone, Nodes, Noted} {
		for kind, put := range map[string]func(path string) error{
			"a link":      func(path string) error { return os.Symlink("../"+File, path) },
			"a loose end": func(path string) error { return os.Symlink("nowhere", path) },
			"a pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
			"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
		} {
			dir := lay(t, map[string]string{File: policy(t), part + "/.x.new": "", "shields/1.a": ""})
			if err := os.Remove(Path(dir, part, ".x.new")); err != nil {
				t.Fatal(err)
			}
			// Its own inode is in the name of a shield.
			var st unix.Stat_t
			if err := unix.Stat(Path(dir, "shields/1.a"), &st); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(Path(dir, "shields/1.a"), Path(dir, Shields, ShieldName(st.Ino, "a"))); err != nil {
				t.Fatal(err)
			}
			odd := Path(dir, part, "7.json")
			if err := put(odd); err != nil {
				t.Fatal(err)
			}
			s, err := Read(t.Context(), dir, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Unread) != 1 || !strings.Contains(s.Unread[0].Error(), odd) {
				t.Errorf("%s in %s: Unread = %v, want it", kind, part, s.Unread)
			}
			if len(s.Shields) != 1 {
				t.Errorf("%s in %s: %d shields, want the one that is there", kind, part, len(s.Shields))
			}
			if _, unread, err := AuditOf(t.Context(), dir, "a", time.Minute); err != nil || (len(unread) == 1) != (part == Audit) {
				t.Errorf("%s in %s: AuditOf = %v, %v", kind, part, unread, err)
			}
		}
	}
}

// TestOddDirectories: a directory of the pool that is a link, leads nowhere, or is none, is told: it looks like one that was
// never made, and may stand in the place of one that holds what somebody needs.
func TestOddDirectories(t *testing.T) {
	for _, part := range []string{"", File, Shields, Objects, Audit, Pins, Quarantine, Purge, Journal, Members, Gone, Nodes, Noted} {
		for kind, put := range map[string]func(path string) error{
			"a link": func(path string) error {
				if err := os.Rename(path, path+".moved"); err != nil {
					return err
				}
				return os.Symlink(path+".moved", path)
			},
			"a loose end": func(path string) error { return os.Symlink("nowhere", path) },
			"a pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
			"a file":      func(path string) error { return os.WriteFile(path, nil, 0o600) },
		} {
			dir := lay(t, map[string]string{File: policy(t)})
			odd := Path(dir, part)
			if part != "" && part != File {
				if err := os.Mkdir(odd, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if kind != "a link" {
				if err := os.RemoveAll(odd); err != nil {
					t.Fatal(err)
				}
			}
			if err := put(odd); err != nil {
				t.Fatal(err)
			}
			s, err := Read(t.Context(), dir, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Unread) != 1 || !strings.Contains(s.Unread[0].Error(), odd) && part != File {
				t.Errorf("%q is %s: Unread = %v, want it", part, kind, s.Unread)
			}
			if (s.Policy == nil) != (part == "" || part == File) {
				t.Errorf("%q is %s: Policy = %v", part, kind, s.Policy)
			}
			_, unread, err := AuditOf(t.Context(), dir, "a", time.Minute)
			if err != nil || (len(unread) == 1) != (part == Audit || part == "") {
				t.Errorf("%q is %s: AuditOf = %v, %v", part, kind, unread, err)
			}
		}
	}
}

// TestApart: errors that were joined are told one by one, those with two causes stay whole, and all that are about
// permission are one.
func TestApart(t *testing.T) {
	denied := func(name string) error { return &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission} }
	broken := fmt.Errorf("x %w: %w", ErrPool, errors.New("line 3"))
	var got []string
	for _, err := range apart([]error{denied("a"), errors.Join(denied("b"), broken, errors.Join(denied("c"), io.ErrUnexpectedEOF))}) {
		got = append(got, err.Error())
	}
	want := []string{"open a: permission denied (and so are 2 more; root, or their owner, may read them)",
		"x is no document of a pool: line 3", "unexpected EOF"}
	if !slices.Equal(got, want) {
		t.Errorf("apart = %q, want %q", got, want)
	}
	if got := apart([]error{denied("a"), denied("b")}); !strings.Contains(got[0].Error(), "(and so is 1 more; ") {
		t.Errorf("apart of two = %v", got)
	}
	if got := apart([]error{denied("a")}); len(got) != 1 || !errors.Is(got[0], fs.ErrPermission) || strings.Contains(got[0].Error(), "more") {
		t.Errorf("apart of one = %v", got)
	}
}
