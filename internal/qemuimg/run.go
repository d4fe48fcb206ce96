// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Exit codes of qemu-img. The meaning of 2 and 3 depends on the sub-command.
const (
	codeOK         = 0
	codeFailed     = 1
	codeCorrupt    = 2 // check: the image has errors
	codeLeaks      = 3 // check: it has leaked clusters only
	codeNoCheck    = 63
	codeDiffers    = 1 // compare
	codeCannotOpen = 2 // compare
	codeCannotMap  = 3 // compare
	codeCannotRead = 4 // compare
	// codeInterrupted is what a shell makes of a program that a signal ended.
	codeInterrupted = 130
)

// Env is what a run gets from outside.
type Env struct {
	Stdout, Stderr io.Writer
	// Location is the time zone in which dates are shown; nil is the local one.
	Location *time.Location
	// Posix ends options at the first argument that is none, as POSIXLY_CORRECT does for getopt.
	Posix bool
	// Version of this program, for --version.
	Version string
	// Repairer carries out check -r; without one that is refused.
	Repairer Repairer
}

// session is one run of qemu-img.
type session struct {
	ctx     context.Context
	env     Env
	name    string // of the program, before every message
	out     *bufio.Writer
	secrets map[string]bool
}

// subcommands are those of qemu-img, in its order.
var subcommands = []string{
	"amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info", "map",
	"measure", "snapshot", "rebase", "resize",
}

// Run carries out a qemu-img command line, argv[0] being the name of the program, and returns its
// exit code. It opens files for reading only: what check -r changes, env.Repairer does.
func Run(ctx context.Context, env Env, argv []string) int {
	if len(argv) == 0 {
		argv = []string{"qemu-img"}
	}
	if env.Location == nil {
		env.Location = time.Local
	}
	s := &session{
		ctx: ctx, env: env, name: filepath.Base(argv[0]), secrets: map[string]bool{},
		out: bufio.NewWriterSize(env.Stdout, 64<<10),
	}
	code := s.main(argv)
	if ctx.Err() != nil {
		code = codeInterrupted
	}
	// A reader that went away is no failure: qemu-img does not look at what became of its output.
	if err := s.out.Flush(); err != nil && !errors.Is(err, syscall.EPIPE) {
		s.report("Could not write the result: %s", strerror(err))
		return codeFailed
	}
	return code
}

func (s *session) main(argv []string) int {
	if len(argv) < 2 {
		return s.usage("Not enough arguments")
	}
	g := newGetopt(argv, "hVT:", []longOption{
		{"help", false, 'h'}, {"version", false, 'V'}, {"trace", true, 'T'},
	}, true)
	for c := g.next(); c != optEnd; c = g.next() {
		switch c {
		case optMissing, optUnknown:
			return s.badOption(g, c)
		case 'h':
			return s.help()
		case 'V':
			s.printf("%s", s.version())
			return codeOK
		case 'T':
			s.trace(g.optarg)
		}
	}
	rest := g.operands()
	if len(rest) == 0 {
		return codeOK
	}
	switch rest[0] {
	case "check":
		return s.check(rest)
	case "compare":
		return s.compare(rest)
	case "info":
		return s.info(rest)
	case "map":
		return s.mapImage(rest)
	}
	if slices.Contains(subcommands, rest[0]) {
		s.report("%s: this program only looks at images; of qemu-img it has check, compare, info and map",
			rest[0])
		return codeFailed
	}
	return s.usage("Command not found: %s", rest[0])
}

// trace takes the argument of --trace. There are no trace events here.
func (s *session) trace(text string) {
	for text != "" {
		var key, val string
		var flag bool
		key, val, flag, text = cutOpt(text, "")
		if flag {
			val = key
		}
		if (flag || key == "enable") && !strings.ContainsAny(val, "*?") {
			s.warn("trace event '%s' does not exist", val)
		}
	}
}

func (s *session) printf(format string, args ...any) { fmt.Fprintf(s.out, format, args...) }

// stderr writes to standard error behind what standard output holds so far.
func (s *session) stderr(format string, args ...any) {
	// A failure is kept by the writer and reported at the end.
	_ = s.out.Flush()
	fmt.Fprintf(s.env.Stderr, format, args...)
}

// report is an error message.
func (s *session) report(format string, args ...any) {
	s.stderr("%s: %s\n", s.name, fmt.Sprintf(format, args...))
}

func (s *session) warn(format string, args ...any) {
	s.stderr("%s: warning: %s\n", s.name, fmt.Sprintf(format, args...))
}

func (s *session) reportFault(f *fault) {
	s.report("%s", f.msg)
	if f.hint != "" {
		s.stderr("%s", f.hint)
	}
}

