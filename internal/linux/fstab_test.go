// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseFstab(t *testing.T) {
	text := "# a comment\n\n" +
		"UUID=1-2 / ext4 errors=remount-ro 0 1\n" +
		"  /dev/sdb1\t/srv\\040data/ xfs defaults,nofail,x-systemd.device-timeout=5s\n" +
		"nfs1:/export /mnt nfs4\n" +
		"too short\n" +
		"/dev/sda2 none swap sw 0 0\n"
	all, bad := ParseFstab([]byte(text))
	want := []FstabEntry{
		{Source: "UUID=1-2", Point: "/", Type: "ext4", Options: []string{"errors=remount-ro"}, Pass: 1, Line: 3},
		{Source: "/dev/sdb1", Point: "/srv data", Type: "xfs",
			Options: []string{"defaults", "nofail", "x-systemd.device-timeout=5s"}, Line: 4},
		{Source: "nfs1:/export", Point: "/mnt", Type: "nfs4", Line: 5},
		{Source: "/dev/sda2", Point: "none", Type: "swap", Options: []string{"sw"}, Line: 7},
	}
	if d := cmp.Diff(want, all); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]int{6}, bad); d != "" {
		t.Error(d)
	}
	if !all[1].Has("x-systemd.device-timeout") || all[1].Has("x-systemd") || all[3].Files() || !all[2].Files() {
		t.Error("an option or a kind of entry is not told apart")
	}
}

func FuzzParseFstab(f *testing.F) {
	f.Add([]byte("UUID=1 / ext4 defaults 0 1\n"))
	f.Add([]byte("a b\\040\\0 c d,e,, 1 99999999999999999999"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, bad := ParseFstab(text)
		if n := strings.Count(string(text), "\n") + 1; len(all)+len(bad) > n {
			t.Errorf("%d entries and %d lines that are none of %d lines", len(all), len(bad), n)
		}
	})
}

func TestMayHang(t *testing.T) {
	for kind, want := range map[string]bool{"ext4": false, "nfs4": true, "nfsd": false, "fuse.sshfs": true,
		"fusectl": false, "autofs": true, "gfs2": true, "tmpfs": false, "virtiofs": true} {
		if got := MayHang(kind) != ""; got != want {
			t.Errorf("MayHang(%q) = %v, want %v", kind, got, want)
		}
	}
}
