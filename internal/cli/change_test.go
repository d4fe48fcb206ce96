// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/shisa-vm/shisa/internal/apply"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/vault"
)

// TestChangeError: each way in which a change can fail has its status, and says what to do next.
func TestChangeError(t *testing.T) {
	path := func(op, path string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx    context.Context
		err    error
		status int
		text   string
		hint   string
	}{
		"interrupted before": {ctx: gone, err: fmt.Errorf("read a: %w", context.Canceled), status: 130,
			text: "interrupted; the image was not touched"},
		"interrupted and rolled back": {ctx: gone, err: fmt.Errorf("%w: %w", apply.ErrRolledBack,
			context.Canceled), status: 130, text: "interrupted; the image is as it was"},
		"interrupted and left in the middle": {ctx: gone, err: fmt.Errorf("%w: %w", apply.ErrInterrupted,
			context.Canceled), status: 6, text: "may hold a part of it", hint: "shisa recover ./-a.qcow2"},
		"rolled back": {err: fmt.Errorf("%w: %w", apply.ErrRolledBack, syscall.EIO), status: 6,
			hint: "shisa recover ./-a.qcow2 confirms that"},
		"unfinished": {err: apply.ErrUnfinished, status: 5, hint: "shisa recover ./-a.qcow2"},
		"unfinished, not readable": {err: fmt.Errorf("%w: %w", apply.ErrUnfinished,
			path("open", "/u", fs.ErrPermission)), status: 5, hint: "whom the undo file belongs to"},
		"later": {err: &apply.LaterError{Path: "/a", ID: "77", Wanted: "11"}, status: 5,
			text: "77 of ", hint: "shisa undo --receipt 77 ./-a.qcow2"},
		"used": {err: apply.ErrUsed, status: 5, hint: "shisa repair ./-a.qcow2"},
		"changed": {err: &apply.ChangedError{Path: "/a", What: "it is new"}, status: 5,
			text: "/a was changed: it is new"},
		"no locks":                 {err: diskio.ErrNoLocks, status: 5, hint: "--accept-risk=no-locks:-a.qcow2"},
		"no sync beside the image": {err: diskio.ErrNoSync, status: 5, hint: "--journal DIR"},
		"no sync of receipts": {err: fmt.Errorf("%w 1: %w", vault.ErrReceipt, diskio.ErrNoSync), status: 5,
			hint: "--state DIR"},
		"no room": {err: &apply.RoomError{Where: "/a", NeedBytes: 2, FreeBytes: 1}, status: 1,
			text: "2 bytes are needed, 1 are free", hint: "--journal DIR"},
		"full": {err: path("write", "/a.shisa-undo", syscall.ENOSPC), status: 1,
			hint: "nothing was changed; make room, or keep the undo file elsewhere with --journal DIR"},
		"full state directory": {err: fmt.Errorf("%w 1: %w", vault.ErrReceipt,
			path("write", "/s/undo/1", syscall.EDQUOT)), status: 1,
			hint: "nothing was changed; make room, or keep receipts elsewhere with --state DIR"},
		"faulty": {err: path("write", "/a.shisa-undo", syscall.EIO), status: 1, hint: "kernel's messages"},
		"closed directory": {err: path("create", "/d/a.shisa-undo", fs.ErrPermission), status: 1,
			hint: "--journal DIR"},
		"closed state directory": {err: fmt.Errorf("%w 1: %w", vault.ErrReceipt,
			path("make the directory", "/s", fs.ErrPermission)), status: 1, hint: "--state DIR"},
		"closed image": {err: path("open", "/a", fs.ErrPermission), status: 1, hint: "write to the image"},
		"read-only storage": {err: path("open", "/d/a", syscall.EROFS), status: 1,
			hint: "/d/a lies on storage that is mounted read-only"},
		"edited":     {err: plan.ErrEdited, status: 5, hint: "make a new plan"},
		"newer plan": {err: plan.ErrNewer, status: 1, hint: "or a newer one"},
		"no plan":    {err: plan.ErrNotPlan, status: 1, hint: "make a new plan"},
	} {
		ctx := tc.ctx
		if ctx == nil {
			ctx = t.Context()
		}
		err := changeError(ctx, tc.err, "-a.qcow2")
		if got := statusOf(err); got != tc.status {
			t.Errorf("%s: status %d, want %d", name, got, tc.status)
		}
		if !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %q does not say %q", name, err, tc.text)
		}
		if hint := finding.HintOf(err); tc.hint == "" && hint != "" || !strings.Contains(hint, tc.hint) {
			t.Errorf("%s: the hint is %q, want %q", name, hint, tc.hint)
		}
		if tc.status != 130 && !errors.Is(err, tc.err) {
			t.Errorf("%s: the cause is lost", name)
		}
	}
}
