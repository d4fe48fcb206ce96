// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux"
)

// pins lists what keeps the file system after the umount: its other mounts, wherever they are.
func (s *scan) pins(ctx context.Context) {
	layers, vague := s.overlays()
	for _, m := range s.mounts {
		if m.Asked || m.Follows || m.kernel.Internal {
			continue
		}
		h := Holder{Kind: Bind, Path: m.Point, FD: -1, Process: s.process(ctx, 0, 0, "")}.on(m)
		switch {
		case m.Namespace == 0:
			if s.heldOn(m) {
				continue // who has it is listed
			}
			h.Kind = Detached
		case s.t.Kind != TargetMount:
			h.Kind, h.Blocks, h.Process = Mounted, BlocksDevice, s.inNamespace(ctx, m.Namespace)
		case m.Namespace != s.own:
			h.Kind = Namespace
			h.Process, h.FD = s.keeper(ctx, m.Namespace)
		}
		s.add(h)
	}
	for _, l := range layers {
		s.add(l)
	}
	n := s.internals()
	if n > 0 && len(layers) == 0 {
		for _, l := range vague {
			s.add(l)
		}
	}
	if n > 0 && len(layers) == 0 && !s.unseenOverlays(ctx) && len(vague) == 0 {
		// Process accounting has one, which ends with the mount.
		s.hidden = true
		s.note(fmt.Sprintf("the kernel keeps %s of the mount for itself, for process accounting or a cache: the device "+
			"may stay busy", copies(n)))
	}
}

func copies(n int) string {
	if n == 1 {
		return "a copy"
	}
	return fmt.Sprintf("%d copies", n)
}

// unseenOverlays lists overlays that no table of mounts has: unmounted lazily, or mounted only in a
// namespace without processes. What their layers are is not shown, so they are listed where the kernel
// has copies of the mount that nothing else explains. It reports whether there is any.
func (s *scan) unseenOverlays(ctx context.Context) bool {
	if s.h.Kernel == nil {
		return false
	}
	supers, err := s.h.Kernel.Supers(ctx, 0)
	if err != nil {
		s.unread("overlays that are not mounted any more", err)
		return false
	}
	known := map[uint64]bool{}
	for _, mounts := range s.tables {
		for _, m := range mounts {
			known[m.Dev] = true
		}
	}
	found := false
	for _, u := range supers {
		if u.Type != "overlay" || known[u.Dev] {
			continue
		}
		found = true
		s.add(Holder{Kind: Overlay, FD: -1, Process: s.process(ctx, 0, 0, ""), Blocks: BlocksSuperblock,
			Device: "an overlay that is not seen mounted"})
		refs, err := s.h.Kernel.References(ctx, u.Addr)
		s.unread("who holds an overlay", err)
		for _, r := range refs {
			s.add(Holder{Kind: Kind(r.Kind), Path: r.Path, Deleted: r.Deleted, FD: r.FD, Blocks: BlocksSuperblock,
				Device: "overlay", Process: s.process(ctx, r.PID, r.TID, r.Comm)})
		}
	}
	return found
}

// internals is how many copies of the mount file systems made for themselves.
func (s *scan) internals() int {
	n := 0
	for _, m := range s.mounts {
		if m.kernel.Internal {
			n++
		}
	}
	return n
}

// heldOn reports whether a holder of the mount is listed.
func (s *scan) heldOn(m Mount) bool {
	return slices.ContainsFunc(s.holders, func(h Holder) bool { return h.MountID == m.ID })
}

// keeper is who keeps a namespace: a process in it, or one with a descriptor of it.
func (s *scan) keeper(ctx context.Context, ns uint64) (Process, int) {
	for _, withFD := range []bool{false, true} {
		for _, r := range s.keepers[ns] {
			if withFD == (r.FD >= 0) && r.PID != s.h.Self {
				return s.process(ctx, r.PID, r.TID, r.Comm), r.FD
			}
		}
	}
	if len(s.tasks.Namespaces[ns]) > 0 {
		return s.inNamespace(ctx, ns), -1
	}
	for _, u := range s.tasks.Uses {
		if u.Kind == linux.UseNamespace && u.Inode == ns {
			return s.process(ctx, u.PID, u.TID, ""), u.FD
		}
	}
	p := s.process(ctx, 0, 0, "")
	text := fmt.Sprintf("mnt:[%d]", ns)
	for _, other := range slices.Sorted(keys(s.tables)) {
		for _, m := range s.tables[other] {
			if m.Type == "nsfs" && m.Root == text {
				s.note(fmt.Sprintf("the mount namespace %d is kept by the mount on %s", ns, m.Point))
			}
		}
	}
	return p, -1
}

// note adds a note once.
func (s *scan) note(text string) {
	if !slices.Contains(s.notes, text) {
		s.notes = append(s.notes, text)
	}
}

// overlays lists the overlays that have a directory of the file system as a layer, each once: their
// options name the directories (Documentation/filesystems/overlayfs.rst). vague are those that may have
// one: a layer that was named from the directory which mount(8) was called in may be anywhere.
func (s *scan) overlays() (layers, vague []Holder) {
	found := map[uint64]bool{}
	maybe := map[uint64]Holder{}
	for _, ns := range slices.Sorted(keys(s.tables)) {
		for _, m := range s.tables[ns] {
			if m.Type != "overlay" || found[m.Dev] {
				continue
			}
			h := Holder{Kind: Overlay, Device: "overlay on " + m.Point, FD: -1,
				Process: Process{Comm: "kernel", Cmdline: []string{}}}
			for _, dir := range layersOf(m.Super) {
				on, ok := s.locate(ns, dir)
				switch {
				case !strings.HasPrefix(dir, "/"):
					h.Path = dir
				case ok && !found[m.Dev]:
					found[m.Dev] = true
					h.Path = dir
					h = h.on(on)
				}
			}
			h.SameMount, h.Blocks = false, BlocksSuperblock // it has a copy of the mount for itself
			switch {
			case found[m.Dev]:
				layers = append(layers, h)
			case h.Path != "":
				h.Device = "perhaps the " + h.Device
				maybe[m.Dev] = h
			}
		}
	}
	for _, dev := range slices.Sorted(keys(maybe)) {
		if !found[dev] {
			vague = append(vague, maybe[dev])
		}
	}
	return layers, vague
}

// layersOf takes the directories out of the options of an overlay: "lowerdir=/a:/b,upperdir=/c" and
// since Linux 6.5 "lowerdir+=/a". A comma or colon in a name has a backslash before it.
func layersOf(options string) []string {
	var out []string
	for _, option := range splitEscaped(options, ',') {
		key, value, _ := strings.Cut(option, "=")
		switch strings.TrimSuffix(key, "+") {
		case "upperdir", "workdir":
			out = append(out, linux.Decode(unescape(value)))
		case "lowerdir", "datadir":
			for _, dir := range splitEscaped(value, ':') {
				if dir != "" {
					out = append(out, linux.Decode(unescape(dir)))
				}
			}
		}
	}
	return out
}

// splitEscaped splits at sep where no backslash stands before it.
func splitEscaped(text string, sep byte) []string {
	var out []string
	begin := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case sep:
			out = append(out, text[begin:i])
			begin = i + 1
		}
	}
	return append(out, text[min(begin, len(text)):])
}

// unescape takes away the backslashes that stand before commas and colons.
func unescape(text string) string {
	return strings.NewReplacer(`\,`, ",", `\:`, ":").Replace(text)
}
