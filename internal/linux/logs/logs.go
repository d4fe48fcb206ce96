// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package logs reads all logs of a machine through a tree of its files: the kernel's ring, journals,
// and logs in text with those that were rotated away. It gives the messages whose form is known, in the
// order of time and each once, and the boots that can be told from them.
//
// What a log does not tell is found out from what stands around it, and marked: the year of a syslog
// from the time of the file's last change and from its neighbours, the zone from the machine's own. What
// was not read is told.
package logs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	pathpkg "path"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/klog"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Bounds of what is read, unless Options say otherwise.
const (
	defaultBack     = 30 * 24 * time.Hour
	defaultBytes    = 256 << 20
	defaultJournals = 1 << 30
	defaultWhole    = 24 << 20
	// maxMessages bounds what is kept, before those that say the same are made one. Where more than half stay
	// then, maxRare of each form are kept still.
	maxMessages = 12_000
	maxRare     = 64
	// maxText is how much is kept of a message, in bytes; the kernel's have less. maxBytes is that of all, twice
	// as much where they are rare.
	maxText  = 2048
	maxBytes = 8 << 20
	// maxFiles is how many files are looked at.
	maxFiles = 4096
)

// Options say what is read. The zero value is the last 30 days, of at most 256 MiB in text and 1 GiB of
// journals.
type Options struct {
	// Now is the present of the tree: nothing can be later, but by the slack of clocks.
	Now time.Time
	// Back is how far before the newest message is read.
	Back time.Duration
	// Bytes is how much is read of all logs in text, unpacked.
	Bytes int64
	// JournalBytes is of how much of journals entries are looked up.
	JournalBytes int64
	// WholeBytes is up to how much of journals is read as a whole; of more only the entries are looked
	// up that may matter.
	WholeBytes int64
	// Host, MachineID, BootID and Booted are of the machine; as far as they are known.
	Host, MachineID, BootID string
	Booted                  time.Time
	// Want, if set, has only those messages kept of which it is true, each with its own time, and neither the
	// kernel's ring nor logins read.
	Want func(*Message) bool
	// Collected: the tree holds logs of several machines, each below a directory with its name or all in one, and
	// every file in it is a log, whatever it is called.
	Collected bool
	// last is the time of the last entry of any log, where those of files are later than all of them.
	last time.Time
}

// Message is one whose form is known.
type Message struct {
	Form    *klog.Form
	Fields  []klog.Field
	Program string // the name under which it was written; "kernel"
	Host    string // as the log names it, "" in what the machine itself keeps
	Text    string
	// Time is UTC. Exact is false where year or zone were found out from elsewhere.
	Time  time.Time
	Exact bool
	// Boot is the boot it belongs to, "" if not known.
	Boot string
	// Path and Line are where it stands; Line is 0 in a journal.
	Path string
	Line int
	// Count is how often it was said, from Time to Last.
	Count int64
	Last  time.Time

	// since is the kernel's own time of it.
	since    time.Duration
	hasSince bool
}

// Field gives the value of a field, "" if there is none.
func (m *Message) Field(name string) string {
	return klog.Match{Fields: m.Fields}.Field(name)
}

// Source is one file, or the kernel's ring.
type Source struct {
	Path     string
	From, To time.Time
	// Entries is how many messages it has, known or not, as far as they were read.
	Entries int64
	// Persistent: it outlives the boot.
	Persistent bool
	// Damage says what could not be read of it.
	Damage string
}

// Gap is a log that was not read, or not all of it.
type Gap struct{ Path, Reason string }

// Log is what all logs of a machine say.
type Log struct {
	Messages []Message
	Sources  []Source
	Boots    []Boot
	Gaps     []Gap
}

// reader reads the logs of one tree.
type reader struct {
	ctx     context.Context
	t       tree.Tree
	o       Options
	matcher *klog.Matcher
	zone    *time.Location
	since   time.Time // what is older is left out
	passed  time.Time // of the last entry of a journal that was left out
	left    int64     // bytes of texts that may still be read
	journal int64     // and of journals
	log     Log
	bytes   int                // of messages that were kept
	crowd   map[*klog.Form]int // how many messages there are of a form, once they are too many
	track   tracker
	seen    seen
	disks   disks
}

