// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/vault"
)

// maxRecalled bounds the places of wrong guest data that are told one by one.
const maxRecalled = 8

// remember lets an examination tell what earlier changes left behind. state is the directory that
// the user named, "" for the usual one. Where there is no such directory nothing was changed from
// here, but undo files beside images are looked at all the same.
func remember(ctx context.Context, state string, opts *check.Options) error {
	v, err := vault.New(vault.Options{StateDir: stateDirOrNone(state)})
	if err != nil {
		return err
	}
	m, err := v.Memory(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		opts.NotSeen = append(opts.NotSeen, finding.Blind{Object: v.ReceiptsDir(),
			What:   "receipts of earlier repairs",
			Reason: oneLine{err}.Error(), Host: []finding.Range{}, Guest: []finding.Range{}})
	}
	opts.Remembered = func(ctx context.Context, path string, inUse bool) ([]finding.Finding, error) {
		return recall(ctx, m, path, inUse)
	}
	return nil
}

// stateDirOrNone is stateDir for who only looks: a user without a home has no receipts.
func stateDirOrNone(named string) string {
	dir, err := stateDir(named)
	if err != nil {
		return "/nonexistent"
	}
	return dir
}

// recall gives what is remembered of one image.
func recall(ctx context.Context, m *vault.Memory, path string, inUse bool) (
	[]finding.Finding, error,
) {
	all, err := m.Of(ctx, path)
	errs := []error{err}
	found := []finding.Finding{}
	for _, c := range all {
		switch {
		case c.Err != nil:
			errs = append(errs, c.Err)
		case c.State.Unfinished():
			found = append(found, unfinished(path, c, inUse))
		default:
			found = append(found, hurtBefore(path, c)...)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return found, oneLine{err}
	}
	return found, nil
}

// certaintyOf is how sure it is that a change was one of this image.
func certaintyOf(m vault.Match) finding.Certainty {
	switch m {
	case vault.MatchFile:
		return finding.Sure
	case vault.MatchContent:
		return finding.Likely
	}
	return finding.Possible
}

// unfinished tells of a change that was left in the middle.
func unfinished(path string, c *vault.Candidate, inUse bool) finding.Finding {
	if c.State == vault.Partial {
		return neverMade(path, c)
	}
	text := "a change of %s was begun and not finished"
	switch c.State {
	case vault.Prepared:
		text = "a change of %s was prepared and not begun"
	case vault.Undoing:
		text = "the change of %s was being undone, and that is not finished"
	}
	text = fmt.Sprintf(text, c.Receipt.Created.Format("2006-01-02 15:04:05 UTC"))
	f := finding.New(finding.QC26, path, certaintyOf(c.Match), string(c.State), text)
	f.Evidence = []finding.Evidence{{Source: "undo file " + c.UndoPath, Offset: -1,
		Value: string(c.State),
		Text:  "receipt " + c.ID}}
	if c.UndoPath == "" {
		f.Evidence = []finding.Evidence{{Source: "receipt " + c.ID, Offset: -1, Value: string(c.State),
			Text: "its undo file " + c.Receipt.Undo() + " is gone"}}
		f.Next = "look for the undo file: without it nobody knows what the image should hold"
	}
	if c.Match == vault.MatchName {
		f.Next = "shisa recover tells whether the undo file is of this image; if another image took its place, " +
			"move the undo file to another directory"
	}
	switch {
	case inUse:
		f.Severity = finding.Note
		f.Summary += "; a program is at work on the image, so it may be under way"
		f.Next = "if no shisa is at work on it: " + f.Next
	case c.State == vault.Prepared:
		f.Severity = finding.Warning
	}
	return f
}

// neverMade tells of an undo file that was never finished. The image was not touched then.
func neverMade(path string, c *vault.Candidate) finding.Finding {
	f := finding.New(finding.QC26, path, certaintyOf(c.Match), string(c.State),
		"the undo file of a change was never finished, so that change was never begun")
	f.Severity = finding.Note
	f.Evidence = []finding.Evidence{{Source: "undo file " + c.UndoPath, Offset: -1,
		Value: string(c.State), Text: "the image was not touched"}}
	f.Next = "shisa recover removes it; nothing is mended before"
	return f
}

// hurtBefore tells of guest data that a change left wrong, one finding for each kind and snapshot.
func hurtBefore(path string, c *vault.Candidate) []finding.Finding {
	type key struct{ code, kind, snapshot string }
	at := map[key]int{}
	var found []finding.Finding
	for _, h := range c.Receipt.Hurt {
		k := key{h.Code, h.Kind, h.Snapshot}
		i, ok := at[k]
		if !ok {
			i = len(found)
			at[k] = i
			f := finding.New(finding.QC25, path, certaintyOf(c.Match), h.Kind, h.Summary)
			f.Snapshot, f.Count = h.Snapshot, 0
			f.Next = "restore these guest ranges from a backup; then say so: " +
				"shisa repair IMAGE --resolved " + c.ID
			found = append(found, f)
		}
		f := &found[i]
		f.Count++
		f.Guest = append(f.Guest, h.Guest...)
		if len(f.Evidence) == maxRecalled {
			f.EvidenceCut++
			continue
		}
		f.Evidence = append(f.Evidence, finding.Evidence{Source: "receipt " + c.ID, Offset: -1,
			Text: fmt.Sprintf(
				"the repair of %s found by %s: %s", c.Receipt.Created.Format("2006-01-02"), h.Code, h.Summary)})
	}
	for i := range found {
		switch f := &found[i]; {
		case f.Count == 1:
		case f.Kind == "mixed":
			f.Summary = fmt.Sprintf("%d groups of guest ranges shared clusters: of each, at most one range "+
				"holds its own data", f.Count)
		default:
			f.Summary = fmt.Sprintf("%d guest ranges lost their data", f.Count)
		}
	}
	return found
}
