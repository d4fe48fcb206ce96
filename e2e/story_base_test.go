// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// The names of the story: a base that Nova keeps, and the machine that rests on it.
const (
	storyBase    = "7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b"
	storyMachine = "11111111-1111-4111-8111-111111111111"
	storyPool    = "var/lib/nova/instances"
)

// TestStoryBase is the story of a base image that a program removed while the only machine that used it was down.
// Without protection it is named as missing, and who removed it is told from a line among others; suspected wrongly is
// an image service that deleted an image of its own. With protection it is there again.
func TestStoryBase(t *testing.T) {
	testenv.Need(t, "qemu-img", "go")
	shisa := newShisa(t)
	t.Run("unprotected", func(t *testing.T) {
		root := newStoryPool(t)
		pool := filepath.Join(root, storyPool)
		if err := os.Remove(filepath.Join(pool, "_base", storyBase)); err != nil {
			t.Fatal(err)
		}
		if said := shisa.says(t, 3, "base", "scan", pool); !strings.Contains(said, storyBase+": MISSING, needed by 1 image, 1 machine") {
			t.Errorf("the base is not told to be missing:\n%s", said)
		}
		var r doctor.Report
		if err := json.Unmarshal([]byte(shisa.says(t, 3, "doctor", "--json", "--root", root)), &r); err != nil {
			t.Fatal(err)
		}
		base := "/" + storyPool + "/_base/" + storyBase
		missing, removed := findingOf(r, "IM01"), findingOf(r, "LC01")
		if missing == nil || removed == nil || len(r.Causes) == 0 || r.Causes[0].Object.Name != base {
			t.Fatalf("want that the base is missing, and who removed it, as the first cause: %+v, %+v", r.Causes, r.Findings)
		}
		if from := removed.Evidence[0].Source; !strings.HasSuffix(from.Path, "nova-compute.log") ||
			!strings.Contains(removed.Evidence[0].Value, "Removing base or swap file: "+base) || !strings.HasPrefix(removed.Summary, "nova ") {
			t.Errorf("who removed it is told by %+v", removed)
		}
		for _, f := range r.Findings {
			if strings.Contains(f.Summary, "glance") || f.ID != missing.ID && f.ID != removed.ID && f.Severity >= missing.Severity {
				t.Errorf("something else is blamed: %+v", f)
			}
		}
	})
	t.Run("protected", func(t *testing.T) {
		pool := filepath.Join(newStoryPool(t), storyPool)
		disk := filepath.Join(pool, storyMachine, "disk")
		seen := guestBytes(t, disk)
		stop, next := shisa.watches(t, pool)
		next("looked at everything")
		// Another program: it knows nothing of shields.
		run(t, "rm", filepath.Join(pool, "_base", storyBase))
		next(storyBase + " is there again")
		stop()
		if guestBytes(t, disk) != seen {
			t.Error("the machine sees another disk")
		}
		shisa.says(t, 0, "base", "scan", pool)
	})
}

// newStoryPool makes the files of a node, with its logs.
func newStoryPool(t *testing.T) string {
	t.Helper()
	root := testenv.DiskDir(t)
	base := "/" + storyPool + "/_base/"
	content := make([]byte, 1<<20)
	for i := range content {
		content[i] = byte(i ^ i>>8)
	}
	for name, text := range map[string]string{
		"etc/hostname":       "node2\n",
		"etc/nova/nova.conf": "[DEFAULT]\ninstances_path = /" + storyPool + "\n",
		"etc/libvirt/qemu/instance-00000001.xml": fmt.Sprintf("<domain type='kvm'><name>instance-00000001</name><devices>"+
			"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/%s/%s/disk'/><target dev='vda'/>"+
			"</disk></devices></domain>\n", storyPool, storyMachine),
		"var/log/glance/api.log": "2026-11-22 09:11:59.001 17 INFO glance.api.v2.images [-] Image " +
			"22222222-2222-4222-8222-222222222222 deleted\n",
		"var/log/nova/nova-compute.log": "2026-11-22 09:11:58.100 4242 INFO nova.virt.libvirt.imagecache [-] image at (" + base +
			storyBase + "): checking\n2026-11-22 09:12:00.123 4242 INFO nova.virt.libvirt.imagecache [-] Removing base or swap " +
			"file: " + base + storyBase + "\n2026-11-22 09:12:01.000 4242 INFO nova.compute.manager [-] Running periodic task\n",
		storyPool + "/_base/" + storyBase:    string(content),
		storyPool + "/" + storyMachine + "/": "",
	} {
		at := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		if !strings.HasSuffix(name, "/") {
			err = errors.Join(err, os.WriteFile(at, []byte(text), 0o644))
		} else {
			err = errors.Join(err, os.MkdirAll(at, 0o755))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(root, storyPool, storyMachine, "disk")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "../_base/"+storyBase, "-F", "raw", disk)
	run(t, "qemu-io", "-c", "write -P 7 128k 64k", disk)
	return root
}

// watches starts what keeps the bases of a pool. next waits for a line of it that has a text.
func (p program) watches(t *testing.T, pool string) (stop func(), next func(text string)) {
	t.Helper()
	c := exec.Command(p.path, "base", "protect", "--watch", pool)
	c.Env = append(os.Environ(), "SHISA_STATE="+p.state)
	out, err := c.StdoutPipe()
	c.Stderr = c.Stdout // all of it is read
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if !ended {
			ended = true
			_ = c.Process.Signal(os.Interrupt)
			_ = c.Wait() // with 130
		}
	}
	t.Cleanup(stop)
	lines, said := bufio.NewScanner(out), ""
	return stop, func(text string) {
		t.Helper()
		for lines.Scan() {
			if said += lines.Text() + "\n"; strings.Contains(lines.Text(), text) {
				return
			}
		}
		t.Fatalf("%q was not said: %s", text, said)
	}
}