// Read reads all logs of a tree. What could not be read is in the Gaps of the log; the error is that of
// ctx.
func Read(ctx context.Context, t tree.Tree, o Options) (*Log, error) {
	if o.Back == 0 {
		o.Back = defaultBack
	}
	if o.Bytes == 0 {
		o.Bytes = defaultBytes
	}
	if o.JournalBytes == 0 {
		o.JournalBytes = defaultJournals
	}
	if o.WholeBytes == 0 {
		o.WholeBytes = defaultWhole
	}
	r := &reader{ctx: ctx, t: t, o: o, matcher: klog.New(), left: o.Bytes, journal: o.JournalBytes, disks: disks{}}
	r.zone = r.localZone()
	journals, texts := r.journals(), r.texts()
	r.since = r.newest(journals, texts).Add(-o.Back)
	r.readJournals(journals)
	if o.Want == nil {
		r.ring() // it has no times of the day, the journal has
	}
	r.readTexts(texts)
	if o.Want != nil {
		return r.wanted(), ctx.Err()
	}
	r.readLogins()
	if last := r.last(); o.last.IsZero() && !last.IsZero() && last.Before(r.since) {
		// A copy that did not keep the times of files: its logs end where their last entries say.
		o.last = last
		return Read(ctx, t, o)
	}
	r.log.Boots = r.track.boots(t.Kind() == tree.Live || t.Kind() == tree.Bundle, o.BootID)
	if r.track.texts.lost {
		r.gap("/var/log", "more than %d messages about units and boots: the oldest were left out", maxMarks)
	}
	r.disks.name(r.log.Messages)
	r.log.Messages = collapse(r.log.Messages, r.disks)
	r.place()
	r.crashes()
	return &r.log, ctx.Err()
}

// gap tells what was not read.
func (r *reader) gap(path, format string, args ...any) {
	r.log.Gaps = append(r.log.Gaps, Gap{path, fmt.Sprintf(format, args...)})
}

// list gives a directory, nothing where there is none, or where a copy does not have it.
func (r *reader) list(dir string) []tree.Entry {
	all, err := r.t.List(r.ctx, dir)
	r.missed(dir, err)
	return all
}

// missedFile tells of an error of a file that is listed: that it was not collected is no reason to pass it over.
func (r *reader) missedFile(path string, err error) {
	if errors.Is(err, tree.ErrNotCollected) {
		r.gap(path, "%v", tree.ErrNotCollected)
		return
	}
	r.missed(path, err)
}

// missed tells of an error, unless there is just nothing.
func (r *reader) missed(path string, err error) {
	switch {
	case err == nil, tree.Missing(err), errors.Is(err, tree.ErrNotCollected):
	case errors.Is(err, fs.ErrPermission):
		// Told once for a directory, which may have hundreds.
		gap := Gap{pathpkg.Dir(path), "has logs that may not be read without more rights"}
		if !slices.Contains(r.log.Gaps, gap) {
			r.log.Gaps = append(r.log.Gaps, gap)
		}
	default:
		if named := new(fs.PathError); errors.As(err, &named) {
			err = named.Err
		}
		r.gap(path, "%v", err)
	}
}

// idle tells of a form that says nothing that matters by itself, or of what a unit or a person does every day.
func idle(f *klog.Form) bool {
	switch f.Name {
	case "machine.session", "machine.sessionend", "machine.sudo":
		return true
	}
	return strings.HasSuffix(f.Name, ".note") || strings.HasPrefix(f.Name, "unit.") && f.Name != "unit.failed"
}

// keep takes a message of a log, unless it says nothing that matters by itself, or another log had it.
func (r *reader) keep(log string, m Message) {
	if r.o.Want != nil {
		r.want(log, m)
		return
	}
	r.disks.learn(&m)
	if idle(m.Form) || r.seen.twice(log, r.hostOf(&m), &m) {
		return
	}
	m.Count, m.Last = 1, m.Time
	if r.crowd == nil && (len(r.log.Messages) >= maxMessages || r.bytes >= maxBytes) {
		r.condense()
	}
	if r.crowd != nil {
		if r.crowd[m.Form]++; r.crowd[m.Form] > maxRare || r.bytes >= 2*maxBytes {
			return
		}
	}
	r.log.Messages = append(r.log.Messages, m)
	r.bytes += m.bytes()
}

