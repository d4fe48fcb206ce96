// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/hypervisor"
	"github.com/shisa-vm/shisa/internal/scan"
)

// ScanSchema is the schema of the document of shisa scan.
const ScanSchema = "shisa.scan/1"

// Scan writes the result of a scan for people: the likely cause first, then what else is wrong,
// what was looked at and what was not.
func Scan(w io.Writer, r *scan.Report, s Style) error {
	o := newOut(w, s)
	o.hostCauses(r)
	harmless, notes := []scan.Cause{}, []scan.Cause{}
	n, left := 0, 0
	for _, c := range r.Causes {
		switch {
		case c.Severity == finding.Note:
			notes = append(notes, c)
		case c.Severity.Rank() >= finding.Waste.Rank():
			harmless = append(harmless, c)
		case n == maxOfAKind && !s.All:
			left++
		default:
			n++
			o.cause(n, c, r.Images)
		}
	}
	if left > 0 {
		o.line("... and ", Count(int64(left), "more cause", "more causes"), " (--all lists them)")
		o.line()
	}
	if len(harmless) > 0 {
		o.line(o.paint(dim, wasteTitle(harmless, r.Images)+":"))
		for _, c := range harmless {
			o.prose("  "+Text(c.Code)+"  ", sentence(c.Summary)+o.where(c)+keepWaste(c, r.Images))
		}
		o.line()
	}
	if len(notes) > 0 {
		o.line(o.paint(dim, "worth knowing:"))
		for _, c := range notes {
			o.prose("  "+Text(c.Code)+"  ", strings.Join(names(c.Objects, few), ", ")+": "+Text(c.Summary)+"; "+Text(c.Next))
		}
		o.line()
	}
	o.lookedAt(r)
	o.pools(r.Pools)
	o.blind(r.NotLookedAt, "", true)
	if len(r.NotLookedAt) > 0 {
		o.line()
	}
	text := standing(r.Images, r.Summary, len(r.NotLookedAt))
	if r.Doctor != nil {
		d := &doctorOut{o, diagnose(r.Doctor, "--all")}
		d.unread()
		if s.All {
			d.doubts()
		}
		text += "; " + d.asked(s.All)
	}
	o.prose(o.verdictWord(r.Verdict, r.Images)+"  ", text)
	return o.flush()
}

// hostCauses tells what the doctor found that is not about one image alone: that is told with the image.
func (o *out) hostCauses(r *scan.Report) {
	if r.Doctor == nil {
		return
	}
	own := *r.Doctor
	own.Causes = slices.DeleteFunc(slices.Clone(own.Causes), func(c doctor.Cause) bool {
		return c.Object.Kind == doctor.Image && c.Certainty == doctor.Alone
	})
	d := &doctorOut{o, diagnose(&own, "--all")}
	d.causes()
}

// cause tells one cause with all that hangs on it.
func (o *out) cause(number int, c scan.Cause, images []check.Image) {
	first := strconv.Itoa(number) + ". "
	one := finding.Finding{}
	if len(c.Findings) == 1 {
		one = c.Findings[0]
	}
	o.line(first, o.headOf(c.Severity, c.Certainty, c.Code, c.Name), times(one))
	in := strings.Repeat(" ", len(first))
	o.prose(in, o.paint(bold, sentence(c.Summary)))
	o.names(label(in, "where"), c.Objects)
	o.names(label(in, "affects"), c.Affects)
	o.names(label(in, "machines"), c.Machines)
	o.names(label(in, "files"), hurtPaths(c, images))
	if one.Code != "" {
		o.details(one, in)
	} else if !alike(c.Findings) {
		o.each(c.Findings, in)
	}
	if s := symptoms(c.Symptoms); s != "" {
		o.prose(label(in, "explains"), s)
	}
	if c.Next != "" {
		o.prose(label(in, "next"), Text(c.Next))
	}
	o.line()
}

// hurtPaths gives the guests' files that what a cause found hurts, each behind the name of its image.
func hurtPaths(c scan.Cause, images []check.Image) []string {
	codes := map[string]bool{c.Code: true}
	for _, f := range c.Findings {
		codes[f.Code] = true
	}
	var paths []string
	for i := range images {
		if !slices.Contains(c.Objects, images[i].Path) {
			continue
		}
		for _, x := range images[i].Hurt {
			if len(x.Paths) > 0 && slices.ContainsFunc(x.Codes, func(code string) bool { return codes[code] }) {
				paths = append(paths, filepath.Base(images[i].Path)+":"+x.Paths[0])
			}
		}
	}
	return paths
}

// names lists names of files or machines, at most maxOfAKind.
func (o *out) names(first string, names []string) {
	if len(names) == 0 {
		return
	}
	shown := len(names)
	if !o.s.All {
		shown = min(shown, maxOfAKind)
	}
	items := make([]string, 0, shown+1)
	for _, n := range names[:shown] {
		items = append(items, Name(n))
	}
	if n := len(names) - shown; n > 0 {
		items = append(items, "and "+strconv.Itoa(n)+" more")
	}
	o.flow(first, items, ", ")
}

