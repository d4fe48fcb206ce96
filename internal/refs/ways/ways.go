// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package ways tells how a base that is needed and missing can be brought back, and proves of each candidate that it
// is that base. It only reads.
package ways

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// How a base can be had.
type How string

// The ways, the best first.
const (
	// Quarantine: the very file was set aside.
	Quarantine How = "quarantine"
	// Shield: the very file has another name.
	Shield How = "shield"
	// Renamed: this client of NFS keeps the very file as .nfsXXXX, since something still has it open here.
	Renamed How = "nfs"
	// Descriptor: a process still has the very file open.
	Descriptor How = "descriptor"
	// Candidate: another file may be the same.
	Candidate How = "candidate"
	// Image: it was made of an image that the image service still has.
	Image How = "image"
	// Make: it held nothing that a program could not make again.
	Make How = "make"
)

// Proof is how sure a way is.
type Proof string

// The proofs.
const (
	// SameFile: it is the same inode.
	SameFile Proof = "same_file"
	// SameDigest: it has the SHA-256 that was recorded of the base.
	SameDigest Proof = "same_digest"
	// SameImage: Nova called it by the id of the image, which is whole by the digest that the image service has.
	SameImage Proof = "same_image"
	// SameBlocks: the images on top of it hold pieces of it, and of no other candidate as many.
	SameBlocks Proof = "same_blocks"
	// Unproved: nothing tells for or against it.
	Unproved Proof = "unproved"
	// Refuted: it is another file.
	Refuted Proof = "refuted"
)

// Way is one way to bring a base back.
type Way struct {
	How   How    `json:"how"`
	Proof Proof  `json:"proof"`
	Path  string `json:"path"`
	// PID is that of the process, 0 for other ways.
	PID int `json:"pid"`
	// Share is how much of the images on top of the base is found in a candidate.
	Share Share `json:"share"`
	// Volumes says whether the file systems in a candidate are those that the images on top of the base know.
	Volumes Volumes `json:"volumes"`
	// Why says in words what the proof is, or what speaks against it.
	Why string `json:"why"`

	// File is what the proof is of: by the time that it is copied the name may be another file's.
	File diskio.ID `json:"-"`

	// SHA256 is the digest of what the proof is of, in hexadecimal, "" where none was needed.
	SHA256 string `json:"-"`
}

// Missing is a base that is needed and not there.
type Missing struct {
	Name string `json:"name"`
	Path string `json:"path"`
	// Format is the one that was recorded, or that the images on top of it say it has; "raw" where neither does, as
	// Nova makes them.
	Format   string           `json:"format"`
	NeededBy []refs.Reference `json:"needed_by"`
	// Ways are how it can be brought back, the best first.
	Ways []Way `json:"ways"`
}

// Report is the result for a pool (schema shisa.base-missing/1).
type Report struct {
	Bases   string    `json:"bases"`
	Missing []Missing `json:"missing"`
	// Gaps are what could not be looked at: of the pool, and of the candidates.
	Gaps   []finding.Blind `json:"gaps"`
	Status []int           `json:"status"`
}

// Options say where candidates are looked for.
type Options struct {
	// From are directories of other files that may be the base, such as the cache of another node, and files.
	From []string
	// Timeout is how long a name is waited for; 0 is ten seconds.
	Timeout time.Duration
	// Progress, if set, is told of the candidate that is read.
	Progress func(what string, done, total int64)
}

const (
	// maxCandidates bounds how many files are read for one base.
	maxCandidates = 256
	// leastShare of the blocks have to be the same, and leadShare times as many as in any other candidate.
	leastShare, leadShare = 0.5, 3
	// maxOverlays is how many images on top of a base are read.
	maxOverlays = 3
)

