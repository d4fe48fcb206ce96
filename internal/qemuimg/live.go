// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"slices"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// running tells whether another program writes to the image: it says so by a lock, or the file has
// changed since it was opened.
func (n *node) running() bool {
	f := n.file.f
	if f == nil {
		return false
	}
	if locks, err := f.Locks(); err == nil && locks.Writer() {
		return true
	}
	now, err := f.StatNow()
	then := f.Stat()
	return err == nil && (now.SizeBytes != then.SizeBytes || !now.ModTime.Equal(then.ModTime))
}

// countRunning checks an image that is written to. qemu-img -U reports as errors what is only on its
// way, thousands of them: a refcount that was read early contradicts an entry that was read late.
// Here the image is read again until it is known what stays. ok is false if that cannot be told.
func (s *session) countRunning(n *node) (c qcow2.Counts, ok bool) {
	rep, err := check.Run(s.ctx, []string{n.file.exact}, check.Options{Live: check.LiveAlways})
	if err != nil {
		return c, false
	}
	i := slices.IndexFunc(rep.Images, func(img check.Image) bool { return img.Path == n.file.exact })
	if i < 0 || !rep.Images[i].Checked {
		return c, false
	}
	img := rep.Images[i]
	for _, f := range img.Findings {
		if f.Severity != finding.Note {
			s.stderr("ERROR %s\n", f.Summary)
		}
	}
	for _, b := range img.Blind {
		s.stderr("ERROR: %s: %s\n", b.What, b.Reason)
	}
	c = img.Counts
	c.CheckErrors = int64(len(img.Blind))
	return c, true
}