// alike reports whether all findings say the same, as those about one missing file do.
func alike(fs []finding.Finding) bool {
	for _, f := range fs {
		if f.Summary != fs[0].Summary || len(f.Guest) > 0 {
			return false
		}
	}
	return true
}

// each tells several findings of one cause in a line each.
func (o *out) each(fs []finding.Finding, in string) {
	for i, f := range fs {
		if i == maxOfAKind && !o.s.All {
			o.prose(label(in, ""), "... and "+strconv.Itoa(len(fs)-i)+" more (--all lists them)")
			return
		}
		first := label(in, "")
		if i == 0 {
			first = label(in, "found")
		}
		text := Name(f.Object) + ": " + Text(f.Summary)
		if len(f.Guest) > 0 {
			text += "; guest " + strings.Join(o.ranges(f.Guest, f.GuestCut), ", ")
		}
		o.prose(first, text)
	}
}

// symptoms counts the findings that a cause explains, by rule.
func symptoms(fs []finding.Finding) string {
	codes, count := []string{}, map[string]int64{}
	for _, f := range fs {
		key := Text(f.Code + " " + shortName(f.Name))
		if count[key] == 0 {
			codes = append(codes, key)
		}
		count[key]++
	}
	for i, c := range codes {
		if count[c] > 1 {
			codes[i] = c + " (" + strconv.FormatInt(count[c], 10) + " times)"
		}
	}
	return strings.Join(codes, ", ")
}

// where names the images of a harmless cause, a few of them.
func (o *out) where(c scan.Cause) string {
	if len(c.Objects) == 0 {
		return ""
	}
	n := few
	if o.s.All {
		n = len(c.Objects)
	}
	return ": " + strings.Join(names(c.Objects, n), ", ")
}

// wasteTitle is the heading over what costs space. It is called harmless only if nothing else is
// wrong with any of the images.
func wasteTitle(causes []scan.Cause, images []check.Image) string {
	for _, c := range causes {
		if keepWaste(c, images) != "" {
			return "costs space only"
		}
	}
	return "harmless"
}

// keepWaste warns of freeing what is wasted in images that lost data: it may be that data.
func keepWaste(c scan.Cause, images []check.Image) string {
	hurt := []string{}
	for i := range images {
		class := imageState(&images[i]).class
		if (class == "lost" || class == "danger") && slices.Contains(c.Objects, images[i].Path) {
			hurt = append(hurt, images[i].Path)
		}
	}
	if len(hurt) == 0 {
		return ""
	}
	return "; do not free any in " + strings.Join(names(hurt, few), ", ") +
		" before what stands above is understood"
}

// few is how many names stand in a sentence.
const few = 3

// pools says how the base images stand.
func (o *out) pools(all []scan.PoolStand) {
	if len(all) == 0 {
		return
	}
	o.line("base images:")
	for i, p := range all {
		if i == maxOfAKind && !o.s.All {
			o.line("  ... and ", Count(int64(len(all)-i), "more directory", "more directories"), " (--all lists them)")
			break
		}
		text := poolWords(p)
		if p.Missing > 0 {
			text += ", " + o.paint(red, strconv.FormatInt(p.Missing, 10)+" MISSING")
		}
		o.prose("  ", Name(p.Bases)+": "+text)
	}
	o.line()
}

func poolWords(p scan.PoolStand) string {
	text := Count(p.Count, "base", "bases") + ", " + strconv.FormatInt(p.Needed, 10) + " needed"
	if p.Needed > 0 {
		text += ", " + strconv.FormatInt(p.Needed-p.Unprotected, 10) + " of those with a shield"
	}
	return text
}

// lookedAt says where images were looked for, and which places are not there.
func (o *out) lookedAt(r *scan.Report) {
	if len(r.Paths) > 0 {
		o.names("looked at: ", r.Paths)
		o.line()
		return
	}
	absent := []string{}
	o.line("looked at:")
	n := 0
	for _, p := range r.Places {
		switch {
		case !p.There && p.Error == "":
			absent = append(absent, Name(p.Path))
			continue
		case n >= maxOfAKind && !o.s.All:
			n++
			continue
		}
		n++
		o.prose("  ", place(p))
	}
	if n > maxOfAKind && !o.s.All {
		o.line("  ... and ", strconv.Itoa(n-maxOfAKind), " more places (--all lists them)")
	}
	if len(absent) > 0 {
		o.flow("  not there: ", absent, ", ")
	}
	o.line()
}

func place(p hypervisor.Place) string {
	text := Name(p.Path)
	if p.Why != "" {
		text += " (" + Text(p.Why) + ")"
	}
	if p.Machine != "" {
		text += ", machine " + Text(p.Machine)
	}
	if p.Error != "" {
		text += ": " + Text(p.Error)
	}
	return text
}
