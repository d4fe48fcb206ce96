// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// ReportSchema is the schema of a Report.
const ReportSchema = "shisa.base-report/1"

// Report is what a node said last: which bases it needs, and which it saw in quarantine before it looked.
type Report struct {
	Schema string `json:"schema"`
	// Pool is the UUID of the pool that it is about.
	Pool string `json:"pool"`
	Node string `json:"node"`
	// Machine is as in Member, BootID what the kernel calls this run of the machine.
	Machine string `json:"machine"`
	BootID  string `json:"boot_id"`
	// Seq grows with every report of the node.
	Seq uint64 `json:"seq"`
	// Time is by the clock of the file server that the bases lie on.
	Time time.Time `json:"time"`
	// Observed are the ids in quarantine that it saw before it looked the directory up anew, waited until every
	// launch that may have looked a name up before had written its overlay, and then looked for uses.
	Observed []string `json:"observed"`
	// DrainedSeconds is how long it waited so for the one that it waited for least, by its own clock, 0 for none.
	DrainedSeconds int64 `json:"drained_seconds"`
	// LaunchGraceSeconds is launch_grace of the pool as it was then, by which it waited.
	LaunchGraceSeconds int64 `json:"launch_grace_seconds"`
	// Draining are the ids that it saw and still waits for.
	Draining []Draining `json:"draining"`
	// Complete: everything was read that may need a base. Gaps are what was not, in words.
	Complete bool     `json:"complete"`
	Gaps     []string `json:"gaps"`
	// Files, Images and Overlays are how much was looked at.
	Files    int64 `json:"files"`
	Images   int64 `json:"images"`
	Overlays int64 `json:"overlays"`
	// Storages are the file systems that were looked at.
	Storages []BaseStorage `json:"storages"`
	// Uses are all needs of bases that it saw.
	Uses []Use `json:"uses"`
	// SHA256 is the digest of the document without it.
	SHA256 string `json:"sha256"`
}

// Draining are ids that a node saw in quarantine at one time, and may not yet say so.
type Draining struct {
	Observed []string `json:"observed"`
	// BootID is the run of the machine in which it looked the directory up anew, UpSeconds for how long the machine
	// had run by then, without the time that it slept.
	BootID    string `json:"boot_id"`
	UpSeconds int64  `json:"up_seconds"`
}

// Use is a BaseUse: in this package every use is one of a base.
type Use = BaseUse

// BaseUse is one need of a base.
type BaseUse struct {
	// Name is that of the base in its directory, also of one that lies in quarantine; Inode is its file, 0 for
	// one that is missing.
	Name  string `json:"name"`
	Inode uint64 `json:"inode"`
	// How is by what it shows: see How of internal/refs.
	How string `json:"how"`
	// Holder is the image, the process or the description that needs it, Machine the virtual machine.
	Holder  string `json:"holder"`
	Machine string `json:"machine"`
	// Depth is how many images lie between, 1 for one that rests on the base itself, 0 for what is no image.
	Depth int `json:"depth"`
	// Since is from when on at the latest the holder needs it, the zero time where that is not known.
	Since time.Time `json:"since"`
	// More is how many further uses of this base by the same How are not listed.
	More int64 `json:"more"`
}

// Of tells whether the use is of a base that has a name or an inode: of either, since the name may have gone to
// another file, and the file to another name.
func (u *Use) Of(name string, inode uint64) bool {
	return u.Name == name || u.Inode != 0 && u.Inode == inode
}

// maxGraceSeconds is the longest span that a time.Duration has.
const maxGraceSeconds = int64(math.MaxInt64 / time.Second)

// maxSeq is the highest number of a report: readers of JSON lose digits behind it.
const maxSeq = 1 << 53

// SecondsOf is a span in whole seconds, rounded up: but for the longest ones, whose seconds would be no time.Duration any more.
func SecondsOf(d time.Duration) int64 {
	n := int64(d / time.Second)
	if d%time.Second > 0 && n < maxGraceSeconds {
		n++
	}
	return n
}

