// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/journal"
	"github.com/shisa-vm/shisa/internal/linux/journal/journaltest"
)

// readCommand has the bench read a journal, parseCommand what journalctl exports, from its standard
// input. Both print how much it was, and its digest if an argument says so.
const (
	readCommand  = "read-journal"
	parseCommand = "parse-export"
	withDigest   = "digest"
	onlyCounted  = "count"
)

// How many entries the journals have, what reading one must cost less, and its highest memory.
const (
	journalEntries = 20_000
	journalRatio   = 5
	journalMiB     = 32
)

// ofKernel is the match of kernel messages, a third of the journal.
const ofKernel = "_TRANSPORT=kernel"

// journalRows read journals of every form by our own reader and by journalctl into a parser of what
// it exports, and compare all that they read.
func journalRows() (rows []row) {
	add := func(name string, f journaltest.Form, match string) {
		special := func(ctx context.Context, b *bench, dir string) result {
			res, err := b.journal(ctx, dir, f, match)
			if err != nil {
				res.missing = err.Error()
			}
			return res
		}
		rows = append(rows, row{name: name, special: special})
	}
	for _, f := range journaltest.Forms() {
		add("journal: 20,000 entries, "+f.Name, f, "")
	}
	add("journal: those of the kernel", journaltest.Forms()[0], ofKernel)
	return rows
}

// journal measures both on one file. Where only some entries are wanted, starting a program is what
// takes the time, and no ratio is required.
func (b *bench) journal(ctx context.Context, dir string, f journaltest.Form, match string) (
	res result, err error,
) {
	if dir, err = os.MkdirTemp(dir, "journal-"); err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "x.journal")
	var stream bytes.Buffer
	if err := (journaltest.Stream{N: journalEntries}).Write(&stream); err != nil {
		return res, err
	}
	if err := journaltest.Make(ctx, path, f, &stream); err != nil {
		return res, err
	}
	self, err := os.Executable()
	if err != nil {
		return res, err
	}
	export := []string{"journalctl", "--quiet", "--no-pager", "--output=export", "--file=" + path}
	if match != "" {
		export = append(export, match)
	}
	ours := []string{self, readCommand, path, match, onlyCounted}
	theirs := []string{"/bin/sh", "-c",
		strings.Join(export, " ") + " | " + self + " " + parseCommand + " $0", onlyCounted}
	if err := b.inTurn(ctx, &res, ours, theirs); err != nil {
		return res, err
	}
	if res.ours.memory, err = peakMemory(ctx, ours); err != nil {
		return res, err
	}
	if res.theirs.memory, err = peakMemory(ctx, export); err != nil { // without the parser
		return res, err
	}
	ratio, memory := cpuRatio(journalRatio, 0), memoryUnder(journalMiB)
	ratio.shown, memory.always = match != "", true
	for _, g := range []goal{ratio, memory} {
		res.goals = append(res.goals, outcome{goal: g, got: g.value(res.ours, res.theirs)})
	}
	ours[len(ours)-1], theirs[len(theirs)-1] = withDigest, withDigest
	res.failed, err = sameOutput(ctx, ours, theirs)
	return res, err
}

// inTurn measures both programs, so that both see the same machine.
func (b *bench) inTurn(ctx context.Context, res *result, ours, theirs []string) error {
	var costs [2][]cost
	for range b.runs {
		for i, argv := range [][]string{ours, theirs} {
			c, errs, err := timeRun(ctx, argv)
			if err == nil && c.exit != 0 {
				err = fmt.Errorf("%v: exit status %d: %s", argv, c.exit, errs)
			}
			if err != nil {
				return err
			}
			costs[i] = append(costs[i], c)
		}
	}
	res.ours, res.oursRan = median(costs[0]), true
	res.theirs, res.theirsRan = median(costs[1]), true
	return nil
}

// sameOutput says how the output of two programs differs, "" if it does not.
func sameOutput(ctx context.Context, ours, theirs []string) (string, error) {
	var out [2]string
	for i, argv := range [][]string{ours, theirs} {
		b, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
		if err != nil {
			return "", fmt.Errorf("%v: %w", argv, err)
		}
		out[i] = string(bytes.TrimSpace(b))
	}
	if out[0] != out[1] {
		return fmt.Sprintf("we read %s, journalctl %s", out[0], out[1]), nil
	}
	return "", nil
}

// tally counts what was read.
type tally struct {
	records, bytes int
	digest         *journaltest.Digest // nil for none
}

func newTally(how string) *tally {
	t := &tally{}
	if how == withDigest {
		t.digest = new(journaltest.Digest)
	}
	return t
}

func (t *tally) add(r *journaltest.Record) error {
	t.records++
	for _, f := range r.Fields {
		t.bytes += len(f.Value)
	}
	if t.digest != nil {
		t.digest.Add(r)
	}
	return nil
}

// entry adds what journalctl exports of an entry.
func (t *tally) entry(e *journal.Entry) {
	t.records++
	for i := range e.Fields {
		if e.Fields[i].Name != "_BOOT_ID" { // exported once, and not among the fields
			t.bytes += len(e.Fields[i].Value)
		}
	}
	if t.digest == nil {
		return
	}
	r := journaltest.Record{Realtime: e.Realtime.UnixMicro(), Monotonic: e.Monotonic.Microseconds()}
	r.Cursor = fmt.Sprintf("s=%s;i=%x;b=%s;m=%x;t=%x;x=%x", e.SeqnumID, e.Seqnum, e.Boot, r.Monotonic,
		r.Realtime, e.XorHash)
	for _, f := range e.Fields {
		if f.Name != "_BOOT_ID" {
			r.Fields = append(r.Fields, journaltest.Pair{Name: f.Name, Value: f.Value})
		}
	}
	t.digest.Add(&r)
}

func (t *tally) print(out io.Writer) error {
	_, err := fmt.Fprintf(out, "%d records, %d bytes, %v\n", t.records, t.bytes, t.digest)
	return err
}

// journalStatus is the exit status of the two commands.
func journalStatus(err error, log io.Writer) int {
	if err != nil {
		fmt.Fprintln(log, err)
		return 1
	}
	return 0
}

// parseExport is parseCommand.
func parseExport(how string, in io.Reader, out io.Writer) error {
	t := newTally(how)
	if err := journaltest.Parse(in, t.add); err != nil {
		return err
	}
	return t.print(out)
}

// readJournal is readCommand.
func readJournal(path, match, how string, out io.Writer) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	f, err := journal.Open(file, st.Size())
	if err != nil {
		return err
	}
	var o journal.Options
	if match != "" {
		o.Match = []string{match}
	}
	t := newTally(how)
	damage, err := f.Entries(context.Background(), o, func(e *journal.Entry) error {
		t.entry(e)
		return nil
	})
	if err == nil && !damage.Complete() {
		err = errors.New(damage.String())
	}
	if err != nil {
		return err
	}
	return t.print(out)
}
