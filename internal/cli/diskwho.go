// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/render"
)

type diskWhoOptions struct {
	guestOptions
	sectors     []string
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
512 bytes. Ranges are OFFSET, OFFSET+LENGTH or OFFSET-END, in bytes, decimal or with 0x.`,
		Example: `  shisa disk who --sector 4711 --sector 81920 vm.qcow2
  shisa disk who --range 0x40000+65536 vm.qcow2`,
		Args: wantArgs(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			ranges, err := o.asked()
			if err != nil {
				return usageErrorOf(c, err)
			}
			return runDiskWho(c.Context(), o, args[0], ranges, s)
		},
	}
	f := o.flags(c)
	f.StringSliceVar(&o.sectors, "sector", nil, "the sector `N`, or sectors as N+COUNT or N-M (may be repeated)")
	f.StringSliceVar(&o.ranges, "range", nil, "the bytes of `RANGE` (may be repeated)")
	f.Var(&o.sectorBytes, "sector-size", "a sector has `SIZE` bytes")
	return c
}

// asked gives the ranges that the flags name.
func (o *diskWhoOptions) asked() ([]finding.Range, error) {
	var all []finding.Range
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
		return nil, errors.New("nothing is asked for, want --sector or --range")
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
	l, _, err := o.open(ctx, arg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	hurt, err := l.Who(ctx, 0, ranges)
	if err != nil {
		return withStatus(finding.StatusCannotTell, err)
	}
	view := l.View()
	end := render.NewGuestEnd(view, inside.Unknown(hurt), l.Missing(), l.Changed(), nil).WithFindings(l.Crash())
	doc := &render.GuestWhoDocument{Disk: l.head.Disk, Ranges: ranges,
		Owners: hurt, GuestEnd: end}
	if o.json {
		err = render.JSON(s.out, render.GuestWhoSchema, doc)
	} else {
		err = render.GuestWho(s.out, doc, render.Style{Width: s.width, Color: s.colour})
	}
	if err != nil {
		return err
	}
	return l.finish(s, end, !o.json)
}
