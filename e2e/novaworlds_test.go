// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/nova"
)

// novaWorld is something that happens, by which Nova removes a base that is needed.
type novaWorld struct {
	name, what string
	// lost is about when Nova removes the base.
	lost time.Duration
	// days is how long the world is looked at with shisa in it; 0 is four days, or a third of one where Nova
	// resized the base.
	days int
	// resized: the base is one that Nova made larger, and removes after an hour.
	resized bool
	// ahead: Nova removes the base however new it is.
	ahead bool
	make  func(p *novaPool)
}

// row is the world in the table of doc/base.md.
func (w *novaWorld) row() string {
	lost, timer := fmt.Sprintf("%.0f h", w.lost.Hours()), "there"
	span := fmt.Sprintf(" for %.0f days", w.until().Hours()/24)
	if w.resized {
		lost, span = fmt.Sprintf("%.0f min", w.lost.Minutes()), fmt.Sprintf(" for %.0f h", w.until().Hours())
	}
	if w.ahead {
		lost, timer = "its first pass", "removed at each pass, back at the next run,"
	}
	return fmt.Sprintf("| %s | %s | %s%s | removed and at once back |", w.what, lost, timer, span)
}

// timer is how often "shisa base protect" is to run.
func (w *novaWorld) timer() time.Duration {
	if w.resized {
		return 20 * time.Minute
	}
	return 6 * time.Hour
}

// until is how long the world is looked at with shisa in it.
func (w *novaWorld) until() time.Duration {
	switch {
	case w.days > 0:
		return time.Duration(w.days) * 24 * time.Hour
	case w.resized:
		return 8 * time.Hour
	}
	return 4 * 24 * time.Hour
}

const (
	machineA = "11111111-1111-4111-8111-111111111111"
	machineB = "22222222-2222-4222-8222-222222222222"
	machineC = "33333333-3333-4333-8333-333333333333"
)

// imageBase is what Nova calls the base of an image.
func imageBase(image string) string {
	sum := sha1.Sum([]byte(image))
	return hex.EncodeToString(sum[:])
}

// up are hosts that share a directory.
func up(root string, names ...string) []nova.Host {
	var all []nova.Host
	for _, n := range names {
		all = append(all, nova.Host{Name: n, Root: root})
	}
	return all
}

// shared is a directory of three nodes, one of which, nodeC, has a machine. All have passed once.
func (p *novaPool) shared(base, image string) string {
	root := p.root("instances")
	p.newBase(root, base, machineA+"/disk")
	p.must(p.nova.Instance(nova.Machine{UUID: machineA, Host: "nodeC", Image: image, State: "active"}))
	p.hosts = up(root, "nodeA", "nodeB", "nodeC")
	p.pass()
	return root
}

// TestNovaPage holds the table of doc/base.md against the worlds.
func TestNovaPage(t *testing.T) {
	text, err := os.ReadFile("../doc/base.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows string
	for _, w := range novaWorlds {
		rows += w.row() + "\n"
	}
	if !strings.Contains(string(text), "|---|---|---|---|\n"+rows+"\n") {
		t.Errorf("doc/base.md has no table of the worlds of Nova, want\n%s", rows)
	}
}

var novaWorlds = []novaWorld{
	{name: "n1", what: "the node of the machine is down", lost: 48 * time.Hour, days: 30, make: func(p *novaPool) {
		root := p.shared(imageBase("img-1"), "img-1")
		p.hosts = up(root, "nodeA", "nodeB")
	}},
	{name: "n2", what: "the clock of another node is 25 h ahead", lost: novaPass, ahead: true, make: func(p *novaPool) {
		root := p.shared(imageBase("img-1"), "img-1")
		p.hosts = up(root, "nodeC", "nodeA")
		p.hosts[1].Ahead = 25 * time.Hour
	}},
	{name: "n3", what: "two ephemeral disks of different size", lost: 24 * time.Hour, make: func(p *novaPool) {
		root := p.shared(imageBase("img-1"), "img-1")
		for _, size := range []int64{1, 2} {
			name, err := p.nova.Ephemeral(size)
			p.must(err)
			p.must(p.nova.Disk(machineA, "ephemeral", size))
			p.newBase(root, name, machineA+"/disk.eph"+string(rune('0'+size-1)))
		}
	}},
	{name: "n4", what: "rescued by another image", lost: 24 * time.Hour, make: func(p *novaPool) {
		root := p.shared(imageBase("img-1"), "img-1")
		p.newBase(root, imageBase("img-rescue"), machineA+"/disk.rescue")
	}},
	{name: "n5", what: "resized and not yet confirmed, nodes with storage of their own", lost: 24 * time.Hour, make: func(p *novaPool) {
		source, target := p.root("source"), p.root("target")
		p.must(os.WriteFile(filepath.Join(target, "_base", imageBase("img-1")), make([]byte, 1<<20), 0o644))
		p.overlay(filepath.Join(target, "_base", imageBase("img-1")), filepath.Join(target, machineA, "disk"))
		p.newBase(source, imageBase("img-1"), machineA+"_resize/disk")
		p.must(p.nova.Instance(nova.Machine{UUID: machineA, Host: "nodeB", Image: "img-1", State: "resized"}))
		p.hosts = append(up(source, "nodeA"), up(target, "nodeB")...)
		p.pass()
	}},
	{name: "n6", what: "the list of hosts is torn, the node down for an hour, its base a resized one", lost: 80 * time.Minute, resized: true,
		make: func(p *novaPool) {
			root := p.shared(imageBase("img-1")+"_10737418240", "img-1")
			p.hosts = up(root, "nodeA", "nodeB")
			p.must(os.WriteFile(filepath.Join(root, "compute_nodes"), []byte(`{"nodeA": 17000`), 0o644))
		}},
	{name: "n7", what: "the host was renamed", lost: 48 * time.Hour, make: func(p *novaPool) {
		root := p.shared(imageBase("img-1"), "img-1")
		p.hosts = up(root, "nodeA", "nodeB", "nodeC.example.org")
	}},
	{name: "n8", what: "unshelved, then its node is down", lost: 24 * time.Hour, make: func(p *novaPool) {
		root := p.root("instances")
		// The machine rests on the image that it was shelved as; the database has the one that it was made of.
		p.must(os.WriteFile(filepath.Join(root, "_base", imageBase("img-1")), make([]byte, 1<<20), 0o644))
		p.newBase(root, imageBase("shelved"), machineA+"/disk")
		p.must(p.nova.Instance(nova.Machine{UUID: machineA, Host: "nodeC", Image: "img-1", State: "active"}))
		p.hosts = up(root, "nodeA", "nodeB", "nodeC")
		p.pass()
		p.hosts = up(root, "nodeA", "nodeB")
	}},
	{name: "n9", what: "the machine runs, its row is gone", lost: 24 * time.Hour, make: func(p *novaPool) {
		p.shared(imageBase("img-1"), "img-1")
		p.must(p.nova.Delete(machineA))
	}},
	{name: "n10", what: "default_ephemeral_format was changed", lost: 24 * time.Hour, make: func(p *novaPool) {
		root := p.shared(imageBase("img-1"), "img-1")
		p.must(p.nova.Format("ext4"))
		name, err := p.nova.Ephemeral(1)
		p.must(err)
		p.must(p.nova.Disk(machineA, "ephemeral", 1))
		p.newBase(root, name, machineA+"/disk.eph0")
		p.pass()
		p.must(p.nova.Format("xfs"))
	}},
}
