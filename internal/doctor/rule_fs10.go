// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// ruleFS10 finds lines of /etc/fstab by which a machine does not come up: systemd waits 90 seconds for a
// disk and then stops the boot, unless nofail says otherwise (systemd.mount(5), "fstab").
func ruleFS10() Rule {
	r := Rule{Rule: finding.FS10, Needs: []evidence.Part{evidence.PartConfig}, Reach: Local,
		Guard: "x-systemd.automount, noauto and nofail do not stop a boot; disks that were not shown to us are not there " +
			"for us either: named as possible only",
		Test: "on tables of mounts, and on disks of guests with and without what their fstab names"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for _, g := range e.Gaps {
			if g.Part == evidence.PartConfig && g.Object == "/etc/fstab" {
				out = append(out, unknown(hostObject(e), "/etc/fstab: "+g.Reason))
			}
		}
		for i := range e.Config.Fstab {
			f := &e.Config.Fstab[i]
			if !strings.HasPrefix(f.Point, "/") || option(strings.Join(f.Options, ","), "noauto") || !mountsFiles(f) {
				continue
			}
			out = append(out, judgeFstab(&r, e, f))
		}
		return out
	}
	return r
}

func mountsFiles(f *evidence.FstabEntry) bool {
	l := linux.FstabEntry{Point: f.Point, Type: f.Type}
	return l.Files() && !has(f, "bind") && !has(f, "rbind")
}

func has(f *evidence.FstabEntry, option string) bool {
	l := linux.FstabEntry{Options: f.Options}
	return l.Has(option)
}

// system are the directories without which a system does not run: it has to wait for them.
func system() []string { return []string{"/", "/usr", "/var", "/boot", "/boot/efi", "/home", "/etc"} }

func judgeFstab(r *Rule, e *evidence.Evidence, f *evidence.FstabEntry) Result {
	o := Object{Mount, e.Label, f.Point}
	words := []string{f.Source, f.Point, f.Type, strings.Join(f.Options, ",")}
	line := Fact{Source: f.From, Value: strings.Join(words, " ")}
	soft := has(f, "nofail") || has(f, "x-systemd.automount")
	there, known := sourceThere(e, f)
	remote := linux.MayHang(f.Type) != ""
	switch {
	case !there && known && !soft:
		x := found(r, o, 0.75, "absent", fmt.Sprintf("%s is to be mounted from %s, which is not there: the next start stops "+
			"and waits for it", f.Point, f.Source), line)
		if e.Kind == tree.Disk {
			x.Confidence = 0.6
			x.Summary += ", unless it is on a disk that was not looked at"
		}
		x.Remedies = append(noFail(f), Remedy{Text: "or name what is there", Command: "blkid"})
		return fail(x)
	case !there && known:
		x := found(r, o, 0.6, "absent-optional", fmt.Sprintf("%s is to be mounted from %s, which is not there; the machine "+
			"starts without it", f.Point, f.Source), line)
		x.Severity = finding.Note
		return fail(x)
	case soft || slices.Contains(system(), f.Point):
		return pass(o)
	case !known && !remote:
		return unknown(o, "whether "+f.Source+" is there is not known")
	}
	text := fmt.Sprintf("%s stops the start of this machine when %s is not there", f.Point, f.Source)
	if remote {
		text = fmt.Sprintf("%s holds up the start of this machine when its server does not answer: %s", f.Point, f.Source)
	}
	x := found(r, o, 0.7, "no-nofail", text, line)
	x.Severity = finding.Note
	x.Remedies = noFail(f)
	return fail(x)
}

func noFail(f *evidence.FstabEntry) []Remedy {
	options := strings.Join(append(slices.Clone(f.Options), "nofail", "x-systemd.device-timeout=10s"), ",")
	return []Remedy{{Text: fmt.Sprintf("write %s as its options in /etc/fstab, if the machine is of use without it", options),
		Risk: "services that need it have to say so (RequiresMountsFor=), or they start on the empty directory"}}
}

// sourceThere tells whether what an entry names is on the machine; known is false where that cannot be
// told.
func sourceThere(e *evidence.Evidence, f *evidence.FstabEntry) (there, known bool) {
	for i := range e.Mounts {
		if m := &e.Mounts[i]; m.Own && m.Point == f.Point && m.ID != 0 {
			return true, true // it is mounted
		}
	}
	if linux.MayHang(f.Type) != "" {
		return false, false
	}
	name := strings.NewReplacer(`"`, "", "'", "").Replace(f.Source)
	for dir, key := range map[string]string{"by-uuid/": "UUID=", "by-label/": "LABEL=", "by-partuuid/": "PARTUUID=",
		"by-partlabel/": "PARTLABEL="} {
		if rest, is := strings.CutPrefix(name, "/dev/disk/"+dir); is {
			name = key + rest
		}
	}
	key, value, tagged := strings.Cut(name, "=")
	if !tagged || e.IDs == nil {
		return false, false
	}
	for id := range e.IDs {
		k, v, _ := strings.Cut(id, "=")
		if k == strings.ToUpper(key) && (v == value || strings.HasSuffix(k, "UUID") && strings.EqualFold(v, value)) {
			return true, true
		}
	}
	return false, true
}
