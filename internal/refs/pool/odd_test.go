// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"os"
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
