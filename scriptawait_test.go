// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"errors"
	"os/exec"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// await runs a command again and again until it succeeds: "await test -e file". Where a program that the
// script has in the background has ended by then, nobody may be left for whom it would, and it fails.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: await COMMAND [ARG...]")
	}
	for ; ; time.Sleep(20 * time.Millisecond) {
		ended := hasEnded(ts.BackgroundCmds())
		err := ts.Exec(args[0], args[1:]...)
		switch {
		case err == nil:
			return
		case !errors.As(err, new(*exec.ExitError)):
			ts.Fatalf("%s: %v", args[0], err)
		case ended != nil:
			ts.Fatalf("%q in the background has ended, and this did not come to be", ended.Args)
		}
	}
}

// hasEnded gives a program that has ended and was waited for, nil if there is none.
func hasEnded(all []*exec.Cmd) *exec.Cmd {
	for _, c := range all {
		if errors.Is(unix.Kill(c.Process.Pid, 0), unix.ESRCH) {
			return c
		}
	}
	return nil
}
