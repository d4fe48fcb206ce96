// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"errors"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/image/qcow2"
)

// check is qemu-img check.
func (s *session) check(argv []string) int {
	f := &imageFlags{cache: defaultCache}
	g := newGetopt(argv, "hf:r:T:qU", []longOption{
		{"help", false, 'h'}, {"format", true, 'f'}, {"repair", true, 'r'}, {"output", true, optOutput},
		{"object", true, optObject}, {"image-opts", false, optImageOpts}, {"force-share", false, 'U'},
	}, s.env.Posix)
	for c := g.next(); c != optEnd; c = g.next() {
		if c == 'r' {
			if f.repair = g.optarg; f.repair != "leaks" && f.repair != "all" {
				return s.usage("Unknown option value for -r (expecting 'leaks' or 'all'): %s", f.repair)
			}
			continue
		}
		if err := s.common(f, g, c, codeFailed); err != nil {
			return codeOf(err)
		}
	}
	name, err := s.oneName(g)
	if err == nil {
		err = s.outputFormat(f)
	}
	if err != nil {
		return codeOf(err)
	}
	direct, ok := s.direct(f.cache)
	if !ok {
		return codeFailed
	}
	if f.repair != "" && s.env.Repairer == nil {
		s.report("check -r: this program repairs nothing; '%s' is unchanged", name)
		return codeFailed
	}
	flags := openFlags{check: true, noCache: direct, write: f.repair != ""}
	_, n, fl := s.openImage(name, f.format, f.hasFormat, f, flags)
	switch {
	case fl == nil:
	case fl.format == "":
		s.reportOpen(name, fl)
		return codeFailed
	case slices.Contains(checkable, fl.format) && (f.repair == "" || !slices.Contains(unmendable, fl.format)):
		s.report("Checks of format '%s' are not supported by this program", fl.format)
		return codeNoCheck
	default:
		return s.noCheck()
	}
	defer n.close()
	return s.checkNode(n, name, f)
}

func codeOf(err error) int {
	var done errDone
	if errors.As(err, &done) {
		return done.code
	}
	return codeFailed
}

// checkNode checks an opened image and prints the result.
func (s *session) checkNode(n *node, name string, f *imageFlags) int {
	if n.driver != drvQcow2 {
		return s.noCheck()
	}
	opts := qcow2.CheckOptions{Name: name, DataFileBytes: -1}
	if n.data != n.file {
		_, opts.DataFileBytes = n.data.bytes()
	}
	var counts qcow2.Mended
	var err error
	if f.repair == "" {
		counts.Counts, err = s.count(n, opts)
	} else {
		counts, err = s.repair(n, name, f, opts)
	}
	if err != nil {
		return s.checkFailed(err)
	}
	if !f.quiet {
		if f.json {
			s.printf("%s\n", jsonText(checkDict(name, n.driver, counts), true))
		} else {
			s.printCheck(counts.Counts)
		}
	}
	switch {
	case counts.CheckErrors != 0:
		s.report("Check failed")
		return codeFailed
	case counts.Corruptions != 0:
		return codeCorrupt
	case counts.Leaks != 0:
		return codeLeaks
	}
	return codeOK
}

// checkFailed says why a check did not come to its end, and gives the exit code.
func (s *session) checkFailed(err error) int {
	var stop *qcow2.StopError
	var done errDone
	switch {
	case s.ctx.Err() != nil:
		return codeInterrupted
	case errors.As(err, &done):
		return done.code
	case errors.As(err, &stop):
		s.report("Check failed: %s", stop.Reason)
	default:
		s.report("Check failed: %v", err)
	}
	return codeFailed
}

func (s *session) noCheck() int {
	s.report("This image format does not support checks")
	return codeNoCheck
}

