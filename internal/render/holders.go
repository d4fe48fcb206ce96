// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/holders"
)

// HoldersSchema is the schema of a holders.Report in JSON.
const HoldersSchema = "shisa.holders/1"

// Holders writes who keeps something busy for people: what keeps the umount from succeeding, what
// stays after it, what was not looked at, and what the kernel's counter says to all that.
func Holders(w io.Writer, r *holders.Report, s Style) error {
	o := newOut(w, s)
	o.holdersHead(r)
	parts := []struct {
		blocks holders.Blocks
		title  string
	}{
		{holders.BlocksUmount, "keeps it from being unmounted:"},
		{holders.BlocksDevice, "uses it:"},
		{holders.BlocksSuperblock, "keeps its file system after that:"},
	}
	if r.Target.Kind != holders.TargetMount {
		parts[2].title = "holds what is mounted of it:"
	}
	for _, p := range parts {
		var of []holders.Holder
		for _, h := range r.Holders {
			if h.Blocks == p.blocks {
				of = append(of, h)
			}
		}
		if len(of) > 0 {
			o.line("")
			o.line(o.paint(bold, p.title))
			o.holderList(r, of)
		}
	}
	o.holdersUnseen(r)
	o.audit(r)
	for _, n := range r.Notes {
		o.prose("note: ", Text(n))
	}
	return o.flush()
}

// holdersHead says what was asked about and the verdict.
func (o *out) holdersHead(r *holders.Report) {
	t := r.Target
	what := Name(t.Path)
	switch {
	case t.Kind == holders.TargetMount && t.Source != "":
		what += " (" + Text(t.Type) + " of " + Name(t.Source) + ")"
	case t.Kind == holders.TargetMount:
		what += " (" + Text(t.Type) + ")"
	}
	if t.Inside != "" {
		o.prose("", Name(t.Inside)+" is no mount point: it is in the mount on "+Name(t.Path))
	}
	word, color, text := "busy", red, ""
	switch r.Verdict {
	case holders.Free:
		word, color, text = "free", green, "nobody holds it"
	case holders.Busy:
		text = "it is in use"
	case holders.BusyPeer:
		text = "a copy of it is in use, to which an umount goes as well"
	case holders.Nested:
		text = "others are mounted on it"
	case holders.Pinned:
		word, color, text = "free", yellow, "it can be unmounted, and its file system stays: the device stays busy"
	case holders.Unknown:
		word, color, text = "CANNOT TELL", magenta, "nobody was found, and somebody may be there"
	}
	o.prose(what+": "+o.paint(color, word)+": ", text)
}

// holderList lists holders, those of one process and kind together.
func (o *out) holderList(r *holders.Report, of []holders.Holder) {
	type group struct {
		first *holders.Holder
		more  int64
	}
	type key struct {
		kind       holders.Kind
		pid, mount int
		device     string
	}
	var all []*group
	at := map[key]*group{}
	for i := range of {
		h := &of[i]
		k := key{h.Kind, h.Process.PID, h.MountID, h.Device}
		if g := at[k]; g != nil && h.Process.PID > 0 && !o.s.All {
			g.more++
			continue
		}
		at[k] = &group{first: h}
		all = append(all, at[k])
	}
	for i, g := range all {
		if i == maxOfAKind && !o.s.All {
			o.line(fmt.Sprintf("  and %s more (--all lists them)", Count(int64(len(all)-i), "line", "lines")))
			break
		}
		o.holder(r, g.first, g.more)
	}
}

// holder is one holder: who, what, and how it is released.
func (o *out) holder(r *holders.Report, h *holders.Holder, more int64) {
	items := words(Who(h.Process))
	items[len(items)-1] += ":"
	items = append(items, words(KindWords(h))...)
	if h.Path != "" {
		items = append(items, Name(h.Path))
	}
	if h.Deleted {
		items = append(items, "(deleted)")
	}
	if more > 0 {
		items = append(items, words(fmt.Sprintf("and %d more", more))...)
	}
	if where := elsewhere(r, h); where != "" {
		items = append(items, words(where)...)
	}
	items[len(items)-1] += ";"
	items = append(items, words(Text(h.Release))...)
	o.flow("  ", items, " ")
}

// elsewhere says which mount is held where it is not the one that was asked about.
func elsewhere(r *holders.Report, h *holders.Holder) string {
	switch {
	case h.SameMount || h.MountID == 0 || r.Target.Kind == holders.TargetImage:
		return ""
	case h.Kind == holders.Bind || h.Kind == holders.Overlay || h.Kind == holders.Detached:
		return ""
	case h.MountNamespace == 0:
		return "(in no namespace)"
	case h.Process.PID > 0 && h.Process.MountNamespace != h.MountNamespace, h.Blocks == holders.BlocksUmount,
		h.Process.PID > 0 && (h.Kind == holders.Namespace || h.Kind == holders.Mounted):
		return fmt.Sprintf("(mount %d in namespace %d)", h.MountID, h.MountNamespace)
	}
	return ""
}

