// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stack

// How a frame's caller is found: DWARF 5, section 6.4, "Call Frame Information". A program of small
// instructions says, for each address of a function, how the canonical frame address (CFA, the value
// of the stack pointer before the call) is computed, and where from there the caller's registers lie.

const (
	// maxRemembered bounds the rows that a program may put aside. Compilers use one.
	maxRemembered = 64
	// maxInstructions bounds what is executed for one frame. Long functions have some thousands.
	maxInstructions = 1 << 16
)

type where uint8

const (
	same         where = iota // the caller's value is still there
	undefined                 // it is lost
	atOffset                  // it lies at CFA + n
	isOffset                  // it is CFA + n
	inRegister                // it is in register n
	atExpression              // expr gives its address
	isExpression              // expr gives it
)

type rule struct {
	where
	n    int64
	expr []byte
}

// row is the rules at one address.
type row struct {
	cfaReg  uint64
	cfaOff  int64
	cfaExpr []byte
	regs    [registers]rule
	ret     rule // of the return address
	ra      uint64
	// signal: the caller was interrupted, so its address is where it goes on, not after a call.
	signal bool
}

// set sets the rule of a register. Those that are not kept (of vectors, for example) do not matter.
func (r *row) set(n uint64, to rule) {
	if n == r.ra {
		r.ret = to
	}
	if n < registers {
		r.regs[n] = to
	}
}

func (r *row) get(n uint64) rule {
	switch {
	case n < registers:
		return r.regs[n]
	case n == r.ra:
		return r.ret
	}
	return rule{}
}

// program executes the instructions of a CIE and of one of its FDEs up to an address.
type program struct {
	row
	initial row
	stack   []row
	c       *cie
	loc     uint64
	until   uint64
	left    int
}

// run executes code and tells whether it made sense. It stops early where it came past the address.
func (p *program) run(code []byte) bool {
	b := reader{b: code}
	for len(b.b) > 0 && p.loc <= p.until {
		if p.left--; p.left < 0 {
			return false
		}
		op := b.u8()
		low := uint64(op & 0x3f)
		switch op >> 6 {
		case 1: // DW_CFA_advance_loc
			p.loc += low * p.c.codeAlign
		case 2: // DW_CFA_offset
			p.set(low, rule{where: atOffset, n: int64(b.uleb()) * p.c.dataAlign})
		case 3: // DW_CFA_restore
			p.set(low, p.initial.get(low))
		default:
			if !p.extended(op, &b) {
				return false
			}
		}
		if b.bad {
			return false
		}
	}
	return true
}

// extended executes the instructions that are not in the two high bits.
func (p *program) extended(op uint8, b *reader) bool {
	scaled := func(n int64) int64 { return n * p.c.dataAlign }
	switch op {
	case 0x00: // nop
	case 0x01: // set_loc
		p.loc = b.u64()
	case 0x02:
		p.loc += uint64(b.u8()) * p.c.codeAlign
	case 0x03:
		p.loc += uint64(b.u16()) * p.c.codeAlign
	case 0x04:
		p.loc += uint64(b.u32()) * p.c.codeAlign
	case 0x05: // offset_extended
		p.set(b.uleb(), rule{where: atOffset, n: scaled(int64(b.uleb()))})
	case 0x06: // restore_extended
		n := b.uleb()
		p.set(n, p.initial.get(n))
	case 0x07:
		p.set(b.uleb(), rule{where: undefined})
	case 0x08:
		p.set(b.uleb(), rule{})
	case 0x09:
		n := b.uleb()
		p.set(n, rule{where: inRegister, n: int64(b.uleb())})
	case 0x0a: // remember_state
		if len(p.stack) == maxRemembered {
			return false
		}
		p.stack = append(p.stack, p.row)
	case 0x0b: // restore_state
		if len(p.stack) == 0 {
			return false
		}
		p.row = p.stack[len(p.stack)-1]
		p.stack = p.stack[:len(p.stack)-1]
	case 0x0c: // def_cfa
		p.cfaReg, p.cfaOff, p.cfaExpr = b.uleb(), int64(b.uleb()), nil
	case 0x0d:
		p.cfaReg, p.cfaExpr = b.uleb(), nil
	case 0x0e:
		p.cfaOff = int64(b.uleb())
	case 0x0f: // def_cfa_expression
		p.cfaExpr = b.bytes(b.uleb())
	case 0x10:
		n := b.uleb()
		p.set(n, rule{where: atExpression, expr: b.bytes(b.uleb())})
	case 0x11: // offset_extended_sf
		p.set(b.uleb(), rule{where: atOffset, n: scaled(b.sleb())})
	case 0x12: // def_cfa_sf
		p.cfaReg, p.cfaOff, p.cfaExpr = b.uleb(), scaled(b.sleb()), nil
	case 0x13:
		p.cfaOff = scaled(b.sleb())
	case 0x14: // val_offset
		p.set(b.uleb(), rule{where: isOffset, n: scaled(int64(b.uleb()))})
	case 0x15:
		p.set(b.uleb(), rule{where: isOffset, n: scaled(b.sleb())})
	case 0x16:
		n := b.uleb()
		p.set(n, rule{where: isExpression, expr: b.bytes(b.uleb())})
	case 0x2d: // AARCH64_negate_ra_state: the signature is cut off every address anyway
	case 0x2e: // GNU_args_size
		b.uleb()
	default:
		return false
	}
	return true
}

// apply goes to the caller by the rules of a row.
func (w *walk) apply(r *row) (walk, step) {
	cfa, ok := w.cfa(r)
	if !ok {
		return *w, broken
	}
	next := *w
	next.Known = 0
	for n := range registers {
		if v, ok := w.value(r.regs[n], uint64(n), cfa); ok {
			next.Set(n, v)
		}
	}
	// The CFA is the caller's stack pointer unless a rule says otherwise, as in a signal's frame.
	if r.regs[w.sp].where == same {
		next.Set(w.sp, cfa)
	}
	ret := r.get(r.ra)
	if ret.where == undefined {
		return *w, outermost
	}
	var pc uint64
	if ret.where == same && r.ra < registers {
		pc, ok = w.reg(r.ra) // a leaf, on arm64
	} else {
		pc, ok = w.value(ret, r.ra, cfa)
	}
	if !ok {
		return *w, cut
	}
	if pc &= w.mask; pc == 0 {
		return *w, outermost
	}
	// A walk that stays where it is would never end.
	sp, _ := w.reg(uint64(w.sp))
	if up, _ := next.reg(uint64(w.sp)); up < sp || up == sp && pc == w.PC {
		return *w, broken
	}
	next.PC, next.exact = pc, r.signal
	return next, byTable
}

func (w *walk) cfa(r *row) (uint64, bool) {
	if r.cfaExpr != nil {
		return w.evaluate(r.cfaExpr, nil)
	}
	v, ok := w.reg(r.cfaReg)
	return v + uint64(r.cfaOff), ok
}

// value is what register n of the caller holds.
func (w *walk) value(r rule, n, cfa uint64) (uint64, bool) {
	switch r.where {
	case same:
		return w.reg(n)
	case atOffset:
		return w.word(cfa + uint64(r.n))
	case isOffset:
		return cfa + uint64(r.n), true
	case inRegister:
		return w.reg(uint64(r.n))
	case atExpression:
		at, ok := w.evaluate(r.expr, &cfa)
		if !ok {
			return 0, false
		}
		return w.word(at)
	case isExpression:
		return w.evaluate(r.expr, &cfa)
	}
	return 0, false
}
