// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/render"
)

type diskWhoOptions struct {
	guestOptions
	sectors     []string
	from, dev   string
	ranges      []string
	sectorBytes byteSize
}

// maxAsked bounds the ranges of one command.
const maxAsked = 100_000

func newDiskWho(s *stdio) *cobra.Command {
	o := diskWhoOptions{sectorBytes: 512}
	c := &cobra.Command{
		Use:   "who DISK",
		Short: "tell which file of the guest a sector belongs to",
		Long: `who tells what is hurt where a sector of a guest's disk cannot be read or is wrong: which file with its
names, or what else of the file system: its journal, an inode table, free space.

Sectors are those that the guest's kernel names ("I/O error, dev vda, sector 4711"): of the whole disk, in units of
512 bytes. Ranges are OFFSET, OFFSET+LENGTH or OFFSET-END, in bytes, decimal or with 0x.

--from takes the kernel's messages as they are, and ranges, one a line; other lines are left out. The kernel says
where an error begins and not how long it is: a page of 4 KiB is taken.`,
		Example: `  dmesg | shisa disk who --from - vm.qcow2
  shisa disk who --sector 4711 --sector 81920 vm.qcow2
  shisa disk who --range 0x40000+65536 vm.qcow2`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			read, err := o.read(s)
			if err != nil {
				return err
			}
			ranges, err := o.asked(read)
			if err != nil {
				return usageErrorOf(c, err)
			}
			return runDiskWho(c.Context(), o, args[0], ranges, s)
		},
	}
	f := o.flags(c)
	f.Lookup("part").Hidden = true // sectors are those of the whole disk
	f.StringSliceVar(&o.sectors, "sector", nil, "the sector `N`, or sectors as N+COUNT or N-M (may be repeated)")
	f.StringSliceVar(&o.ranges, "range", nil, "the bytes of `RANGE` (may be repeated)")
	f.StringVar(&o.from, "from", "", "messages or ranges, one a line, from `FILE`, - for standard input")
	f.StringVar(&o.dev, "dev", "", "of the messages take those about `DISK`, as vda")
	f.Var(&o.sectorBytes, "sector-size", "a sector has `SIZE` bytes")
	return c
}

// errorBytes is how much is taken for hurt where the kernel says only where an error begins: what it
// reads and writes at the least for most files.
const errorBytes = 4096

// errorLine is how the kernel says that a disk failed (blk_print_req_error in block/blk-mq.c, and
// print_req_error before Linux 5.17): sectors there have 512 bytes whatever the disk's have.
var errorLine = regexp.MustCompile(`\berror, dev ([^ ,]+), sector ([0-9]+)`)

// read gives the ranges of --from.
func (o *diskWhoOptions) read(s *stdio) ([]finding.Range, error) {
	if o.from == "" {
		return nil, nil
	}
	in := s.in
	if o.from != "-" {
		f, err := diskio.Open(o.from)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = io.NewSectionReader(f, 0, f.Size())
	}
	all, others, err := rangesFrom(in, o.dev)
	if err == nil && len(all) == 0 {
		err = errors.New("no line names a sector or a range of bytes")
	}
	if err != nil {
		return nil, fmt.Errorf("--from %s: %w", o.from, err)
	}
	if others > 0 {
		fmt.Fprintf(s.err, "shisa: --from %s: left out %s\n", o.from,
			render.Count(others, "line that names nothing of this disk", "lines that name nothing of this disk"))
	}
	return all, nil
}

// rangesFrom reads messages of the kernel about one disk, and ranges of bytes; others is how many
// lines are neither. With no dev all messages have to be about the same.
func rangesFrom(in io.Reader, dev string) (all []finding.Range, others int64, err error) {
	choose := dev == ""
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		text := strings.TrimSpace(lines.Text())
		r, no := rangeOf(text, 1)
		if m := errorLine.FindStringSubmatch(text); m != nil {
			if dev == "" {
				dev = m[1]
			}
			switch r, no = rangeOf(m[2], 512); {
			case no != nil:
				return nil, 0, fmt.Errorf("%q: %w", text, no)
			case m[1] != dev && choose:
				return nil, 0, fmt.Errorf("it has errors of %s and of %s: choose one with --dev", dev, m[1])
			case m[1] != dev:
				no = errors.New("another disk")
			}
			r.Length = errorBytes
		}
		if text == "" {
			continue
		}
		if no != nil {
			others++
			continue
		}
		if all = append(all, r); len(all) > maxAsked {
			return nil, 0, fmt.Errorf("more than %d ranges, want less", maxAsked)
		}
	}
	return inside.Join(all), others, lines.Err()
}

// asked gives the ranges that the flags name, and those that were read.
func (o *diskWhoOptions) asked(all []finding.Range) ([]finding.Range, error) {
	for _, text := range o.sectors {
		r, err := rangeOf(text, int64(o.sectorBytes))
		if err != nil {
			return nil, fmt.Errorf("--sector %q: %w", text, err)
		}
		all = append(all, r)
	}
	for _, text := range o.ranges {
		r, err := rangeOf(text, 1)
		if err != nil {
			return nil, fmt.Errorf("--range %q: %w", text, err)
		}
		all = append(all, r)
	}
	switch {
	case len(all) == 0:
		return nil, errors.New("nothing is asked for, want --sector, --range or --from")
	case len(all) > maxAsked:
		return nil, fmt.Errorf("%d ranges, want at most %d", len(all), maxAsked)
	}
	return all, nil
}

// rangeOf reads N, N+COUNT or FIRST-LAST, in units of bytes.
func rangeOf(text string, unit int64) (finding.Range, error) {
	number := func(text string) (int64, error) {
		n, err := strconv.ParseInt(strings.TrimSpace(text), 0, 64)
		if err == nil && (n < 0 || n > 1<<59/unit) {
			err = strconv.ErrRange
		}
		return n, err
	}
	first, rest, plus := strings.Cut(text, "+")
	var last string
	minus := false
	if !plus {
		first, last, minus = strings.Cut(text, "-")
	}
	from, err := number(first)
	if err != nil {
		return finding.Range{}, err
	}
	count := int64(1)
	switch {
	case plus:
		count, err = number(rest)
	case minus:
		if count, err = number(last); err == nil {
			count = count - from + 1
		}
	}
	if err == nil && count <= 0 {
		err = errors.New("it is empty")
	}
	return finding.Range{Offset: from * unit, Length: count * unit}, err
}

func runDiskWho(ctx context.Context, o diskWhoOptions, arg string, ranges []finding.Range,
	s *stdio,
) (err error) {
	l, err := o.openWhole(ctx, arg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	hurt, err := l.Who(ctx, 0, ranges)
	if err != nil {
		return withStatus(finding.StatusCannotTell, err)
	}
	view := l.View()
	end := render.NewGuestEnd(l.Guest, view, inside.Unknown(hurt), nil)
	doc := &render.GuestWhoDocument{Disk: l.head.Disk, Ranges: ranges,
		Owners: hurt, GuestEnd: end}
	if o.json {
		err = render.JSON(s.out, render.GuestWhoSchema, doc)
	} else {
		err = render.GuestWho(s.out, doc, s.style(false))
	}
	if err != nil {
		return err
	}
	return l.finish(s, end, !o.json)
}
