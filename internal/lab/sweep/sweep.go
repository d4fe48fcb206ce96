// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package sweep has a program repair broken images on a disk whose power is cut at every change,
// and judges what each cut may leave: with qemu-img, and by the guest's bytes. It knows nothing of
// how the program writes, so it holds shisa and qemu-img against the same measure.
package sweep

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/cutfs"
)

// Tool is a program that repairs.
type Tool struct {
	// Repair is the command line that mends the image of a case, nil where it cannot.
	Repair func(c Case, dir string) []string
	// Recover is the command line that is run once the power is back, nil for none.
	Recover func(dir string) []string
	// RecoverExits are the exit statuses that it may have.
	RecoverExits []int
	// Undo is the command line that takes a repair back, nil for none. It is swept as the repair is.
	Undo func(dir string) []string
}

// Options bound a sweep.
type Options struct {
	// Cuts is at how many changes the power is cut, evenly spread; 0 means at every one.
	Cuts int
	// Seeds is how many random subsets of what was not synced are tried for each cut.
	Seeds int
	// Again cuts the power again in the midst of each recovery, so many times.
	Again int
}

// Table is what the sweep of one case came to.
type Table struct {
	// Exit is the status of a repair without a cut, Changes how many changing calls it made, Output
	// what it said.
	Exit, Changes int
	Output        string
	// Start is the broken image, End the repaired one without a cut.
	Start, End State
	// States counts the ends of cuts: each cut with each mode. Each is one of the next four.
	States, Clean, Fewer, Same, More int
	// Lost counts states in which less can be read than at the start, or bytes of the guest are in
	// the file no more.
	Lost int
	// Between counts states whose bytes are neither those before the repair nor those after it,
	// though the tool recovers.
	Between int
	// Failed counts recoveries that failed, False the runs that claimed success though the power was
	// cut.
	Failed, False int
	// Unfenced counts states in which, before the recovery, the image is half done and its header does
	// not keep others from writing to it (the corrupt bit, which only version 3 has).
	Unfenced int
	// NotUndone: taking the repair back did not give the bytes before it.
	NotUndone bool
	// Bad describes the first few of the bad states.
	Bad []string
}

// Worse counts the states that are worse than the start.
func (t *Table) Worse() int { return t.More + t.Lost }

func (t *Table) String() string {
	s := fmt.Sprintf("%d states: %d clean, %d better, %d the same, %d with more errors, "+
		"%d with less data", t.States, t.Clean, t.Fewer, t.Same, t.More, t.Lost)
	if t.Between > 0 {
		s += fmt.Sprintf("; %d neither as before nor as after", t.Between)
	}
	if t.Failed > 0 {
		s += fmt.Sprintf("; %d not recovered", t.Failed)
	}
	if t.Unfenced > 0 {
		s += fmt.Sprintf("; %d half done without a fence", t.Unfenced)
	}
	if t.False > 0 {
		s += fmt.Sprintf("; %d runs claimed success", t.False)
	}
	if t.NotUndone {
		s += "; not undone"
	}
	return s
}

// maxBad is how many bad states are described.
const maxBad = 5

// runLimit is how long one run of a program may take before it counts as hanging.
const runLimit = 2 * time.Minute

// sweep is the sweep of one case with one tool.
type sweep struct {
	tool  Tool
	c     Case
	o     Options
	judge *judge
	mount string
	start *cutfs.Tree
	table Table
	// before and after are the digests of the image.
	before, after string
}

// Run sweeps a case. dir is an empty directory for its files, which stay there. The error is
// cutfs.ErrUnavailable where nothing can be mounted.
func Run(ctx context.Context, dir string, c Case, tool Tool, o Options) (*Table, error) {
	s := &sweep{tool: tool, c: c, o: o, mount: filepath.Join(dir, "disk")}
	if err := s.run(ctx, dir); err != nil {
		return nil, fmt.Errorf("sweep %s: %w", c.Name, err)
	}
	return &s.table, nil
}

