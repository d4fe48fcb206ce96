// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import "strconv"

// progress prints how far a job is, at every two per cent, on standard output and over itself, as
// qemu-img -p does. It counts in float32, as qemu does.
type progress struct {
	s             *session
	shown         bool
	current, last float32
}

const progressStep = 2

// add notes that percent more of the whole is done.
func (p *progress) add(percent float32) {
	p.current = min(p.current+percent/100*100, 100)
	if p.current > p.last+progressStep || p.current == 100 || p.current == 0 {
		p.last = p.current
		if p.shown {
			p.s.printf("    (%s/100%%)\r", strconv.FormatFloat(float64(p.current), 'f', 2, 32))
			// A failure is kept by the writer for the end.
			_ = p.s.out.Flush()
		}
	}
}

// end leaves the line.
func (p *progress) end() {
	if p.shown {
		p.s.printf("\n")
	}
}
