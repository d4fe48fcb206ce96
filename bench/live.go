// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/lab/zoo"
)

const (
	liveChecks      = 100
	liveChecksQuick = 10
	// qemu-img checks along every so often, to show that the load is one that misleads.
	liveTheirs   = 10
	liveRate     = 500 // requests a second
	liveRequest  = 16 << 10
	liveSettling = 2 * time.Second
	// liveSpace is what the writing may take: in five minutes at the most
	liveSpace = 300 * liveRate * liveRequest / 2
)

// liveDisk has small clusters, half of them allocated and all in disorder: much metadata is on the
// move, and a check has to look at a lot of it while it moves.
var liveDisk = disk{"live", lab.Spec{VirtualBytes: 4 << 30, ClusterBits: 12, Fill: .5, Layout: lab.Random}}

// document is what the bench reads of shisa check --json.
type document struct {
	Images []struct {
		Path     string            `json:"path"`
		Format   string            `json:"format"`
		Counts   qcow2.Counts      `json:"counts"`
		Verdict  finding.Verdict   `json:"verdict"`
		Findings []finding.Finding `json:"findings"`
		Blind    []finding.Blind   `json:"blind"`
		Use      struct {
			State string `json:"state"`
		} `json:"use"`
	} `json:"images"`
	Blind []finding.Blind `json:"blind"`
}

// checkJSON runs shisa check. Every exit status that leaves a document is fine.
func (b *bench) checkJSON(ctx context.Context, paths ...string) (document, error) {
	cmd := exec.CommandContext(ctx, b.shisa, append([]string{"check", "--json"}, paths...)...)
	var errs tail
	cmd.Stderr = &errs
	out, err := cmd.Output()
	d, jerr := parseDocument(out)
	if jerr != nil {
		return d, fmt.Errorf("shisa check --json: %w: %s", errors.Join(err, jerr), errs.b.Bytes())
	}
	return d, nil
}

func parseDocument(out []byte) (d document, err error) {
	err = json.Unmarshal(out, &d)
	return d, err
}

// live checks an image again and again while qemu-io writes to it. The image is sound all the time,
// which is shown at the end, so whatever is said to be wrong is false.
func live(ctx context.Context, b *bench, dir string) result {
	res, err := b.live(ctx, dir)
	if err != nil {
		res.failed = err.Error()
	}
	return res
}

func (b *bench) live(ctx context.Context, dir string) (res result, err error) {
	path, err := b.make(ctx, &liveDisk, dir)
	if err != nil {
		return res, err
	}
	defer os.Remove(path)
	w, err := zoo.StartWriter(ctx, path, zoo.Load{Bytes: liveDisk.sized(b.quick).VirtualBytes,
		Rate: liveRate, RequestBytes: liveRequest, Seed: 1})
	if err != nil {
		return res, err
	}
	time.Sleep(liveSettling)
	var n liveCount
	for n.checks = range b.liveChecks() {
		if err = b.liveCheck(ctx, path, &n); err != nil {
			break
		}
	}
	res.text = fmt.Sprintf("%d checks, %d requests written", n.checks+1, w.Requests())
	res.theirsText = fmt.Sprintf("false errors in %d of %d (check -U)", n.theirsWrong, n.theirs)
	res.goals = []outcome{
		{goal: count("false errors", 0), got: float64(n.wrong)},
		{goal: count("cannot tell", 0), got: float64(n.blind)}}
	err = errors.Join(err, w.Stop())
	if err == nil {
		err = b.soundAfterwards(ctx, path)
	}
	return res, err
}

func (b *bench) liveChecks() int {
	if b.quick {
		return liveChecksQuick
	}
	return liveChecks
}

// liveCount counts what was said of the running image.
type liveCount struct{ checks, wrong, blind, theirs, theirsWrong int }

func (b *bench) liveCheck(ctx context.Context, path string, n *liveCount) error {
	d, err := b.checkJSON(ctx, path)
	if err != nil {
		return err
	}
	bad, unseen := judgeLive(d)
	if bad != "" {
		n.wrong++
		fmt.Fprintln(b.log, "      said while running:", bad)
	}
	if unseen {
		n.blind++
	}
	if n.checks%liveTheirs != 0 && !b.quick {
		return nil
	}
	wrong, err := b.theirLive(ctx, path)
	if wrong {
		n.theirsWrong++
	}
	n.theirs++
	return err
}

// judgeLive gives the first thing that is said wrongly, and whether something was not seen. That
// leaks cannot be told while a guest writes is so.
func judgeLive(d document) (bad string, unseen bool) {
	if len(d.Images) != 1 {
		return fmt.Sprintf("%d images in the report, want 1", len(d.Images)), false
	}
	img := d.Images[0]
	for _, f := range img.Findings {
		if f.Severity != finding.Note {
			return fmt.Sprintf("%s %s: %s", f.Code, f.Name, f.Summary), false
		}
	}
	if img.Use.State != "write" {
		return fmt.Sprintf("in use: %q, want \"write\"", img.Use.State), false
	}
	return "", img.Verdict == finding.CannotTell || len(img.Blind) > 0
}

// theirLive checks the same with qemu-img and tells whether it says that something is broken; leaks
// do not count.
func (b *bench) theirLive(ctx context.Context, path string) (bool, error) {
	c, errs, err := timeRun(ctx, []string{b.qemuImg, "check", "-q", "-U", path})
	if err != nil {
		return false, err
	}
	switch c.exit {
	case 0, 3:
		return false, nil
	case 1, 2:
		return true, nil
	}
	return false, fmt.Errorf("qemu-img check -U: exit status %d: %s", c.exit, errs)
}

// soundAfterwards: had the image been broken, the errors would not have been false.
func (b *bench) soundAfterwards(ctx context.Context, path string) error {
	if out, err := exec.CommandContext(ctx, b.qemuImg, "check", path).CombinedOutput(); err != nil {
		return fmt.Errorf("the live image is broken at the end: %w: %s", err, out)
	}
	return nil
}