// Who names a process with what it belongs to.
func Who(p holders.Process) string {
	if p.PID == 0 {
		return "the kernel"
	}
	text := fmt.Sprintf("%s (%d", Text(p.Comm), p.PID)
	if p.TID != p.PID && p.TID != 0 {
		text += fmt.Sprintf(", thread %d", p.TID)
	}
	for _, of := range []string{p.Machine, p.Container, p.UserUnit, p.Unit} {
		if of != "" {
			text += ", " + Text(shortID(of))
			break
		}
	}
	return text + ")"
}

// shortID cuts the id of a container as its runtime does.
func shortID(name string) string {
	const short, long = 12, 64
	if i := strings.LastIndexAny(name, ":/-"); len(strings.TrimSuffix(name, ".scope"))-i-1 == long {
		return name[:i+1+short]
	}
	return name
}

// KindWords says in words what a holder does; its path stands behind them.
func KindWords(h *holders.Holder) string {
	device := Text(h.Device)
	switch h.Kind {
	case holders.OpenFD:
		return "open file"
	case holders.OPath:
		return "handle (O_PATH) of"
	case holders.Cwd:
		return "working directory"
	case holders.Root:
		return "root directory"
	case holders.Exe:
		return "program"
	case holders.Mapping:
		return "mapped file"
	case holders.UnixSocket:
		return "unix socket"
	case holders.InFlight:
		return "was sent and did not receive"
	case holders.IOUring:
		return "file of an io_uring"
	case holders.AIO:
		return "file of an asynchronous request"
	case holders.FuseBacking:
		return "file that FUSE reads past its server"
	case holders.SystemCall:
		return "waits in the system call " + Text(h.Syscall) + " on"
	case holders.NestedMount:
		return device + " mounted on"
	case holders.ImageMount:
		return device + " is made of"
	case holders.Loop:
		return device + " is made of"
	case holders.Swap:
		return "swaps to"
	case holders.Uprobe:
		return "probe " + device + " in"
	case holders.BinfmtMisc:
		return "interpreter of " + device
	case holders.Fanotify:
		return "unread event of"
	}
	return mountWords(h, device)
}

func mountWords(h *holders.Holder, device string) string {
	switch h.Kind {
	case holders.Peer:
		if device != "" {
			return "its copy, with " + device + ", on"
		}
		return "its copy on"
	case holders.Bind:
		return "mounted as well on"
	case holders.Namespace:
		return "mounted in another namespace on"
	case holders.Overlay:
		return device + " has the layer"
	case holders.Detached:
		return "mount without a place"
	case holders.Mounted:
		return "mounted on"
	case holders.DeviceHolder:
		return device + " is made of it, as"
	case holders.MD:
		return "array " + device + " is made of"
	case holders.Served:
		return "serves"
	case holders.Lookup:
		return "looks at"
	case holders.Ending:
		return "ends, and had"
	case holders.MountContext:
		return "is about to change or mount it"
	case holders.Frozen:
		return "froze"
	case holders.ImageLock:
		return "somebody unseen has QEMU's locks (" + device + ") on"
	}
	return strings.TrimSpace("in use " + device)
}

// holdersUnseen says what was not looked at.
func (o *out) holdersUnseen(r *holders.Report) {
	if r.NotLooked == 0 && len(r.Blind) == 0 {
		return
	}
	o.line("")
	if r.NotLooked > 0 {
		text := Count(int64(r.NotLooked), "protected process", "protected processes")
		if r.Audit.Read && r.Audit.Unexplained == 0 {
			text += "; by the kernel's count they hold nothing else"
		}
		o.prose("not looked at: ", text)
	}
	for i, b := range r.Blind {
		if i == maxOfAKind && !o.s.All {
			o.line(fmt.Sprintf("  and %d more (--all lists them)", len(r.Blind)-i))
			break
		}
		o.prose("not looked at: ", Text(b.What)+" of "+Name(b.Object)+": "+Text(b.Reason))
	}
}

// audit says what the kernel counts.
func (o *out) audit(r *holders.Report) {
	a := r.Audit
	if r.Target.Kind != holders.TargetMount {
		return
	}
	o.line("")
	if !a.Read {
		o.prose("audit: ", "the kernel's own count could not be read, so more may be there than was found: "+
			Text(a.Reason))
		return
	}
	text := fmt.Sprintf("the kernel counts %s, %d explained",
		Count(a.Count-a.Baseline-a.Own, "reference", "references"), a.Explained)
	switch {
	case a.Unexplained == 0:
		text += ": nobody is missing"
	case a.Unexplained < 0:
		text += ": some were dropped while we looked"
	default:
		text += ": " + o.paint(magenta, Count(a.Unexplained, "reference", "references")+" unexplained")
	}
	if a.Changed {
		text += "; the count moved at each look"
	}
	o.prose("audit: ", text)
	if a.Unexplained > 0 {
		for _, h := range a.Hints {
			o.prose("  may be ", Text(h))
		}
	}
}

// words splits a text of ours at its blanks.
func words(text string) []string { return slices.Collect(strings.FieldsSeq(text)) }