// Find tells how the missing bases of a census can be brought back. The error is that of ctx.
func Find(ctx context.Context, c *refs.Census, o Options) (*Report, error) {
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	s, err := pool.Read(ctx, c.Bases, o.Timeout)
	if err != nil {
		return nil, err
	}
	r := &Report{Bases: c.Bases, Missing: []Missing{}, Gaps: slices.Clone(c.Gaps)}
	f := &finder{o: o, r: r, s: s}
	if err := f.candidates(ctx); err != nil {
		return nil, err
	}
	for i := range c.All {
		b := &c.All[i]
		if b.State != refs.Missing {
			continue
		}
		m := Missing{Name: b.Name, Path: b.Path, NeededBy: b.Uses, Ways: []Way{}}
		if m.Format, err = f.format(ctx, &m); err != nil {
			return nil, err
		}
		if err := f.ways(ctx, &m); err != nil {
			return nil, err
		}
		r.Missing = append(r.Missing, m)
	}
	var status []int
	if len(r.Missing) > 0 {
		status = append(status, finding.StatusFound)
	}
	if len(r.Gaps) > 0 {
		status = append(status, finding.StatusCannotTell)
	}
	r.Status = finding.OrderStatus(status...)
	return r, nil
}

type finder struct {
	o Options
	r *Report
	s *pool.State
	// files are what may be a base, with its length.
	files []file
}

func (f *finder) gap(object, what string, err error) {
	f.r.Gaps = append(f.r.Gaps, finding.Blind{Object: object, What: what, Reason: err.Error(),
		Host: []finding.Range{}, Guest: []finding.Range{}})
}

// ways finds all ways to bring one base back.
func (f *finder) ways(ctx context.Context, m *Missing) error {
	if f.here(m) {
		f.kept(m)
	}
	for i := range m.NeededBy {
		if u := &m.NeededBy[i]; u.How == refs.Deleted && u.PID > 0 {
			m.Ways = append(m.Ways, Way{How: Descriptor, Proof: SameFile, PID: u.PID,
				Path: fmt.Sprintf("/proc/%d/fd/%d", u.PID, u.FD), File: u.File, Why: "the process has the very file open, for as long as it lives"})
		}
	}
	ways, err := f.judge(ctx, m)
	if err != nil {
		return err
	}
	m.Ways = append(m.Ways, ways...)
	if w, ok := remade(m.Name); ok {
		m.Ways = append(m.Ways, w)
	}
	rank(m.Ways)
	return nil
}

// kept adds the files that had the name of a base and are kept. Where several did, each was the very file at some time, and
// the images may have been made on any.
func (f *finder) kept(m *Missing) {
	all := f.s.Formers(m.Name)
	one := f.s.OneContent(all)
	add := func(how How, path string, file diskio.ID, why string) {
		w := Way{How: how, Proof: SameFile, Path: path, File: file, Why: why}
		if !one && slices.ContainsFunc(all, func(o pool.Former) bool { return o.File == file }) {
			w.Proof = Unproved
			w.Why = fmt.Sprintf("it is one of %d files that had the name, and nobody knows on which of them the images were made: "+
				"shisa base restore --inode %d gives this one the name", len(all), file.Ino)
		}
		m.Ways = append(m.Ways, w)
	}
	for i := range f.s.Held {
		if h := &f.s.Held[i]; h.Name == m.Name {
			add(Quarantine, h.Path, h.File, "it is the very file, set aside on "+h.Since.Format(time.DateOnly))
		}
	}
	for _, h := range f.s.ShieldsOf(m.Name) {
		aside := slices.ContainsFunc(f.s.Held, func(b pool.Held) bool { return b.File == h.ID })
		if !aside { // what was set aside comes back from there
			add(Shield, h.Path, h.ID, "its shield is the very file")
		}
	}
}

// rank puts the best first: by how sure it is, then what costs least.
func rank(all []Way) {
	proofs := []Proof{SameFile, SameDigest, SameImage, SameBlocks, Unproved, Refuted}
	hows := []How{Quarantine, Shield, Renamed, Descriptor, Candidate, Image, Make}
	for i := range all {
		all[i].Volumes = cmp.Or(all[i].Volumes, VolumesUnknown)
	}
	slices.SortStableFunc(all, func(a, b Way) int {
		return cmp.Or(cmp.Compare(slices.Index(proofs, a.Proof), slices.Index(proofs, b.Proof)),
			cmp.Compare(b.Share.Fraction(), a.Share.Fraction()),
			cmp.Compare(slices.Index(hows, a.How), slices.Index(hows, b.How)))
	})
}

