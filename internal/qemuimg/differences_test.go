// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testDifferences pins what is not as qemu-img has it, on purpose. The package comment lists it.
func testDifferences(t *testing.T) {
	for _, line := range []string{
		"qemu-img create -q -f vmdk other.vmdk 1M", "qemu-img create -q -f vdi other.vdi 1M", "qemu-img create -q -f vhdx other.vhdx 1M",
		"qemu-img create -q -f qed other.qed 1M", "qemu-img create -q -f vpc other.vpc 1M", "qemu-img create -q -f qcow other.qcow 1M",
		"qemu-img create -q -f parallels other.hds 1M", "qemu-img create -q -f vmdk -o subformat=monolithicFlat parts.vmdk 1M", "qemu-img create -q -f qcow2 -u -b other.vmdk -F vmdk onvmdk.qcow2 1M",
	} {
		argv := strings.Fields(line)
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	const open = "qemu-img: Could not open '%s': "
	format := func(name, format string) string {
		return fmt.Sprintf(open+"format '%s' cannot be read by this program, which knows qcow2 and raw\n", name, format)
	}
	noCheck := "qemu-img: This image format does not support checks\n"
	never := func(format string) string {
		return "qemu-img: Checks of format '" + format + "' are not supported by this program\n"
	}
	refuse := func(name string) string {
		return "qemu-img: " + name + ": this program only looks at images; of qemu-img it has check, compare, info and map\n"
	}
	const secret = "--object secret,id=s,data=wrong --image-opts driver=qcow2,file.filename=luks.qcow2,encrypt.key-secret=s"
	for _, c := range []struct {
		line   string
		code   int
		stderr string
	}{
		{"check -r leaks base.qcow2", 1, "qemu-img: check -r: this program repairs nothing; 'base.qcow2' is unchanged\n"},
		{"check -r all l2gone.qcow2", 1, "qemu-img: check -r: this program repairs nothing; 'l2gone.qcow2' is unchanged\n"},
		{"check -r all nothing", 1, "qemu-img: check -r: this program repairs nothing; 'nothing' is unchanged\n"},
		{"convert -O raw base.qcow2 x", 1, refuse("convert")},
		{"snapshot -l base.qcow2", 1, refuse("snapshot")},
		{"create -f qcow2 x 1M", 1, refuse("create")},
		{"resize base.qcow2 5M", 1, refuse("resize")},
		{"measure base.qcow2", 1, refuse("measure")},

		{"check other.vmdk", 63, never("vmdk")}, {"check other.vdi", 63, never("vdi")}, {"check other.vhdx", 63, never("vhdx")},
		{"check other.qed", 63, never("qed")}, {"check other.hds", 63, never("parallels")}, {"check other.vpc", 63, noCheck},
		{"check other.qcow", 63, noCheck}, {"info other.hds", 1, format("other.hds", "parallels")}, {"map other.vdi", 1, format("other.vdi", "vdi")},
		{"compare other.vpc base.qcow2", 2, format("other.vpc", "vpc")}, {"map other.vmdk", 1, format("other.vmdk", "vmdk")},
		{"info parts.vmdk", 1, format("parts.vmdk", "vmdk")},
		{"check onvmdk.qcow2", 1, "qemu-img: Could not open 'onvmdk.qcow2': Could not open backing file: format 'vmdk' cannot be read by this program, which knows qcow2 and raw\n"},
		{"info nbd://localhost/x", 1, fmt.Sprintf(open, "nbd://localhost/x") + "protocol 'nbd' is not supported by this program, which reads local files only\n"},
		{`info json:{"driver":"nbd","host":"x"}`, 1, fmt.Sprintf(open, `json:{"driver":"nbd","host":"x"}`) + "protocol 'nbd' is not supported by this program, which reads local files only\n"},

		{"check self.qcow2", 1, fmt.Sprintf(open, "self.qcow2") + "Could not open backing file: 'self.qcow2' leads back into its own backing chain\n"},
		{"map a.qcow2", 1, fmt.Sprintf(open, "a.qcow2") + "Could not open backing file: Could not open backing file: 'a.qcow2' leads back into its own backing chain\n"},
		{"compare self2.qcow2 base.qcow2", 2, fmt.Sprintf(open, "self2.qcow2") + "Could not open backing file: './self2.qcow2' leads back into its own backing chain\n"},

		{"info fifo", 1, fmt.Sprintf(open, "fifo") + "'file' driver requires 'fifo' to be a regular file\n"},
		{"info /dev/null", 1, fmt.Sprintf(open, "/dev/null") + "Could not open '/dev/null': this program opens no character devices\n"},
		{"info /dev/zero", 1, fmt.Sprintf(open, "/dev/zero") + "Could not open '/dev/zero': this program opens no character devices\n"},

		// The passphrase is wrong, which nobody tries here.
		{"check " + secret, 0, ""},
		{"compare --object secret,id=s,data=wrong --image-opts driver=luks,file.filename=luks.luks,key-secret=s driver=raw,file.filename=raw.img", 4,
			"qemu-img: Error while reading offset 0 of driver=luks,file.filename=luks.luks,key-secret=s: the data is encrypted, and this program decrypts nothing\n"},
		{"info --object secret,id=s,file=/nothing raw.img", 0, ""},
		{"info --object iothread,id=x raw.img", 1, "qemu-img: objects of type 'iothread' are not supported by this program\n"},

		{"info crypt2.qcow2", 1, fmt.Sprintf(open, "crypt2.qcow2") + "Missing CRYPTO header for crypt method 2\n"},
		{"info --image-opts driver=raw,file.filename=raw.img,read-only=off", 0, ""},
	} {
		t.Run(strings.ReplaceAll(c.line, "/", "|"), func(t *testing.T) {
			got := ours(t, split(c.line)...)
			if got.Code != c.code || got.Stderr != c.stderr {
				t.Errorf("qemu-img %s = %d, %q, want %d, %q", c.line, got.Code, got.Stderr, c.code, c.stderr)
			}
			if (got.Stdout == "") != (got.Code != codeOK) {
				t.Errorf("qemu-img %s prints %q with exit code %d", c.line, got.Stdout, got.Code)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"-h"}, {"check", "--help"}, {"info", "-h"}, {"map", "-Uh"}, {"compare", "--he"}} {
		got := ours(t, args...)
		if got.Code != 0 || got.Stderr != "" || !strings.HasPrefix(got.Stdout, "qemu-img version 7.2") ||
			!strings.HasSuffix(got.Stdout, "\nSupported formats: file host_device luks qcow2 raw\n") {
			t.Errorf("qemu-img %q = %+v, want the help", args, got)
		}
	}
	for _, args := range [][]string{{"--version"}, {"-V"}, {"--v", "info"}, {"-VT"}} {
		got := ours(t, args...)
		want := outcome{0, "qemu-img version 7.2.22 (shisa test, which has check, compare, info and map)\n" +
			"Copyright (c) the shisa authors\n", ""}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("qemu-img %q (-want +got):\n%s", args, diff)
		}
	}
}

// brokenOut fails like a full disk, or a pipe that nobody reads.
type brokenOut struct{ err error }

func (b brokenOut) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "out", Err: b.err}
}

