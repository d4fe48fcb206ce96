// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// live asks this machine, and gathers.
func live(t *testing.T, o ProbeOptions) *Evidence {
	t.Helper()
	l, err := tree.OpenLive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	o.Now = time.Now()
	files, err := Probe(t.Context(), l, o)
	if err != nil {
		t.Fatal(err)
	}
	e, err := Gather(t.Context(), tree.Overlay(l, files), Options{Now: o.Now})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestLive looks at this machine: its first mount is there, and answered.
func TestLive(t *testing.T) {
	begun := time.Now()
	e := live(t, ProbeOptions{})
	t.Log(time.Since(begun))
	if e.Label == "" || e.Host.Kernel == "" || e.Host.Processors == 0 || e.Host.Booted.IsZero() || e.Host.OS == "" {
		t.Errorf("the host: %+v", e.Host)
	}
	for _, p := range []Part{PartMounts, PartProbes, PartFSs, PartTasks} {
		if why, known := e.Known(p); !known {
			t.Errorf("nothing is known of %s: %s", p, why)
		}
	}
	i := e.MountOf("/etc")
	if i < 0 || e.Mounts[i].Probe == nil || e.Mounts[i].Probe.Errno != 0 || e.Mounts[i].Probe.Blocks == 0 {
		t.Fatalf("what /etc lies on: %d of %d", i, len(e.Mounts))
	}
	if e.Tasks.Looked < 1 {
		t.Errorf("no tasks: %+v", e.Tasks)
	}
	for _, m := range e.Mounts {
		if m.FS >= 0 && m.Probe == nil && m.NotAsked == "" {
			t.Errorf("%s: neither an answer nor why there is none", m.Point)
		}
	}
}
