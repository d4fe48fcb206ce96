// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/journal"
	"github.com/shisa-vm/shisa/internal/linux/klog"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// fields are those that are needed of an entry.
var fields = []string{"MESSAGE", "SYSLOG_IDENTIFIER", "_COMM", "_TRANSPORT", "_HOSTNAME", "UNIT",
	"_PID", "_SOURCE_MONOTONIC_TIMESTAMP"}

// identifiers are the programs of which there are forms.
var identifiers = []string{"systemd", "systemd-shutdown", "systemd-journald", "systemd-logind",
	"systemd-timesyncd", "chronyd", "ntpd", "multipathd", "iscsid", "corosync", "pacemakerd", "pacemaker-fenced",
	"pacemaker-controld", "pacemaker-schedulerd", "crmd", "stonith-ng", "pengine", "dlm_controld", "fenced", "sanlock",
	"umount", "mount", "sudo", "watchdog", "dmeventd", "lvm", "nova-compute", "libvirtd", "virtqemud"}

// readJournals reads all journals, those that continue each other as one.
func (r *reader) readJournals(all []file) {
	var series []string // the newest first
	for _, f := range all {
		if !slices.Contains(series, f.series) {
			series = append(series, f.series)
		}
	}
	if r.o.Collected {
		for _, s := range series {
			r.readMachine(s, all, false)
		}
		return
	}
	if id := plainID(r.o.MachineID); len(id) != idDigits && id != "" {
		// It has no number yet, "uninitialized", and got another one at each start.
		for _, s := range slices.Backward(series) {
			r.readMachine(s, all, true)
		}
		return
	}
	own := ""
	for _, s := range series {
		if id, _, _ := strings.Cut(s, "."); id == plainID(r.o.MachineID) {
			own = id
		}
	}
	if own == "" && len(series) > 0 {
		own, _, _ = strings.Cut(series[0], ".") // the machine has got another number since, or none is known
	}
	for _, s := range series {
		id, _, _ := strings.Cut(s, ".")
		r.readMachine(s, all, id == own)
	}
}

// idDigits is how many digits the number of a machine has: machine-id(5).
const idDigits = 32

// opened is a journal that is read.
type opened struct {
	file
	in      tree.File
	journal *journal.File
	source  *Source
}

// readMachine reads the journals of one machine.
func (r *reader) readMachine(series string, all []file, own bool) {
	var open []opened
	defer func() {
		for _, o := range open {
			o.in.Close()
			r.log.Sources = append(r.log.Sources, *o.source)
		}
	}()
	bytes, left := int64(0), 0
	for _, f := range all {
		if f.series != series || r.ctx.Err() != nil {
			continue
		}
		o, ok := r.openJournal(f)
		if !ok {
			continue
		}
		used := o.journal.Header().Bytes
		if used > r.journal {
			left++
			o.in.Close()
			continue
		}
		r.journal -= used
		bytes += used
		open = append(open, o)
	}
	if left > 0 {
		r.gap(series, "%d of its journals were not read: more than %d bytes", left, r.o.JournalBytes)
	}
	if len(open) > 0 {
		r.merge(open, bytes <= r.o.WholeBytes, own)
	}
}

func (r *reader) openJournal(f file) (opened, bool) {
	in, err := r.t.Open(r.ctx, f.path)
	if err != nil {
		r.missedFile(f.path, err)
		return opened{}, false
	}
	j, err := journal.Open(in, in.Size())
	if err != nil {
		r.gap(f.path, "%v", err)
	}
	if err != nil || j.Header().Last.Before(r.since) {
		if err == nil && j.Header().Last.After(r.passed) {
			r.passed = j.Header().Last
		}
		in.Close()
		return opened{}, false
	}
	h := j.Header()
	return opened{f, in, j, &Source{Path: f.path, From: h.First, To: h.Last, Entries: h.Entries,
		Persistent: strings.HasPrefix(f.path, "/var/")}}, true
}

// merge reads the journals of a machine as one stream: all of it, or what the index leads to.
func (r *reader) merge(open []opened, whole, own bool) {
	files := make([]*journal.File, len(open))
	for i := range open {
		files[i] = open[i].journal
	}
	passes := [][]string{nil}
	if !whole {
		var programs, errs []string
		for _, id := range identifiers {
			programs = append(programs, "SYSLOG_IDENTIFIER="+id)
		}
		for p := range 4 {
			errs = append(errs, "PRIORITY="+strconv.Itoa(p))
		}
		passes = [][]string{{"_TRANSPORT=kernel"}, programs, errs}
	}
	for n, match := range passes {
		o := journal.Options{Since: r.since, Fields: fields, Match: match}
		damage, err := journal.Merge(r.ctx, files, o, func(i int, e *journal.Entry) error {
			r.entry(open[i].path, e, own, n == 2)
			return nil
		})
		for i := range damage {
			open[i].source.hurt(damage[i])
		}
		if err != nil && r.ctx.Err() == nil {
			r.gap(open[0].path, "%v", err)
		}
	}
	if own && !whole {
		r.edges(files, open)
	}
}