// count checks the image, by the fast way first: only where that finds something, the image is gone
// through again in qemu's order, for the lines on standard error.
func (s *session) count(n *node, opts qcow2.CheckOptions) (qcow2.Counts, error) {
	c, told, err := s.look(n.q.r, n.q.size, n.q.h, opts)
	if err != nil || told {
		return c, err
	}
	if n.running() {
		if c, ok := s.countRunning(n); ok {
			return c, nil
		}
	}
	return qcow2.Trace(s.ctx, n.q.r, n.q.size, opts, s.line)
}

// look checks an image by the fast way. told is set if there is no more to be said about it: qemu-img
// would print no line.
func (s *session) look(r io.ReaderAt, size int64, h *qcow2.Header, opts qcow2.CheckOptions) (
	c qcow2.Counts, told bool, err error,
) {
	res, err := qcow2.Check(s.ctx, r, size, opts)
	if err != nil {
		return c, false, err
	}
	c = res.Counts
	clean := len(res.Blind) == 0 && c.CheckErrors == 0 && c.Corruptions == 0 && c.Leaks == 0
	// qemu-img refuses images of more clusters, so there are no lines of it for them.
	tooMany := size>>h.ClusterBits >= math.MaxInt32
	return c, clean || tooMany && len(res.Blind) == 0, nil
}

// line prints a line of a check.
func (s *session) line(l qcow2.Line) error {
	text := l.Text
	if fromSnapshots(text) {
		text = s.name + ": " + text
	}
	s.stderr("%s\n", text)
	return nil
}

// fromSnapshots tells the lines about a snapshot table that cannot be read. They alone have the
// name of the program before them.
func fromSnapshots(line string) bool {
	return strings.HasPrefix(line, "ERROR failed to read the snapshot table: ") ||
		line == "ERROR snapshot table too large" || line == "ERROR snapshot table offset invalid"
}

// checkDict is the result as JSON. Counts of zero are left out.
func checkDict(name, format string, c qcow2.Mended) *dict {
	d := &dict{}
	d.put("filename", name)
	d.put("format", format)
	d.put("check-errors", c.CheckErrors)
	for _, e := range []struct {
		key string
		n   int64
	}{
		{"image-end-offset", c.ImageEndOffset}, {"corruptions", c.Corruptions}, {"leaks", c.Leaks},
		{"corruptions-fixed", c.CorruptionsFixed}, {"leaks-fixed", c.LeaksFixed},
		{"total-clusters", c.TotalClusters}, {"allocated-clusters", c.AllocatedClusters},
		{"fragmented-clusters", c.FragmentedClusters}, {"compressed-clusters", c.CompressedClusters},
	} {
		if e.n != 0 {
			d.put(e.key, e.n)
		}
	}
	return d
}

func (s *session) printCheck(c qcow2.Counts) {
	if c.Corruptions == 0 && c.Leaks == 0 && c.CheckErrors == 0 {
		s.printf("No errors were found on the image.\n")
	}
	if c.Corruptions != 0 {
		s.printf("\n%d errors were found on the image.\n"+
			"Data may be corrupted, or further writes to the image may corrupt it.\n", c.Corruptions)
	}
	if c.Leaks != 0 {
		s.printf("\n%d leaked clusters were found on the image.\n"+
			"This means waste of disk space, but no harm to data.\n", c.Leaks)
	}
	if c.CheckErrors != 0 {
		s.printf("\n%d internal errors have occurred during the check.\n", c.CheckErrors)
	}
	if c.TotalClusters != 0 && c.AllocatedClusters != 0 {
		share := func(n, of int64) float64 { return float64(n) * 100 / float64(of) }
		s.printf("%d/%d = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% compressed clusters\n",
			c.AllocatedClusters, c.TotalClusters, share(c.AllocatedClusters, c.TotalClusters),
			share(c.FragmentedClusters, c.AllocatedClusters), share(c.CompressedClusters, c.AllocatedClusters))
	}
	if c.ImageEndOffset != 0 {
		s.printf("Image end offset: %d\n", c.ImageEndOffset)
	}
}
