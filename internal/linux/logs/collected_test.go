// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs_test

import (
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/logs"
)

// TestCollectedJournal holds that journals of other machines are read among collected logs, that what a container
// wrote of Nova is known in them, and that only what is wanted is kept.
func TestCollectedJournal(t *testing.T) {
	root, c := t.TempDir(), newCourse()
	c.Start()
	c.Say(time.Minute, "nova-compute", "2026-11-22 09:00:00.1 7 INFO nova.virt.libvirt.imagecache [None req-1 - -] "+
		"Removing base, swap or ephemeral file: /b/_base/one")
	c.Say(time.Minute, "nova_compute_container", "2026-11-22 09:01:00.1 7 INFO nova.virt.libvirt.imagecache [-] "+
		"Removing base or swap file: /b/_base/two")
	c.Say(time.Minute, "nova-compute", "Removing base, swap or ephemeral file: /b/_base/three")
	c.Say(time.Minute, "ironcompute", "2026-11-22 09:01:00.1 7 INFO nova.virt.libvirt.imagecache [-] "+
		"Removing base file: /b/_base/four")
	keep(t, c, root, "/node1/deep/journal")
	l := read(t, root, logs.Options{Now: c.At, Collected: true, Want: func(m *logs.Message) bool {
		return m.Form.Name == "nova.removed" && m.Field("path") != "/b/_base/three"
	}})
	var got []string
	for i := range l.Messages {
		m := &l.Messages[i]
		if m.Host == "" || !m.Exact || !strings.HasPrefix(m.Path, "/node1/deep/journal") {
			t.Errorf("message %+v", m)
		}
		got = append(got, m.Field("path"))
	}
	same(t, "removed", strings.Join(got, " "), "/b/_base/one /b/_base/two /b/_base/four")
	if len(l.Gaps) != 0 {
		t.Errorf("gaps %v", l.Gaps)
	}
}
