// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"encoding/json"
	"testing"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

func TestFDInfo(t *testing.T) {
	for _, c := range []struct {
		text  string
		mount int
		ino   uint64
	}{
		{"pos:\t0\nflags:\t0100002\nmnt_id:\t23\nino:\t131\n", 23, 131},
		{"pos:\t0\nmnt_id:\t23\n", -1, 0}, // before Linux 5.14
		{"mnt_id:\tx\nino:\t131\n", -1, 131}, {"mnt_id:\t23\nino:\t-1\n", -1, 0}, {"", -1, 0},
		{"mnt_id:\t15\nino:\t9\ntfd: 5 events: 19 ino:77 sdev:8\n", 15, 9},
	} {
		if mount, ino := fdInfo(c.text); mount != c.mount || ino != c.ino {
			t.Errorf("fdInfo(%q) = %d, %d, want %d, %d", c.text, mount, ino, c.mount, c.ino)
		}
	}
}

// TestHurtInABundle holds that the names of files which were found once are in what logs said, and are taken from there.
func TestHurtInABundle(t *testing.T) {
	said := Said{Log: Log{Events: []Event{{Form: "ext4.endbio", Fields: map[string]string{"device": "sda1", "inode": "131"}}}},
		Hurt: []OpenFile{{"sda1", 131, "/srv/db", "db [7]"}, {"sda1", 99, "/srv/other", "x [8]"}, {"sdb1", 131, "/no", "x [8]"}}}
	text, err := json.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{files: map[string]string{"/proc/1/ns/mnt": "->mnt:[1]", "/sys/fs/ext4/sda1/errors_count": "0",
		"/proc/1/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"}}
	e, err := Gather(t.Context(), tree.Overlay(m, map[string][]byte{"/shisa/log.json": text}), Options{Label: "h"})
	if err != nil {
		t.Fatal(err)
	}
	if len(e.FSs) != 1 || len(e.FSs[0].Hurt) != 1 || e.FSs[0].Hurt[0] != (HurtFile{Inode: 131, Open: "/srv/db", By: "db [7]"}) {
		t.Errorf("hurt: %+v", e.FSs)
	}
	if again := SaidIn(e).Hurt; len(again) != 1 || again[0] != said.Hurt[0] {
		t.Errorf("kept: %+v", again)
	}
}
