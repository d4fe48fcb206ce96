// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package refs tells who needs the base images of a pool: which disks rest on them by what their own
// headers say, wherever they lie and whatever they are called, which processes have them open, which
// configured machines name them, and which machines an export of Nova's database has. It only reads.
//
// A base that nobody is found to need is not thereby unused: whatever could not be read may need it, and is
// a gap. As long as there is one, nothing may be set aside.
package refs

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/nova"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// State is where a base is.
type State string

// The states.
const (
	Live        State = "live"
	Missing     State = "missing"     // somebody needs it, and it is not there
	Quarantined State = "quarantined" // set aside, and can come back
	Claimed     State = "claimed"     // about to be removed for good
	// ByShield: it has no name among the bases any more, and only its shields keep it. Who needs one under a name that it
	// had and that no other file has is told by a base that is Missing, of which it is the shield.
	ByShield State = "kept"
)

// How says by what a use shows.
type How string

// The ways.
const (
	// Header: the header of an image names it.
	Header How = "header"
	// ByName: the header of an image names a file of that name in a directory of that name, which is not
	// there on this host: the image may be another node's.
	ByName How = "name"
	// Open: a process has it open.
	Open How = "open"
	// Writing: a process has it open and may write to it.
	Writing How = "writing"
	// Deleted: a process has it open that was removed since. The process can give it back.
	Deleted How = "deleted"
	// Loop: a loop device was made of it.
	Loop How = "loop"
	// Domain: the description of a machine names it, SavedDomain one that was saved with its memory,
	// SnapshotDomain a snapshot's or checkpoint's.
	Domain         How = "domain"
	SavedDomain    How = "saved"
	SnapshotDomain How = "snapshot"
	// Pin: somebody wants it kept.
	Pin How = "pin"
	// LastReport: another node said so when it spoke last, however long ago that is.
	LastReport How = "last_report"
	// Nova: an export of its database has a machine that was made of it.
	Nova How = "nova"
)

// Reference is one thing that needs a base.
type Reference struct {
	How How `json:"how"`
	// Holder is the image, the process or the description that needs it.
	Holder string `json:"holder"`
	// Machine is the virtual machine that it belongs to, "" if that is not known.
	Machine string `json:"machine"`
	// Node is the node whose it is, "" for one that this host sees itself.
	Node string `json:"node"`
	// Depth is how many images lie between: 1 for one that rests on the base itself. It is 0 for what is no
	// image.
	Depth int `json:"depth"`
	// PID is that of a process, 0 for none; FD is its descriptor for one that was removed.
	PID int `json:"pid"`
	FD  int `json:"fd"`
	// File is what such a descriptor is of, zero for others.
	File diskio.ID `json:"-"`
	// NodeState is "silent" for a node that has not said anything for long, "retired" for one of which a person
	// said that it does not come back; else "".
	NodeState string `json:"node_state"`
	// Since is from when on at the latest the holder needs it, zero if that is not known.
	Since time.Time `json:"since,omitempty"`
	// Said is when another node said so, zero for what this host sees itself.
	Said time.Time `json:"said,omitempty"`
	// As is the name by which the holder knows the base.
	As string `json:"as"`
	// Task is what Nova was doing with the machine, "" for nothing or where that is not known.
	Task string `json:"task"`
}

// Base is an image that others may rest on.
type Base struct {
	Name string `json:"name"`
	// ID is that of its quarantine, "" for one that was not set aside.
	ID string `json:"id"`
	// Path is where it is, or where it should be.
	Path  string    `json:"path"`
	State State     `json:"state"`
	File  diskio.ID `json:"-"`
	// SizeBytes is its length, AllocatedBytes what it takes; 0 if it is missing.
	SizeBytes      int64     `json:"size_bytes"`
	AllocatedBytes int64     `json:"allocated_bytes"`
	Format         string    `json:"format"`
	Modified       time.Time `json:"modified,omitempty"`
	// Changed is when its names or its time were changed last, which nobody can forge; Links is how many names
	// it has.
	Changed time.Time `json:"-"`
	Links   uint64    `json:"-"`
	// Since is when it was set aside, by the clock of the file server, zero if it was not.
	Since time.Time `json:"since,omitempty"`
	// Held is the id under which a base that is missing lies in quarantine, "" if it does not.
	Held string `json:"held"`
	// Shield is the second name by which it can be brought back, "" if it has none.
	Shield string `json:"shield"`
	// Uses are all that need it, in the order of Holder.
	Uses []Reference `json:"uses"`
}

// Looked says how much was looked at.
type Looked struct {
	Files     int64 `json:"files"`
	Images    int64 `json:"images"`
	Overlays  int64 `json:"overlays"`
	Processes int64 `json:"processes"`
	Domains   int64 `json:"domains"`
	Instances int64 `json:"instances"`
}

