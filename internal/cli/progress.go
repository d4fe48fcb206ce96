// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/render"
)

// Between two drawings of a bar: fast enough to be seen moving, too slow to cost anything.
const progressInterval = 100 * time.Millisecond

// progress is one line on a terminal that says how far long work has come. On anything else it
// prints nothing. It may be used by several goroutines at once.
type progress struct {
	w     io.Writer
	title string
	width int
	now   func() time.Time

	mu          sync.Mutex
	begin, last time.Time
	shown, over bool
}

// newProgress begins a bar on s.err. Nothing is shown before the work took a moment.
func newProgress(s *stdio, title string) *progress {
	return startProgress(s.err, s.barWidth, title, time.Now)
}

func startProgress(w io.Writer, width int, title string, now func() time.Time) *progress {
	p := &progress{w: w, width: width, title: render.Text(title), now: now}
	p.begin = now()
	p.last = p.begin
	return p
}

// Set says that done of total are finished, in any unit; total below 1 is not known yet.
func (p *progress) Set(done, total int64) {
	if p.width == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if p.over || now.Sub(p.last) < progressInterval {
		return
	}
	p.last, p.shown = now, true
	// To the start of the line, the new text, and away with the rest of the old one.
	fmt.Fprintf(p.w, "\r%s\x1b[K", p.line(done, total, now.Sub(p.begin)))
}

// Say changes what stands before the bar, for work of several parts.
func (p *progress) Say(title string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.title = render.Text(title)
}

// Part is Say and Set at once.
func (p *progress) Part(title string, done, total int64) {
	p.Say(title)
	p.Set(done, total)
}

func (p *progress) line(done, total int64, took time.Duration) string {
	clock := fmt.Sprintf("%d:%02d", int(took.Minutes()), int(took.Seconds())%60)
	switch {
	case total < 1 && done == 0:
		return cut(p.title+"  "+clock, p.width-1)
	case total < 1:
		return cut(fmt.Sprintf("%s  %d  %s", p.title, done, clock), p.width-1)
	}
	share := float64(min(max(done, 0), total)) / float64(total)
	tail := fmt.Sprintf(" %3d%%  %s", int(share*100), clock)
	bar := min(p.width-len(p.title)-len(tail)-5, 40)
	if bar < 8 {
		return cut(p.title+tail, p.width-1)
	}
	full := int(share * float64(bar))
	return fmt.Sprintf("%s  [%s%s]%s", p.title, strings.Repeat("=", full),
		strings.Repeat(" ", bar-full), tail)
}

// cut shortens text to n columns; a line that wraps could not be drawn over.
func cut(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:max(n, 0)])
	}
	return text
}

// Done takes the bar away. It may be called more than once.
func (p *progress) Done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown && !p.over {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	p.over = true
}