// Seen are the ids that the node saw and waited for, where a launch may take so long: none where it waited by less.
func (r *Report) Seen(launchGrace time.Duration) []string {
	if r.LaunchGraceSeconds < SecondsOf(launchGrace) {
		return nil
	}
	return r.Observed
}

// Seen is Report.Seen by launch_grace of the pool as it is now: a person who makes that longer knows of launches that
// take so long, and they may have begun before.
func (s *State) Seen(r *Report) []string {
	if s.Policy == nil {
		return nil
	}
	return r.Seen(time.Duration(s.Policy.LaunchGrace))
}

// Needs tells whether a report names a use of a base.
func (r *Report) Needs(name string, inode uint64) bool {
	return slices.ContainsFunc(r.Uses, func(u Use) bool { return u.Of(name, inode) })
}

// sum is the digest of a report.
func (r Report) sum() (string, error) {
	r.SHA256 = ""
	text, err := json.Marshal(r)
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:]), err
}

// Seal gives the report its digest.
func (r *Report) Seal() (err error) {
	r.SHA256, err = r.sum()
	return err
}

// Text is the document as it is written, with its digest.
func (r *Report) Text() ([]byte, error) {
	if err := r.Seal(); err != nil {
		return nil, err
	}
	return documentText(r)
}

// ParseReport reads a report. The error is ErrPool with the line.
func ParseReport(name string, text []byte) (r Report, err error) {
	if err := strict(text, &r, name); err != nil {
		return r, err
	}
	if err := r.valid(); err != nil {
		return r, fmt.Errorf("%s %w: %w", name, ErrPool, err)
	}
	return r, nil
}

// valid says what is wrong with a report.
func (r *Report) valid() error {
	sum, err := r.sum()
	switch {
	case err != nil:
		return err
	case r.Schema != ReportSchema:
		return fmt.Errorf("its schema is %q, want %q", r.Schema, ReportSchema)
	case r.SHA256 != sum:
		return errors.New("it does not have its digest")
	case !IsUUID(r.Pool):
		return fmt.Errorf("its pool is %q", r.Pool)
	case !IsNode(r.Node):
		return fmt.Errorf("its node is %q", r.Node)
	case r.Machine != "" && !isDigest(r.Machine):
		return fmt.Errorf("its machine is %q", r.Machine)
	case !IsUUID(r.BootID):
		return fmt.Errorf("its boot_id is %q", r.BootID)
	case r.Seq == 0 || r.Seq > maxSeq:
		return fmt.Errorf("its seq is %d", r.Seq)
	case r.LaunchGraceSeconds < 0 || r.LaunchGraceSeconds > maxGraceSeconds:
		return fmt.Errorf("its launch_grace_seconds is %d", r.LaunchGraceSeconds)
	case r.Complete != (len(r.Gaps) == 0):
		return fmt.Errorf("complete is %v with %d gaps", r.Complete, len(r.Gaps))
	}
	return errors.Join(r.ids(), validStorages(r.Storages))
}

// ids tells whether what it names as seen are ids.
func (r *Report) ids() error {
	all := slices.Clone(r.Observed)
	for _, d := range r.Draining {
		if !IsUUID(d.BootID) || d.UpSeconds < 0 {
			return fmt.Errorf("it waits since second %d of boot %q", d.UpSeconds, d.BootID)
		}
		all = append(all, d.Observed...)
	}
	for _, id := range all {
		if !IsID(id) {
			return fmt.Errorf("it names the id %q", id)
		}
	}
	for _, u := range r.Uses {
		if !IsName(u.Name) || u.How == "" {
			return fmt.Errorf("it names a use of %q by %q", u.Name, u.How)
		}
	}
	return nil
}

func (s *State) reports(ctx context.Context, dir string, timeout time.Duration) error {
	return s.ofNodes(ctx, dir, timeout, func(path string, text []byte) (string, func(), error) {
		r, err := ParseReport(path, text)
		if err == nil && s.Policy != nil && r.Pool != s.Policy.UUID {
			err = fmt.Errorf("%s %w: it is about pool %s", path, ErrPool, r.Pool)
		}
		return r.Node, func() { s.Reports = append(s.Reports, r) }, err
	})
}