// Census is who needs what in a pool, at one time.
type Census struct {
	Verdict finding.Verdict `json:"verdict"`
	// Status lists every exit status that applies, the one that is returned first.
	Status []int `json:"status"`
	// Bases is the directory of the bases, Roots where images were looked for.
	Bases string   `json:"bases"`
	Roots []string `json:"roots"`
	// All are the bases, the missing ones too, in the order of their names.
	All []Base `json:"all"`
	// Pool is the UUID of the pool, "" if nothing was ever done in it.
	Pool string `json:"pool"`
	// Kept are the shields that are the last names of their files, and the space that only they take.
	Kept Kept `json:"kept"`
	// Partial are files that are to become bases, or were until a power cut, and the space that they take.
	Partial Kept `json:"partial"`
	// Room is what the file system of the bases has left, nil where that was not asked.
	Room *Room `json:"room"`
	// Hosts are those that Nova's list says use the directory, or did, in the order of their names.
	Hosts []nova.ComputeNode `json:"hosts"`
	// Gaps are all that could not be looked at and might need a base.
	Gaps   []finding.Blind `json:"gaps"`
	Looked Looked          `json:"looked"`
	// Indexed: an index of an earlier census was used, so that Remembered of the headers were not read again. It is good
	// for a look, and not for removing anything. IndexNotes say why there is none, or for what.
	Indexed    bool     `json:"indexed"`
	Remembered int64    `json:"remembered"`
	IndexNotes []string `json:"index_notes"`
	// Instances are the directories of instances that the bases belong to, none for a directory of images.
	Instances []string `json:"-"`
	// Storages are the file systems that the bases and the roots lie on, for who compares them with an earlier look.
	Storages []pool.BaseStorage `json:"-"`

	next    []byte
	nextKey string
}

// Room is how full the file system of the bases is, and when it will be full.
type Room struct {
	// SizeBytes is its size, FreeBytes what is left for others than root.
	SizeBytes int64 `json:"size_bytes"`
	FreeBytes int64 `json:"free_bytes"`
	// Full is when nothing will be left, by the forecast of the doctor, nil if there is none; it is between Early and
	// Late with 95 % certainty. NoForecast says why there is none.
	Full       *time.Time `json:"full"`
	Early      *time.Time `json:"early"`
	Late       *time.Time `json:"late"`
	NoForecast string     `json:"no_forecast"`
	// Wanted: the room will be wanted that only shields keep: it is nearly used up, or will be.
	Wanted bool `json:"wanted"`
}

// nearlyFull is the part of a file system in percent from which the room that only shields keep is wanted.
const nearlyFull = 90

// Nearly tells whether more than 90 % of it are used.
func (r *Room) Nearly() bool {
	return r.SizeBytes > 0 && float64(r.FreeBytes) < float64(r.SizeBytes)*(100-nearlyFull)/100
}

// Kept is what is kept beside the bases: only by shields, or for now.
type Kept struct {
	Files          int64 `json:"files"`
	AllocatedBytes int64 `json:"allocated_bytes"`
	// Oldest is the last change of the one that was not changed for longest, zero for none.
	Oldest time.Time `json:"oldest,omitempty"`
}

// Complete tells whether nothing was left unseen that might need a base.
func (c *Census) Complete() bool { return len(c.Gaps) == 0 }

// Options say where to look.
type Options struct {
	// Pool is what the user names: the directory of instances with one for bases in it, the latter, or a
	// directory of images.
	Pool string
	// BaseName is what the directory of bases is called; "" is Nova's, "_base".
	BaseName string
	// Roots are further directories whose images may rest on the bases.
	Roots []string
	// BaseDirs are further names of the directory of bases, as far as is known: the directory of instances in which such a
	// one lies is looked through, whatever the pool was called. One that is not there is a gap, since the storage of those
	// instances may not be mounted. Those of the host's Nova come on top.
	BaseDirs []string
	// Timeout is how long one name is waited for; 0 is ten seconds.
	Timeout time.Duration
	// Workers is how many directories are read at once; 0 is 16.
	Workers int
	// Host looks at processes and configured machines; nil leaves them out, and is a gap.
	Host *Host
	// Nova are exports of Nova's database (doc/formats/nova-export.md), whose machines are uses too.
	Nova []string
	// Libvirt are directories in which a libvirt keeps descriptions of machines that is not the host's own, as one in a
	// container: each is its /etc/libvirt, its /var/lib/libvirt, or qemu in one of these.
	Libvirt []string
	// ComputeNodes is Nova's list of hosts; "" is that in the directory of instances, where there may be none.
	ComputeNodes string
	// Now tells how old an export is; nil is this host's clock.
	Now func() time.Time
	// Index, if set, gives what Census.Next gave to be kept under a name, nil if nothing was: headers of files that are as
	// they were then are not read again.
	Index func(key string) ([]byte, error)
	// Progress, if set, is told how many files were looked at.
	Progress func(files int64)
}

const (
	defaultTimeout = 10 * time.Second
	defaultWorkers = 16
	novaBase       = "_base"
	// stateDir is where a pool keeps what shisa knows of it. Nova leaves it alone, since it is a directory.
	stateDir = ".shisa"
)