// usage reports a command line that cannot be understood.
func (s *session) usage(format string, args ...any) int {
	s.report(format, args...)
	s.stderr("Try 'qemu-img --help' for more information\n")
	return codeFailed
}

func (s *session) badOption(g *getopt, c rune) int {
	if c == optMissing {
		return s.usage("missing argument for option '%s'", g.culprit())
	}
	return s.usage("unrecognized option '%s'", g.culprit())
}

// imageFlags are the options that the sub-commands have in common.
type imageFlags struct {
	format, format2     string
	hasFormat           bool
	hasFormat2          bool
	output              string
	hasOutput           bool
	cache               string
	imageOpts           bool
	forceShare          bool
	quiet               bool
	json                bool
	chain               bool
	repair              string
	progress, strict    bool
	startOff, maxLength int64
}

// errDone ends a run whose message was printed.
type errDone struct{ code int }

func (e errDone) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// common takes an option that several sub-commands have.
func (s *session) common(f *imageFlags, g *getopt, c rune, objectCode int) error {
	switch c {
	case optMissing, optUnknown:
		return errDone{s.badOption(g, c)}
	case 'h':
		return errDone{s.help()}
	case 'f':
		f.format, f.hasFormat = g.optarg, true
	case 'F':
		f.format2, f.hasFormat2 = g.optarg, true
	case 'T':
		f.cache = g.optarg
	case 'q':
		f.quiet = true
	case 'U':
		f.forceShare = true
	case 'p':
		f.progress = true
	case optOutput:
		f.output, f.hasOutput = g.optarg, true
	case optImageOpts:
		f.imageOpts = true
	case optBackingChain:
		f.chain = true
	case optObject:
		if err := s.addObject(g.optarg); err != nil {
			s.reportFault(err)
			return errDone{objectCode}
		}
	}
	return nil
}

// oneName gives the file name of a sub-command that takes one.
func (s *session) oneName(g *getopt) (string, error) {
	rest := g.operands()
	if len(rest) != 1 {
		return "", errDone{s.usage("Expecting one image file name")}
	}
	return rest[0], nil
}

// outputFormat looks at the argument of --output.
func (s *session) outputFormat(f *imageFlags) error {
	switch {
	case !f.hasOutput || f.output == "human":
	case f.output == "json":
		f.json = true
	default:
		s.report("--output must be used with human or json as argument.")
		return errDone{codeFailed}
	}
	return nil
}

const defaultCache = "writeback"

// direct tells what a cache mode means for reading: whether the page cache is passed by.
func (s *session) direct(mode string) (bool, bool) {
	switch mode {
	case "off", "none", "directsync":
		return true, true
	case defaultCache, "unsafe", "writethrough":
		return false, true
	}
	s.report("Invalid source cache option: %s", mode)
	return false, false
}

// size reads the argument of an option that is a number of bytes.
func (s *session) size(what, text string) (int64, error) {
	n, hexUnit, err := parseSize(text)
	if hexUnit {
		s.warn("Using a multiplier suffix on hex numbers is deprecated: %s", text)
	}
	switch {
	case errors.Is(err, errSizeInvalid):
		s.report("Invalid %s specified. You may use k, M, G, T, P or E suffixes for", what)
		s.report("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.")
		return 0, errDone{codeFailed}
	case err != nil || n > 1<<63-1:
		s.report("Invalid %s specified. Must be between 0 and 9223372036854775807.", what)
		return 0, errDone{codeFailed}
	}
	return int64(n), nil
}

// openImage opens the image that a command line names. A fault is reported by reportOpen.
func (s *session) openImage(
	name, format string, hasFormat bool, f *imageFlags, flags openFlags,
) (*graph, *node, *fault) {
	g := &graph{ctx: s.ctx, s: s}
	req := openRequest{options: &dict{}, flags: flags}
	if f.imageOpts {
		if hasFormat {
			return nil, nil, &fault{msg: "--image-opts and --format are mutually exclusive", bare: true}
		}
		opts, err := s.parseImageOpts(name)
		if err != nil {
			err.bare = true
			return nil, nil, err
		}
		if share, ok := opts.text("force-share"); f.forceShare && ok && share != "on" {
			return nil, nil, &fault{msg: "--force-share/-U conflicts with image options", bare: true}
		}
		req.options = opts
	} else {
		req.name, req.parseName = &name, true
		if hasFormat {
			req.options.put("driver", format)
		}
	}
	if f.forceShare {
		req.options.put("force-share", "on")
	}
	n, err := g.openRoot(req)
	return g, n, err
}

// reportOpen says why the image that is called name on the command line could not be opened.
func (s *session) reportOpen(name string, f *fault) {
	if !f.bare {
		f = f.within("Could not open '" + name + "': ")
	}
	s.reportFault(f)
}
