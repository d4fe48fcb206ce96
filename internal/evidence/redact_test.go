// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	for _, c := range []struct{ name, file, text, want string }{
		{"nova", "/etc/nova/nova.conf", "[DEFAULT]\ntransport_url = rabbit://u:S3CRET@h/\nadmin_password=S3CRET\ndebug = true\n",
			"[DEFAULT]\ntransport_url = [left-out]\nadmin_password=[left-out]\ndebug = true\n"},
		{"a database", "/etc/nova/nova.conf", "connection = mysql+pymysql://nova:S3CRET@db/nova", "connection = [left-out]"},
		{"iscsi", "/etc/iscsi/iscsid.conf", "node.session.auth.password = S3CRET\nnode.session.timeo.replacement_timeout = 120\n",
			"node.session.auth.password = [left-out]\nnode.session.timeo.replacement_timeout = 120\n"},
		{"a domain", "/etc/libvirt/qemu/web.xml", "<graphics type='vnc' passwd='S3CRET' port='5900'/>",
			"<graphics type='vnc' passwd='[left-out]' port='5900'/>"},
		{"fstab", "/etc/fstab", "//s/x /mnt cifs user=a,password=S3CRET,vers=3 0 0", "//s/x /mnt cifs user=a,password=[left-out],vers=3 0 0"},
		{"a command line", "/proc/7/cmdline", "prog\x00--password=S3CRET\x00-v", "prog\x00--password=[left-out]\x00-v"},
		{"a command line in two", "/proc/7/cmdline", "prog\x00--token\x00S3CRET\x00-v", "prog\x00--token\x00[left-out]\x00-v"},
		{"an address", "/etc/x", "url https://user:S3CRET@host/path", "url https://user:[left-out]@host/path"},
		{"a key", "/etc/x", "-----BEGIN RSA PRIVATE KEY-----\nS3CRET\nS3CRET\n-----END RSA PRIVATE KEY-----",
			"-----BEGIN RSA PRIVATE KEY-----[left-out]-----END RSA PRIVATE KEY-----"},
		{"corosync", "/etc/corosync/corosync.conf", "totem {\n  token: 3000\n}\n", "totem {\n  token: 3000\n}\n"},
		{"words", "/lib/udev/rules.d/60-fido-id.rules", "# a security token by somebody", "# a security token by somebody"},
		{"mounts", "/proc/mounts", "/dev/sda1 / ext4 rw,errors=remount-ro 0 0\n", "/dev/sda1 / ext4 rw,errors=remount-ro 0 0\n"},
		{"our own", "/shisa/machines.json", `{"a":["qemu","--secret=S3CRET"],"n":1}`, `{"a":["qemu","--secret=[left-out]"],"n":1}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, out := Redact(c.file, []byte(c.text))
			if string(got) != c.want {
				t.Errorf("Redact = %q, want %q", got, c.want)
			}
			if changed := c.text != c.want; changed != (len(out) > 0) {
				t.Errorf("Redact says that it left out %v", out)
			}
			if again, _ := Redact(c.file, got); string(again) != string(got) {
				t.Errorf("Redact of what was redacted = %q", again)
			}
		})
	}
}

// FuzzRedact holds that our own documents stay documents, and that nothing grows without bound.
func FuzzRedact(f *testing.F) {
	f.Add("/shisa/x.json", []byte(`{"a":"password=x"}`))
	f.Add("/etc/x", []byte("password: x"))
	f.Fuzz(func(t *testing.T, name string, text []byte) {
		got, _ := Redact(name, text)
		if strings.HasPrefix(name, "/shisa/") && strings.HasSuffix(name, ".json") && !json.Valid(got) {
			t.Errorf("Redact(%q, %q) = %q", name, text, got)
		}
		if len(got) > 16*len(text)+1024 {
			t.Errorf("Redact makes %d bytes of %d", len(got), len(text))
		}
	})
}
