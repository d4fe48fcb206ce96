// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Command bench holds shisa against qemu-img, libguestfs, fuser, lsof, umount, journalctl and the
// kernel, on the same disks, mounts and journals in one run, and prints a table: processor time, wall
// time, memory, and whether what is required was reached. The images are made in a scratch directory and removed at the end;
// what is mounted to be kept busy is mounted in a namespace of its own.
//
// Exit status: 0 everything required was reached, 3 something was not, 4 something could not be
// measured, 1 the bench itself failed, 64 usage, 130 interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux/ask"
)

// options are the flags.
type options struct {
	dir   string
	only  *regexp.Regexp
	runs  int
	quick bool
	list  bool
	// binary is a shisa that is there already.
	binary string
}

// bench is one run of everything.
type bench struct {
	options
	shisa, qemuImg, qemuIO string
	out                    io.Writer // the table
	log                    io.Writer // what is being done
}

func main() {
	switch {
	case hold.IsChild(os.Args):
		hold.Serve()
	case faultfs.IsChild(os.Args):
		faultfs.Serve()
	case ask.IsChild(os.Args):
		os.Exit(ask.Serve())
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, out, log io.Writer) int {
	if len(args) == 3 && args[0] == makeCommand {
		return makeImage(args[1], args[2], log)
	}
	if len(args) == 3 && args[0] == apartCommand {
		return measureApart(args[1], args[2], out, log)
	}
	if len(args) == 2 && args[0] == hungCommand {
		return serveHung(args[1], out, log)
	}
	if len(args) == 4 && args[0] == readCommand {
		return journalStatus(readJournal(args[1], args[2], args[3], out), log)
	}
	if len(args) == 2 && args[0] == parseCommand {
		return journalStatus(parseExport(args[1], os.Stdin, out), log)
	}
	if len(args) == 2 && args[0] == callCommand {
		if err := measureCalls(args[1], os.Stdin, out); err != nil {
			fmt.Fprintln(log, err)
			return 1
		}
		return 0
	}
	if os.Getpid() == 1 && os.Getenv(oldDoes) != "" {
		return oldMain()
	}
	o, err := parse(args, log)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(log, "bench:", err)
		return 64
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	b := &bench{options: o, out: out, log: log}
	status, err := b.run(ctx)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(log, "bench: interrupted")
		return 130
	case err != nil:
		fmt.Fprintln(log, "bench:", err)
		return 1
	}
	return status
}

func parse(args []string, log io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(log)
	fs.StringVar(&o.dir, "dir", os.TempDir(),
		"make the scratch directory in `DIR`, where sparse files of 8 TiB are possible")
	only := fs.String("only", "", "measure only the rows whose name matches this regular `expression`")
	fs.IntVar(&o.runs, "runs", 3, "run both programs so many times in turn and take the medians")
	fs.BoolVar(&o.quick, "quick", false,
		"images of a sixteenth of the size and one run: shows that it works, not how fast it is")
	fs.BoolVar(&o.list, "list", false, "print the names of the rows and end")
	fs.StringVar(&o.binary, "shisa", "", "measure this `FILE` and build nothing")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	var err, dirErr error
	o.only, err = regexp.Compile(*only)
	o.dir, dirErr = filepath.Abs(o.dir) // children work elsewhere
	switch {
	case err != nil || dirErr != nil:
		return o, errors.Join(err, dirErr)
	case fs.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case o.runs < 1:
		return o, fmt.Errorf("--runs %d: want 1 or more", o.runs)
	}
	if o.quick {
		o.runs = 1
	}
	return o, nil
}

// run measures every row that is asked for and prints the table as far as it got.
func (b *bench) run(ctx context.Context) (status int, err error) {
	var rows []row
	for _, r := range allRows() {
		if b.only.MatchString(r.name) {
			rows = append(rows, r)
		}
	}
	if b.list {
		for _, r := range rows {
			fmt.Fprintln(b.out, r.name)
		}
		return 0, nil
	}
	if len(rows) == 0 {
		return 0, fmt.Errorf("no row matches %q; --list names them", b.only)
	}
	dir, err := os.MkdirTemp(b.dir, "shisa-bench-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := b.prepare(ctx, dir); err != nil {
		return 0, err
	}
	t := newTable(b)
	for i, r := range rows {
		fmt.Fprintf(b.log, "[%d/%d] %s\n", i+1, len(rows), r.name)
		res, err := b.room(dir, r)
		if err != nil {
			return 0, err
		}
		if res.missing == "" {
			res = r.measure(ctx, b, dir)
		}
		if ctx.Err() != nil {
			break
		}
		for _, line := range res.problems() {
			fmt.Fprintln(b.log, "     ", line)
		}
		t.add(r.name, res)
	}
	t.print(b.out)
	return t.status(), nil
}

// room tells whether there is space for a row. What another row left is counted as taken.
func (b *bench) room(dir string, r row) (res result, err error) {
	const spare = 256 << 20
	need := spare + r.space
	if r.scales && b.quick {
		need = spare + r.space/16
	}
	if r.image != nil {
		need += r.image.bytesOnDisk(b.quick)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return res, fmt.Errorf("free space of %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		res.missing = fmt.Sprintf("%s has %d MiB free, %d MiB are needed; name another place with --dir",
			b.dir, free>>20, need>>20)
	}
	return res, nil
}

// prepare looks for the programs, and builds shisa.
func (b *bench) prepare(ctx context.Context, dir string) (err error) {
	if b.qemuImg, err = exec.LookPath("qemu-img"); err != nil {
		return fmt.Errorf("%w (on Debian: apt-get install qemu-utils)", err)
	}
	if b.qemuIO, err = exec.LookPath("qemu-io"); err != nil {
		return fmt.Errorf("%w (on Debian: apt-get install qemu-utils)", err)
	}
	if b.binary != "" {
		b.shisa, err = filepath.Abs(b.binary)
		return err
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	b.shisa = filepath.Join(dir, "shisa")
	fmt.Fprintln(b.log, "build shisa")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w", "-o", b.shisa, "./cmd/shisa")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build shisa: %w\n%s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// moduleRoot is the directory of go.mod, above where the bench was started.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod in %s or above it: start the bench in the source tree", dir)
		}
	}
}
