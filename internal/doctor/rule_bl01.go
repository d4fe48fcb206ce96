// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// ruleBL01 finds disks that the kernel has taken out of use. A SCSI disk stays offline when its storage
// is back (drivers/scsi/scsi_error.c, scsi_eh_offline_sdevs): somebody has to say that it runs.
func ruleBL01() Rule {
	r := Rule{Rule: finding.BL01, Needs: []evidence.Part{evidence.PartDevices}, Reach: Upward,
		Guard: "a disk that is being taken out on purpose has no mount on it, and is told as a warning only",
		Test:  "on what sysfs and the kernel show of such disks, and by a disk that a kernel gave up in a guest"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		for i := range e.Devices {
			d := &e.Devices[i]
			if d.Partition > 0 || d.Driver != "sd" && d.Driver != "nvme" && d.State == "" {
				continue
			}
			o := deviceObject(e, d.Name)
			switch {
			case d.State == "":
				out = append(out, unknown(o, "its state was not read"))
			case d.State == "running" || d.State == "live" || d.State == "quiesce":
				out = append(out, pass(o))
			default:
				out = append(out, fail(offline(&r, e, d)))
			}
		}
		return out
	}
	return r
}

func offline(r *Rule, e *evidence.Evidence, d *evidence.Device) *Finding {
	facts := []Fact{{Source: evidence.Source{Path: d.From.Path + "/device/state"}, Value: d.State}}
	for _, ev := range e.Log.Of(d.Name, "scsi.offline", "scsi.waited", "nvme.reset", "blk.io") {
		facts = append(facts, said(ev))
	}
	f := found(r, deviceObject(e, d.Name), 0.95, "offline", fmt.Sprintf(
		"the kernel does not use %s any more: its state is %q", d.Name, d.State), facts...)
	switch {
	case d.State == "blocked" || d.State == "transport-offline" || d.State == "quiesced":
		f.Kind, f.Confidence = "blocked", 0.85
		f.Summary = fmt.Sprintf("requests to %s wait: its state is %q", d.Name, d.State)
	case d.State == "cancel" || d.State == "deleted" || d.State == "deleting" || d.State == "created":
		f.Kind, f.Severity, f.Confidence = "going", finding.Warning, 0.6
		f.Summary = fmt.Sprintf("%s is being added or taken out: its state is %q", d.Name, d.State)
	}
	f.ID = idOf(r.Code, f.Kind, f.Object)
	if f.Kind == "going" && !inUse(e, d.Name) {
		return f.over()
	}
	f.Remedies = backInUse(d)
	return f
}

// backInUse is what to do about a disk that is out of use.
func backInUse(d *evidence.Device) []Remedy {
	steps := []Remedy{{Text: "find out why the storage behind the disk stopped to answer, and that it does again; " +
		"until then nothing below helps"}}
	if d.Driver == "sd" {
		file := "/sys/block/" + d.Name + "/device/state"
		steps = append(steps,
			Remedy{Text: "read something of the storage by another way, from another machine or another path"},
			Remedy{Text: "let the kernel use the disk again", Command: "echo running > " + file,
				Undo: "echo offline > " + file,
				Risk: "requests that were kept go out now: on storage that several machines write to, only when this " +
					"machine has not been replaced by another one"})
	}
	return append(steps, Remedy{Text: "what was being written is lost, and its file systems have seen errors: look at " +
		"each of them before it is used again", Command: "shisa doctor --verbose"})
}

// inUse tells whether a mounted file system rests on a device.
func inUse(e *evidence.Evidence, name string) bool {
	names := []string{name}
	for i := 0; i < len(names); i++ {
		for j := range e.Devices {
			d := &e.Devices[j]
			above := slices.Contains(d.On, names[i]) || d.Partition > 0 && d.Disk == names[i]
			if above && !slices.Contains(names, d.Name) {
				names = append(names, d.Name)
			}
		}
	}
	return slices.ContainsFunc(e.FSs, func(f evidence.FS) bool {
		return len(f.Mounts) > 0 && slices.Contains(names, strings.TrimPrefix(f.Device, "/dev/"))
	})
}