// hurt tells what is wrong with a journal.
func (s *Source) hurt(d journal.Damage) {
	if d.Lost == 0 && d.Hurt == 0 && d.More == 0 && len(d.Spots) == 0 || s.Damage != "" {
		return
	}
	s.Damage = fmt.Sprintf("%d entries lost, %d hurt", d.Lost, d.Hurt)
	if len(d.Spots) > 0 {
		s.Damage += fmt.Sprintf(", first at 0x%x: %s", d.Spots[0].Offset, d.Spots[0].Why)
	}
}

// written is who wrote an entry, besides what a message keeps of it.
type written struct{ unit, comm, transport, pid string }

// take takes the fields of an entry.
func (m *Message) take(e *journal.Entry) (w written) {
	for i := range e.Fields {
		f := &e.Fields[i]
		if f.Damaged {
			continue
		}
		switch f.Name {
		case "MESSAGE":
			m.Text = string(f.Value)
		case "SYSLOG_IDENTIFIER":
			m.Program = string(f.Value)
		case "_COMM":
			w.comm = string(f.Value)
		case "_TRANSPORT":
			w.transport = string(f.Value)
		case "_HOSTNAME":
			m.Host = string(f.Value)
		case "UNIT":
			w.unit = string(f.Value)
		case "_PID":
			w.pid = string(f.Value)
		case "_SOURCE_MONOTONIC_TIMESTAMP":
			if usec, err := strconv.ParseInt(string(f.Value), 10, 64); err == nil && usec >= 0 && usec < 1<<52 {
				m.since, m.hasSince = time.Duration(usec)*time.Microsecond, true
			}
		}
	}
	if w.transport == "kernel" {
		m.Program = "kernel"
		return w
	}
	m.Program, m.hasSince = cmp.Or(m.Program, w.comm), false
	return w
}

// entry takes one entry. Of the third pass only those that the others did not have.
func (r *reader) entry(path string, e *journal.Entry, own, third bool) {
	m := Message{Time: e.Realtime, Exact: !e.Damaged, Boot: e.Boot.String(), Path: path}
	w := m.take(e)
	if third && klog.Program(m.Program) != "" {
		return
	}
	var b *boot
	if own && !e.Damaged {
		if b = r.track.boot(m.Boot); b != nil {
			r.track.entry(b, e.Realtime, e.Monotonic, path, m.Program)
		}
	}
	if own {
		m.Host = "" // names change; the journal is the machine's
	}
	if r.o.Want != nil && klog.Program(m.Program) == "" && oslo(m.Text) {
		m.Program = "nova" // in a container, whose name it is
	}
	m.Text = clean(m.Program, m.Text)
	if !m.match(r.matcher) || foreign(m.Program, w.pid) {
		return
	}
	if b != nil && marked(m.Form.Name) {
		r.track.mark(b, newMark(&m, w.unit))
	}
	r.keep("journal", m)
}

// foreign tells of a systemd that is not the machine's first process, but a user's: its targets say
// nothing of the machine.
func foreign(program, pid string) bool { return program == "systemd" && pid != "" && pid != "1" }

// edges finds the first and the last entry of each boot where not all were read.
func (r *reader) edges(files []*journal.File, open []opened) {
	for id, b := range r.track.byID {
		for i, f := range files {
			for _, backward := range []bool{false, true} {
				o := journal.Options{Since: r.since, Fields: []string{}, Match: []string{"_BOOT_ID=" + id}, Backward: backward}
				_, err := f.Entries(r.ctx, o, func(e *journal.Entry) error {
					if e.Damaged {
						return nil
					}
					b.Ran = max(b.Ran, e.Monotonic)
					if e.Realtime.Before(b.Began) {
						b.Began = e.Realtime
					}
					if e.Realtime.After(b.Last) {
						b.Last = e.Realtime
					}
					return journal.ErrStop
				})
				if err != nil && r.ctx.Err() == nil {
					r.gap(open[i].path, "%v", err)
				}
			}
		}
	}
}
