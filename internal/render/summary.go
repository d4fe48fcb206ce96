// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
)

// imageTable lists the images worst first, at most maxOfAKind in one state. Where there are more
// than that in all, those that are well are only counted.
func (o *out) imageTable(images []*check.Image) {
	rows, colors := [][]string{}, []string{}
	for i := 0; i < len(images); {
		st, n := imageState(images[i]), 1
		for i+n < len(images) && imageState(images[i+n]) == st {
			n++
		}
		shown := n
		if !o.s.All {
			shown = min(n, maxOfAKind)
			if st == stateClean && len(images) > maxOfAKind && len(rows) > 0 {
				shown = 0
			}
		}
		for _, img := range images[i : i+shown] {
			rows = append(rows, []string{st.word, worstOf(img), known(img.VirtualBytes),
				known(img.AllocatedBytes), user(img.Use), Name(img.Path)})
			colors = append(colors, st.color)
		}
		switch {
		case shown == 0:
			rows = append(rows, []string{st.word, "", "", "", "", strconv.Itoa(n) + " images (--all lists them)"})
			colors = append(colors, st.color)
		case shown < n:
			rows = append(rows, []string{st.word, "", "", "", "", "... and " + strconv.Itoa(n-shown) +
				" more (--all lists them)"})
			colors = append(colors, st.color)
		}
		i += n
	}
	head := []string{"STATE", "WHAT", "DISK", "STORAGE", "IN USE", "IMAGE"}
	o.table(head, rows, colors, []string{"STORAGE", "DISK", "IN USE", "WHAT"})
}

func known(n int64) string {
	if n < 0 {
		return "?"
	}
	return Bytes(n)
}

// worstOf names the finding that counts, and how many more there are.
func worstOf(img *check.Image) string {
	fs := slices.DeleteFunc(causesFirst(img.Findings), func(f finding.Finding) bool {
		return f.Severity == finding.Note
	})
	more := ""
	if n := len(fs) - 1; n > 0 {
		more = " +" + strconv.Itoa(n)
	}
	switch {
	case len(fs) > 0:
		return Text(fs[0].Code+" "+shortName(fs[0].Name)) + more
	case len(img.Blind) > 0 && img.Blind[0].What == "image":
		return cutTo(Text(img.Blind[0].Reason), maxReason)
	case len(img.Blind) > 0:
		return cutTo(Text(img.Blind[0].What), maxReason)
	case !img.Checked:
		return Text(img.Format)
	}
	return ""
}

// maxReason is how many columns of a table a reason takes.
const maxReason = 32

// shortName leaves out the format, which the code tells already.
func shortName(name string) string {
	return strings.TrimPrefix(name, "qcow2-")
}

// user names the machine or program that has an image open.
func user(u check.Use) string {
	for _, h := range u.Holders {
		if h.Writing || u.State != check.UseWrite {
			return cmp.Or(Text(h.Name), program(h), "pid "+strconv.Itoa(h.PID))
		}
	}
	switch u.State {
	case check.UseRead:
		return "read"
	case check.UseWrite:
		return "written"
	case check.UseUnknown:
		return "?"
	}
	return ""
}

// hurtImages tells all about each image that is not well, as far as a screen or two allow.
func (o *out) hurtImages(images []*check.Image) {
	hurt := slices.DeleteFunc(slices.Clone(images), func(img *check.Image) bool {
		class := imageState(img).class
		return !o.s.All && (class == "waste" || class == "clean" || class == "nocheck")
	})
	for i, img := range hurt {
		o.line()
		if i == maxOfAKind && !o.s.All {
			o.prose("", "... and "+Count(int64(len(hurt)-i), "more image is", "more images are")+
				" not well (--all tells about each; shisa check IMAGE about one)")
			return
		}
		o.image(img, o.s.All)
	}
}

// harmless says once, of all images that nothing else is wrong with, what space they waste.
func (o *out) harmless(images []*check.Image) {
	n, clusters, size := int64(0), int64(0), int64(0)
	for _, img := range images {
		if imageState(img).class == "waste" {
			n, clusters = n+1, clusters+img.Counts.Leaks
			size += img.Counts.Leaks * img.ClusterBytes
		}
	}
	if n == 0 || o.s.All {
		return
	}
	o.line()
	o.prose("", "Harmless: "+Count(n, "image has", "images have")+" "+
		Count(clusters, "leaked cluster", "leaked clusters")+" ("+Bytes(size)+
		"). That costs space only; it is not why a machine hangs or does not start.")
}

// verdict is the last line: how it all stands.
func (o *out) verdict(r *check.Report) {
	o.prose(o.verdictWord(r.Verdict, r.Images)+"  ", standing(r.Images, r.Summary, len(r.Blind)))
}

// standing counts images by how they stand.
func standing(images []check.Image, sum check.Summary, blind int) string {
	by := map[string]int64{}
	for i := range images {
		by[imageState(&images[i]).class]++
	}
	items := []string{}
	for _, c := range []struct{ class, one, many string }{
		{"lost", "has lost data", "have lost data"},
		{"danger", "is in danger", "are in danger"},
		{"warning", "has a warning", "have a warning"},
		{"blind", "could not be told", "could not be told"},
		{"waste", "wastes space only", "waste space only"},
		{"clean", "is clean", "are clean"},
		{"nocheck", "has no check", "have no check"},
	} {
		if n := by[c.class]; n > 0 {
			items = append(items, Count(n, c.one, c.many))
		}
	}
	text := Count(int64(len(images)), "image", "images")
	if len(images) == 0 {
		text = "no disk images were found"
	}
	if len(items) > 0 {
		text += ": " + strings.Join(items, ", ")
	}
	if sum.Skipped > 0 {
		text += "; " + Count(sum.Skipped, "other file is no disk image", "other files are no disk images")
	}
	if sum.Links > 0 {
		text += "; " + Count(sum.Links, "symbolic link was", "symbolic links were") + " not followed"
	}
	if blind > 0 {
		text += "; " + Count(int64(blind), "thing was", "things were") + " not looked at"
	}
	return text
}

// verdictWord gives the verdict in colour.
func (o *out) verdictWord(v finding.Verdict, images []check.Image) string {
	switch v {
	case finding.Found:
		color := amber
		for i := range images {
			if c := imageState(&images[i]).class; c == "lost" || c == "danger" {
				color = red
			}
		}
		return o.paint(color, "FOUND")
	case finding.CannotTell:
		return o.paint(magenta, "CANNOT TELL")
	}
	return o.paint(green, "CLEAN")
}
