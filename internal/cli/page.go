// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/render"
)

// htmlPage is the file that a page is to be written to, "" for none.
type htmlPage string

func (p *htmlPage) flag(f *pflag.FlagSet) {
	f.StringVar((*string)(p), "html", "", "write a page with pictures to `FILE`, which must not exist yet")
}

// ready refuses what would fail after the work only.
func (p htmlPage) ready() error {
	if p == "" {
		return nil
	}
	name := string(p)
	_, err := diskio.Look(name)
	switch {
	case err == nil, errors.Is(err, diskio.ErrDirectory), errors.Is(err, diskio.ErrSpecial):
		return pageError(name, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist):
		return pageError(name, err)
	}
	dir := filepath.Dir(name)
	switch _, err := diskio.Look(dir); {
	case err == nil:
		return pageError(name, fmt.Errorf("%s: not a directory", dir))
	case !errors.Is(err, diskio.ErrDirectory):
		return pageError(name, err)
	}
	return nil
}

// pageError says why a page was not written.
func pageError(name string, err error) error {
	if errors.Is(err, fs.ErrExist) {
		err = finding.WithHint(fmt.Errorf("write the page %s: there is a file of that name", name),
			"nothing is ever written over: choose a name that does not exist")
		return withStatus(finding.StatusRefused, err)
	}
	return fmt.Errorf("write the page: %w", err)
}

// write writes the page, if one was asked for; all has it list everything.
func (p htmlPage) write(all bool, write func(io.Writer, render.PageInfo) error) error {
	if p == "" {
		return nil
	}
	info := render.PageInfo{When: time.Now(), All: all}
	info.Version, _, _ = buildFacts(debug.ReadBuildInfo())
	// A host that does not know its name has a page without one.
	info.Host, _ = os.Hostname()
	f, err := diskio.Create(string(p))
	if err != nil {
		return pageError(string(p), err)
	}
	if err := errors.Join(write(f, info), f.Close()); err != nil {
		return pageError(string(p), err)
	}
	return nil
}

// withPage counts a page that could not be written among the statuses of a result, and lets the
// error end the program with the first of them: it never hides what is wrong with an image, and
// never passes for success.
func withPage(statuses []int, page error) ([]int, error) {
	if page == nil {
		return statuses, nil
	}
	status := finding.StatusFailed
	var se *statusError
	if errors.As(page, &se) {
		status = se.status
	}
	statuses = finding.OrderStatus(append(slices.Clone(statuses), status)...)
	return statuses, withStatus(statuses[0], page)
}
