// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"fmt"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

// longAgo is how old a single stall has to be to be told as a note only.
const longAgo = 30 * 24 * time.Hour

// timedOut are the messages of commands that were not answered.
var timedOut = []string{"scsi.waited", "scsi.abort", "nvme.timeout", "nvme.down", "nvme.keepalive"}

// ruleBL06 finds disks whose storage let commands time out.
func ruleBL06() Rule {
	r := Rule{Rule: finding.BL06, Needs: []evidence.Part{evidence.PartLog}, Reach: Upward,
		Guard: "one stall more than thirty days ago is a note",
		Test:  "on the kernel's messages of several versions, and by commands that a kernel lost in a guest"}
	r.Judge = func(e *evidence.Evidence) []Result {
		var out []Result
		told := map[string]bool{}
		for i := range e.Devices {
			d := &e.Devices[i]
			if d.Partition > 0 || d.Driver != "sd" && d.Driver != "nvme" {
				continue
			}
			told[d.Name] = true
			out = append(out, stalls(&r, e, d.Name, d.Timeouts))
		}
		for _, name := range e.Log.Devices(append([]string{"scsi.result"}, timedOut...)...) {
			if !told[name] {
				out = append(out, stalls(&r, e, name, -1)) // a machine that does not run shows no devices
			}
		}
		return out
	}
	return r
}

// stalls judges one disk by its messages and its counter.
func stalls(r *Rule, e *evidence.Evidence, name string, counted int64) Result {
	o := deviceObject(e, name)
	events := e.Log.Of(name, timedOut...)
	for _, ev := range e.Log.Of(name, "scsi.result") {
		if ev.Fields["hostbyte"] == "DID_TIME_OUT" || ev.Fields["hostbyte"] == "DID_TRANSPORT_DISRUPTED" {
			events = append(events, ev)
		}
	}
	if len(events) == 0 {
		if counted <= 0 {
			return pass(o)
		}
		f := found(r, o, 0.5, "counted", fmt.Sprintf("%d commands to %s timed out since it was found, at a time that "+
			"the log does not reach", counted, name), Fact{Source: evidence.Source{
			Path: "/sys/class/block/" + name + "/device/iotmo_cnt"}, Value: fmt.Sprintf("%#x", counted)})
		f.Severity = finding.Note
		return fail(f)
	}
	facts := make([]Fact, len(events))
	times := int64(0)
	for i, ev := range events {
		facts[i] = said(ev)
		times += max(ev.Count, 1)
	}
	f := found(r, o, 0.9, "said", fmt.Sprintf("storage behind %s did not answer: %d messages of commands that timed "+
		"out", name, times), facts...)
	if times == 1 && e.Now.Sub(f.LastSeen) > longAgo {
		return fail(f.over())
	}
	f.Remedies = []Remedy{{Text: "look what the storage behind the disk did at these times, before anything in this " +
		"machine is mended"}, {Text: "see what is hurt", Command: "shisa doctor --verbose"}}
	return fail(f)
}
