// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
)

// copied is a plain copy of a system with a syslog, an fstab and no more.
func copied(t *testing.T, lines ...string) *evidence.Evidence {
	t.Helper()
	dir := t.TempDir()
	text := ""
	begun := time.Now().UTC().Add(-2 * time.Hour).Truncate(time.Second)
	for i, l := range lines {
		text += fmt.Sprintf("%s web kernel: [%5d.000000] %s\n", begun.Add(time.Duration(i)*time.Minute).Format(time.RFC3339), 60*i, l)
	}
	for name, content := range map[string]string{"etc/hostname": "web\n", "var/log/syslog": text,
		"etc/fstab": "UUID=aaaaaaaa-0000-4000-8000-00000000000a / ext4 errors=remount-ro 0 1\n/dev/sdb1 /srv xfs defaults 0 2\n"} {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return gather(t, dir)
}

func TestLogAlone(t *testing.T) {
	const boot = "Linux version 6.1.0-41-amd64 (debian-kernel@lists.debian.org) (gcc-12) #1 SMP"
	const mounted = "EXT4-fs (sda1): mounted filesystem aaaaaaaa-0000-4000-8000-00000000000a with ordered data mode. Quota mode: none."
	const abort = "Aborting journal on device sda1-8."
	const ro = "EXT4-fs (sda1): Remounting filesystem read-only"
	const down = "XFS (sdb1): Filesystem has been shut down due to log error (0x2)."
	for _, c := range []struct {
		name  string
		lines []string
		want  []string
	}{
		{"nothing is said", []string{boot, mounted}, nil},
		{"a journal that was given up", []string{boot, mounted, abort, ro}, []string{"FS01 gave-up lost filesystem:h:sda1 /"}},
		{"an XFS that shut down", []string{boot, mounted, down}, []string{"FS02 shut-down lost filesystem:h:sdb1 /srv"}},
		{"mounted anew since", []string{boot, mounted, abort, ro, boot, mounted}, []string{"FS01 gave-up-before note filesystem:h:sda1 /"}},
		{"a file that was not written", []string{boot, mounted,
			"EXT4-fs warning (device sda1): ext4_end_bio:343: I/O error 10 writing to inode 131 starting block 33024)"},
			[]string{"FS04 content danger file:h:sda1:inode 131 /"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := copied(t, c.lines...)
			r := Examine([]*evidence.Evidence{e}, nil)
			var got []string
			for i := range r.Findings {
				f := &r.Findings[i]
				if !strings.HasPrefix(f.Code, "FS0") || f.Code == "FS07" {
					continue
				}
				where := "?"
				for _, p := range []string{"/srv", "/"} {
					if strings.Contains(f.Summary, "("+p+")") {
						where = p
						break
					}
				}
				got = append(got, fmt.Sprint(f.Code, " ", f.Kind, " ", f.Severity, " ", f.Object, " ", where))
				if f.Confidence > logCounts {
					t.Errorf("%s has the confidence %v, want no more than %v", f.Code, f.Confidence, logCounts)
				}
				if !strings.Contains(f.Summary, "only logs tell so") || len(f.Remedies) == 0 && !f.Over {
					t.Errorf("%s does not say what it rests on: %s; %v", f.Code, f.Summary, f.Remedies)
				}
			}
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("found %q, want %q", got, c.want)
			}
			for _, a := range r.Rules {
				if a.Code == "FS01" && a.Unknown == 0 {
					t.Error("FS01 says nowhere that it cannot tell how it stands now")
				}
			}
		})
	}
}

// TestReportOfMounts holds that of a report which has the mounts and no /sys the mounts count as well as ever.
func TestReportOfMounts(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"sos_commands/date/date": "x\n", "etc/hostname": "web\n",
		"proc/1/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw,emergency_ro\n30 22 8:17 / /srv rw - ext4 /dev/sdb1 rw\n",
		"var/log/syslog": time.Now().UTC().Add(-time.Hour).Format(time.RFC3339) +
			" web kernel: [  100.000000] Linux version 6.18.0 (a@b)\n"} {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := ruleFS01()
	var got []string
	for _, x := range r.judge(gather(t, dir)) {
		got = append(got, string(x.Outcome)+" "+x.Object.String())
		if x.Finding != nil && (x.Finding.Confidence < 0.9 || strings.Contains(x.Finding.Summary, "only logs")) {
			t.Errorf("%v: %s", x.Finding.Confidence, x.Finding.Summary)
		}
	}
	if want := "unknown host:h:h, fail filesystem:h:sda1"; strings.Join(got, ", ") != want {
		t.Errorf("FS01 says %q, want %q", got, want)
	}
}