func (s *sweep) run(ctx context.Context, dir string) error {
	world := filepath.Join(dir, "world")
	if err := errors.Join(os.Mkdir(world, 0o755), os.Mkdir(s.mount, 0o755)); err != nil {
		return err
	}
	var err error
	if s.judge, err = s.c.make(ctx, world, dir); err != nil {
		return err
	}
	if s.start, err = cutfs.Load(world); err != nil {
		return err
	}
	s.before = s.start.Digest(imageName)
	if s.table.Start, err = s.judge.state(ctx, s.start, imageName); err != nil {
		return err
	}
	repair := step{name: "repair", from: s.start, argv: s.tool.Repair(s.c, s.mount)}
	whole, err := s.onDisk(ctx, repair, 0)
	if err != nil {
		return err
	}
	s.table.Exit, s.table.Changes, s.table.Output = whole.exit, whole.changes, whole.output
	if s.table.End, err = s.judge.state(ctx, whole.now, s.c.result()); err != nil {
		return err
	}
	s.after = whole.now.Digest(imageName)
	err = s.cuts(ctx, repair, whole.changes)
	if err != nil || s.tool.Undo == nil || s.c.Result != "" {
		return err
	}
	undo := step{name: "undo", from: whole.now, argv: s.tool.Undo(s.mount)}
	back, err := s.onDisk(ctx, undo, 0)
	if err != nil {
		return err
	}
	if back.now.Digest(imageName) != s.before {
		s.table.NotUndone = true
		s.bad(fmt.Sprintf("undo ends with %d, the image is not what it was: %s", back.exit, back.output))
	}
	return s.cuts(ctx, undo, back.changes)
}

// cuts cuts the power at every change of a step, of which there are so many, and after the last.
func (s *sweep) cuts(ctx context.Context, p step, changes int) error {
	for _, k := range spread(changes+1, s.o.Cuts) {
		if err := s.cut(ctx, p, k); err != nil {
			return fmt.Errorf("%s with a cut at change %d of %d: %w", p.name, k, changes, err)
		}
	}
	return nil
}

// step is a run of a program on a disk that holds a tree.
type step struct {
	name string
	from *cutfs.Tree
	argv []string
}

// spread gives at most so many numbers from 1 to n, with the first and the last two.
func spread(n, most int) []int {
	if most <= 0 || most >= n {
		most = n
	}
	var ks []int
	for i := range most {
		ks = append(ks, 1+i*(n-1)/max(1, most-1))
	}
	ks = append(ks, max(1, n-1), n)
	slices.Sort(ks)
	return slices.Compact(ks)
}

// ended is a run of a program on the disk.
type ended struct {
	fs      *cutfs.FS // unmounted
	now     *cutfs.Tree
	exit    int
	output  string
	changes int
	cut     bool
}

// onDisk runs a program with a cut at change k; 0 is none.
func (s *sweep) onDisk(ctx context.Context, p step, k int) (e ended, err error) {
	e.fs, err = cutfs.Mount(s.mount, p.from)
	if err != nil {
		return e, err
	}
	if k > 0 {
		e.fs.CutAt(k)
	}
	err = e.fs.Do(func() (err error) {
		e.exit, e.output, err = command(ctx, p.argv)
		return err
	})
	err = errors.Join(err, e.fs.Unmount())
	e.changes, e.cut, e.now = e.fs.Calls(), e.fs.Cut(), e.fs.Now()
	return e, err
}

// command runs a program to its end. Any exit status is fine, and no end is an error.
func command(ctx context.Context, argv []string) (exit int, output string, err error) {
	limited, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	cmd := exec.CommandContext(limited, argv[0], argv[1:]...)
	// With the thread that has the disk ends the program too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	line := strings.Join(argv, " ")
	switch {
	case ctx.Err() != nil:
		return 0, "", ctx.Err()
	case limited.Err() != nil:
		return 0, "", fmt.Errorf("%s: hangs", line)
	case err != nil && !errors.As(err, new(*exec.ExitError)):
		return 0, "", fmt.Errorf("%s: %w", line, err)
	}
	text := string(out)
	if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(text, "goroutine ") {
		return code, text, nil
	}
	return 0, "", fmt.Errorf("%s: panics\n%s", line, text)
}

// cut judges everything that a cut at change k may leave.
func (s *sweep) cut(ctx context.Context, p step, k int) error {
	e, err := s.onDisk(ctx, p, k)
	if err != nil {
		return err
	}
	where := fmt.Sprintf("%s cut at change %d", p.name, k)
	if log := e.fs.Log(); e.cut {
		where += " (" + strings.TrimSuffix(log[len(log)-1], ": the power is cut") + ")"
		if e.exit == 0 {
			s.table.False++
			s.bad(where + ": exit status 0")
		}
	}
	seen := map[string]State{}
	for i := range 2 + s.o.Seeds {
		mode, seed := cutfs.Mode(min(i, int(cutfs.Random))), uint64(k)<<16|uint64(i)
		left := e.fs.Survivors(mode, seed)
		at := fmt.Sprintf("%s, %v survives", where, mode)
		if mode == cutfs.Random {
			at += fmt.Sprintf(" (seed %d)", seed)
		}
		key := digest(left)
		st, known := seen[key]
		if !known {
			if st, err = s.powerBack(ctx, at, left, i); err != nil {
				return fmt.Errorf("%s: %w", at, err)
			}
			seen[key] = st
		}
		s.count(at, st)
	}
	return nil
}

