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

// TestSecretsAnywhere holds the forms in which secrets stand in what is collected: none is left, and that
// there was one is told.
func TestSecretsAnywhere(t *testing.T) {
	const unit, root, mounts, argv = "/etc/systemd/system/a.service", "/proc/cmdline", "/etc/fstab", "/proc/7/cmdline"
	for _, c := range []struct{ name, file, text string }{
		{"mount.cifs, short", mounts, "//srv/s /mnt cifs username=joe,pass=S3CRET 0 0\n"},
		{"ceph", mounts, "10.0.0.1:6789:/ /mnt ceph name=admin,secret=S3CRET,_netdev 0 0\n"},
		{"rbd", argv, "qemu\x00-drive\x00file=rbd:vms/d:id=c:key=S3CRET==:auth=x\x00"},
		{"iscsi", argv, "qemu\x00-drive\x00file=iscsi://joe%S3CRET@10.0.0.1/iqn/1\x00"},
		{"a secret of QEMU", argv, "qemu\x00-object\x00secret,id=sec0,data=S3CRET,format=raw\x00"},
		{"a secret of QEMU in JSON", argv, "qemu\x00-object\x00{\"qom-type\":\"secret\",\"id\":\"a\",\"data\":\"S3CRET\"}\x00"},
		{"a file name in JSON", "/shisa/images.json", `{"backing":"json:{\"driver\":\"ssh\",\"password\":\"S3CRET\"}"}`},
		{"an @ in the password", "/etc/x", "url mysql://nova:p@S3CRET@db/nova\n"},
		{"several servers", "/etc/x", "url rabbit://u:a@h1:5672,u2:S3CRET@h2:5672//\n"},
		{"an iSCSI root", root, "BOOT_IMAGE=/v rd.iscsi.password=S3CRET quiet\n"},
		{"an iSCSI netroot", root, "BOOT_IMAGE=/v netroot=iscsi:joe:S3CRET@10.0.0.1::3260::iqn quiet\n"},
		{"a credential", root, "quiet systemd.set_credential=passwd.hashed-password.root:S3CRET\n"},
		{"a variable", unit, "[Service]\nEnvironment=AWS_SECRET_ACCESS_KEY=S3CRET\n"},
		{"a variable in quotes", unit, "[Service]\nEnvironment=\"PGPASSWORD=S3CRET\" A=b\n"},
		{"a variable, short", unit, "[Service]\nEnvironment='DB_PASS=S3CRET'\n"},
		{"a variable of a shell", unit, "[Service]\nExecStart=/bin/sh -c \"PGPASSWORD=S3CRET psql\"\n"},
		{"a variable of MySQL", "/etc/cron.d/x", "* * * * * root MYSQL_PWD=S3CRET mysqldump\n"},
		{"an option of MySQL", "/etc/cron.d/x", "* * * * * root mysqldump -u a -pS3CRET db\n"},
		{"a user of curl", unit, "[Service]\nExecStart=/usr/bin/curl -u joe:S3CRET http://x\n"},
		{"words in quotes", unit, "[Service]\nExecStart=/bin/app --password \"a S3CRET\"\n"},
		{"words in single quotes", unit, "[Service]\nExecStart=/bin/app --password='a S3CRET'\n"},
		{"a header", unit, "[Service]\nExecStart=/bin/app -H \"Authorization: Bearer S3CRET\"\n"},
		{"a script", "/etc/rc.local", "export API_KEY='S3CRET'\n"},
		{"stonith", "/var/lib/pacemaker/cib/cib.xml", "<nvpair id='x' name='passwd' value='S3CRET'/>"},
		{"stonith, the value first", "/var/lib/pacemaker/cib/cib.xml", `<nvpair value="S3CRET" id="x" name="passwd"/>`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, out := Redact(c.file, []byte(c.text))
			if strings.Contains(string(got), "S3CRET") || len(out) == 0 {
				t.Errorf("Redact = %q, left out %v", got, out)
			}
			if again, _ := Redact(c.file, got); string(again) != string(got) {
				t.Errorf("Redact of what was redacted = %q", again)
			}
		})
	}
}

// TestNoSecrets: what names secrets and holds none is kept, for rules read it.
func TestNoSecrets(t *testing.T) {
	for _, text := range []string{"[Socket]\nPassCredentials=yes\n", "[Unit]\nConditionCredential=x\n",
		"[Service]\nLoadCredential=passwd.hashed-password.root\nImportCredential=sysctl.*\n",
		"36 35 98:0 / /mnt rw,noatime shared:1 - nfs4 10.0.0.5:/srv@x rw,sec=sys,addr=10.0.0.5\n",
		"ENV{ID_SECURITY_TOKEN}=\"1\", SYMLINK+=\"x\"\n", "iqn.2001-04.com.example:disk@1\n"} {
		if got, out := Redact("/x", []byte(text)); string(got) != text || len(out) != 0 {
			t.Errorf("Redact(%q) = %q, %v", text, got, out)
		}
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
