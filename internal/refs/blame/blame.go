// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package blame tells who did what to a base image: by what the pool noted of itself, with what the kernel told of
// removals, and by what programs wrote into their logs before they removed it.
package blame

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/logs"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// From is where it is known from that something happened.
type From string

// The sources: the pool's audit, what the kernel told while the pool was watched (it stands in the audit too), and
// the log of a program.
const (
	Audit  From = "audit"
	Kernel From = "kernel"
	Log    From = "log"
)

// Deed is one thing that happened to a base.
type Deed struct {
	Time time.Time `json:"time"`
	// Exact is false where the year or the zone are not in the line, and were found out from elsewhere.
	Exact bool `json:"exact"`
	// Node is the machine on which it happened, "" if nothing tells.
	Node string `json:"node"`
	From From   `json:"from"`
	// Act is as in the audit; of a log "removed", or "not_removed" where the removal failed.
	Act string `json:"act"`
	// Program wrote the line, "" in the audit. Path is the file as it is called there.
	Program string `json:"program"`
	Path    string `json:"path"`
	// Text is what stands there.
	Text string `json:"text"`
	// File and Line are where: the directory of the audits, or the log. Line is 0 in a journal and in the audit.
	File string `json:"file"`
	Line int    `json:"line"`
}

// State is whether a base is in its place.
type State string

// The states; Unknown: it could not be looked at.
const (
	Present State = "present"
	Missing State = "missing"
	Unknown State = "unknown"
)

// Sure is how sure it is who removed a base last.
type Sure string

// Certain: the kernel told of it, or shisa did it. Likely: a program wrote so at that time, of that very path. Possible: another
// path, or other machines cannot be told apart by the time. Nobody: no one is known.
const (
	Certain  Sure = "certain"
	Likely   Sure = "likely"
	Possible Sure = "possible"
	Nobody   Sure = "nobody"
)

// Verdict is who removed a base last.
type Verdict struct {
	Sure Sure `json:"sure"`
	// By is nil where nobody is known. Also are other events that tell of the same.
	By   *Deed  `json:"by"`
	Also []Deed `json:"also"`
	// Why says what makes it so sure, or what is wanting.
	Why string `json:"why"`
}

// History is what is known of one base (schema shisa.base-history/1).
type History struct {
	Bases  string          `json:"bases"`
	Name   string          `json:"name"`
	Path   string          `json:"path"`
	State  State           `json:"state"`
	Events []Deed          `json:"events"`
	Blame  Verdict         `json:"blame"`
	Gaps   []finding.Blind `json:"gaps"`
	Status []int           `json:"status"`
}

// Options say where is looked.
type Options struct {
	// Bases is the directory of the bases, Name the base.
	Bases, Name string
	// Node is the name of this host. Logs are its files, or those that were collected of several machines, below
	// LogDir: what of it comes before their names.
	Node   string
	Logs   tree.Tree
	LogDir string
	// Collected: Logs are of several machines.
	Collected bool
	// Timeout is how long one name is waited for; 0 is ten seconds.
	Timeout time.Duration
	Now     time.Time
}

const (
	// allTime is how far back logs are read.
	allTime = 50 * 365 * 24 * time.Hour
	// maxLogBytes is how much of logs in text is read, unpacked; maxJournalBytes of journals.
	maxLogBytes     = 8 << 30
	maxJournalBytes = 16 << 30
)

// Find tells what is known of one base. Its status is that of the history: 4 where something could not be read. The
// error is that of ctx.
func Find(ctx context.Context, o Options) (*History, error) {
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	h := &History{Bases: o.Bases, Name: o.Name, Path: filepath.Join(o.Bases, o.Name), State: Present,
		Events: []Deed{}, Gaps: []finding.Blind{}, Blame: Verdict{Sure: Nobody, Also: []Deed{}}}
	_, err := diskio.Within(ctx, o.Timeout, func() (diskio.Entry, error) { return diskio.LookEntry(h.Path) }, nil)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
		h.State = Missing
	case err != nil:
		h.State = Unknown
		h.gap(h.Path, err.Error())
	}
	if err := h.audit(ctx, &o); err != nil {
		return nil, err
	}
	if err := h.logs(ctx, &o); err != nil {
		return nil, err
	}
	slices.SortStableFunc(h.Events, func(a, b Deed) int { return a.Time.Compare(b.Time) })
	h.failed()
	h.judge(&o)
	h.Status = h.status()
	return h, nil
}

