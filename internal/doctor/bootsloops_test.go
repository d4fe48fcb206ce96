// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/lab/nspawn"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// rowsAtOnce is how many rows run at the same time: most of their time is waiting.
const rowsAtOnce = 6

// loopPlayed is what became of a row.
type loopPlayed struct {
	before, ends string
	boots        *Boots
	// logins is what is told where there are no journals, only what systemd wrote to wtmp.
	logins *Boots
	// stopped is how its boots end with the arguments that are given, "" where there are none.
	stopped string
	err     error
}

// TestLoops has systemd itself run each row of the table. It holds what rules say of the files before, against what
// systemd does then; what is said of the journals that it wrote: what the boots amount to, who is to blame; and that the
// machine stays up with the arguments that are given.
func TestLoops(t *testing.T) {
	root, dir, rows := newRoot(t), t.TempDir(), loops()
	out := make([]loopPlayed, len(rows))
	var all sync.WaitGroup
	turn := make(chan struct{}, rowsAtOnce)
	for i := range rows {
		all.Go(func() {
			turn <- struct{}{}
			out[i] = rows[i].play(t.Context(), root, filepath.Join(dir, strconv.Itoa(i)))
			<-turn
		})
	}
	all.Wait()
	for i := range rows {
		row, p := &rows[i], &out[i]
		t.Run(row.name, func(t *testing.T) {
			if p.err != nil {
				t.Fatal(p.err)
			}
			if p.before != row.before {
				t.Errorf("rules say %q of the files of %s, want %q", p.before, row.name, row.before)
			}
			if p.ends != row.ends {
				t.Fatalf("systemd: %s ends %q, want %q", row.name, p.ends, row.ends)
			}
			row.judge(t, p.boots)
			if row.before == "TM01 loop" && row.course == Loop && (p.logins.Course != Loop ||
				blamed(p.logins) != cmp.Or(row.firstUnit, row.blame) || p.logins.Blame.Ended != 0) && !strings.Contains(row.world.Files[nightlyService].Text, "FailureAction") {
				t.Errorf("logins of %s = %s (%s), %+v; want what files tell", row.name, p.logins.Course, p.logins.Why, p.logins.Blame)
			}
			if p.boots.Stop != nil && p.stopped != "s" {
				t.Errorf("%s with %v ends %q, want it to stay up", row.name, p.boots.Stop.Arguments, p.stopped)
			}
		})
	}
}

// play asks what rules say of a row, has systemd run it, asks what its journals say, and runs it once more with the
// arguments that are given then.
func (row *loopRow) play(ctx context.Context, root *nspawn.Root, dir string) (p loopPlayed) {
	before, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	if p.before, p.err = row.foretold(ctx, root, before); p.err != nil {
		return p
	}
	if p.ends, p.err = row.boot(ctx, root, after); p.err != nil {
		return p
	}
	e, err := gatherDir(ctx, after)
	if p.err = err; err != nil {
		return p
	}
	p.boots = &ExamineBoots([]*evidence.Evidence{e}).Machines[0]
	if p.err = row.keep(after); p.err != nil {
		return p
	}
	if p.err = os.RemoveAll(filepath.Join(after, "var/log/journal")); p.err != nil {
		return p
	}
	if e, p.err = gatherDir(ctx, after); p.err != nil {
		return p
	}
	p.logins = &ExamineBoots([]*evidence.Evidence{e}).Machines[0]
	if p.boots.Stop != nil {
		again := *row
		again.world.Arguments = p.boots.Stop.Arguments
		p.stopped, p.err = again.boot(ctx, root, filepath.Join(dir, "stopped"))
	}
	return p
}

// foretold is what rules say of the files of a row before it was ever booted.
func (row *loopRow) foretold(ctx context.Context, root *nspawn.Root, dir string) (string, error) {
	w := row.world
	w.Files = timed(time.Now(), w.Files)
	if err := root.Write(ctx, w, dir); err != nil {
		return "", err
	}
	e, err := gatherDir(ctx, dir)
	if err != nil {
		return "", err
	}
	var all []string
	for _, f := range Examine([]*evidence.Evidence{e}, nil).Findings {
		if strings.HasPrefix(f.Code, "TM") {
			all = append(all, f.Code+" "+f.Kind)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", "), nil
}

// boot boots a row and gives how its boots ended; its files after that are in dir.
func (row *loopRow) boot(ctx context.Context, root *nspawn.Root, dir string) (ends string, err error) {
	w := row.world
	w.Files = timed(time.Now(), w.Files)
	o, err := root.Boot(ctx, w, nspawn.Limits{Boots: 4, Hold: max(row.hold, 1500*time.Millisecond), First: row.first,
		Cut: row.cut, Wall: 20 * time.Minute})
	if err != nil {
		return "", err
	}
	for _, b := range o.Boots {
		ends += b.End[:1]
	}
	return ends, errors.Join(o.Write(ctx, dir), o.Close())
}

// judge holds what is said of the boots of a row.
func (row *loopRow) judge(t *testing.T, b *Boots) {
	t.Helper()
	course := row.course
	if course == "" {
		course = Steady
	}
	if b.Course != course {
		t.Errorf("boots of %s = %s (%s), want %s", row.name, b.Course, b.Why, course)
	}
	if got := blamed(b); got != row.blame {
		t.Errorf("boots of %s blame %q, want %q", row.name, got, row.blame)
	}
	if b.Blame == nil {
		return
	}
	if !b.Blame.Certain || b.Blame.Ended != b.Blame.Of {
		t.Errorf("boots of %s: %+v, want it certain, and all boots", row.name, b.Blame)
	}
	if got := strings.Join(b.Blame.Masks, " "); got != row.masks {
		t.Errorf("boots of %s mask %q, want %q", row.name, got, row.masks)
	}
	first := cmp.Or(row.firstUnit, row.blame)
	for _, x := range b.Boots { // no bystander ever
		if x.By.Unit != row.blame || x.First != first {
			t.Errorf("boots of %s: one was ended by %+v, its first dangerous unit is %q, want %s", row.name, x.By, x.First, row.blame)
		}
	}
}

// labMachine is the number of machines in package nspawn.
const labMachine = "5b15a0000000000000000000000000a1"

func newRoot(t *testing.T) *nspawn.Root {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, "systemd-nspawn", "systemctl", "journalctl", "dbus-daemon")
	root, err := nspawn.NewRoot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// bootsAt tells of the boots of a machine whose files are in a directory.
func bootsAt(t *testing.T, dir string) *Boots {
	t.Helper()
	e := gatherAt(t, dir)
	r := ExamineBoots([]*evidence.Evidence{e})
	return &r.Machines[0]
}

func gatherAt(t *testing.T, dir string) *evidence.Evidence {
	t.Helper()
	e, err := gatherDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func gatherDir(ctx context.Context, dir string) (*evidence.Evidence, error) {
	files, err := tree.OpenDirectory(ctx, dir)
	if err != nil {
		return nil, err
	}
	e, err := evidence.Gather(ctx, files, evidence.Options{Now: time.Now()})
	return e, errors.Join(err, files.Close())
}

func blamed(b *Boots) string {
	if b.Blame == nil {
		return ""
	}
	return b.Blame.Unit
}