// match tells whether the form of a message is known, and keeps it with what it names. A text that is much
// longer than what the kernel says is cut, so that logs of such messages are not kept as a whole.
func (m *Message) match(x *klog.Matcher) bool {
	found, ok := x.Match(m.Program, m.Text)
	if !ok {
		return false
	}
	m.Form, m.Fields = found.Form, found.Fields
	if len(m.Program)+len(m.Host)+len(m.Text) <= maxText {
		return true
	}
	m.Program, m.Host = cut(m.Program, maxText/4), cut(m.Host, maxText/4)
	m.Text = cut(m.Text, maxText)
	for i := range m.Fields {
		m.Fields[i].Value = strings.Clone(m.Fields[i].Value)
	}
	return true
}

// cut gives a copy of a text, of its first n bytes if it has more.
func cut(s string, n int) string {
	if len(s) <= n {
		return strings.Clone(s)
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// bytes is about how much of memory a message takes besides its own size.
func (m *Message) bytes() int {
	n := len(m.Program) + len(m.Host) + len(m.Text)
	if n < maxText {
		return n // the fields are parts of it
	}
	for i := range m.Fields {
		n += len(m.Fields[i].Value)
	}
	return n
}

// condense makes one of messages that say the same. Where many stay, only those whose form is rare are kept
// from then on.
func (r *reader) condense() {
	r.log.Messages = collapse(r.log.Messages, r.disks)
	r.bytes = 0
	for i := range r.log.Messages {
		r.bytes += r.log.Messages[i].bytes()
	}
	if len(r.log.Messages) <= maxMessages/2 && r.bytes <= maxBytes/2 {
		return
	}
	r.crowd = map[*klog.Form]int{}
	for i := range r.log.Messages {
		r.crowd[r.log.Messages[i].Form]++
	}
	r.gap("", "more than %d messages about storage that differ: of those that are frequent the others were left out",
		len(r.log.Messages))
}

// place tells for messages without a boot which one they belong to.
func (r *reader) place() {
	for i := range r.log.Messages {
		m := &r.log.Messages[i]
		for j := range r.log.Boots {
			b := &r.log.Boots[j]
			if m.Boot == "" && m.Exact && b.ID != "" && !m.Time.Before(b.Began) && !m.Time.After(b.Last) {
				m.Boot = b.ID
			}
		}
	}
}

// crashes tells of boots that a panic ended which only the firmware's memory kept: no log on a disk has
// it. What is there was taken over at the next start.
func (r *reader) crashes() {
	for i := range r.log.Messages {
		m := &r.log.Messages[i]
		if m.Form.Name != "kernel.panic" || !pstored(m.Path) {
			continue
		}
		for j := range r.log.Boots {
			b := &r.log.Boots[j]
			next := j+1 < len(r.log.Boots) && m.Time.After(r.log.Boots[j+1].Began.Add(later))
			if b.End == "cut" && !m.Time.Before(b.Last) && !next && m.Time.Sub(b.Last) < 24*time.Hour {
				b.End = "panic"
			}
		}
	}
}

// localZone gives the zone of the machine, UTC if it does not say one.
func (r *reader) localZone() *time.Location {
	if b, err := r.t.Read(r.ctx, "/etc/localtime", 1<<16); err == nil {
		if zone, err := time.LoadLocationFromTZData("", b); err == nil {
			return zone
		}
	}
	return time.UTC
}

// last is the time of the last entry of all logs, those too that were left out for their age.
func (r *reader) last() time.Time {
	last := r.passed
	for _, s := range r.log.Sources {
		if s.To.After(last) {
			last = s.To
		}
	}
	return last
}

// newest is the time of the last change of any log, no later than the present.
func (r *reader) newest(journals, texts []file) time.Time {
	last := r.o.last
	if !last.IsZero() {
		return last
	}
	for _, f := range append(append([]file{}, journals...), texts...) {
		if f.mtime.After(last) {
			last = f.mtime
		}
	}
	if last.IsZero() || !r.o.Now.IsZero() && last.After(r.o.Now) {
		return r.o.Now
	}
	return last
}
