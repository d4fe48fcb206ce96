// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// schema is the name and version of a record, see doc/formats/mount.md.
	schema = "shisa.mounted/1"
	// recordSuffix ends the name of a record, logSuffix that of its log.
	recordSuffix, logSuffix = ".json", ".log"
	// maxRecordBytes bounds a record that is read.
	maxRecordBytes = 64 << 10
)

// kind is the way in which something is mounted.
type kind string

const (
	kindFiles  kind = "files"
	kindKernel kind = "kernel"
	kindDisk   kind = "disk" // the directory is one of our own, beside the records
)

// record says what a process mounts. It is on the disk before anything is made.
type record struct {
	Schema string `json:"schema"`
	Kind   kind   `json:"kind"`
	// PID and Start are the process that serves it, Start in clock ticks since the boot; Boot is the
	// id of that boot.
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
	Boot  string `json:"boot"`
	// Dir is where it is mounted, and Source what the table of mounts says of it. Both may be of any
	// bytes.
	Dir    []byte `json:"dir_b64"`
	Source []byte `json:"source_b64"`
	// Device is the number of our FUSE file system, "" before it is known.
	Device string `json:"device"`
	// Namespace is the mount namespace of a kernel mount.
	Namespace string `json:"namespace"`
	// Marker is the name that its loop device was given; Loop is the device's number, -1 before it is
	// known.
	Marker string `json:"marker"`
	Loop   int    `json:"loop"`

	path string
}

// recordsDir is where the records are.
func recordsDir(stateDir string) string { return filepath.Join(stateDir, "mounts") }

// begin writes a new record of this process; nobody else may have one of the same directory. What a
// process that is gone left there is taken away before.
func begin(stateDir string, r record) (*record, error) {
	if !filepath.IsAbs(stateDir) {
		return nil, fmt.Errorf("the state directory %q is not absolute", stateDir)
	}
	if err := os.MkdirAll(recordsDir(stateDir), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of records: %w", err)
	}
	r.Schema, r.PID, r.Loop = schema, os.Getpid(), -1
	if err := r.stamp(); err != nil {
		return nil, err
	}
	r.path = recordPath(stateDir, string(r.Dir))
	unlock, err := lock(recordsDir(stateDir))
	if err != nil {
		return nil, err
	}
	defer unlock()
	for range 2 {
		var f *os.File
		f, err = os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			err = errors.Join(f.Close(), r.write())
			return &r, err
		}
		if !errors.Is(err, fs.ErrExist) {
			break
		}
		if err = makeWay(r.path); err != nil {
			return nil, fmt.Errorf("mount on %s: %w", r.Dir, err)
		}
	}
	return nil, fmt.Errorf("write a record: %w", err)
}

// stamp says which process it is of.
func (r *record) stamp() (err error) {
	if r.Boot, err = bootID(); err == nil {
		r.Start, err = startOf(r.PID)
	}
	return err
}

// makeWay cleans up behind the record at path if its process is gone.
func makeWay(path string) error {
	old, err := readRecord(path)
	if err != nil {
		return err
	}
	alive, err := old.alive()
	switch {
	case err != nil:
		return err
	case alive:
		return fmt.Errorf("%w by process %d", ErrMounted, old.PID)
	}
	return old.clean()
}

// recordPath is the record of a directory: there is at most one.
func recordPath(stateDir, dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(recordsDir(stateDir), hex.EncodeToString(sum[:16])+recordSuffix)
}

