// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMultipathTables(t *testing.T) {
	for _, c := range []struct {
		table        string
		queue, known bool
	}{
		{"1 queue_if_no_path 0 1 1 service-time 0 2 2 8:16 1 1 8:32 1 1", true, true},
		{"0 0 1 1 round-robin 0 1 1 7:0 1000", false, true},
		{"0 1 alua 2 1 service-time 0 1 2 8:16 1 1 service-time 0 1 2 8:32 1 1", false, true},
		{"3 queue_if_no_path queue_mode bio 0 1 1 round-robin 0 1 1 7:0 1", true, true},
		{"2 retain_attached_hw_handler queue_if_no_path 1 alua 0 0", true, true},
		{"4 pg_init_retries 50 queue_mode bio 0 1 1 round-robin 0 1 1 7:0 1", false, true},
		{"", false, false}, {"x", false, false}, {"9 queue_if_no_path", false, false}, {"-1 a", false, false},
	} {
		if queue, known := queues(c.table); queue != c.queue || known != c.known {
			t.Errorf("queues(%q) = %t, %t, want %t, %t", c.table, queue, known, c.queue, c.known)
		}
	}
	for _, c := range []struct {
		status         string
		active, failed int
		known          bool
	}{
		{"2 0 0 0 1 1 A 0 2 2 8:16 A 0 0 1 8:32 F 3 0 1", 1, 1, true},
		{"2 0 0 0 2 1 A 0 1 2 8:16 A 0 0 1 E 0 1 2 8:32 A 0 0 1", 2, 0, true},
		{"2 0 0 0 1 1 E 0 1 0 7:0 F 1", 0, 1, true},
		{"2 0 0 0 0 0", 0, 0, true},
		{"", 0, 0, false}, {"2 0", 0, 0, false}, {"2 0 0 0 1 1 A 0 999999 2", 0, 0, false},
		{"2 0 0 0 1 1 A 0 1 2 8:16 X 0 0 1", 0, 0, false}, {"2 0 0 0 0 0 more", 0, 0, false},
	} {
		active, failed, known := pathsIn(c.status)
		if active != c.active || failed != c.failed || known != c.known {
			t.Errorf("pathsIn(%q) = %d, %d, %t, want %d, %d, %t", c.status, active, failed, known, c.active, c.failed, c.known)
		}
	}
}

// TestMapped holds that what the kernel says counts more than what sysfs and the configuration show.
func TestMapped(t *testing.T) {
	block := "sys/class/block/"
	files := map[string]string{
		"etc/multipath.conf": "defaults {\n no_path_retry queue\n}\n",
		block + "dm-0/size":  "8192", block + "dm-0/dev": "253:0", block + "dm-0/dm/name": "lun", block + "dm-0/dm/uuid": "mpath-36",
		block + "dm-0/slaves/sda/x": "", block + "dm-0/slaves/sdb/x": "",
		block + "sda/size": "8192", block + "sda/device/state": "running", block + "sdb/size": "8192", block + "sdb/device/state": "running",
	}
	e := gathered(t, files)
	if p := e.Devices[0].Paths; p == nil || p.Active != 2 || !p.Queue || p.Table != "" {
		t.Fatalf("by sysfs and the configuration: %+v", p)
	}
	said := func(json string) *Evidence {
		dir := t.TempDir()
		for name, text := range files {
			at := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		d, err := tree.OpenDirectory(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		e, err := Gather(t.Context(), tree.Overlay(d, map[string][]byte{"/shisa/mapper.json": []byte(json)}), Options{Label: "h"})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e = said(`{"devices":[{"name":"dm-0","table":"0 0 1 1 service-time 0 2 2 8:0 1 1 8:16 1 1","status":"2 0 0 0 1 1 E 0 2 2 8:0 F 1 0 1 8:16 F 1 0 1"}]}`)
	if p := e.Devices[0].Paths; p.Active != 0 || p.Failed != 2 || p.Queue || p.Table == "" {
		t.Errorf("by the kernel: %+v", p)
	}
	e = said(`{"devices":[{"name":"dm-0","table":"","status":"","why":"may not be read without more rights"}]}`)
	if why, whole := e.Whole(PartDevices); whole || !strings.Contains(why, "its table in the kernel was not read") || !e.Devices[0].Paths.Queue {
		t.Errorf("what was not read is not told: %q, %+v", why, e.Devices[0].Paths)
	}
}

// TestMapperAsked asks the kernel of a guest about a device that really has paths, while they fail, and while it is
// told to keep requests or not.
func TestMapperAsked(t *testing.T) {
	testenv.NeedGuest(t)
	run := func(name string, args ...string) string {
		t.Helper()
		c := exec.Command(name, args...)
		c.Env = append(os.Environ(), "DM_DISABLE_UDEV=1")
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	var numbers []string
	for _, name := range []string{"one", "two"} {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		dev := run("losetup", "--find", "--show", file)
		defer run("losetup", "--detach", dev)
		numbers = append(numbers, run("cat", "/sys/class/block/"+filepath.Base(dev)+"/dev"))
	}
	run("dmsetup", "--noudevsync", "--noudevrules", "create", "lun", "--uuid", "mpath-360", "--table",
		"0 2048 multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 1 "+numbers[0]+" 1000 "+numbers[1]+" 1000")
	defer run("dmsetup", "--noudevsync", "--noudevrules", "remove", "lun")
	for _, c := range []struct {
		message        string
		active, failed int
		queue          bool
	}{
		{"", 2, 0, true},
		{"fail_path " + numbers[0], 1, 1, true},
		{"fail_path " + numbers[1], 0, 2, true},
		{"fail_if_no_path", 0, 2, false},
		{"reinstate_path " + numbers[1], 1, 1, false},
		{"queue_if_no_path", 1, 1, true},
	} {
		if c.message != "" {
			run("dmsetup", "message", "lun", "0", c.message)
		}
		l, err := tree.OpenLive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p := &prober{t: l, files: map[string][]byte{}}
		p.mapper(t.Context())
		e, err := Gather(t.Context(), tree.Overlay(l, p.files), Options{Label: "h"})
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		i := 0
		for i < len(e.Devices) && e.Devices[i].Mapper != "lun" {
			i++
		}
		if i == len(e.Devices) || e.Devices[i].Paths == nil {
			t.Fatalf("%q: the device is not there: %s", c.message, p.files["/shisa/mapper.json"])
		}
		if got := e.Devices[i].Paths; got.Active != c.active || got.Failed != c.failed || got.Queue != c.queue || got.Table == "" {
			t.Errorf("%q: %+v, want %d active, %d failed, queue %t\n%s\n%s", c.message, got, c.active, c.failed, c.queue,
				run("dmsetup", "table", "lun"), run("dmsetup", "status", "lun"))
		}
	}
}

func FuzzMultipath(f *testing.F) {
	f.Add("1 queue_if_no_path 0 1 1 service-time 0 2 2 8:16 1 1 8:32 1 1")
	f.Add("2 0 0 0 1 1 A 0 2 2 8:16 A 0 0 1 8:32 F 3 0 1")
	f.Fuzz(func(t *testing.T, text string) {
		queues(text)
		if a, n, _ := pathsIn(text); a+n > len(text) {
			t.Errorf("%d paths in %d bytes", a+n, len(text))
		}
	})
}
