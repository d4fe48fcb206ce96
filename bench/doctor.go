// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/doctor/stories"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/journal/journaltest"
)

// What a look of the doctor may take, and how many random worlds it ranks.
const (
	doctorSeconds, doctorMiB = 1, 64
	deadSeconds              = 3
	deadBytes                = 10 << 30
	worlds, worldsQuick      = 4000, 250
	worldsSeed               = 1
)

func doctorRows() []row {
	return []row{
		{name: "doctor: one source after the other taken from stories", special: ablations},
		{name: "doctor: random worlds", special: randomWorlds},
		{name: "doctor: what it cannot tell of real faults", special: doubts},
		{name: "doctor: this machine", special: doctorHere},
		{name: "doctor: a dead guest of 10 GiB, 20,000 entries", space: 256 << 20, special: doctorDead},
		{name: "doctor: a copy with a syslog of 200 MiB", space: 256 << 20, special: doctorLarge},
	}
}

// ablations counts how often the doctor is sure and wrong when it knows less than it might.
func ablations(ctx context.Context, b *bench, _ string) (res result) {
	all, err := stories.All()
	if err != nil {
		return result{missing: err.Error()}
	}
	said, losses, silent := map[stories.Said]int{}, 0, 0
	for _, s := range all {
		whole, err := s.Examine(ctx)
		if err != nil {
			return result{missing: err.Error()}
		}
		for _, l := range s.Losses() {
			r, err := s.Examine(ctx, l)
			if err != nil {
				return result{missing: err.Error()}
			}
			how := s.Judge(r)
			said[how]++
			losses++
			if how == stories.Wrong || how == stories.Clean {
				fmt.Fprintf(b.log, "      %s without %s: %s\n", s.Name, l, how)
			}
			if lost := stories.Silent(whole, r); len(lost) > 0 {
				silent++
				fmt.Fprintf(b.log, "      %s without %s: no word of %q\n", s.Name, l, lost)
			}
		}
	}
	res.text = fmt.Sprintf("%d losses of %d stories: right %d, asks for more %d, elsewhere %d, only signs %d, nothing %d",
		losses, len(all), said[stories.Right], said[stories.Asks], said[stories.Elsewhere], said[stories.Signs],
		said[stories.Nothing])
	res.goals = []outcome{{goal: count("confident but wrong", 0), got: float64(said[stories.Wrong] + said[stories.Clean])},
		{goal: count("lost without a word", 0), got: float64(silent)}}
	return res
}

// randomWorlds ranks findings in random worlds, with the cause among them and without it in 30 of 100.
func randomWorlds(_ context.Context, b *bench, _ string) (res result) {
	n := worlds
	if b.quick {
		n = worldsQuick
	}
	seen, hidden := stories.Worlds(worldsSeed, n, 0), stories.Worlds(worldsSeed, n, 30)
	part := func(x int) float64 { return 100 * float64(x) / float64(n) }
	res.text = fmt.Sprintf("%d worlds: %.1f %% first, sure and wrong %.1f %%; 30 %% of causes unseen: %.1f %% first, %.1f %% named, "+
		"sure and wrong %.1f %%", n, part(seen.First), part(seen.Wrong), part(hidden.First), part(hidden.Named),
		part(hidden.Wrong))
	res.theirsText = fmt.Sprintf("by harm alone: %.1f %% first, %.1f %% with causes unseen", part(seen.Harm), part(hidden.Harm))
	percent := func(what string, must, got float64, lower bool) outcome {
		return outcome{goal: goal{what: what, must: must, lower: lower, unit: " %", always: true}, got: got}
	}
	res.goals = []outcome{percent("first", 80, part(seen.First), false), percent("sure and wrong", 2, part(seen.Wrong), true),
		percent("sure and wrong, causes unseen", 5, part(hidden.Wrong), true)}
	return res
}

// doctorHere looks at this machine as it is.
func doctorHere(ctx context.Context, b *bench, _ string) (res result) {
	if err := b.doctorTakes(ctx, &res, []string{b.shisa, "doctor"}, doctorSeconds); err != nil {
		res.missing = err.Error()
	}
	return res
}

// doctorTakes measures runs of the doctor, whatever it finds.
func (b *bench) doctorTakes(ctx context.Context, res *result, argv []string, seconds float64) error {
	var costs []cost
	for range b.runs {
		c, errs, err := timeRun(ctx, argv)
		if err == nil && !slices.Contains([]int{0, 3, 4}, c.exit) {
			err = fmt.Errorf("%v: exit status %d: %s", argv, c.exit, errs)
		}
		if err != nil {
			return err
		}
		costs = append(costs, c)
	}
	res.ours, res.oursRan = median(costs), true
	var err error
	if res.ours.memory, err = peakMemory(ctx, argv); err != nil {
		return err
	}
	memory := memoryUnder(doctorMiB)
	memory.always = true
	for _, g := range []goal{wallUnder(seconds), memory} {
		res.goals = append(res.goals, outcome{goal: g, got: g.value(res.ours, cost{})})
	}
	return nil
}

// doctorDead looks at a dead guest's disk.
func doctorDead(ctx context.Context, b *bench, dir string) (res result) {
	dir, err := os.MkdirTemp(dir, "dead-")
	if err != nil {
		return result{missing: err.Error()}
	}
	disk := filepath.Join(dir, "guest.raw")
	if err = makeDead(ctx, filepath.Join(dir, "root"), disk); err == nil {
		argv := []string{b.shisa, "doctor", "--disk", disk}
		if err = b.doctorTakes(ctx, &res, argv, deadSeconds); err == nil {
			res.failed, err = sawLog(ctx, append(argv, "--json"))
		}
	}
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		res.missing = err.Error()
	}
	return res
}

// sawLog says how the doctor did not read the log, "" if it did.
func sawLog(ctx context.Context, argv []string) (failed string, err error) {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		return "", err
	}
	var report doctor.Report
	if err := json.Unmarshal(out, &report); err != nil {
		return "", err
	}
	for _, x := range report.NotLookedAt {
		if x.Part == evidence.PartLog || x.Part == evidence.PartBoots {
			return fmt.Sprintf("%s: %s: %s", x.Part, x.Object, x.Reason), nil
		}
	}
	return "", nil
}

// makeDead makes the disk of a guest with a journal.
func makeDead(ctx context.Context, root, disk string) error {
	const machine = "0123456789abcdef0123456789abcdef"
	logs := filepath.Join(root, "var/log/journal", machine)
	for _, d := range []string{logs, filepath.Join(root, "etc")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"machine-id": machine + "\n", "hostname": "dead\n",
		"os-release": "PRETTY_NAME=\"Debian GNU/Linux 12\"\n", "fstab": "/dev/vda / ext4 errors=remount-ro 0 1\n"} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	var stream bytes.Buffer
	if err := (journaltest.Stream{N: journalEntries}).Write(&stream); err != nil {
		return err
	}
	file := filepath.Join(logs, "system.journal")
	if err := journaltest.Make(ctx, file, journaltest.Forms()[0], &stream); err != nil {
		return err
	}
	// Its time has to be that of its entries: what is older than a month by then is not read.
	then := time.UnixMicro(journaltest.Start).Add(24 * time.Hour)
	if err := os.Chtimes(file, then, then); err != nil {
		return err
	}
	f, err := os.Create(disk)
	if err == nil {
		err = errors.Join(f.Truncate(deadBytes), f.Close())
	}
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-d", root, disk).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
