// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stack

const (
	// maxDepth and maxSteps bound an expression. Those of the C library's signal frames and of
	// procedure linkage tables have up to ten steps, and a depth of four.
	maxDepth = 64
	maxSteps = 1 << 10
)

// evaluate computes an expression (DWARF 5, section 2.5.1) over the registers and the copied stack.
// push is what lies on its stack at the start. What is not to be had, and operations that frames have
// no use for, make it fail.
func (w *walk) evaluate(code []byte, push *uint64) (uint64, bool) {
	m := machine{walk: w, all: code, reader: reader{b: code}}
	if push != nil {
		m.push(*push)
	}
	for steps := 0; len(m.b) > 0; steps++ {
		if steps == maxSteps || !m.step(m.u8()) || m.bad || len(m.stack) > maxDepth {
			return 0, false
		}
	}
	if len(m.stack) == 0 {
		return 0, false
	}
	return m.stack[len(m.stack)-1], true
}

type machine struct {
	*walk
	reader
	all   []byte
	stack []uint64
}

func (m *machine) push(v uint64) { m.stack = append(m.stack, v) }

// pop takes the top off; too few make the expression bad.
func (m *machine) pop() uint64 {
	n := len(m.stack)
	if n == 0 {
		m.bad = true
		return 0
	}
	v := m.stack[n-1]
	m.stack = m.stack[:n-1]
	return v
}

func (m *machine) step(op uint8) bool {
	switch {
	case op >= 0x30 && op <= 0x4f: // lit0 to lit31
		m.push(uint64(op - 0x30))
		return true
	case op >= 0x70 && op <= 0x8f: // breg0 to breg31
		v, ok := m.reg(uint64(op - 0x70))
		m.push(v + uint64(m.sleb()))
		return ok
	case op >= 0x08 && op <= 0x11:
		m.constant(op)
		return true
	case op >= 0x12 && op <= 0x16:
		return m.shuffle(op)
	case op >= 0x29 && op <= 0x2e || op >= 0x1a && op <= 0x27:
		return m.compute(op)
	}
	switch op {
	case 0x03: // addr
		m.push(m.u64())
	case 0x06: // deref
		v, ok := m.word(m.pop())
		m.push(v)
		return ok
	case 0x19: // abs
		if v := int64(m.pop()); v < 0 {
			m.push(uint64(-v))
		} else {
			m.push(uint64(v))
		}
	case 0x28: // bra
		if to := int16(m.u16()); m.pop() != 0 {
			return m.jump(to)
		}
	case 0x2f: // skip
		return m.jump(int16(m.u16()))
	case 0x92: // bregx
		v, ok := m.reg(m.uleb())
		m.push(v + uint64(m.sleb()))
		return ok
	case 0x96: // nop
	default:
		return false
	}
	return true
}

// jump moves by so many bytes within the expression.
func (m *machine) jump(by int16) bool {
	to := len(m.all) - len(m.b) + int(by)
	if m.bad || to < 0 || to > len(m.all) {
		return false
	}
	m.b = m.all[to:]
	return true
}

func (m *machine) constant(op uint8) {
	switch op {
	case 0x08:
		m.push(uint64(m.u8()))
	case 0x09:
		m.push(uint64(int8(m.u8())))
	case 0x0a:
		m.push(uint64(m.u16()))
	case 0x0b:
		m.push(uint64(int16(m.u16())))
	case 0x0c:
		m.push(uint64(m.u32()))
	case 0x0d:
		m.push(uint64(int32(m.u32())))
	case 0x0e, 0x0f:
		m.push(m.u64())
	case 0x10:
		m.push(m.uleb())
	case 0x11:
		m.push(uint64(m.sleb()))
	}
}

// shuffle moves what lies on the stack.
func (m *machine) shuffle(op uint8) bool {
	pick := func(n int) bool {
		if n >= len(m.stack) {
			return false
		}
		m.push(m.stack[len(m.stack)-1-n])
		return true
	}
	switch op {
	case 0x12: // dup
		return pick(0)
	case 0x13: // drop
		m.pop()
	case 0x14: // over
		return pick(1)
	case 0x15: // pick
		return pick(int(m.u8()))
	case 0x16: // swap
		a, b := m.pop(), m.pop()
		m.push(a)
		m.push(b)
	}
	return true
}

// compute takes two numbers, or one, and puts back the result.
func (m *machine) compute(op uint8) bool {
	top := m.pop()
	switch op {
	case 0x1f: // neg
		m.push(-top)
		return true
	case 0x20: // not
		m.push(^top)
		return true
	case 0x23: // plus_uconst
		m.push(top + m.uleb())
		return true
	}
	a := m.pop()
	truth := func(is bool) uint64 {
		if is {
			return 1
		}
		return 0
	}
	switch op {
	case 0x1a:
		a &= top
	case 0x1b: // div, signed
		if top == 0 {
			return false
		}
		a = uint64(int64(a) / int64(top))
	case 0x1c:
		a -= top
	case 0x1d: // mod
		if top == 0 {
			return false
		}
		a %= top
	case 0x1e:
		a *= top
	case 0x21:
		a |= top
	case 0x22:
		a += top
	case 0x24:
		a <<= top
	case 0x25:
		a >>= top
	case 0x26: // shra
		a = uint64(int64(a) >> min(top, 63))
	case 0x27:
		a ^= top
	case 0x29:
		a = truth(a == top)
	case 0x2a:
		a = truth(int64(a) >= int64(top))
	case 0x2b:
		a = truth(int64(a) > int64(top))
	case 0x2c:
		a = truth(int64(a) <= int64(top))
	case 0x2d:
		a = truth(int64(a) < int64(top))
	case 0x2e:
		a = truth(a != top)
	}
	m.push(a)
	return true
}
