// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// made runs qemu-img in a directory and gives a file that it made.
func made(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	c := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestMachines(t *testing.T) {
	testenv.Need(t, "qemu-img")
	dir := t.TempDir()
	base := made(t, dir, "base.qcow2", "base.qcow2", "1M")
	over := made(t, dir, "over.qcow2", "-b", "base.qcow2", "-F", "qcow2", "over.qcow2")
	lost := made(t, dir, "lost.qcow2", "-u", "-b", "gone.qcow2", "-F", "qcow2", "lost.qcow2", "1M")
	far := made(t, dir, "far.qcow2", "-u", "-b", "nbd:localhost:1", "-F", "raw", "far.qcow2", "1M")
	marked := []byte(base)
	marked[79] = 3 // incompatible features: dirty and corrupt
	xml := func(name, disks string) string {
		return fmt.Sprintf("<domain><name>%s</name><uuid>5A1C2F0E-0000-4000-8000-00000000000%d</uuid><devices>%s</devices></domain>",
			name, len(name), disks)
	}
	disk := func(name string) string {
		return "<disk type='file' device='disk'><source file='/img/" + name + "'/><target dev='vda'/></disk>"
	}
	e := gathered(t, map[string]string{
		"img/base.qcow2": base, "img/over.qcow2": over, "img/lost.qcow2": lost, "img/far.qcow2": far,
		"img/marked.qcow2": string(marked), "img/short.qcow2": "QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\x00", 600),
		"etc/libvirt/qemu/web.xml": xml("web", disk("over.qcow2")+disk("lost.qcow2")),
		"etc/libvirt/qemu/sick.xml": xml("sick", disk("far.qcow2")+disk("marked.qcow2")+disk("short.qcow2")+
			disk("nothere.qcow2")),
		"etc/libvirt/qemu/broken.xml": "<domain><name>odd",
		"run/libvirt/qemu/web.xml": "<domstatus state='paused' reason='ioerror' pid='17'>" +
			xml("web", disk("over.qcow2")+disk("lost.qcow2")) + "</domstatus>",
	})
	type row struct{ Path, Backing, State, Unread, Marks string }
	var got []row
	for _, i := range e.Images {
		r := row{filepath.Base(i.Path), filepath.Base(i.BackingPath), i.BackingState, "", ""}
		if i.BackingPath == "" {
			r.Backing = ""
		}
		if i.Unread != "" {
			r.Unread = "unread"
		}
		if i.Gone() {
			r.Unread = "gone"
		}
		if i.Dirty {
			r.Marks += "dirty "
		}
		if i.Corrupt {
			r.Marks += "corrupt"
		}
		got = append(got, r)
	}
	want := []row{
		{"far.qcow2", "", "not_followed", "", ""},
		{"lost.qcow2", "gone.qcow2", "missing", "", ""},
		{"gone.qcow2", "", "", "gone", ""},
		{"marked.qcow2", "", "", "", "dirty corrupt"},
		{"nothere.qcow2", "", "", "gone", ""},
		{"over.qcow2", "base.qcow2", "ok", "", ""},
		{"base.qcow2", "", "", "", ""},
		{"short.qcow2", "", "", "unread", ""},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("images (-want +got):\n%s", d)
	}
	var machines []string
	for _, m := range e.Machines {
		machines = append(machines, fmt.Sprint(m.Name, " ", m.State, " ", len(m.Disks), " ", m.QMP != nil))
	}
	if d := cmp.Diff([]string{"odd shut off 0 false", "sick shut off 4 false", "web paused 2 true"}, machines); d != "" {
		t.Errorf("machines (-want +got):\n%s", d)
	}
	if why, whole := e.Whole(PartImages); whole || !strings.Contains(why, "broken.xml") {
		t.Errorf("what is wrong with broken.xml is not told: %q", why)
	}
}

