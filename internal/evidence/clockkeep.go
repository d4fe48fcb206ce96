// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/linux/units"
)

// inMemory are file systems that are gone at the next boot.
var inMemory = []string{"tmpfs", "ramfs", "rootfs"}

// keep finds out whether stamps can be written, and last.
func (g *gatherer) keep(ctx context.Context) {
	if m := g.holding(stampDir); m != nil {
		g.kept(m)
	} else if g.t.Kind() == tree.Disk || g.t.Kind() == tree.Directory {
		g.plannedKeep(stampDir)
	}
	g.volatileRoot()
}

// no sets a truth to no, with the reason.
func (k *Keep) no(what *units.Truth, why string) {
	*what = units.No
	if !strings.Contains(k.Why, why) {
		k.Why = strings.TrimPrefix(k.Why+"; "+why, "; ")
	}
}

// sure sets what is not known otherwise.
func sure(what *units.Truth) {
	if *what == units.Maybe {
		*what = units.Yes
	}
}

// holding gives the mount of the first process that a name lies on, nil if it is not known.
func (g *gatherer) holding(name string) (best *Mount) {
	for i := range g.e.Mounts {
		m := &g.e.Mounts[i]
		if !m.Own || m.Hidden || !lies(name, m.Point) {
			continue
		}
		if best == nil || len(m.Point) >= len(best.Point) {
			best = m
		}
	}
	return best
}

// lies tells whether a name is a directory or in it.
func lies(name, dir string) bool {
	return name == dir || dir == "/" || strings.HasPrefix(name, dir+"/")
}

// has tells whether a word is among options.
func has(options, word string) bool { return slices.Contains(strings.Split(options, ","), word) }

// kept looks at the mount that stamps lie on.
func (g *gatherer) kept(m *Mount) {
	k := &g.e.Clock.Keeps
	k.FS = m.FS
	switch {
	case has(m.Options, "ro"):
		k.no(&k.Writable, m.Point+" is mounted read-only")
	case has(m.Super, "ro"), has(m.Super, "emergency_ro"):
		k.Why = "the file system of " + m.Point + " takes no writes now; whether it does at the next start is not known"
	default:
		sure(&k.Writable)
	}
	switch {
	case slices.Contains(inMemory, m.Type):
		k.no(&k.Lasts, m.Point+" is a "+m.Type+", which is in memory")
	case m.Type == "overlay":
		g.overlaid(m)
	default:
		sure(&k.Lasts)
	}
}

// overlaid looks where an overlay keeps what is written to it.
func (g *gatherer) overlaid(m *Mount) {
	k := &g.e.Clock.Keeps
	for o := range strings.SplitSeq(m.Super, ",") {
		upper, ok := strings.CutPrefix(o, "upperdir=")
		if !ok {
			continue
		}
		if on := g.holding(upper); on != nil && slices.Contains(inMemory, on.Type) {
			k.no(&k.Lasts, m.Point+" is an overlay that keeps changes on a "+on.Type+", in memory")
			return
		}
		// The directory may lie where this namespace does not see it.
		k.Why = strings.TrimPrefix(k.Why+"; "+m.Point+" is an overlay: whether what it keeps lasts is not known", "; ")
		return
	}
	sure(&k.Lasts)
	k.no(&k.Writable, m.Point+" is an overlay that takes no writes")
}

// plannedKeep looks what /etc/fstab says of a machine that does not run.
func (g *gatherer) plannedKeep(name string) {
	k := &g.e.Clock.Keeps
	if why, whole := g.e.Whole(PartConfig); !whole && strings.Contains(why, "/etc/fstab") {
		k.Why = why
		return
	}
	var best *FstabEntry
	for i := range g.e.Config.Fstab {
		f := &g.e.Config.Fstab[i]
		if strings.HasPrefix(f.Point, "/") && lies(name, f.Point) && (best == nil || len(f.Point) > len(best.Point)) {
			best = f
		}
	}
	if best != nil {
		switch {
		case slices.Contains(inMemory, best.Type):
			k.no(&k.Lasts, "/etc/fstab mounts a "+best.Type+" at "+best.Point)
		case slices.Contains(best.Options, "ro"):
			k.no(&k.Writable, "/etc/fstab mounts "+best.Point+" read-only")
		}
	}
	sure(&k.Writable)
	sure(&k.Lasts)
}

// volatileRoot looks for a root that forgets, as the kernel's command line says: systemd.volatile= (kernel-command-line(7)),
// overlayroot= of cloud-initramfs-tools, live images of Debian and Fedora.
func (g *gatherer) volatileRoot() {
	k := &g.e.Clock.Keeps
	line := g.e.Config.CommandLine
	if line == "" {
		line = g.e.Menu.Command
	}
	for _, w := range strings.Fields(line) {
		name, value, _ := strings.Cut(w, "=")
		switch {
		case name == "systemd.volatile" && !slices.Contains([]string{"no", "0", "false", "off", "n", "f"}, value),
			name == "overlayroot" && strings.HasPrefix(value, "tmpfs"),
			w == "boot=live", name == "rd.live.image", w == "rd.live.overlay.overlayfs=1":
			k.no(&k.Lasts, "the kernel is started with "+w+": changes are kept in memory")
		}
	}
}
