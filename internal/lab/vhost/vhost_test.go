// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vhost

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// daemon puts a script in the place of the daemon. The image that it is to serve is its argument 2, the file that it
// has to write when it is ready its last one. What a real one does is tried in guests.
func daemon(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, Program), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// ready writes what a daemon does when all is served.
const ready = "for last; do :; done\necho $$ >\"$last\"\n"

func TestServe(t *testing.T) {
	const waits = "trap 'exit 0' TERM\n" + ready + "while :; do sleep 0.01; done\n"
	for name, act := range map[string]func(*Disk) error{
		"ends":    func(*Disk) error { return nil },
		"stopped": (*Disk).Stop,
		"killed":  (*Disk).Kill,
	} {
		t.Run(name, func(t *testing.T) {
			daemon(t, waits)
			d, err := Serve("x.qcow2", "qcow2")
			if err != nil {
				t.Fatal(err)
			}
			if a := d.Argument(); a != "virtio_uml.device="+d.dir+"/socket:2" {
				t.Errorf("the kernel is given %s", a)
			}
			if err := act(d); err != nil {
				t.Error(err)
			}
			if err := errors.Join(d.Close(), d.Close()); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(d.dir); !os.IsNotExist(err) {
				t.Errorf("its directory is still there: %v", err)
			}
		})
	}
}

func TestServeFails(t *testing.T) {
	if _, err := Serve("a,b", "qcow2"); err == nil {
		t.Error("a name with a comma is served")
	}
	daemon(t, "echo no such image >&2\nexit 1\n")
	if _, err := Serve("x.qcow2", "qcow2"); err == nil || !strings.Contains(err.Error(), "x.qcow2") ||
		!strings.Contains(err.Error(), "exit status 1: no such image") {
		t.Errorf("a daemon that ends = %v, want its words", err)
	}
	daemon(t, "echo it broke >&2\ntrap 'exit 3' TERM\n"+ready+"while :; do sleep 0.01; done\n")
	d, err := Serve("x.qcow2", "qcow2")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err == nil || !strings.Contains(err.Error(), "exit status 3: it broke") {
		t.Errorf("a daemon that fails at its end = %v, want its words", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Serve("x.qcow2", "qcow2"); err == nil {
		t.Error("without the daemon an image is served")
	}
}