func (h *History) gap(object, reason string) {
	h.Gaps = append(h.Gaps, finding.Blind{Object: object, Reason: reason, Host: []finding.Range{},
		Guest: []finding.Range{}})
}

func (h *History) status() []int {
	if len(h.Gaps) > 0 {
		return finding.OrderStatus(finding.StatusCannotTell)
	}
	return finding.OrderStatus(finding.StatusClean)
}

// Accuse gives the document the status of a verdict: 3 where the base is gone and it is known who removed it, 4 where
// it is not in its place and nobody is known, and also where something was not read.
func (h *History) Accuse() {
	var all []int
	switch {
	case h.State == Missing && h.Blame.By != nil:
		all = append(all, finding.StatusFound)
	case h.State != Present:
		all = append(all, finding.StatusCannotTell)
	}
	if len(h.Gaps) > 0 && !slices.Contains(all, finding.StatusCannotTell) {
		all = append(all, finding.StatusCannotTell)
	}
	if len(all) == 0 {
		all = append(all, finding.StatusClean)
	}
	h.Status = finding.OrderStatus(all...)
}

// audit takes what the pool noted.
func (h *History) audit(ctx context.Context, o *Options) error {
	all, unread, err := pool.AuditOf(ctx, o.Bases, o.Name, o.Timeout)
	if err != nil {
		return err
	}
	for _, e := range unread {
		h.gap(pool.Path(o.Bases, pool.Audit), e.Error())
	}
	for i := range all {
		e := &all[i]
		v := Deed{Time: e.Time, Exact: true, Node: e.Node, From: Audit, Act: e.Act, Path: e.Path, Text: e.Why,
			File: pool.Path(o.Bases, pool.Audit)}
		if e.Act == actRemoved {
			v.From = Kernel
		}
		h.Events = append(h.Events, v)
	}
	return nil
}

// Acts that matter to who removed a base.
const (
	actRemoved    = "removed"
	actNotRemoved = "not_removed"
)

// logs takes what programs wrote.
func (h *History) logs(ctx context.Context, o *Options) error {
	l, err := logs.Read(ctx, o.Logs, logs.Options{Now: o.Now, Back: allTime, Bytes: maxLogBytes,
		JournalBytes: maxJournalBytes, WholeBytes: maxJournalBytes, Host: o.Node, Collected: o.Collected,
		Want: func(m *logs.Message) bool { return act(m, o.Name) != "" }})
	if err != nil {
		return err
	}
	where := o.LogDir
	if where == "" {
		where = "/var/log"
	}
	for _, g := range l.Gaps {
		h.gap(cmp.Or(o.file(g.Path), where), g.Reason)
	}
	for _, s := range l.Sources {
		if s.Damage != "" {
			h.gap(o.file(s.Path), s.Damage)
		}
	}
	if len(l.Sources) == 0 {
		h.gap(where, "no logs were found")
	}
	for i := range l.Messages {
		m := &l.Messages[i]
		v := Deed{Time: m.Time.UTC(), Exact: m.Exact, Node: m.Host, From: Log, Act: act(m, o.Name), Program: m.Program,
			Path: m.Field("path"), Text: m.Text, File: o.file(m.Path), Line: m.Line}
		if v.Node == "" && !o.Collected {
			v.Node = o.Node
		}
		h.Events = append(h.Events, v)
	}
	return nil
}

// file is the name of a log on this host.
func (o *Options) file(name string) string {
	if name == "" || !strings.HasPrefix(name, "/") {
		return name
	}
	return filepath.Join(o.LogDir, name)
}

// act is what a message says was done to a base, "" if nothing.
func act(m *logs.Message, name string) string {
	if filepath.Base(m.Field("path")) != name {
		return ""
	}
	switch m.Form.Name {
	case "nova.removed":
		return actRemoved
	case "nova.removefail":
		return actNotRemoved
	}
	return ""
}
