// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestCollect holds that a bundle gives the same evidence as what it was collected of: whatever a rule
// comes to ask for is in it, and no secret is.
func TestCollect(t *testing.T) {
	files := scsiDisk()
	maps.Copy(files, map[string]string{
		"etc/hostname": "h\n", "etc/fstab": "//srv/x /mnt cifs password=S3CRET 0 0\nUUID=1 / ext4 defaults 0 1\n",
		"etc/nova/nova.conf":         "[DEFAULT]\ninstances_path = /i\ntransport_url = rabbit://nova:S3CRET@h/\n",
		"i/compute_nodes":            `{"a": 1700000000, "b": 1690000000}`,
		"etc/corosync/corosync.conf": corosyncConf,
		"etc/libvirt/qemu/web.xml":   "<domain><name>web</name><graphics passwd='S3CRET'/></domain>",
		"var/log/messages":           "Nov 14 22:00:00 h kernel: Out of memory: Killed process 17 (db) total-vm:1kB, anon-rss:1kB\n",
	})
	dir := t.TempDir()
	for name, text := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := cutLink(text); link {
			err = os.Symlink(target, at)
		} else {
			err = os.WriteFile(at, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	from, err := tree.OpenDirectory(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	o := Options{Now: time.Unix(1_700_000_000, 0), Label: "h"}
	var out bytes.Buffer
	want, left, err := Collect(context.Background(), from, nil, o, "v1", &out)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) < 3 {
		t.Errorf("left out are %+v, want three secrets at least", left)
	}
	b, info, err := tree.ReadBundle(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Gather(context.Background(), b, Options{Now: info.Made, Label: info.Label})
	if err != nil {
		t.Fatal(err)
	}
	if len(want.Devices) == 0 || want.Config.Nova == nil || len(want.Machines) == 0 || len(want.Log.Events) == 0 {
		t.Errorf("too little was gathered: %+v", want)
	}
	clean := cmp.Transformer("clean", func(s string) string { return strings.ReplaceAll(s, "S3CRET", leftOut) })
	zones := cmp.Comparer(func(a, b *time.Location) bool { return a.String() == b.String() })
	if d := cmp.Diff(want, got, clean, zones); d != "" {
		t.Errorf("the bundle differs (-want +got):\n%s", d)
	}
	for name, text := range texts(t, out.Bytes()) {
		if strings.Contains(text, "S3CRET") {
			t.Errorf("%s of the bundle has a secret: %q", name, text)
		}
	}
}

// texts gives all files of a bundle.
func texts(t *testing.T, bundle []byte) map[string]string {
	t.Helper()
	all := map[string]string{}
	b, _, err := tree.ReadBundle(bytes.NewReader(bundle))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/etc/fstab", "/etc/nova/nova.conf", "/etc/libvirt/qemu/web.xml", "/shisa/log.json"} {
		text, err := b.Read(context.Background(), name, 1<<20)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		all[name] = string(text)
	}
	return all
}

// TestCollectImages holds that a bundle of a machine that does not run has what is known of its images.
func TestCollectImages(t *testing.T) {
	testenv.Need(t, "qemu-img")
	dir, root := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"img/base.qcow2": made(t, dir, "base.qcow2", "base.qcow2", "1M"),
		"img/over.qcow2": made(t, dir, "over.qcow2", "-b", "base.qcow2", "-F", "qcow2", "over.qcow2"),
		"etc/libvirt/qemu/web.xml": "<domain><name>web</name><devices><disk type='file' device='disk'><source file='/img/over.qcow2'/>" +
			"<target dev='vda'/></disk></devices></domain>",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755),
			os.WriteFile(filepath.Join(root, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := tree.OpenDirectory(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var b bytes.Buffer
	whole, _, err := Collect(t.Context(), d, nil, Options{Now: time.Unix(1_700_000_000, 0), Label: "h"}, "test", &b)
	if err != nil {
		t.Fatal(err)
	}
	opened, _, err := tree.ReadBundle(&b)
	if err != nil {
		t.Fatal(err)
	}
	e, err := Gather(t.Context(), opened, Options{Now: time.Unix(1_700_000_000, 0), Label: "h"})
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Images) != 2 || e.Images[0].BackingState != "ok" || e.Images[0].Unread != "" || len(e.Machines) != 1 || len(e.Machines[0].Disks) != 1 {
		t.Errorf("of a bundle: %+v %+v", e.Images, e.Machines)
	}
	if diff := cmp.Diff(whole.Images, e.Images); diff != "" {
		t.Errorf("images of the machine and of its bundle differ (-want +got):\n%s", diff)
	}
}