// here tells whether a base is to lie in the pool: what that keeps and recorded under the name of another one is another file.
func (f *finder) here(m *Missing) bool { return filepath.Dir(m.Path) == f.r.Bases }

// recorded is what is known of the files that had the name of a base, the last one first.
func (f *finder) recorded(m *Missing) (all []pool.Object) {
	for _, o := range f.s.Objects {
		if o.Name == m.Name && f.here(m) {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b pool.Object) int { return cmp.Or(b.Seen.Compare(a.Seen), cmp.Compare(a.Inode, b.Inode)) })
	return all
}

// judge proves which of the candidates is the base.
func (f *finder) judge(ctx context.Context, m *Missing) (all []Way, err error) {
	recorded := f.recorded(m)
	for _, c := range f.chosen(m, recorded) {
		w := Way{How: Candidate, Proof: Unproved, Path: c.path, File: c.stat.ID}
		if c.renamed {
			w.How = Renamed
		}
		same, err := f.sameInode(ctx, &c, recorded)
		switch {
		case err != nil:
		case same && slices.ContainsFunc(recorded, func(o pool.Object) bool { return o.SHA256 != recorded[0].SHA256 }):
			w.Why = fmt.Sprintf("it is the inode of one of %d files that were recorded under that name, and not of one content: "+
				"nobody knows on which of them the images were made", len(recorded))
		case same:
			w.Proof, w.Why = SameFile, "it is the inode that was recorded of the base, kept until the last program closes it"
		case len(recorded) > 0:
			err = f.digest(ctx, &c, recorded, &w)
		default:
			err = f.blocks(ctx, &c, m, &w)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			f.gap(c.path, "candidate for "+m.Name, err)
			w.Why = "it could not be read: " + err.Error()
		}
		all = append(all, w)
	}
	decide(all)
	return all, nil
}

// digest holds a candidate against what was recorded of the base.
func (f *finder) digest(ctx context.Context, c *file, recorded []pool.Object, w *Way) error {
	r, err := diskio.Open(c.path)
	if err != nil {
		return err
	}
	defer r.Close()
	got, err := f.sum(ctx, r, c.path)
	if err != nil {
		return err
	}
	w.SHA256 = got
	var is, other *pool.Object
	for i := range recorded {
		if o := &recorded[i]; o.SHA256 == got {
			is = o
		} else {
			other = o
		}
	}
	switch {
	case is == nil:
		w.Proof, w.Why = Refuted, "it does not have the SHA-256 that was recorded of the base"
	case other != nil:
		w.Why = fmt.Sprintf("it has the SHA-256 that was recorded on %s of one file with that name, and of another on %s another one "+
			"was: nobody knows on which of them the images were made", day(is), day(other))
	default:
		w.Proof, w.Why = SameDigest, "it has the SHA-256 that was recorded of the base on "+day(is)
	}
	return nil
}

func day(o *pool.Object) string { return o.Seen.UTC().Format(time.DateOnly) }

