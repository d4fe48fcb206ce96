// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/lab/demo"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/render"
)

// demoStory is one of the stories that shisa comes from.
type demoStory struct {
	code, title, did string
	show             func(*telling, context.Context) error
}

// demoStories lists them.
func demoStories() []demoStory {
	return []demoStory{
		{"S0", "Guests hang in ls, and the image of one has 4 leaked clusters.",
			"They repaired the leaks. Then a guest hung whose image was clean.", (*telling).server},
		{"S1", "A cloud removes the base image of machines, since the only node that it asked was down.",
			"They searched databases and logs for the line that said so.", (*telling).base},
		{"S2", "A machine with a nightly reboot starts again and again.",
			"They blamed Persistent=true, deleted the machine, and lost what no backup had.", (*telling).loop},
		{"S3", "Storage stalls, and a file system takes no writes any more.",
			"They raised the timeout to 300 s, and counted on 300 s x 6.", (*telling).stall},
		{"S4", "An umount fails at random, and nobody is found who keeps it busy.",
			"They hid the mount table from an agent.", (*telling).busy},
	}
}

func storyCodes() []string {
	var all []string
	for _, d := range demoStories() {
		all = append(all, d.code)
	}
	return all
}

func storyOf(code string) *demoStory {
	for _, d := range demoStories() {
		if d.code == code {
			return &d
		}
	}
	return nil
}

// errNotShown: a story cannot be shown on this machine, or as this user.
var errNotShown = errors.New("it cannot be shown here")

// maxTelling is how long one story may take.
const maxTelling = 30 * time.Second

// telling is a story that is being told.
type telling struct {
	dir string // where its world is made
	s   *stdio
	// whole: the reports are printed, too.
	whole bool
	d     render.DemoStory
}

// ran notes a command that was carried out, and prints what it says where all is to be told.
func (t *telling) ran(command string, say func(io.Writer, render.Style) error) error {
	t.d.Commands = append(t.d.Commands, t.short(command))
	if !t.whole {
		return nil
	}
	_, err := fmt.Fprintf(t.s.out, "$ %s\n", command)
	if say != nil {
		err = cmp.Or(err, say(t.s.out, t.s.style(false)))
	}
	_, end := fmt.Fprintln(t.s.out)
	return cmp.Or(err, end)
}

// short names what is in the world from there.
func (t *telling) short(text string) string { return strings.ReplaceAll(text, t.dir+"/", "") }

func (t *telling) lines(lines ...render.DemoLine) {
	for _, l := range lines {
		l.Text = t.short(l.Text)
		t.d.Lines = append(t.d.Lines, l)
	}
}

