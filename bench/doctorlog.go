// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// The log whose size must not matter, and what a look at it may take.
const (
	largeBytes, largeBytesQuick = 200 << 20, 32 << 20
	largeSeconds                = 5
)

// doctorLarge looks at a copy of a machine that has a large syslog.
func doctorLarge(ctx context.Context, b *bench, dir string) (res result) {
	root, err := os.MkdirTemp(dir, "large-")
	if err != nil {
		return result{missing: err.Error()}
	}
	size := int64(largeBytes)
	if b.quick {
		size = largeBytesQuick
	}
	if err = makeSyslog(filepath.Join(root, "var/log"), size); err == nil {
		argv := []string{b.shisa, "doctor", "--root", root}
		if err = b.doctorTakes(ctx, &res, argv, largeSeconds); err == nil {
			res.failed, err = sawLog(ctx, append(argv, "--json"))
		}
	}
	if err = errors.Join(err, os.RemoveAll(root)); err != nil {
		res.missing = err.Error()
	}
	return res
}

// makeSyslog writes a syslog: one line in ten is about units, one in thousand about a disk, and the machine is started
// again once a day.
func makeSyslog(dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "syslog"))
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	at := time.Now().UTC().Truncate(time.Second).Add(-time.Duration(size/80) * time.Second)
	for n, i := 0, 0; int64(n) < size; i++ {
		at = at.Add(time.Second)
		text := fmt.Sprintf("app[%d]: request %d was served in %d ms for 10.0.0.%d", i%32768, i, i%100, i%255)
		switch {
		case i%86400 == 40000:
			text = "kernel: [    0.000000] Linux version 6.1.0-18-amd64 (x) y"
		case i%1000 == 500:
			text = fmt.Sprintf("kernel: [%5d.000000] blk_update_request: I/O error, dev sdq, sector %d op 0x0:(READ) flags 0x0 "+
				"phys_seg 1 prio class 0", i%86400, i)
		case i%10 == 5:
			text = fmt.Sprintf("systemd[1]: Started session-%d.scope - Session %d of User root.", i, i)
		}
		m, err := fmt.Fprintf(w, "%s h %s\n", at.Format(time.Stamp), text)
		if err != nil {
			return errors.Join(err, f.Close())
		}
		n += m
	}
	return errors.Join(w.Flush(), f.Close())
}
