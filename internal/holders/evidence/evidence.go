// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package evidence keeps what was so at the moment when a umount failed, as new files that can be looked
// at later.
package evidence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/holders"
)

const (
	// maxProcesses bounds the processes of which more than the report is kept, maxNames the directories
	// of one second.
	maxProcesses, maxNames = 64, 1000
)

// Keeper keeps evidence below a directory.
type Keeper struct {
	Host holders.Host
	// Dir gets a new directory for each failure. It is made if it is not there.
	Dir string
	// JSON writes a document.
	JSON func(w io.Writer, schema string, doc any) error

	mu   sync.Mutex
	kept map[string]string // directories by the key of their failure
}

// Failure is a umount that failed.
type Failure struct {
	At    time.Time
	Mount int // its number, 0 if not known
	Path  string
	// Schema and Document are what is known of it.
	Schema   string
	Document any
}

func (f Failure) key() string { return fmt.Sprintf("%d %d", f.At.UnixNano(), f.Mount) }

// Moment keeps what is so now, and gives the directory. The error says what could not be kept; the rest
// was.
func (k *Keeper) Moment(ctx context.Context, f Failure) (dir string, err error) {
	if dir, err = k.keep(ctx, f); err != nil {
		err = fmt.Errorf("keep the evidence of %s: %w", f.Path, err)
	}
	return dir, err
}

// Complete adds to the evidence of a failure what became known of it since: the document, and files by
// their names. It gives the directory, "" if there is none.
func (k *Keeper) Complete(f Failure, files map[string][]byte) (dir string, err error) {
	k.mu.Lock()
	dir = k.kept[f.key()]
	delete(k.kept, f.key())
	k.mu.Unlock()
	if dir == "" {
		return "", nil
	}
	errs := []error{k.document(dir, "failure.json", f.Schema, f.Document)}
	for name, data := range files {
		errs = append(errs, create(filepath.Join(dir, name), func(w io.Writer) error {
			_, err := w.Write(data)
			return err
		}))
	}
	return dir, errors.Join(errs...)
}

// keep makes the directory of a failure and fills it.
func (k *Keeper) keep(ctx context.Context, f Failure) (string, error) {
	dir, err := k.fresh(f.At)
	if err != nil {
		return "", err
	}
	k.mu.Lock()
	if k.kept == nil {
		k.kept = map[string]string{}
	}
	k.kept[f.key()] = dir
	k.mu.Unlock()
	errs := []error{k.document(dir, "moment.json", f.Schema, f.Document)}
	var pids []int
	if f.Mount != 0 {
		r, err := k.scan(ctx, f.Mount)
		if err == nil {
			err = k.document(dir, "holders.json", "shisa.holders/1", r)
			pids = processes(r)
		}
		errs = append(errs, err)
	}
	errs = append(errs, k.texts(ctx, dir, pids))
	return dir, errors.Join(errs...)
}

func (k *Keeper) scan(ctx context.Context, mount int) (*holders.Report, error) {
	t, err := holders.ResolveMount(ctx, k.Host, mount)
	if err != nil {
		return nil, err
	}
	return holders.Scan(ctx, k.Host, t, holders.Options{AllSuperblock: true})
}

// processes are those that a report names, each once.
func processes(r *holders.Report) []int {
	var pids []int
	for _, h := range r.Holders {
		if p := h.Process.PID; p > 0 && !slices.Contains(pids, p) && len(pids) < maxProcesses {
			pids = append(pids, p)
		}
	}
	return pids
}

// fresh makes a new directory that bears the time.
func (k *Keeper) fresh(at time.Time) (string, error) {
	t, err := diskio.NewTree(k.Dir)
	if err != nil {
		return "", err
	}
	defer t.Close()
	name := at.UTC().Format("20060102T150405.000Z")
	for i := range maxNames {
		try := name
		if i > 0 {
			try += "-" + strconv.Itoa(i)
		}
		err = t.Mkdir(try)
		if !errors.Is(err, fs.ErrExist) {
			return filepath.Join(k.Dir, try), err
		}
	}
	return "", err
}

// document writes a JSON document as a new file.
func (k *Keeper) document(dir, name, schema string, doc any) error {
	return create(filepath.Join(dir, name), func(w io.Writer) error { return k.JSON(w, schema, doc) })
}

func create(path string, write func(w io.Writer) error) error {
	f, err := diskio.CreatePrivate(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Sync(), f.Close())
}

// texts keeps what the kernel tells: its tables, the mounts that each process named sees, and what
// those processes do.
func (k *Keeper) texts(ctx context.Context, dir string, pids []int) error {
	files := map[string][]string{"mounts.txt": {"/proc/self/mountinfo"},
		"kernel.txt": {"/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/swaps", "/proc/locks",
			"/proc/fs/nfsd/exports", "/proc/fs/nfsd/threads", "/proc/fs/nfsfs/servers", "/proc/fs/nfsfs/volumes"}}
	for _, pid := range pids {
		p := "/proc/" + strconv.Itoa(pid) + "/"
		files["process-"+strconv.Itoa(pid)+".txt"] = []string{p + "status", p + "cmdline", p + "cgroup",
			p + "syscall", p + "wchan", p + "stack", p + "mountinfo"}
	}
	var errs []error
	for name, sources := range files {
		errs = append(errs, create(filepath.Join(dir, name), func(w io.Writer) error {
			for _, from := range sources {
				text, err := k.Host.Linux.Text(ctx, from)
				if err != nil {
					text = []byte("not read: " + err.Error()) // that is evidence, too
				}
				if _, err := fmt.Fprintf(w, "==> %s\n%s\n", from, text); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return errors.Join(errs...)
}
