// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// outcome is all that a caller of qemu-img sees.
type outcome struct {
	Code           int
	Stdout, Stderr string
}

// zone is where dates are shown: not UTC, so that mistakes show.
const zone = "Asia/Tokyo"

// realQemu runs the qemu-img of this machine in dir.
func realQemu(t testing.TB, dir string, args ...string) outcome {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-img", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TZ="+zone, "LC_ALL=C.UTF-8")
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	runErr := cmd.Run()
	var exit *exec.ExitError
	if runErr != nil && !errors.As(runErr, &exit) {
		t.Fatal(runErr)
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), err.String()}
}

// ours runs this package in the current directory.
func ours(t testing.TB, args ...string) outcome {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	if err != nil {
		testenv.Lacks(t, "the time zone "+zone)
	}
	var out, errOut bytes.Buffer
	env := Env{Stdout: &out, Stderr: &errOut, Location: loc, Version: "test"}
	code := Run(t.Context(), env, append([]string{"qemu-img"}, args...))
	return outcome{code, out.String(), errOut.String()}
}

// same fails the test unless both give the same to the byte.
func same(t *testing.T, args ...string) {
	t.Helper()
	want := realQemu(t, ".", args...)
	got := ours(t, args...)
	line := "qemu-img " + strings.Join(args, " ")
	if want.Code < 0 {
		// qemu-img crashed; see "Differences" in the package comment.
		want = got
		if got.Code != codeFailed {
			t.Errorf("%s: exit code %d where qemu-img crashes, want %d", line, got.Code, codeFailed)
		}
	}
	if want.Code == codeFailed && (got.Code == codeNoCheck || strings.Contains(got.Stderr, "cannot be read by this program")) {
		return // qemu-img looks into a format that is not known here, and finds a fault
	}
	if got.Code != want.Code {
		t.Errorf("%s: exit code %d, want %d", line, got.Code, want.Code)
	}
	for _, c := range []struct{ name, got, want string }{
		{"stdout", got.Stdout, want.Stdout}, {"stderr", got.Stderr, want.Stderr},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s differs: %s", line, c.name, firstDiff(c.got, c.want))
		}
	}
}

// firstDiff shows the first line that differs, with a few that follow.
func firstDiff(got, want string) string {
	g, w := strings.SplitAfter(got, "\n"), strings.SplitAfter(want, "\n")
	i := 0
	for i < len(g) && i < len(w) && g[i] == w[i] {
		i++
	}
	some := func(lines []string) string {
		return strings.Join(lines[min(i, len(lines)):min(i+3, len(lines))], "")
	}
	return fmt.Sprintf("line %d:\ngot  %q\nwant %q", i+1, some(g), some(w))
}
