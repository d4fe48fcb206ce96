// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package check

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// small is an image of 64 MiB with some data.
func small(backing string) lab.Spec {
	return lab.Spec{VirtualBytes: 64 << 20, Fill: .2, Seed: 7, Backing: backing, BackingFormat: formatOf(backing)}
}

// leaking is such an image with a leaked cluster.
func leaking() lab.Spec {
	s := small("")
	s.TailLeaks = 1
	return s
}

func formatOf(name string) string {
	if name == "" {
		return ""
	}
	if ext := strings.TrimPrefix(filepath.Ext(name), "."); ext == "raw" {
		return ext
	}
	return "qcow2"
}

// makeImage makes an image, breaks it with the faults, and proves at the end that it was not
// changed since.
func makeImage(t *testing.T, path string, s lab.Spec, faults ...string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := lab.Write(path, s); err != nil {
		t.Fatal(err)
	}
	for _, name := range faults {
		breakImage(t, path, name)
	}
	settle(t, path)
	diskio.RequireUnchanged(t, path)
	return path
}

func breakImage(t *testing.T, path, name string) {
	t.Helper()
	for _, f := range lab.Faults() {
		if f.Name == name {
			if _, err := f.Apply(path, 1); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("there is no fault %q", name)
}

// settle makes a file look as if it had been left alone for a minute.
func settle(t *testing.T, path string) {
	t.Helper()
	old := time.Now().Add(-time.Minute)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path string, content []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	settle(t, path)
	diskio.RequireUnchanged(t, path)
	return path
}

// noSleep ends a wait at once.
func noSleep(ctx context.Context, _ time.Duration) error { return ctx.Err() }

// show gives a report as lines: status and verdict, the images in their order, what belongs to none.
func show(rep *Report, dir string) []string {
	cut := func(s string) string { return shorten(s, dir) }
	lines := []string{fmt.Sprintf("%s %v", rep.Verdict, rep.Status)}
	for _, img := range rep.Images {
		line := fmt.Sprintf("%s %s %s", cut(img.Path), orNone(img.Format), img.Verdict)
		if img.Backing != nil {
			line += fmt.Sprintf(" on %s:%s", cut(img.Backing.Path), img.Backing.State)
		}
		for _, f := range img.Findings {
			line += " " + f.Code
			if f.Severity == finding.Note {
				line += "(note)"
			}
		}
		for _, b := range img.Blind {
			line += fmt.Sprintf(" blind(%s: %s)", b.What, cut(b.Reason))
		}
		lines = append(lines, line)
	}
	for _, b := range rep.Blind {
		lines = append(lines, fmt.Sprintf("blind %s %s: %s", cut(b.Object), b.What, cut(b.Reason)))
	}
	return lines
}

// shorten leaves out the directory, and the names that features have.
func shorten(s, dir string) string {
	return strings.NewReplacer(dir+"/", "", " (Unknown incompatible feature: 20)", "").Replace(s)
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// check runs a check and gives its report and error as lines.
func checkLines(t *testing.T, dir string, opts Options, paths ...string) []string {
	t.Helper()
	rep, err := Run(t.Context(), paths, opts)
	lines := show(rep, dir)
	if err != nil {
		lines = append(lines, "error "+shorten(err.Error(), dir))
	}
	return lines
}

// qemuIO starts qemu-io on an image; the result takes its commands. It ends with the test.
func qemuIO(t *testing.T, args ...string) io.Writer {
	t.Helper()
	testenv.Need(t, "qemu-io")
	cmd := exec.Command("qemu-io", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		cmd.Process.Kill() // it may have more commands to do than a test has time
		<-done
		cmd.Wait()
	})
	fmt.Fprintln(in, "length")
	s := bufio.NewScanner(out)
	open := false
	for !open && s.Scan() {
		open = strings.Contains(s.Text(), "iB") || strings.Contains(s.Text(), "bytes")
	}
	go func() {
		io.Copy(io.Discard, out)
		close(done)
	}()
	if !open {
		t.Fatalf("qemu-io %v did not open the image", args)
	}
	return in
}

func writeLab(path string, s lab.Spec) error { return lab.Write(path, s) }
