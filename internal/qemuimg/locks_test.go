// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// hold opens an image in qemu-io, as a running machine would, until the test ends. It takes commands.
func hold(t *testing.T, args ...string) io.Writer {
	t.Helper()
	cmd := exec.Command("qemu-io", args...) // t.Context ends before Cleanup
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	// It answers once the image is open.
	if _, err := io.WriteString(in, "length\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, "iB") {
		t.Fatalf("qemu-io %q answered %q, %v", args, line, err)
	}
	go io.Copy(io.Discard, out)
	return in
}

func testLocks(t *testing.T) {
	for _, c := range []struct {
		name  string
		hold  []string
		lines []string
	}{
		{"writer of qcow2", []string{"-f", "qcow2", "base.qcow2"}, []string{
			"info base.qcow2", "info -U base.qcow2", "check base.qcow2", "check -U base.qcow2", "map base.qcow2",
			"map -U base.qcow2", "compare base.qcow2 base.raw", "compare base.raw base.qcow2", "compare -U base.qcow2 base.raw",
			"info mid.qcow2", "info --backing-chain mid.qcow2", "info -U --backing-chain mid.qcow2", "check mid.qcow2",
			"check -U mid.qcow2", "map top.qcow2", "map -f raw base.qcow2", "info -f raw base.qcow2", "check json.qcow2",
			"check --image-opts driver=qcow2,file.driver=file,file.filename=base.qcow2,file.locking=off",
			"info --image-opts driver=qcow2,file.driver=file,file.filename=base.qcow2,force-share=on",
			"info --image-opts driver=raw,file.driver=file,file.filename=base.qcow2,offset=512", "check -q link",
		}},
		{"writer of the overlay", []string{"-f", "qcow2", "mid.qcow2"}, []string{
			"check base.qcow2", "map base.qcow2", "check mid.qcow2", "info mid.qcow2", "check top.qcow2", "info top.qcow2",
		}},
		{"reader", []string{"-r", "-f", "qcow2", "base.qcow2"}, []string{
			"info base.qcow2", "check base.qcow2", "map base.qcow2", "check -U base.qcow2", "compare mid.qcow2 base.raw",
		}},
		{"writer of raw", []string{"-f", "raw", "raw.img"}, []string{
			"info raw.img", "map raw.img", "check raw.img", "compare raw.img odd.img", "check onraw.qcow2", "map onraw.qcow2",
			"map -U onraw.qcow2", "info --image-opts driver=raw,file.filename=raw.img,size=1M", "map -f qcow2 raw.img",
		}},
		{"writer with a data file", []string{"-f", "qcow2", "data.qcow2"}, []string{
			"info data.qcow2", "check data.qcow2", "check -U data.qcow2", "info ext.data", "map ext.data", "map -U ext.data",
		}},
		{"writer of the data file", []string{"-f", "raw", "ext.data"}, []string{
			"info data.qcow2", "check data.qcow2", "map data.qcow2", "map -U data.qcow2", "compare data.qcow2 ext.data",
		}},
		{"writer of luks", []string{"-f", "raw", "luks.luks"}, []string{"info luks.luks", "info -f luks luks.luks", "check luks.luks"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			hold(t, c.hold...)
			for _, line := range c.lines {
				same(t, split(line)...)
			}
		})
	}
}
