// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import "io"

// Block status as in qemu (BDRV_BLOCK_*): what stands behind a range of a node.
//
// internal/disk knows a status of its own, for shisa compare --strict, and the two are kept apart on
// purpose. Here the question goes from node to node of any graph that --image-opts describes, in the
// portions that qemu asks in, since where an answer ends shows in what it prints. There the answer is made
// from the merged map of a chain, read once from its beginning to its end, which is what makes it fast.
// One of the two ways would have to be bent into the other; their common words are five flags.
const (
	isData      = 1 << iota // bytes are stored
	isZero                  // it reads as zeros
	offsetValid             // the bytes stand at status.off of status.file
	rawBelow                // the answer is that of the file below
	allocated               // this node, not its backing file, says what is there
	atEnd                   // the range ends at the end of the node
	recurse                 // the file below may have a hole there
)

// status is the answer for the first n bytes of a range.
type status struct {
	flags int
	n     int64
	off   int64
	file  *node
	// from is the node that answered, depth how far below the one that was asked.
	from  *node
	depth int
}

// blockStatus tells what n itself, without its backing file, says of [off, off+bytes): bytes is
// clipped to its end, and the answer is for as much as is easily known to be alike. That is not
// more than qemu tells in one answer, since qemu-img compare -s shows where one ends.
func (g *graph) blockStatus(n *node, off, bytes int64) (status, error) {
	if off >= n.length {
		return status{flags: atEnd, from: n}, nil
	}
	bytes = min(bytes, n.length-off)
	st := status{n: bytes, from: n}
	if bytes == 0 {
		return st, nil
	}
	if n.driver == drvDevice || n.driver == drvLUKS {
		st.flags = isData | allocated
		if n.driver == drvDevice {
			st.flags, st.off, st.file = st.flags|offsetValid, off, n
		}
		return n.markEnd(st, off), nil
	}
	aligned := off &^ (n.align - 1)
	st, err := g.driverStatus(n, aligned, roundUp(off+bytes, n.align)-aligned)
	if err != nil {
		return st, err
	}
	st.from = n
	st.n = min(st.n-(off-aligned), bytes)
	if st.flags&offsetValid != 0 {
		st.off += off - aligned
	}
	switch {
	case st.flags&rawBelow != 0:
		st, err = g.blockStatus(st.file, st.off, st.n)
		st.from = n
		if err != nil {
			return st, err
		}
		return n.markEnd(st, off), nil
	case st.flags&(isData|isZero) != 0:
		st.flags |= allocated
	case n.driver == drvQcow2 && (n.backing == nil || off >= n.backing.length):
		st.flags |= isZero
	}
	if st.flags&recurse != 0 {
		g.lookBelow(&st)
	}
	return n.markEnd(st, off), nil
}

func (n *node) markEnd(st status, off int64) status {
	if off+st.n == n.length {
		st.flags |= atEnd
	}
	return st
}

// lookBelow asks the file whether there is a hole where the image has data: qcow2 images with
// preallocated metadata have them.
func (g *graph) lookBelow(st *status) {
	st.flags &^= recurse
	below, err := g.blockStatus(st.file, st.off, st.n)
	switch {
	case err != nil: // qemu does without
	case below.flags&atEnd != 0 && (below.n == 0 || below.flags&isZero != 0):
		st.flags |= isZero
	default:
		st.n = below.n
		st.flags |= below.flags & isZero
	}
}

// guest reads what a guest would read of a node with its backing files.
type guest struct{ n *node }

// ReadAt is io.ReaderAt.
func (r *guest) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		st, err := r.n.g.statusAbove(r.n, off+int64(done), int64(len(p)-done))
		if err != nil {
			return done, err
		}
		if st.n == 0 {
			return done, io.EOF
		}
		if err := readGuest(p[done:done+int(st.n)], off+int64(done), st); err != nil {
			return done, err
		}
		done += int(st.n)
	}
	return done, nil
}

// driverStatus is the part that differs by driver. off and bytes are aligned.
func (g *graph) driverStatus(n *node, off, bytes int64) (status, error) {
	switch n.driver {
	case drvRaw:
		return status{flags: rawBelow | offsetValid, n: bytes, off: off + n.raw.offset, file: n.file}, nil
	case drvQcow2:
		return g.qcow2Status(n, off, bytes)
	}
	return n.fileStatus(off, bytes), nil
}

// statusAbove asks n and its backing files until one of them answers.
func (g *graph) statusAbove(n *node, off, bytes int64) (status, error) {
	st, err := g.blockStatus(n, off, bytes)
	if err != nil || st.n == 0 || st.flags&allocated != 0 {
		return st, err
	}
	end := int64(-1)
	if st.flags&atEnd != 0 {
		end = off + st.n
	}
	bytes = st.n
	for p, depth := n.backing, 1; p != nil; p, depth = p.backing, depth+1 {
		st, err = g.blockStatus(p, off, bytes)
		st.depth = depth
		if err != nil {
			return st, err
		}
		if st.n == 0 {
			// The layer above defers to one that is too short: zeros, as if this layer held them.
			st.n, st.flags, st.file = bytes, isZero|allocated, p
			break
		}
		if st.flags&allocated != 0 {
			st.flags &^= atEnd
			break
		}
		bytes = st.n
	}
	if off+st.n == end {
		st.flags |= atEnd
	}
	return st, nil
}
