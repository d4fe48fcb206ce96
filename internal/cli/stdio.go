// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bufio"
	"io"
	"os"
	"sync"

	"golang.org/x/term"

	"github.com/shisa-vm/shisa/internal/render"
)

// stdio is what a command reads from and writes to.
type stdio struct {
	in  io.Reader
	out *output   // the result, and nothing else
	err io.Writer // everything else
	// colour: out is a terminal and its user does not mind colour.
	colour bool
	// width is the number of columns of out's terminal, 0 if out is no terminal.
	width int
	// barWidth is the same for err: progress is shown on a terminal only.
	barWidth int
	// machine is the one that acts on base images go by.
	machine Machine
}

func newStdio(stdin io.Reader, stdout, stderr io.Writer) *stdio {
	out := &output{w: bufio.NewWriterSize(stdout, 32<<10)}
	s := &stdio{in: stdin, out: out, err: &afterOutput{out, stderr}}
	s.width, s.barWidth = columns(stdout), columns(stderr)
	// https://no-color.org: any value but the empty one turns colour off.
	s.colour = s.width > 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return s
}

// columns is the width of the terminal behind w, 0 if it is none.
func columns(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
		return n
	}
	return 80 // a terminal that does not know, as in some serial consoles
}

// style says how text is laid out on standard output.
func (s *stdio) style(all bool) render.Style {
	return render.Style{Width: s.width, Color: s.colour, All: all}
}

func (s *stdio) flush() error { return s.out.flush() }

// output is standard output: buffered, and a failed write is kept for the end, so that commands
// need not look at each one. What is written at once stays together, whoever else writes.
type output struct {
	mu   sync.Mutex
	w    *bufio.Writer
	used bool // something was written
}

// Write is io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.used = o.used || len(p) > 0
	return o.w.Write(p)
}

func (o *output) flush() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Flush()
}

// afterOutput is standard error: what was printed before it on standard output appears before it.
type afterOutput struct {
	out *output
	w   io.Writer
}

// Write is io.Writer.
func (a *afterOutput) Write(p []byte) (int, error) {
	// bufio keeps the error and gives it again at the end.
	_ = a.out.flush()
	return a.w.Write(p)
}
