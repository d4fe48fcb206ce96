// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cut

import (
	"fmt"
	"math"
	"strings"
	"syscall"
)

// faults says which operations go wrong; the first one is number 1.
type faults struct {
	crashAfter int
	hangAt     int
	shortWrite int
	lateError  int
	fsyncError int
	ofWrite    map[int]syscall.Errno
	ofOp       map[int]syscall.Errno
}

func noFaults() faults {
	return faults{crashAfter: math.MaxInt, ofWrite: map[int]syscall.Errno{}, ofOp: map[int]syscall.Errno{}}
}

// Fault makes operations go wrong. Several faults are separated by semicolons; "" is none:
//
//	crash after op N   the power is cut: every operation after the N-th fails
//	EIO on write N     the N-th write fails and writes nothing; also ENOSPC
//	EIO on op N        the same for an operation of any kind
//	EIO after write N  the N-th write fails, though all of it was taken, as on NFS
//	short write N      the N-th write writes a part, then the disk is full
//	fsync error N      the N-th sync fails; nobody knows what is on the disk
//	hang at N          the N-th operation hangs until the context of New ends, then it fails
//
// Only what changes something is an operation. They are counted from the call of Fault on.
func (d *Disk) Fault(script string) error {
	f := noFaults()
	for _, line := range strings.Split(script, ";") {
		if err := f.add(strings.TrimSpace(line)); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults, d.count, d.ops = f, counts{}, nil
	return nil
}

func (f *faults) add(line string) error {
	if line == "" {
		return nil
	}
	var n int
	var what, errno string
	for _, to := range []struct {
		form string
		n    *int
	}{
		{"crash after op %d", &f.crashAfter}, {"hang at %d", &f.hangAt},
		{"short write %d", &f.shortWrite}, {"fsync error %d", &f.fsyncError},
		{"EIO after write %d", &f.lateError},
	} {
		if _, err := fmt.Sscanf(line, to.form, &n); err == nil && line == fmt.Sprintf(to.form, n) {
			*to.n = n
			return nil
		}
	}
	if _, err := fmt.Sscanf(line, "%s on %s %d", &errno, &what, &n); err == nil {
		no, known := map[string]syscall.Errno{"EIO": syscall.EIO, "ENOSPC": syscall.ENOSPC}[errno]
		of, kind := map[string]map[int]syscall.Errno{"write": f.ofWrite, "op": f.ofOp}[what]
		if known && kind {
			of[n] = no
			return nil
		}
	}
	return fmt.Errorf("no fault: %q", line)
}