// digest tells trees apart.
func digest(t *cutfs.Tree) string {
	var b strings.Builder
	for _, name := range t.Names() {
		fmt.Fprintf(&b, "%s %s\n", name, t.Digest(name))
	}
	return b.String()
}

// powerBack is how it stands once the power is back: recovered, where the tool can.
func (s *sweep) powerBack(ctx context.Context, at string, left *cutfs.Tree, i int) (State, error) {
	if s.tool.Recover != nil {
		if s.c.Result == "" && s.halfDone(left) && !fenced(left) {
			s.table.Unfenced++
			s.bad(at + ": half done without a fence")
		}
		// The power may be cut again while it recovers.
		for j := range s.o.Again {
			e, err := s.onDisk(ctx, step{from: left, argv: s.tool.Recover(s.mount)}, 1+(i+j*7)%9)
			if err != nil {
				return State{}, err
			}
			left = e.fs.Survivors(cutfs.Random, uint64(i+j))
		}
		e, err := s.onDisk(ctx, step{from: left, argv: s.tool.Recover(s.mount)}, 0)
		if err != nil {
			return State{}, err
		}
		if !slices.Contains(s.tool.RecoverExits, e.exit) {
			s.table.Failed++
			s.bad(fmt.Sprintf("%s: recover ends with %d: %s", at, e.exit, e.output))
		}
		left = e.fs.Survivors(cutfs.None, 0) // what it did is on the disk, or it did not do it
	}
	return s.look(ctx, left)
}

// halfDone tells whether the image is neither as it was before the repair nor as it is after it.
func (s *sweep) halfDone(t *cutfs.Tree) bool {
	d := t.Digest(imageName)
	return d != s.before && d != s.after
}

// fenced tells whether the image says that it is corrupt (qcow2.txt, "Header", incompatible
// features, bit 1), so that QEMU does not open it for writing.
func fenced(t *cutfs.Tree) bool {
	var p [8]byte
	n, _ := t.ReadAt(imageName, p[:], 72) // an image that is gone, or shorter, has no fence
	return n == len(p) && p[7]&2 != 0
}

// look judges a tree.
func (s *sweep) look(ctx context.Context, t *cutfs.Tree) (State, error) {
	if s.c.Result == "" {
		st, err := s.judge.state(ctx, t, imageName)
		st.Between = s.halfDone(t)
		return st, err
	}
	// A repair into a new file leaves the old one alone. As long as the new one is no image, which it
	// becomes with its last write, all is as it was.
	name := s.c.Result
	var magic [4]byte
	if n, _ := t.ReadAt(name, magic[:], 0); n < len(magic) || string(magic[:]) != "QFI\xfb" {
		name = imageName // there is none, or a part of one
	}
	st, err := s.judge.state(ctx, t, name)
	st.Between = t.Digest(imageName) != s.before
	return st, err
}

func (s *sweep) count(at string, st State) {
	t, start := &s.table, s.table.Start
	t.States++
	switch {
	case st.Errors > start.Errors:
		t.More++
		s.bad(fmt.Sprintf("%s: %v, at the start %v", at, st, start))
	case st.Errors == 0 && st.Leaks == 0:
		t.Clean++
	case st.Errors < start.Errors || st.Errors == start.Errors && st.Leaks < start.Leaks:
		t.Fewer++
	default:
		t.Same++
	}
	if st.Gone > start.Gone || st.Wrong > start.Wrong {
		t.Lost++
		s.bad(fmt.Sprintf("%s: %v, at the start %v", at, st, start))
	}
	if st.Between && (s.tool.Recover != nil || s.tool.Undo != nil) {
		t.Between++
		s.bad(at + ": neither the bytes before nor those after")
	}
}

func (s *sweep) bad(text string) {
	if len(s.table.Bad) < maxBad && !slices.Contains(s.table.Bad, text) {
		s.table.Bad = append(s.table.Bad, text)
	}
}
