// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package trace

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"time"
)

// commandTimeout is how long a command at the moment of a failure may take. Failures that come
// meanwhile have no moment of their own.
const commandTimeout = time.Minute

// Command gives a function for Options.Moment that has the shell run a command, which finds in its
// environment what failed. What it writes goes to out; environ is what it has besides.
func Command(command string, environ []string, out io.Writer, failed func(error)) func(context.Context, Failure) {
	return func(ctx context.Context, f Failure) {
		ctx, cancel := context.WithTimeout(ctx, commandTimeout)
		defer cancel()
		c := exec.CommandContext(ctx, "/bin/sh", "-c", command)
		c.Env = append(environ[:len(environ):len(environ)],
			"SHISA_MOUNT="+f.Mount.Path, "SHISA_MOUNT_ID="+strconv.Itoa(f.Mount.ID),
			"SHISA_SOURCE="+f.Mount.Source, "SHISA_FSTYPE="+f.Mount.Type, "SHISA_DEVICE="+f.Mount.Device,
			"SHISA_UMOUNT_PID="+strconv.Itoa(f.Umount.Process.PID), "SHISA_UMOUNT_COMM="+f.Umount.Process.Comm,
			"SHISA_TIME="+f.At.Format(time.RFC3339Nano), "SHISA_ENGINE="+f.Engine)
		c.Stdout, c.Stderr = out, out
		c.WaitDelay = time.Second // for what it left in the background
		if err := c.Run(); err != nil {
			failed(fmt.Errorf("run %q for the failed umount of %s: %w", command, f.Mount.Path, err))
		}
	}
}