// write puts the record on the disk, in one step.
func (r *record) write() error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	next := r.path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write a record: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(next, r.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(r.path))
	}
	if err != nil {
		return fmt.Errorf("write a record: %w", err)
	}
	return nil
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// remove strikes the record off: nothing of what it names is there any more.
func (r *record) remove() error {
	var errs []error
	for _, name := range []string{r.path + ".new", r.logPath(), r.path} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// logPath is where a process that serves in the background writes what it has to tell.
func (r *record) logPath() string { return strings.TrimSuffix(r.path, recordSuffix) + logSuffix }

// serves notes which device is now mounted on dir, and lets the kernel read ahead on it.
func (r *record) serves(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	r.Device = device(st.Dev)
	readAhead(r.Device)
	return r.write()
}

// beginLog makes the log, so that it can be opened before the end and read after it.
func (r *record) beginLog() error {
	f, err := os.OpenFile(r.logPath(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// keep adds a line to the log. Those who read it are told an error too.
func (r *record) keep(l Line) {
	f, err := os.OpenFile(r.logPath(), os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	_, _ = f.WriteString(string(l.About) + "\t" + strings.ReplaceAll(l.Text, "\n", "?") + "\n")
	_ = f.Close()
}

// openLog opens the log, which outlives its name then; nil if there is none.
func (r *record) openLog() *os.File {
	f, err := os.Open(r.logPath())
	if err != nil {
		return nil // only one in the background has a log
	}
	return f
}

// lines reads a log, and closes it.
func lines(log *os.File) []Line {
	if log == nil {
		return nil
	}
	defer log.Close()
	text, err := io.ReadAll(io.LimitReader(log, maxLogBytes))
	var all []Line
	for _, line := range strings.FieldsFunc(string(text), func(c rune) bool { return c == '\n' }) {
		about, said, found := strings.Cut(line, "\t")
		if !found {
			about, said = string(Unread), line
		}
		all = append(all, Line{About(about), said})
	}
	if err != nil {
		all = append(all, Line{Unread, "the log of the mount: " + err.Error()})
	}
	return all
}

// private is the directory that a kernel mount has for itself.
func (r *record) private() string { return strings.TrimSuffix(r.path, recordSuffix) }

// mark is a name for a loop device that no other mount has: 63 bytes at most, loop(4).
func (r *record) mark() string {
	id := strings.TrimSuffix(filepath.Base(r.path), recordSuffix)
	return fmt.Sprintf("shisa-%s-%x-%x", id, r.PID, r.Start)
}

// readRecord reads one record.
func readRecord(path string) (*record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRecordBytes))
	if err != nil {
		return nil, err
	}
	r := &record{path: path}
	if len(text) == 0 {
		// Its process was killed before it made anything.
		return r, nil
	}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("read the record %s: %w", path, err)
	}
	if r.Schema != schema {
		return nil, fmt.Errorf("the record %s is %q, and this shisa knows %q", path, r.Schema, schema)
	}
	return r, nil
}

// records reads all records, and gives an error for each that cannot be read.
func records(stateDir string) ([]*record, []error) {
	names, err := os.ReadDir(recordsDir(stateDir))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, []error{err}
	}
	var all []*record
	var errs []error
	for _, n := range names {
		if !strings.HasSuffix(n.Name(), recordSuffix) {
			continue
		}
		r, err := readRecord(filepath.Join(recordsDir(stateDir), n.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // it ended just now
		case err != nil:
			errs = append(errs, err)
		default:
			all = append(all, r)
		}
	}
	return all, errs
}

// alive reports whether the process of the record still runs.
func (r *record) alive() (bool, error) {
	boot, err := bootID()
	if err != nil {
		return false, err
	}
	if r.PID <= 0 || r.Boot != boot {
		return false, nil
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		start, err := startOf(r.PID)
		switch {
		case errors.Is(err, errDying) && time.Now().Before(end):
			continue // until then it may still answer
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
			return false, nil
		case err != nil:
			return false, err
		}
		return start == r.Start, nil
	}
}

// errDying: a process was killed, and not all of its threads have ended.
var errDying = errors.New("it was killed, and its threads do not end")

// bootID names this boot of the host.
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(text)), err
}

// startOf is when a process began, in clock ticks since the boot: field 22 of proc(5),
// /proc/pid/stat. A process that ended and was not waited for is gone (fs.ErrNotExist).
func startOf(pid int) (uint64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The name of the program is in parentheses and may hold anything.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	if slices.Contains([]string{"Z", "X"}, string(fields[0])) {
		// That is its first thread; others may hold its files.
		threads, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
		if err == nil && len(threads) > 1 {
			return 0, errDying
		}
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
