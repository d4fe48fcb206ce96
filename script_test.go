// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shisa-vm/shisa/internal/jail"
	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

func TestMain(m *testing.M) {
	if jail.IsChild(os.Args) {
		os.Exit(jail.Serve())
	}
	if ask.IsChild(os.Args) {
		os.Exit(ask.Serve())
	}
	if uml.IsStage(os.Args) {
		os.Exit(uml.Stage())
	}
	main := func() { os.Exit(machine().Main(os.Args, os.Stdin, os.Stdout, os.Stderr)) }
	testscript.Main(testenv.Checked(m), map[string]func(){"shisa": main, "qemu-img": main, "signalled": signalled})
}

// TestScript runs the command line as users do. Each script says exactly what it prints and with
// which status it ends. Beside the commands of testscript there are those of scriptCommands.
func TestScript(t *testing.T) {
	testenv.Need(t, "setpriv", "qemu-io")
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		WorkdirRoot:        t.TempDir(),
		UpdateScripts:      os.Getenv("SHISA_UPDATE") != "",
		Cmds:               scriptCommands,
		Setup: func(env *testscript.Env) error {
			// Nothing of this machine: neither where its user keeps things nor how wide it is.
			env.Setenv("NO_COLOR", "1")
			env.Setenv("GORACE", testenv.NoWait)
			// Every act on base images leaves a receipt.
			if dir := filepath.Base(env.WorkDir); strings.HasPrefix(dir, "script-base") || strings.HasPrefix(dir, "script-demo") {
				env.Setenv("SHISA_STATE", env.WorkDir+"/state")
			}
			return nil
		},
	})
}

// scriptCommands are the commands that scripts have for this project.
var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"await":    await,
	"exits":    exits,
	"frozen":   frozen,
	"mkimage":  unforked(mkimage),
	"mkchain":  unforked(mkchain),
	"mkfifo":   mkfifo,
	"poke":     unforked(poke),
	"resize":   unforked(resize),
	"wreck":    unforked(wreck),
	"hold":     hold,
	"letgo":    letgo,
	"unfinish": unfinish,
	"receipt":  receiptOf,
	"mount":    mountFor,
	"story":    story,
}

// unforked keeps other scripts from starting a program while fn has files open: between fork and exec
// a child holds the descriptors of its parent, and an image would look as if it were in use.
func unforked(fn func(*testscript.TestScript, bool, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		fn(ts, neg, args)
	}
}

// exits runs a command and requires its exact exit status: "exits 64 shisa". A plain "! shisa"
// would accept any failure, and the status is a contract.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	args = args[1:]
	if args[0] == "unprivileged" {
		args = unprivileged(args[1:])
	}
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[0], args[1:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%s: %v", args[0], err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}