// BasesIn gives the directory of the bases of a pool; the arguments are those of Options.
func BasesIn(ctx context.Context, name, baseName string, timeout time.Duration) (string, error) {
	o := Options{Pool: name, BaseName: baseName, Timeout: cmp.Or(timeout, defaultTimeout)}
	bases, _, _, err := o.layout(ctx)
	return bases, err
}

// Look takes the census of a pool. What could not be read is a gap of it; the error is that of the pool
// itself, or of ctx.
func Look(ctx context.Context, o Options) (*Census, error) {
	o.Timeout = cmp.Or(o.Timeout, defaultTimeout)
	o.Workers = cmp.Or(o.Workers, defaultWorkers)
	bases, roots, plain, err := o.layout(ctx)
	if err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	t := &taking{o: o, c: &Census{Bases: bases, Roots: roots, All: []Base{}, Hosts: []nova.ComputeNode{}, Gaps: []finding.Blind{},
		IndexNotes: []string{}, Storages: []pool.BaseStorage{}},
		plain: plain}
	if err := t.whereabouts(ctx); err != nil {
		return nil, err
	}
	if err := t.instances(ctx); err != nil {
		return nil, err
	}
	if err := t.sweep(ctx); err != nil {
		return nil, err
	}
	t.belong()
	if err := t.mounted(ctx); err != nil {
		return nil, err
	}
	if t.state, err = pool.Read(ctx, bases, o.Timeout); err != nil {
		return nil, err
	}
	if err := t.aside(ctx); err != nil {
		return nil, err
	}
	if err := t.configured(ctx); err != nil {
		return nil, err
	}
	if err := t.follow(ctx); err != nil {
		return nil, err
	}
	if err := t.storages(ctx); err != nil {
		return nil, err
	}
	t.bases()
	if err := t.own(ctx); err != nil {
		return nil, err
	}
	if err := t.processes(ctx); err != nil {
		return nil, err
	}
	if err := t.hosts(ctx); err != nil {
		return nil, err
	}
	if err := t.exported(ctx); err != nil {
		return nil, err
	}
	t.shielded()
	t.order()
	t.c.judge()
	return t.c, nil
}

// judge says how it ended: a base that is needed and missing is a fault, and whatever was not seen may need
// one.
func (c *Census) judge() {
	c.Verdict = finding.Clean
	var status []int
	if !c.Complete() {
		c.Verdict = finding.CannotTell
		status = append(status, finding.StatusCannotTell)
	}
	if slices.ContainsFunc(c.All, func(b Base) bool { return b.State == Missing }) {
		c.Verdict = finding.Found
		status = append(status, finding.StatusFound)
	}
	c.Status = finding.OrderStatus(status...)
}

// Here tells whether a base lies in the directory of the bases, or has to. What the pool keeps under the name of one that is
// missing elsewhere is another file.
func (c *Census) Here(b *Base) bool { return filepath.Dir(b.Path) == c.Bases }

// Only gives the census of the bases of a name, or of a path. What was not seen may need those as well.
func (c *Census) Only(name string) *Census {
	one := *c
	one.All = []Base{}
	for _, b := range c.All {
		if b.Name == name || b.Path == name {
			one.All = append(one.All, b)
		}
	}
	one.judge()
	return &one
}

// Without gives the census without bases that were missing here, and have their names back since.
func (c *Census) Without(restored []string) *Census {
	rest := *c
	rest.All = slices.DeleteFunc(slices.Clone(c.All), func(b Base) bool {
		return b.State == Missing && c.Here(&b) && slices.Contains(restored, b.Name)
	})
	rest.judge()
	return &rest
}

// order puts everything where it belongs, so that the same world gives the same census.
func (t *taking) order() {
	slices.SortFunc(t.c.All, func(a, b Base) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID), strings.Compare(a.Path, b.Path))
	})
	for i := range t.c.All {
		t.c.All[i].Uses = ordered(t.c.All[i].Uses)
	}
	slices.SortFunc(t.c.Gaps, func(a, b finding.Blind) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Reason, b.Reason))
	})
}

// ordered gives uses in their order. There may be a hundred thousand, and one is large: what is moved while they are
// put in order are their numbers, and nothing where they are in it.
func ordered(uses []Reference) []Reference {
	compare := func(i, k int) int {
		a, b := &uses[i], &uses[k]
		if c := a.Depth - b.Depth; c != 0 {
			return c
		}
		if c := strings.Compare(a.Holder, b.Holder); c != 0 {
			return c
		}
		return cmp.Or(strings.Compare(string(a.How), string(b.How)), strings.Compare(a.Machine, b.Machine))
	}
	in := true
	for i := 1; i < len(uses) && in; i++ {
		in = compare(i-1, i) <= 0
	}
	if in {
		return uses
	}
	at := make([]int, len(uses))
	for i := range at {
		at[i] = i
	}
	slices.SortFunc(at, compare)
	all := make([]Reference, len(uses))
	for i, k := range at {
		all[i] = uses[k]
	}
	return all
}

func (t *taking) gap(object, what, reason string) {
	t.c.Gaps = append(t.c.Gaps, blind(object, what, reason))
}