// sum is the SHA-256 of a file, in hexadecimal.
func (f *finder) sum(ctx context.Context, r *diskio.File, name string) (string, error) {
	sum := sha256.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < r.Size(); {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := r.ReadAt(buf[:min(int64(len(buf)), r.Size()-off)], off)
		sum.Write(buf[:n])
		off += int64(n)
		if err != nil && !(errors.Is(err, io.EOF) && off == r.Size()) {
			return "", err
		}
		if f.o.Progress != nil {
			f.o.Progress(name, off, r.Size())
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// blocks holds a candidate against the images that rest on the base.
func (f *finder) blocks(ctx context.Context, c *file, m *Missing, w *Way) error {
	chain, err := disk.Open(ctx, c.path, disk.Options{})
	if err != nil {
		return err
	}
	defer chain.Close()
	read := 0
	for i := range m.NeededBy {
		u := &m.NeededBy[i]
		if u.How != refs.Header && u.How != refs.ByName || u.Depth != 1 {
			continue
		}
		v, why, err := volumes(ctx, u.Holder, chain)
		if err != nil {
			return fmt.Errorf("hold its file systems against %s: %w", u.Holder, err)
		}
		if v == VolumesOther {
			w.Volumes, w.Share = v, Share{}
			w.Why = why + ": most likely it is of another disk, or the guest made that anew"
			return nil
		}
		if w.Volumes != VolumesSame {
			w.Volumes = v
		}
		s, err := compare(ctx, u.Holder, chain)
		if err != nil {
			return fmt.Errorf("hold it against %s: %w", u.Holder, err)
		}
		w.Share.Blocks += s.Blocks
		w.Share.Equal += s.Equal
		if read++; read == maxOverlays {
			break
		}
	}
	if w.Share.Fraction() < leastShare {
		return nil
	}
	// Several copies of one file are no rivals.
	r, err := diskio.Open(c.path)
	if err != nil {
		return err
	}
	defer r.Close()
	w.SHA256, err = f.sum(ctx, r, c.path)
	return err
}

// decide names the candidate that the images on top of the base prove, if one does by a clear margin.
func decide(all []Way) {
	for i := range all {
		w := &all[i]
		if w.Proof != Unproved || w.Why != "" {
			continue
		}
		best := 0.0
		for k := range all {
			same := w.SHA256 != "" && all[k].SHA256 == w.SHA256
			if k != i && !same && all[k].Share.Blocks > 0 {
				best = max(best, all[k].Share.Fraction())
			}
		}
		got := w.Share.Fraction()
		switch {
		case !w.Share.Enough():
			w.Why = "only " + finding.Count(w.Share.Blocks, "block", "blocks") + " of the images on top of it can be compared, too few to tell"
		case got >= leastShare && got >= leadShare*best:
			w.Proof = SameBlocks
			w.Why = w.Share.String() + " of the images on top of it are in it; another state of the same disk would look alike"
		case got >= leastShare:
			w.Why = w.Share.String() + " are in it, and of another candidate nearly as many"
		default:
			w.Why = w.Share.String() + " only are in it: too few for a proof, and none against it, since what a guest wrote " +
				"whole holds nothing of its base"
		}
	}
	refute(all)
}

// ErrNotMissing: no base of that name is needed and missing. ErrElsewhere: one is that lies in no directory of the pool, so
// that nothing which is put there would be found.
var (
	ErrNotMissing = errors.New("is not missing")
	ErrElsewhere  = errors.New("is to lie in another directory than the bases of this pool")
)

// missing gives the base of a name that is missing in the pool: ErrNotMissing, ErrElsewhere.
func (r *Report) missing(name string) (*Missing, error) {
	err := fmt.Errorf("%s %w", name, ErrNotMissing)
	for i := range r.Missing {
		switch m := &r.Missing[i]; {
		case m.Name != name:
		case filepath.Dir(m.Path) == r.Bases:
			return m, nil
		default:
			err = fmt.Errorf("%s %w: in %s", name, ErrElsewhere, filepath.Dir(m.Path))
		}
	}
	return nil, err
}

// Proved gives what is known of a candidate for a base: ErrNotMissing, ErrElsewhere.
func (r *Report) Proved(name, candidate string) (Way, error) {
	m, err := r.missing(name)
	if err != nil {
		return Way{}, err
	}
	for _, w := range m.Ways {
		if w.Path == candidate && (w.How == Candidate || w.How == Descriptor || w.How == Renamed) {
			return w, nil
		}
	}
	for _, g := range r.Gaps {
		if g.Object == candidate {
			return Way{}, fmt.Errorf("look at %s: %s", candidate, g.Reason)
		}
	}
	return Way{How: Candidate, Proof: Refuted, Path: candidate, Why: "it does not have the length that was recorded"}, nil
}

// refute says of all other candidates that they are not it, where one is proved.
func refute(all []Way) {
	for i := range all {
		if all[i].Proof != SameBlocks {
			continue
		}
		for k := range all {
			if w := &all[k]; w.Proof == Unproved && w.Share.Enough() && w.SHA256 != all[i].SHA256 {
				w.Proof, w.Why = Refuted, w.Share.String()+" only are in it, and another candidate is proved"
			}
		}
	}
}
