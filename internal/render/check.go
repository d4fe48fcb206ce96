// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"cmp"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// CheckSchema is the schema of the document of shisa check.
const CheckSchema = "shisa.check/1"

// Check writes a report for people: of one image all that is known, of many a table with the worst
// first, then what is wrong with those that are hurt.
func Check(w io.Writer, r *check.Report, s Style) error {
	o := newOut(w, s)
	if len(r.Images) == 1 {
		o.image(&r.Images[0], true)
		if len(r.Blind) > 0 {
			o.line()
		}
		o.blind(r.Blind, "", true)
		if r.Summary.Skipped+r.Summary.Links > 0 {
			// It was not named itself, so what else is there is worth a line.
			o.line()
			o.verdict(r)
		}
		return o.flush()
	}
	images := worstFirst(r.Images)
	if len(images) > 0 {
		o.imageTable(images)
	}
	o.hurtImages(images)
	o.harmless(images)
	if len(r.Blind) > 0 {
		o.line()
		o.blind(r.Blind, "", true)
	}
	if len(images) > 0 || len(r.Blind) > 0 {
		o.line()
	}
	o.verdict(r)
	return o.flush()
}

// imageState gives the word for an image: its worst finding, else what could not be seen.
func imageState(img *check.Image) state {
	worst := finding.Worst(img.Findings)
	switch {
	case worst.Rank() < finding.Waste.Rank():
		return stateOf(worst)
	case len(img.Blind) > 0, img.Verdict == finding.CannotTell && (img.Checked || img.Format == ""):
		return stateBlind
	case worst == finding.Waste:
		return stateOf(worst)
	case !img.Checked:
		return stateNoCheck
	}
	return stateClean
}

// placeOf gives the place of a state in the order worst first. What was not seen stands before
// waste: it may be lost.
func placeOf(st state) int {
	return slices.Index([]string{"lost", "danger", "warning", "blind", "waste", "nocheck", "clean"},
		st.class)
}

func worstFirst(images []check.Image) []*check.Image {
	sorted := make([]*check.Image, len(images))
	for i := range images {
		sorted[i] = &images[i]
	}
	slices.SortStableFunc(sorted, func(a, b *check.Image) int {
		return cmp.Or(cmp.Compare(placeOf(imageState(a)), placeOf(imageState(b))), cmp.Compare(a.Path, b.Path))
	})
	return sorted
}

// image tells all about one image, with its numbers if they are asked for.
func (o *out) image(img *check.Image, numbers bool) {
	st := imageState(img)
	o.line(o.paint(st.color, st.word), "  ", o.paint(bold, Name(img.Path)))
	o.flow("  ", about(img), ", ")
	if use := inUse(img.Use); use != "" {
		o.prose("  ", use)
	}
	o.prose("  ", verdictOf(img))
	for _, note := range img.Notes {
		o.prose("  ", Text(note))
	}
	if len(img.Findings) > 0 {
		o.line()
		o.findings(img.Findings, "  ")
	}
	o.files(img.Hurt, img.HurtNote)
	if len(img.Blind) > 0 {
		o.line()
		o.blind(img.Blind, "  ", false)
	}
	if numbers && img.Checked && img.Format == "qcow2" {
		o.line()
		o.flow("  ", counts(&img.Counts), ", ")
	}
}

// about gives what an image is: format, sizes, what it rests on.
func about(img *check.Image) []string {
	items := []string{}
	if img.Format != "" {
		items = append(items, Text(img.Format))
	} else {
		items = append(items, "format not known")
	}
	if img.VirtualBytes >= 0 {
		items = append(items, "disk of "+Bytes(img.VirtualBytes))
	}
	if img.FileBytes >= 0 {
		file := "file of " + Bytes(img.FileBytes)
		if img.AllocatedBytes >= 0 && Bytes(img.AllocatedBytes) != Bytes(img.FileBytes) {
			file += " (" + Bytes(img.AllocatedBytes) + " on storage)"
		}
		items = append(items, file)
	}
	if n := len(img.Snapshots); n > 0 {
		items = append(items, Count(int64(n), "internal snapshot", "internal snapshots"))
	}
	if b := img.Backing; b != nil {
		items = append(items, "backing file "+backing(b))
	}
	return items
}

func backing(b *check.Backing) string {
	name := b.Path
	if name == "" {
		name = b.Name
	}
	words := map[check.BackingState]string{
		check.BackingChecked: "checked as well", check.BackingNotFollowed: "not followed",
		check.BackingMissing: "missing", check.BackingUnreadable: "unreadable",
		check.BackingLoop: "a loop", check.BackingTooDeep: "too deep",
	}
	return Name(name) + " (" + cmp.Or(words[b.State], Text(string(b.State))) + ")"
}

// InUse tells who uses an image, "" where nobody does: "in use by machine db, qemu (pid 7), ...".
func InUse(u check.Use) string { return inUse(u) }