func TestOutputLost(t *testing.T) {
	var stderr bytes.Buffer
	env := Env{Stdout: brokenOut{syscall.EPIPE}, Stderr: &stderr}
	if code := Run(t.Context(), env, []string{"qemu-img", "--version"}); code != 0 || stderr.Len() > 0 {
		t.Errorf("Run with a closed pipe = %d, %q, want 0 and nothing", code, &stderr)
	}
	env.Stdout = brokenOut{syscall.ENOSPC}
	code := Run(t.Context(), env, []string{"/usr/bin/qemu-img", "--version"})
	want := "qemu-img: Could not write the result: No space left on device\n"
	if code != 1 || stderr.String() != want {
		t.Errorf("Run with a full disk = %d, %q, want 1, %q", code, &stderr, want)
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("stop"))
	var out bytes.Buffer
	code := Run(ctx, Env{Stdout: &out, Stderr: &out}, []string{"qemu-img", "map", "nothing"})
	if code != codeInterrupted {
		t.Errorf("Run after an interrupt = %d, want %d", code, codeInterrupted)
	}
}

func TestProgramName(t *testing.T) {
	var stderr bytes.Buffer
	env := Env{Stdout: &stderr, Stderr: &stderr}
	Run(t.Context(), env, []string{"/opt/bin/qemu-img-7", "info"})
	want := "qemu-img-7: Expecting one image file name\nTry 'qemu-img --help' for more information\n"
	if stderr.String() != want {
		t.Errorf("Run(/opt/bin/qemu-img-7 info) prints %q, want %q", &stderr, want)
	}
}
