// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// What following a machine may take, and for how long it is measured: long enough for the examination at the
// start and those of two minutes.
const (
	watchFor, watchForQuick = 130 * time.Second, 65 * time.Second
	watchPercent            = 1
	watchMiB                = 64
)

func watchRows() []row {
	return []row{{name: "doctor watch: two minutes of this machine", special: watchRow}}
}

// watchRow follows this machine as it is.
func watchRow(ctx context.Context, b *bench, dir string) (res result) {
	state, err := os.MkdirTemp(dir, "watch-")
	if err != nil {
		return result{missing: err.Error()}
	}
	defer func() {
		if err := os.RemoveAll(state); err != nil && res.missing == "" {
			res.missing = err.Error()
		}
	}()
	span := watchFor
	if b.quick {
		span = watchForQuick
	}
	argv := []string{b.shisa, "doctor", "watch", "--json", "--state", filepath.Join(state, "state"), "--for", span.String()}
	c, errs, err := timeRun(ctx, argv)
	if err == nil && c.exit != 0 {
		err = fmt.Errorf("%v: exit status %d: %s", argv, c.exit, errs)
	}
	if err != nil {
		return result{missing: err.Error()}
	}
	argv[len(argv)-1] = "10s"
	if c.memory, err = peakMemory(ctx, argv); err != nil {
		return result{missing: err.Error()}
	}
	res.ours, res.oursRan = c, true
	share := goal{what: "of a processor", must: watchPercent, lower: true, unit: " %", always: true}
	memory := memoryUnder(watchMiB)
	memory.always = true
	res.goals = []outcome{{goal: share, got: 100 * c.cpu.Seconds() / c.wall.Seconds()},
		{goal: memory, got: memory.value(c, cost{})}}
	return res
}
