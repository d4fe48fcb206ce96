// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fake writes a host's files below a new root. A name that ends in / is a directory, a value that
// begins with "->" the text of a symbolic link.
func fake(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		target, link := strings.CutPrefix(content, "->")
		switch {
		case err != nil:
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case link:
			err = os.Symlink(target, path)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// find gives the places that match, one a line: kind, path, state, machine, why, error.
func find(t *testing.T, root, home, match string) []string {
	t.Helper()
	places, err := Find(t.Context(), Options{Root: root, Home: home})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range places {
		state := "absent"
		if p.There {
			state = "unreadable"
		}
		if p.Readable {
			state = "readable"
		}
		line := fmt.Sprintf("%s %s %s [%s] %s", p.Kind, strings.TrimPrefix(p.Path, root), state, p.Machine, p.Why)
		if p.Error != "" {
			line += ": " + p.Error
		}
		if strings.Contains(line, match) {
			got = append(got, line)
		}
	}
	return got
}

const webXML = `<domstatus state='running'>
<domain type='kvm'><name>web &amp; co</name><os><nvram>/var/lib/nvram/web.fd</nvram></os>
<devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/pool/web.qcow2' index='1'/>
 <backingStore type='file'><format type='qcow2'/><source file='/base/debian.qcow2'/><backingStore/></backingStore>
 <target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='sda'/></disk>
<disk type='block' device='disk'><source dev='/dev/vg0/web'/><target dev='vdb'/></disk>
<disk type='volume' device='disk'><source pool='vms' volume='web-data.qcow2'/><target dev='vdc'/></disk>
<disk type='volume' device='disk'><source pool='vms' volume='../../etc/shadow'/><target dev='vdd'/></disk>
<disk type='network' device='disk'><source protocol='rbd' name='pool/web'/><target dev='vde'/></disk>
<disk type='file' device='disk'><source file='relative.img'/><target dev='vdf'/></disk>
<interface type='network'><source network='default' dev='eth0'/><target dev='vnet0'/></interface>
</devices></domain></domstatus>`

func TestFindLibvirt(t *testing.T) {
	root := fake(t, map[string]string{
		"etc/libvirt/storage/vms.xml":           "<pool type='dir'><name>vms</name><target><path>/pool</path></target></pool>",
		"etc/libvirt/storage/ceph.xml":          "<pool type='rbd'><name>ceph</name></pool>",
		"etc/libvirt/storage/bad.xml":           "<pool type='dir'><name>bad",
		"etc/libvirt/storage/autostart/vms.xml": "->../vms.xml",
		"etc/libvirt/storage/autostart/old.xml": "->../old.xml",
		"etc/libvirt/storage/notes.txt":         "not XML",
		"run/libvirt/storage/tmp.xml":           "<poolstate><pool type='netfs'><name>tmp</name><target><path>/mnt/tmp/</path></target></pool></poolstate>",
		"run/libvirt/qemu/web.xml":              webXML,
		"etc/libvirt/qemu/empty.xml":            "<network/>",
		"pool/web.qcow2":                        "x",
		"pool/web-data.qcow2":                   "x",
		"base/":                                 "",
		"var/lib/libvirt/images":                "is a file",
	})
	vm := ` of machine "web & co" of libvirt`
	want := []string{
		"config /etc/libvirt/storage readable [] storage pools of libvirt",
		"config /etc/libvirt/storage/autostart readable [] autostarted storage pools of libvirt",
		"config /etc/libvirt/storage/bad.xml readable [] a storage pool of libvirt: the XML ends inside <name>",
		"config /etc/libvirt/storage/ceph.xml readable [] a storage pool of libvirt",
		`remote ceph unreadable [] storage pool "ceph" of libvirt (rbd): is not made of files of this host, so it was not looked at`,
		"config /etc/libvirt/storage/vms.xml readable [] a storage pool of libvirt",
		`directory /pool readable [] storage pool "vms" of libvirt`,
		"config /etc/libvirt/storage/autostart/old.xml absent [] a storage pool of libvirt",
		"config /run/libvirt/storage readable [] storage pools of libvirt",
		"config /run/libvirt/storage/autostart absent [] autostarted storage pools of libvirt",
		"config /run/libvirt/storage/tmp.xml readable [] a storage pool of libvirt",
		`directory /mnt/tmp absent [] storage pool "tmp" of libvirt`,
		"config /etc/libvirt/qemu readable [] domains of libvirt",
		"config /etc/libvirt/qemu/autostart absent [] autostarted domains of libvirt",
		"config /etc/libvirt/qemu/empty.xml readable [] a domain of libvirt: holds no domain",
		"config /run/libvirt/qemu readable [] domains of libvirt",
		"config /run/libvirt/qemu/autostart absent [] autostarted domains of libvirt",
		"config /run/libvirt/qemu/web.xml readable [] a domain of libvirt",
		"image /var/lib/nvram/web.fd absent [web & co] nvram" + vm,
		"image /pool/web.qcow2 readable [web & co] disk vda" + vm,
		"image /base/debian.qcow2 absent [web & co] what disk vda" + vm + " rests on",
		"image /dev/vg0/web absent [web & co] disk vdb" + vm,
		"image /pool/web-data.qcow2 readable [web & co] disk vdc" + vm,
		"remote vms/../../etc/shadow unreadable [web & co] disk vdd" + vm + ": is not made of files of this host, so it was not looked at",
		"remote rbd:pool/web unreadable [web & co] disk vde" + vm + ": is not made of files of this host, so it was not looked at",
		"image relative.img absent [web & co] disk vdf" + vm + ": is not an absolute path",
		"directory /var/lib/libvirt/images unreadable [] the usual directory of libvirt: not a directory",
	}
	if diff := cmp.Diff(want, find(t, root, "", "libvirt")); diff != "" {
		t.Errorf("Find (-want +got):\n%s", diff)
	}
}

// A volume group has its block devices in a directory of its own.
func TestFindVolumes(t *testing.T) {
	root := fake(t, map[string]string{
		"etc/libvirt/storage/vg.xml": "<pool type='logical'><name>vg</name><target><path>/dev/vg0</path></target></pool>",
		"etc/libvirt/storage/x.xml":  "<pool type='logical'><name>x</name><target><path>/etc</path></target></pool>",
		"dev/vg0/web":                "->../dm-0",
		"dev/dm-0":                   "stands for a device",
	})
	want := []string{
		`config /dev/vg0 readable [] storage pool "vg" of libvirt`,
		`image /dev/vg0/web readable [] a volume of storage pool "vg" of libvirt`,
		`config /etc absent [] storage pool "x" of libvirt: is not below /dev, as a volume group is`,
	}
	if diff := cmp.Diff(want, find(t, root, "", `storage pool "`)); diff != "" {
		t.Errorf("Find (-want +got):\n%s", diff)
	}
}

func TestFindNova(t *testing.T) {
	const cut = "of OpenStack Nova"
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"no configuration", nil, []string{
			"directory /var/lib/nova/instances absent [] instances " + cut,
			"directory /var/lib/nova/instances/_base absent [] base images " + cut,
		}},
		{"instances_path", map[string]string{
			"etc/nova/nova.conf": "[DEFAULT]\ninstances_path = /vms\n", "vms/_base/": "",
		}, []string{
			"directory /vms readable [] instances " + cut,
			"directory /vms/_base readable [] base images " + cut,
		}},
		{"state_path, later file wins, comments", map[string]string{
			"etc/nova/nova.conf":               "# instances_path = /no\n[DEFAULT]\nstate_path: '/srv/nova'\n[libvirt]\nimages_type = qcow2\n",
			"etc/nova/nova.conf.d/10-path.ini": "[DEFAULT]\nstate_path=/ignored\n",
			"etc/nova/nova.conf.d/20.conf":     "[DEFAULT]\ninstances_path=${state_path}/inst\n[image_cache]\nsubdirectory_name = cache\n",
		}, []string{
			"directory /srv/nova/inst absent [] instances " + cut,
			"directory /srv/nova/inst/cache absent [] base images " + cut,
		}},
		{"rbd", map[string]string{"etc/nova/nova.conf": "[libvirt]\nimages_type = rbd\n"}, []string{
			"directory /var/lib/nova/instances absent [] instances " + cut,
			"directory /var/lib/nova/instances/_base absent [] base images " + cut,
			"remote rbd unreadable [] disks " + cut + " (images_type of [libvirt]): is not made of files of this host, so it was not looked at",
		}},
		{"a circle", map[string]string{"etc/nova/nova.conf": "[DEFAULT]\nstate_path = $state_path\nrubbish\n"}, []string{
			"config /etc/nova/nova.conf readable [] configuration " + cut + ": line 3 is no setting; instances_path names other settings more than 16 deep",
			"directory /var/lib/nova/instances absent [] instances " + cut,
			"directory /var/lib/nova/instances/_base absent [] base images " + cut,
		}},
		{"unknown setting and a way out", map[string]string{
			"etc/nova/nova.conf": "[DEFAULT]\ninstances_path=$nothing/x\n[image_cache]\nsubdirectory_name=../../etc\n",
		}, []string{
			"config /etc/nova/nova.conf readable [] configuration " + cut + ": instances_path names the setting \"nothing\", which is not there; subdirectory_name of [image_cache] leads out of the instances directory",
			"directory /var/lib/nova/instances absent [] instances " + cut,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, line := range find(t, fake(t, tc.files), "", cut) {
				if !strings.HasPrefix(line, "config") || strings.Contains(line, cut+": ") {
					got = append(got, line)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("Find (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFindProxmox(t *testing.T) {
	root := fake(t, map[string]string{
		"etc/pve/storage.cfg": "dir: local\n\tpath /var/lib/vz\n\tcontent iso\n\n# comment\nnfs: nas\n\tserver 10.0.0.1\n\n" +
			"rbd: ceph\n\tpool vms\nrubbish\n",
		"var/lib/vz/images/": "",
	})
	want := []string{
		`config /etc/pve/storage.cfg readable [] storage of Proxmox VE: "rubbish" begins no storage`,
		`directory /var/lib/vz/images readable [] storage "local" of Proxmox VE; the usual directory of Proxmox VE`,
		`directory /mnt/pve/nas/images absent [] storage "nas" of Proxmox VE`,
		`remote ceph unreadable [] storage "ceph" of Proxmox VE (rbd): is not made of files of this host, so it was not looked at`,
	}
	if diff := cmp.Diff(want, find(t, root, "", "Proxmox")); diff != "" {
		t.Errorf("Find (-want +got):\n%s", diff)
	}
}

func TestFindHome(t *testing.T) {
	root := fake(t, map[string]string{"home/u/.config/libvirt/qemu/a.xml": strings.ReplaceAll(webXML, "web &amp; co", "a")})
	got := find(t, root, "/home/u", "user")
	if want := `image /pool/web.qcow2 absent [a] disk vda of machine "a" of libvirt of this user`; !strings.Contains(strings.Join(got, "\n"), want) {
		t.Errorf("Find = %s, want %s", strings.Join(got, "\n"), want)
	}
}

// A configuration that is a FIFO, far too large or not UTF-8 ends nothing.
func TestFindHostile(t *testing.T) {
	root := fake(t, map[string]string{
		"etc/libvirt/qemu/big.xml": strings.Repeat(" ", maxConfigBytes+1),
		"etc/libvirt/qemu/\xff.xml": "<domain><name>\x01\xff</name><devices><disk><source file='/a\xffb'/>" +
			"</disk></devices></domain>",
		"etc/libvirt/qemu/deep.xml": strings.Repeat("<domain>", maxXMLDepth+5),
		"etc/nova/":                 "",
	})
	if err := unix.Mkfifo(filepath.Join(root, "etc/nova/nova.conf"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(find(t, root, "", ""), "\n")
	for _, want := range []string{
		"big.xml unreadable [] a domain of libvirt: is larger than 4194304 bytes",
		"deep.xml readable [] a domain of libvirt: the XML is nested more than 2000 deep",
		"\xff.xml readable [] a domain of libvirt: is no XML",
		"/etc/nova/nova.conf unreadable [] configuration of OpenStack Nova: not a regular file or block device",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("Find = %q\nwant %q in it", got, want)
		}
	}
}

func TestLook(t *testing.T) {
	root := fake(t, map[string]string{"a\xff": "x", "d/": ""})
	p := Look(t.Context(), time.Minute, PlaceImage, root+"/a\xff", "test", "")
	if !p.Readable || p.PathB64 == "" {
		t.Errorf("Look of a name that is not UTF-8 = %+v", p)
	}
	if p := Look(t.Context(), time.Minute, PlaceImage, root+"/d", "test", ""); !p.There || p.Error != "is a directory" {
		t.Errorf("Look of a directory as an image = %+v", p)
	}
}

func TestFindStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Find(ctx, Options{Root: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("Find after cancel = %v, want %v", err, context.Canceled)
	}
}

// What a document takes grows with its length, whatever it holds.
func TestParseBounds(t *testing.T) {
	const most = 60 // bytes for each of the text, what encoding/xml takes for itself among them
	for name, text := range map[string]string{
		"a name in many pieces":   "<domain><name>" + strings.Repeat("aaaa<!-- -->", 300000) + "</name></domain>",
		"many sources of a disk":  "<domain><disk>" + strings.Repeat("<source file='/a'/><target dev='b'/>", 60000) + "</disk></domain>",
		"many disks in a disk":    "<domain>" + strings.Repeat("<disk><source file='/a'/>", 100000),
		"many options":            "<domain><commandline><arg value='" + strings.Repeat("/a,", 400000) + "'/></commandline></domain>",
		"many commas":             "<domain><commandline><arg value='" + strings.Repeat("/a,,", 400000) + "'/></commandline></domain>",
		"much JSON":               "<domain><commandline><arg value='{\"a\":[" + strings.Repeat("\"/a\",", 200000) + "\"json:{}\"]}'/></commandline></domain>",
		"many disks in one place": "<domain>" + strings.Repeat("<disk><source file='/a'/></disk>", 100000),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		d, _ := ParseDomain([]byte(text))
		runtime.ReadMemStats(&after)
		if len(d.Name) > maxNameBytes || len(d.Disks) > maxXMLDisks || len(d.Files)+len(d.Parts) > maxXMLDisks {
			t.Errorf("%s: ParseDomain = name of %d bytes, %d disks, %d files and %d parts", name, len(d.Name), len(d.Disks),
				len(d.Files), len(d.Parts))
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > most*uint64(len(text)) {
			t.Errorf("%s: ParseDomain of %d bytes allocates %d, want %d at most", name, len(text), n, most*len(text))
		} else {
			t.Logf("%s: %d for each byte", name, n/uint64(len(text)))
		}
	}
}

func FuzzDomainXML(f *testing.F) {
	f.Add([]byte(webXML))
	f.Add([]byte("<domain><os><nvram type='file'><source file='/x'/></nvram></os></domain>"))
	f.Add([]byte("<disk></disk></disk>"))
	f.Add([]byte(`<domain><commandline><arg value='{"file":"json:{\"filename\":\"/a,b\"}"}'/><arg value="file=/a,,b,if=c"/></commandline></domain>`))
	f.Add([]byte("<?xml version='1.0' encoding='latin1'?><domain/>"))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := ParseDomain(text)
		if len(d.Name) > maxNameBytes || len(d.Disks) > maxXMLDisks {
			t.Errorf("ParseDomain = name of %d bytes, %d disks", len(d.Name), len(d.Disks))
		}
		size := 0
		for _, disk := range d.Disks {
			size += len(disk.Path) + len(disk.Volume)
		}
		if size > len(text) {
			t.Errorf("parseDomain gives %d bytes of paths from %d bytes", size, len(text))
		}
		if err == nil && d.Disks == nil && d.Name == "" {
			return
		}
		parsePool(text)
	})
}

func FuzzSettings(f *testing.F) {
	f.Add("[DEFAULT]\nstate_path=/a\ninstances_path=${state_path}/x\n")
	f.Add("[\n=\n: \n a\ninstances_path=${\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := settings{}
		s.parse(text)
		if p, err := s.path("instances_path", novaInstances); err != nil && p != "" {
			t.Errorf("path = %q with the error %v", p, err)
		}
	})
}
