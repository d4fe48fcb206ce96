// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package uml_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// waitArg is the argument of a process that runs a guest until it is killed.
const waitArg = "guest-for-tests"

// waiting runs a guest that waits for ever: confined, or not.
func waiting(how, guest string) error {
	o := uml.Options{Args: []string{asked, "wait"}}
	if how == "open" {
		o.Root, o.Init = "/", guest
		_, err := uml.RunUnconfined(context.Background(), o)
		return err
	}
	o.Init, o.Files = "/init", []uml.File{{Name: "init", Path: guest}}
	_, err := uml.Run(context.Background(), o)
	return err
}

// TestKilled: nothing of a guest outlives a process that is killed.
func TestKilled(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, uml.Program)
	guest := guestFile(t)
	for _, how := range []string{"open", "confined"} {
		c := exec.Command(os.Args[0], waitArg, how, guest)
		c.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
		// Whatever comes of it has this pipe, and nobody else: where guests have descriptors of their own it is not.
		from, to, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c.ExtraFiles = append(make([]*os.File, 20), to)
		c.Stderr = os.Stderr
		if err := errors.Join(c.Start(), to.Close()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // it boots meanwhile; at any moment it must go
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait() // it was killed
		if err := from.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(from)
		if err := errors.Join(err, from.Close()); err != nil {
			t.Errorf("%s: processes of the guest are left: %v", how, err)
		}
	}
}