// TestNamesOfImages holds that an image is there once by whatever names it is found, with who uses it by any of
// them, and that its base is that of the name which the machine has.
func TestNamesOfImages(t *testing.T) {
	testenv.Need(t, "qemu-img")
	dir := t.TempDir()
	base := made(t, dir, "base.qcow2", "base.qcow2", "1M")
	over := made(t, dir, "over.qcow2", "-b", "base.qcow2", "-F", "qcow2", "over.qcow2")
	xml := func(name, file string) string {
		return "<domstatus state='running' pid='7'><domain><name>" + name + "</name><devices><disk type='file' device='disk'><source file='" +
			file + "'/><target dev='vda'/></disk></devices></domain></domstatus>"
	}
	e := gathered(t, map[string]string{"srv/img/base.qcow2": base, "srv/img/over.qcow2": over,
		"var/lib/libvirt/images": "-> ../../../srv/img", "srv/link.qcow2": "-> img/over.qcow2", "srv/loop": "-> loop",
		"run/libvirt/qemu/a.xml": xml("a", "/var/lib/libvirt/images/over.qcow2"), "run/libvirt/qemu/b.xml": xml("b", "/srv/img/over.qcow2"),
		"run/libvirt/qemu/c.xml": xml("c", "/srv/link.qcow2"), "run/libvirt/qemu/d.xml": xml("d", "/srv/loop/x")})
	var got []string
	for _, x := range e.Images {
		var users []string
		for _, u := range x.Users {
			users = append(users, u.Machine)
		}
		got = append(got, fmt.Sprint(x.Real, " ", len(x.Names), " ", users, " ", x.BackingState))
	}
	want := []string{"/srv/img/over.qcow2 2 [a b c] ok", "/srv/img/base.qcow2 0 [] ", "/srv/loop/x 0 [d] "}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("images: %q, want %q", got, w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("images: %q, want %q", got, want)
	}
}

func TestMonitor(t *testing.T) {
	for _, c := range []struct {
		name, args, socket string
	}{
		{"none", "qemu -m 1G", ""},
		{"qmp", "qemu -qmp unix:/run/q.sock,server=on,wait=off", "/run/q.sock"},
		{"chardev", "qemu -chardev socket,id=m,path=/run/m.sock,server=on -mon chardev=m,mode=control", "/run/m.sock"},
		{"for people", "qemu -chardev socket,id=m,path=/run/m.sock -mon chardev=m,mode=readline", ""},
		{"libvirt's", "qemu -chardev socket,id=m,path=/var/lib/libvirt/qemu/d/monitor.sock -mon chardev=m,mode=control", ""},
	} {
		if socket, why := monitorOf(strings.Fields(c.args)); socket != c.socket || (why == "") != (socket != "") {
			t.Errorf("%s: monitorOf = %q, %q, want %q", c.name, socket, why, c.socket)
		}
	}
}

// answering serves a monitor that says these lines, one for each command after the greeting.
func answering(t *testing.T, greeting string, answers ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "q")
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprintln(c, greeting)
		in := bufio.NewScanner(c)
		for _, a := range answers {
			if !in.Scan() {
				return
			}
			fmt.Fprintln(c, a)
		}
		for in.Scan() { // says nothing more
		}
	}()
	return name
}

func TestAskQMP(t *testing.T) {
	const hello = `{"QMP":{"version":{}}}`
	full := answering(t, hello, `{"return":{}}`,
		`{"event":"BLOCK_IO_ERROR","data":{}}`+"\n"+`{"return":{"status":"io-error","running":false}}`,
		`{"return":[{"device":"","qdev":"vd0","io-status":"nospace"},{"device":"cd","io-status":"ok"}]}`)
	got, err := askQMP(context.Background(), full)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&QMP{Status: "io-error", Stopped: map[string]string{"vd0": "nospace"}}, got); d != "" {
		t.Errorf("askQMP (-want +got):\n%s", d)
	}
	for name, socket := range map[string]string{
		"silent": answering(t, ""), "no monitor": answering(t, `{"SSH":1}`), "no JSON": answering(t, "hello"),
		"an error": answering(t, hello, `{"error":{"class":"x","desc":"no"}}`), "ends": answering(t, hello, `{"return":{}}`),
		"not there": filepath.Join(t.TempDir(), "no"),
	} {
		if q, err := askQMP(context.Background(), socket); err == nil {
			t.Errorf("%s: askQMP = %+v, want an error", name, q)
		}
	}
}