// inUse tells who uses an image, "" where nobody does.
func inUse(u check.Use) string {
	var who, readers []string
	for _, h := range u.Holders {
		s := fmt.Sprintf("%s (pid %d)", cmp.Or(program(h), "a process"), h.PID)
		if h.Name != "" {
			s = "machine " + Text(h.Name) + ", " + s
		}
		if h.Writing || u.State != check.UseWrite {
			who = append(who, s)
		} else {
			readers = append(readers, s)
		}
	}
	by := ""
	if len(who) > 0 {
		by = " by " + strings.Join(who, " and ")
	}
	writes, reads := "writes", "reads"
	if len(who) > 1 {
		writes = "write"
	}
	if len(readers) > 1 {
		reads = "read"
	}
	text := ""
	switch u.State {
	case check.UseRead:
		text = "in use" + by + ", not for writing"
	case check.UseWrite:
		text = "in use" + by + ", which " + writes + " to it"
		if by == "" {
			text = "in use: a program writes to it"
		}
		if len(readers) > 0 {
			text += "; " + strings.Join(readers, " and ") + " " + reads + " it"
		}
	case check.UseUnknown:
		text = "whether it is in use could not be told"
	default:
		return ""
	}
	// Who it is says more than how it was noticed.
	if u.Reason != "" && (len(who) == 0 || u.State == check.UseUnknown) {
		text += " (" + Text(u.Reason) + ")"
	}
	if u.Rounds > 1 {
		text += fmt.Sprintf("; examined %d times, only what stayed wrong is reported", u.Rounds)
	}
	return text
}

// program names the program of a process without its directory.
func program(h check.Holder) string {
	if h.Command == "" {
		return ""
	}
	return Text(path.Base(h.Command))
}

// verdictOf says in one sentence how an image stands.
func verdictOf(img *check.Image) string {
	not := ""
	if n := len(img.Blind); n > 0 {
		not = Count(int64(n), "thing", "things") + " could not be looked at"
	}
	switch st := imageState(img); st {
	case stateClean:
		return "no errors were found"
	case stateNoCheck:
		if img.Format == "raw" {
			return "a raw image has no metadata that could be wrong"
		}
		return "format " + Text(img.Format) + " has no check"
	case stateBlind:
		s := "cannot tell: " + cmp.Or(not, "the check did not come to its end")
		if finding.Worst(img.Findings) != finding.Note {
			s += "; what was seen costs space only"
		}
		return s
	case stateOf(finding.Waste):
		return "nothing is hurt; some space is wasted"
	default:
		s := map[string]string{
			"lost":   "guest data is lost, wrong or out of reach",
			"danger": dangerOf(img.Findings),
		}[st.class]
		s = cmp.Or(s, "something is wrong, but no data is at stake")
		if not != "" {
			s += "; " + not
		}
		return s
	}
}

// dangerOf says what the danger is.
func dangerOf(fs []finding.Finding) string {
	const all = "no data is known to be lost"
	switch writes, opens := writesRisked(fs); {
	case writes:
		return all + " yet, but the next write may destroy some"
	case opens:
		return all + ", but qemu refuses to open the image: no machine starts from it"
	}
	return all + ", but qemu refuses to write to the image"
}

// writesRisked tells whether a write of a machine may destroy something, and else whether qemu refuses to open the image, and
// not only to write to it.
func writesRisked(fs []finding.Finding) (writes, unopened bool) {
	for i := range fs {
		switch f := &fs[i]; {
		case f.Severity != finding.Danger:
		case f.Code == finding.QC17.Code && f.Kind == "refused", f.Code == finding.QC01.Code && f.Kind == "no_data_file":
			unopened = true
		case f.Code != finding.QC22.Code:
			writes = true
		}
	}
	return writes, unopened
}

// counts gives the numbers that qemu-img check prints, in its words.
func counts(c *qcow2.Counts) []string {
	percent := func(n, of int64) string {
		if of == 0 {
			return "0.00%"
		}
		return strconv.FormatFloat(float64(n)*100/float64(of), 'f', 2, 64) + "%"
	}
	items := []string{
		Count(c.Corruptions, "corruption", "corruptions"), Count(c.Leaks, "leak", "leaks"),
		Count(c.CheckErrors, "check error", "check errors"),
		fmt.Sprintf("%d of %s allocated (%s)", c.AllocatedClusters,
			Count(c.TotalClusters, "cluster", "clusters"), percent(c.AllocatedClusters, c.TotalClusters)),
		percent(c.FragmentedClusters, c.AllocatedClusters) + " fragmented",
		percent(c.CompressedClusters, c.AllocatedClusters) + " compressed",
	}
	if c.ImageEndOffset > 0 {
		items = append(items, "end of the image at "+Place(c.ImageEndOffset))
	}
	return items
}
