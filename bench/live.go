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
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
	"github.com/shisa-vm/shisa/internal/lab/zoo"
)

const (
	liveChecks      = 100
	liveChecksQuick = 5
	liveBytes       = 1 << 30
	liveRate        = 400 // requests a second
)

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
	res, err := b.live(ctx, filepath.Join(dir, "live.qcow2"))
	if err != nil {
		res.failed = err.Error()
	}
	return res
}

func (b *bench) live(ctx context.Context, path string) (res result, err error) {
	// Small clusters: much metadata is on the move.
	create := exec.CommandContext(ctx, b.qemuImg, "create", "-q", "-f", "qcow2",
		"-o", "cluster_size=4k", path, fmt.Sprint(liveBytes))
	if out, err := create.CombinedOutput(); err != nil {
		return res, fmt.Errorf("make the live image: %w: %s", err, out)
	}
	defer os.Remove(path)
	w, err := zoo.StartWriter(ctx, path, zoo.Load{Bytes: liveBytes, Rate: liveRate, Seed: 1})
	if err != nil {
		return res, err
	}
	checks, wrong, blind := liveChecks, 0, 0
	if b.quick {
		checks = liveChecksQuick
	}
	for range checks {
		var d document
		if d, err = b.checkJSON(ctx, path); err != nil {
			break
		}
		bad, unseen := judgeLive(d)
		if bad != "" {
			wrong++
			fmt.Fprintln(b.log, "      said while running:", bad)
		}
		if unseen {
			blind++
		}
	}
	requests := w.Requests()
	err = errors.Join(err, w.Stop())
	if err == nil {
		err = b.soundAfterwards(ctx, path)
	}
	res.text = fmt.Sprintf("%d checks, %d requests written", checks, requests)
	res.goals = []outcome{{count("false errors", 0), float64(wrong)}, {count("cannot tell", 0), float64(blind)}}
	return res, err
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

// soundAfterwards: had the image been broken, the errors would not have been false.
func (b *bench) soundAfterwards(ctx context.Context, path string) error {
	if out, err := exec.CommandContext(ctx, b.qemuImg, "check", path).CombinedOutput(); err != nil {
		return fmt.Errorf("the live image is broken at the end: %w: %s", err, out)
	}
	return nil
}