// tell makes the world of a story in a directory, which is there and empty, and shows it.
func (d *demoStory) tell(ctx context.Context, t *telling) error {
	ctx, cancel := context.WithTimeout(ctx, maxTelling)
	defer cancel()
	t.d = render.DemoStory{Code: d.code, Title: d.title, Did: d.did, Commands: []string{}, Lines: []render.DemoLine{}}
	if t.whole {
		if err := render.DemoStoryHead(t.s.out, &t.d, t.s.style(false)); err != nil {
			return err
		}
	}
	err := d.show(t, ctx)
	if errors.Is(err, errNotShown) {
		t.d.NotShown = strings.TrimSuffix(err.Error(), ": "+errNotShown.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("story %s: %w", d.code, err)
	}
	return nil
}

// tellStories tells all, in directories that are gone afterwards.
func tellStories(ctx context.Context, s *stdio) (told []render.DemoStory, err error) {
	told = []render.DemoStory{}
	for _, d := range demoStories() {
		one, e := tellBriefly(ctx, d, s)
		told, err = append(told, one), errors.Join(err, e)
	}
	return told, err
}

func tellBriefly(ctx context.Context, d demoStory, s *stdio) (told render.DemoStory, err error) {
	w, err := lab.NewPlace("")
	if err != nil {
		return told, worldError(err, "")
	}
	defer func() { err = errors.Join(err, w.Remove()) }()
	t := &telling{dir: w.Dir, s: s}
	err = d.tell(ctx, t)
	return t.d, err
}

// showStories tells all for people, each as soon as it is told.
func showStories(ctx context.Context, s *stdio) (err error) {
	fmt.Fprint(s.err, "\nWhat shisa comes from, made anew in small:\n\n")
	for i, d := range demoStories() {
		one, e := tellBriefly(ctx, d, s)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		if i > 0 {
			fmt.Fprintln(s.out)
		}
		style := s.style(false)
		if err := render.DemoStories(s.out, []render.DemoStory{one}, style); err != nil {
			return err
		}
		if err := s.flush(); err != nil {
			return err
		}
	}
	fmt.Fprint(s.err, "\nTheir files are gone again. One of them whole, with its files: shisa demo --story S2 --keep\n")
	return err
}

// runStory shows one story whole.
func runStory(ctx context.Context, o demoOptions, s *stdio) (err error) {
	w, err := lab.NewPlace(o.dir)
	if err != nil {
		return worldError(err, o.dir)
	}
	kept := o.keep || o.dir != ""
	defer func() {
		if !kept {
			err = errors.Join(err, w.Remove())
		}
	}()
	dir, err := filepath.Abs(w.Dir)
	if err != nil {
		return err
	}
	if o.dir != "" {
		dir = o.dir // as its user calls it
	}
	t := &telling{dir: dir, s: s, whole: !o.look.json}
	if err := storyOf(o.story).tell(ctx, t); err != nil {
		return err
	}
	if t.d.NotShown != "" {
		return fmt.Errorf("story %s: %s", o.story, t.d.NotShown)
	}
	if kept {
		t.d.Dir = dir
	}
	if o.look.json {
		err = render.JSON(s.out, render.DemoSchema,
			render.DemoDocument{Status: []int{finding.StatusFound}, Stories: []render.DemoStory{t.d}})
	} else {
		err = render.DemoStoryEnd(s.out, &t.d, t.s.style(false))
	}
	if err != nil {
		return err
	}
	if kept {
		fmt.Fprintf(s.err, "\nIts files are in %[1]s: rm -r %[1]s\n", render.Word(dir))
	} else {
		fmt.Fprintf(s.err, "\nIts files are gone again. To keep them and try the commands: shisa demo --story %s --keep\n", o.story)
	}
	return exitWith(finding.StatusFound)
}

// server is S0: two guests hang since a server is full.
func (t *telling) server(ctx context.Context) error {
	names, err := demo.Server(ctx, t.dir)
	if err != nil {
		return err
	}
	command := "shisa doctor"
	for _, n := range names {
		command += " --bundle " + render.Word(n)
	}
	all, err := (&doctorOptions{bundles: names}).gather(ctx)
	if err != nil {
		return err
	}
	r := doctor.Examine(all, nil)
	if err := t.ran(command, func(w io.Writer, s render.Style) error { return render.Doctor(w, r, s) }); err != nil {
		return err
	}
	lines, next, err := render.DemoCause(r)
	t.lines(lines...)
	t.d.Next = next
	return err
}

// base is S1: a base image is removed that machines need.
func (t *telling) base(ctx context.Context) error {
	p, err := demo.NewPool(filepath.Join(t.dir, "instances"))
	if err != nil {
		return err
	}
	before, err := p.File()
	if err != nil {
		return err
	}
	if err := t.protect(ctx, p); err != nil {
		return err
	}
	if err := p.Clean(); err != nil {
		return err
	}
	name := render.Word(p.Dir)
	if err := t.ran("rm "+name+"/_base/"+p.Base, nil); err != nil {
		return err
	}
	o := poolOptions{pool: p.Dir}
	c, err := o.census(ctx, t.quiet())
	if err != nil {
		return err
	}
	err = t.ran("shisa base scan "+name, func(w io.Writer, s render.Style) error { return render.BaseScan(w, c, s) })
	if err != nil {
		return err
	}
	missing, err := render.DemoMissing(c)
	if err != nil {
		return err
	}
	err = t.act(ctx, p, "restore", p.Base, func(act bases.Options) (*pool.Done, error) {
		return bases.Restore(ctx, p.Base, bases.RestoreOptions{}, act)
	})
	if err != nil {
		return err
	}
	after, err := p.File()
	if err != nil {
		return err
	}
	if c, err = o.census(ctx, t.quiet()); err != nil {
		return err
	}
	restored, err := render.DemoRestored(c, p.Base, os.SameFile(before, after))
	t.lines(missing, restored)
	return err
}

func (t *telling) protect(ctx context.Context, p *demo.Pool) error {
	c, err := (&poolOptions{pool: p.Dir}).census(ctx, t.quiet())
	if err != nil {
		return err
	}
	return t.act(ctx, p, "protect", "", func(act bases.Options) (*pool.Done, error) {
		return bases.Protect(ctx, c, bases.ProtectOptions{}, act)
	})
}

// act does something to the pool of a story.
func (t *telling) act(ctx context.Context, p *demo.Pool, verb, name string, do func(bases.Options) (*pool.Done, error)) error {
	act, done, err := (&poolOptions{}).actIn(filepath.Join(p.Dir, "_base"), t.quiet())
	if err != nil {
		return err
	}
	act.Receipts = nil // the pool of a story is gone soon, and this host does not keep what was done to it
	d, err := do(act)
	done()
	if err != nil {
		return err
	}
	command := strings.TrimSpace("shisa base " + verb + " " + render.Word(p.Dir) + " " + name)
	return t.ran(command, func(w io.Writer, s render.Style) error { return render.BaseDone(w, d, s) })
}

// quiet is where what is done for a story shows its progress: nowhere, it takes no time.
func (t *telling) quiet() *stdio { return newStdio(t.s.in, io.Discard, io.Discard) }

// loop is S2: a machine starts for ever.
func (t *telling) loop(ctx context.Context) error {
	root := filepath.Join(t.dir, "cache1")
	if err := demo.Loop(root, time.Now()); err != nil {
		return err
	}
	all, err := (&doctorOptions{roots: []string{root}}).gather(ctx)
	if err != nil {
		return err
	}
	boots, timers := doctor.ExamineBoots(all), doctor.ExamineTimers(all)
	err = t.ran("shisa doctor boots --root "+render.Word(root), func(w io.Writer, s render.Style) error {
		return render.Boots(w, boots, s)
	})
	if err != nil {
		return err
	}
	err = t.ran("shisa doctor timers --root "+render.Word(root), func(w io.Writer, s render.Style) error {
		return render.Timers(w, timers, s)
	})
	if err != nil {
		return err
	}
	blame, next, err := render.DemoBlame(&boots.Machines[0])
	if err != nil {
		return err
	}
	not, err := render.DemoTimer(&timers.Machines[0])
	t.lines(blame, not)
	t.d.Next = next
	return err
}

// demoStall is how long storage does not answer in S3: less than all tries of a command take, by the sum that people do.
const demoStall = 20 * time.Minute

// stall is S3: storage does not answer.
func (t *telling) stall(ctx context.Context) error {
	root := filepath.Join(t.dir, "db1")
	if err := demo.Stall(root, time.Now()); err != nil {
		return err
	}
	all, err := (&doctorOptions{roots: []string{root}}).gather(ctx)
	if err != nil {
		return err
	}
	d := render.NewStall([]*doctor.Stall{doctor.StallOf(all[0], demoStall, "")}, demoStall)
	command := fmt.Sprintf("shisa doctor stall --for %.0fm --root %s", demoStall.Minutes(), render.Word(root))
	err = t.ran(command, func(w io.Writer, s render.Style) error { return render.Stall(w, d, s) })
	if err != nil {
		return err
	}
	r := doctor.Examine(all, nil)
	err = t.ran("shisa doctor --root "+render.Word(root), func(w io.Writer, s render.Style) error {
		return render.Doctor(w, r, s)
	})
	if err != nil {
		return err
	}
	offline, err := render.DemoStall(d, all[0])
	if err != nil {
		return err
	}
	readOnly, next, err := render.DemoReadOnly(r, all[0])
	t.lines(offline, readOnly)
	t.d.Next = next
	return err
}

// needsRoot is what S4 needs.
const needsRoot = "only root, with all rights, may mount, and watch the kernel by BPF: sudo shisa demo --story S4"

// busy is S4: an umount fails since somebody looked at the mount just then.
func (t *telling) busy(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s: %w", needsRoot, errNotShown)
	}
	b, err := demo.NewBusy(t.dir)
	if err != nil {
		return err
	}
	var lines []render.DemoLine
	var doc render.TraceDocument
	err = b.Watch(ctx, []string{"holders", "--trace", "--json", b.Mount}, func(line []byte) bool {
		doc = render.TraceDocument{}
		if json.Unmarshal(line, &doc) != nil {
			return false
		}
		var err error
		lines, err = render.DemoHolder(&doc, b.Tried)
		return err == nil
	})
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s: %w", err, needsRoot, errNotShown)
	case ctx.Err() == nil && err != nil, errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", err, errNotShown)
	case err != nil:
		return err
	}
	name := render.Word(b.Mount)
	err = t.ran("shisa holders --trace "+name, func(w io.Writer, s render.Style) error { return render.Trace(w, &doc, s) })
	if err != nil {
		return err
	}
	t.lines(lines...)
	return nil
}
