// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConfig(t *testing.T) {
	e := gathered(t, map[string]string{
		"etc/modprobe.d/nvme.conf":               "# slow storage\noptions nvme_core io_timeout=255 \\\n  max_retries=10\n",
		"proc/cmdline":                           "BOOT_IMAGE=/vmlinuz root=/dev/sda1 nvme-core.io_timeout=4294967295 quiet\n",
		"proc/sys/kernel/hung_task_timeout_secs": "120\n",
		"etc/iscsi/iscsid.conf":                  "node.session.timeo.replacement_timeout = 120\n",
		"etc/multipath.conf": "defaults {\n  no_path_retry 12\n}\ndevices {\n device {\n no_path_retry fail\n }\n}\n" +
			"overrides {\n no_path_retry queue # for ever\n}\n",
		"etc/exports":               "/srv 10.0.0.0/8(rw,sync)\n# /old *(ro)\n",
		"etc/exports.d/one.exports": "/data/x host(rw)\n",
	})
	c := &e.Config
	for _, v := range []struct {
		name      string
		got, want string
	}{
		{"a module's option on the command line", c.Modules["nvme_core.io_timeout"].Value, "4294967295"},
		{"a module's option in a file", c.Modules["nvme_core.max_retries"].Value, "10"},
		{"sysctl", c.Sysctl["kernel.hung_task_timeout_secs"].Value, "120"},
		{"iscsi", c.ISCSI["node.session.timeo.replacement_timeout"].Value, "120"},
		{"multipath", c.Multipath["no_path_retry"].Value, "queue"},
	} {
		if v.got != v.want {
			t.Errorf("%s is %q, want %q", v.name, v.got, v.want)
		}
	}
	if d := cmp.Diff([]string{"/srv", "/data/x"}, c.Exports); d != "" {
		t.Errorf("exports (-want +got):\n%s", d)
	}
}

func TestNova(t *testing.T) {
	conf := "[DEFAULT]\nstate_path = /srv/nova\n[image_cache]\nremove_unused_original_minimum_age_seconds = 3600\n"
	for _, c := range []struct {
		name, conf, nodes string
		want              *Nova
	}{
		{"none", "", "", nil},
		{"by itself", conf, "", &Nova{RemoveUnused: true, MinimumAge: time.Hour, Instances: "/srv/nova/instances"}},
		{"two nodes", conf, `{"a": 1700000000.5, "b": 1690000000}`, &Nova{RemoveUnused: true, MinimumAge: time.Hour,
			Instances: "/srv/nova/instances", Shared: true}},
		{"a list that is torn", conf, `{"a": 1700000000.5, "b": 16`, &Nova{RemoveUnused: true, MinimumAge: time.Hour,
			Instances: "/srv/nova/instances", Shared: true, NodesUnread: "is no whole list of hosts: it is cut off"}},
		{"a list with a time that is none", conf, `{"a": 1700000000.5, "b": 1690000000, "c": -5}`, &Nova{RemoveUnused: true,
			MinimumAge: time.Hour, Instances: "/srv/nova/instances", Shared: true,
			NodesUnread: `is no whole list of hosts: the time of "c" is -5`}},
		{"off, in the old place", "[DEFAULT]\nremove_unused_base_images=False\ninstances_path=$state_path/i\n", "",
			&Nova{MinimumAge: 24 * time.Hour, Instances: "/var/lib/nova/i"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{"etc/hostname": "n1\n"}
			if c.conf != "" {
				files["etc/nova/nova.conf"] = c.conf
			}
			if c.nodes != "" {
				files["srv/nova/instances/compute_nodes"] = c.nodes
			}
			got := gathered(t, files).Config.Nova
			if got != nil {
				if c.nodes != "" && (len(got.Nodes) == 2) != (got.NodesUnread == "") {
					t.Errorf("nodes are %v", got.Nodes)
				}
				got.Nodes, got.From = nil, Source{}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("nova (-want +got):\n%s", d)
			}
		})
	}
}

func TestMemory(t *testing.T) {
	e := gathered(t, map[string]string{
		"proc/meminfo": "MemTotal:       16000 kB\nMemAvailable:    8000 kB\nSUnreclaim:       500 kB\nHugePages_Total:  3\n",
		"proc/slabinfo": "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\n" +
			"dentry 10 20 192 21 1 : tunables 0 0 0\nkmalloc-64 5 1000 64 64 1 : tunables 0 0 0\n",
		"proc/sys/fs/dentry-state": "100\t60\t45\t0\t20\t0\n",
		"proc/sys/fs/inode-state":  "90\t10\t0\t0\t0\t0\t0\n",
		"proc/vmstat":              "nr_free_pages 17\noom_kill 2\n",
		"proc/pressure/memory":     "some avg10=0.00 avg60=1.50 avg300=0.10 total=77\nfull avg10=0.00 avg60=0.25 avg300=0.00 total=7\n",
		"var/lib/shisa/memory.jsonl": `{"time":"2023-11-14T20:00:00Z","available_bytes":9,"sunreclaim_bytes":1}` + "\n" +
			`{"time":"2023-11-14T19:00:00Z","available_bytes":10,"sunreclaim_bytes":1}` + "\n" + `{"time":"2023-`,
	})
	m := &e.Memory
	if m.Total != 16000<<10 || m.Available != 8000<<10 || m.SUnreclaim != 500<<10 || m.OOMKills != 2 {
		t.Errorf("memory is %+v", m)
	}
	if len(m.Slabs) != 2 || m.Slabs[0] != (Slab{Name: "kmalloc-64", Bytes: 64000, Objects: 1000}) {
		t.Errorf("slabs are %+v", m.Slabs)
	}
	if m.Pressure["memory.full.avg60"] != 0.25 || len(m.Pressure) != 6 {
		t.Errorf("pressure is %v", m.Pressure)
	}
	if len(m.Series) != 3 || m.Series[0].Available != 10 || m.Span() != 3*time.Hour+13*time.Minute+20*time.Second {
		t.Errorf("the series is %+v, %s", m.Series, m.Span())
	}
	// 40 names are in use, and 40 of 80 inodes are kept by names that are not.
	if now := m.Series[2]; now.Held != 40*192+40*600 {
		t.Errorf("%d bytes are held", now.Held)
	}
	if why, whole := e.Whole(PartMemory); !whole {
		t.Errorf("memory is not whole: %s", why)
	}
}
