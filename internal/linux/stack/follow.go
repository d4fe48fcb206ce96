// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stack

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A program that runs for a millisecond is gone before its list of mappings can be read. The kernel
// tells of every mapping with code when it is made, in a ring for each CPU (perf_event_open(2),
// PERF_RECORD_MMAP2), at the price of some bytes for each program that starts.
//
// The first page of a ring has at 1024 how far the kernel has written, and at 1032 how far we have
// read; then come the data, a power of two of pages. A record begins with its type u32, misc u16
// and size u16, and ends with what sample_id_all adds: here pid u32, tid u32, time u64.
const (
	ringPages = 64 // of 4 KiB: a program that starts takes about 1 KiB
	headAt    = 1024
	tailAt    = 1032
	// maxFollowed bounds the processes whose mappings are kept, the oldest go first; maxMappings
	// those of one process.
	maxFollowed = 4096
	maxMappings = 4096
	idBytes     = 16
)

// Follower knows the mappings of all processes that start while it runs. Take must be called often
// enough that the rings do not run over. It is for one goroutine at a time.
type Follower struct {
	root  string
	rings []ring
	procs map[int]*followed
	order []int // pids of procs, oldest first
	lost  atomic.Uint64
}

type ring struct {
	fd   int
	mem  []byte
	data []byte
}

// followed is one process.
type followed struct {
	maps []Mapping
	// parent has the mappings that were there before a fork, 0 once a program was executed.
	parent int
	whole  bool // maps are all of it: it was seen from its start, or its list was read
}

// Follow begins. The error says what the kernel refused.
func Follow(root string) (*Follower, error) {
	f := &Follower{root: root, procs: map[int]*followed{}}
	cpus, err := online(root)
	if err != nil {
		return nil, err
	}
	for _, cpu := range cpus {
		r, err := openRing(cpu)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("follow the programs that start on CPU %d: %w", cpu, err)
		}
		f.rings = append(f.rings, r)
	}
	return f, nil
}

// Close ends it.
func (f *Follower) Close() error {
	var errs []error
	for _, r := range f.rings {
		errs = append(errs, unix.Munmap(r.mem), unix.Close(r.fd))
	}
	f.rings = nil
	return errors.Join(errs...)
}

// Lost is how many records the kernel could not write since the rings were full. It may be asked for
// at any time, by whomever.
func (f *Follower) Lost() uint64 { return f.lost.Load() }

func openRing(cpu int) (ring, error) {
	attr := unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_SOFTWARE,
		Config: unix.PERF_COUNT_SW_DUMMY,
		Size:   uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Bits: unix.PerfBitMmap | unix.PerfBitMmap2 | unix.PerfBitComm | unix.PerfBitCommExec |
			unix.PerfBitTask | unix.PerfBitSampleIDAll,
		Sample_type: unix.PERF_SAMPLE_TID | unix.PERF_SAMPLE_TIME,
	}
	// With build IDs a record has one instead of the file's numbers, read by the kernel from the
	// mapped file; kernels before Linux 5.12 do not know the bit (34).
	const buildIDs = 1 << 34
	attr.Bits |= buildIDs
	fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if errors.Is(err, unix.EINVAL) {
		attr.Bits &^= buildIDs
		fd, err = unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	}
	if err != nil {
		return ring{}, err
	}
	page := os.Getpagesize()
	mem, err := unix.Mmap(fd, 0, page+ringPages*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return ring{}, err
	}
	return ring{fd: fd, mem: mem, data: mem[page:]}, nil
}

// event is one record, whole.
type event struct {
	time uint64
	kind uint32
	misc uint16
	body []byte
}

// drain takes what the kernel wrote to a ring.
func (r ring) drain(into []event) []event {
	head := atomic.LoadUint64((*uint64)(unsafe.Pointer(&r.mem[headAt])))
	tailp := (*uint64)(unsafe.Pointer(&r.mem[tailAt]))
	tail := atomic.LoadUint64(tailp)
	size := uint64(len(r.data))
	at := func(from, n uint64) []byte {
		b := make([]byte, n)
		for done := uint64(0); done < n; {
			done += uint64(copy(b[done:], r.data[(from+done)%size:]))
		}
		return b
	}
	for tail+8 <= head {
		h := at(tail, 8)
		n := uint64(binary.LittleEndian.Uint16(h[6:]))
		if n < 8 || tail+n > head {
			break // not what the kernel writes
		}
		e := event{kind: binary.LittleEndian.Uint32(h), misc: binary.LittleEndian.Uint16(h[4:])}
		e.body = at(tail+8, n-8)
		if len(e.body) >= idBytes {
			e.time = binary.LittleEndian.Uint64(e.body[len(e.body)-8:])
			e.body = e.body[:len(e.body)-idBytes]
		}
		into = append(into, e)
		tail += n
	}
	atomic.StoreUint64(tailp, head)
	return into
}

// Take takes in what the kernel told since the last time.
func (f *Follower) Take() {
	var all []event
	for _, r := range f.rings {
		all = r.drain(all)
	}
	slices.SortStableFunc(all, func(a, b event) int { return cmp.Compare(a.time, b.time) })
	for _, e := range all {
		f.note(e)
	}
}

func (f *Follower) note(e event) {
	r := reader{b: e.body}
	switch e.kind {
	case unix.PERF_RECORD_LOST: // id u64, number u64
		r.u64()
		f.lost.Add(r.u64())
		for _, p := range f.procs {
			p.whole = false // a record of any of them may be among those
		}
	case unix.PERF_RECORD_COMM: // pid, tid, name
		if pid := int(r.u32()); e.misc&unix.PERF_RECORD_MISC_COMM_EXEC != 0 {
			*f.process(pid) = followed{whole: true}
		}
	case unix.PERF_RECORD_FORK: // pid, ppid, tid, ptid, time
		if pid, parent := int(r.u32()), int(r.u32()); pid != parent {
			*f.process(pid) = followed{parent: parent, whole: true}
		}
	case unix.PERF_RECORD_MMAP2:
		pid := int(r.u32())
		if p := f.process(pid); len(p.maps) < maxMappings {
			if m, ok := mmap2(&r, e.misc); ok {
				p.add(m)
			}
		} else {
			p.whole = false
		}
	}
}

// mmap2 is the mapping in a record whose pid was taken off: tid u32, addr, len, pgoff u64, then
// either major, minor u32, inode, generation u64, or the build ID: size u8, three bytes, 20 bytes;
// then prot, flags u32 and the name.
func mmap2(r *reader, misc uint16) (Mapping, bool) {
	r.u32()
	m := Mapping{Start: r.u64()}
	m.End = m.Start + r.u64()
	m.Offset = r.u64()
	if misc&unix.PERF_RECORD_MISC_MMAP_BUILD_ID != 0 {
		n := uint64(r.u8())
		r.bytes(3)
		if id := r.bytes(20); id != nil {
			m.BuildID = hex.EncodeToString(id[:min(n, 20)])
		}
	} else {
		major, minor := r.u32(), r.u32()
		m.Dev, m.Inode = unix.Mkdev(major, minor), r.u64()
		r.u64()
	}
	prot := r.u32()
	r.u32()
	m.Path = strings.TrimSuffix(r.text(), " (deleted)")
	return m, !r.bad && prot&unix.PROT_EXEC != 0 && m.End > m.Start
}

// add puts a mapping in its place; what it lies over is gone.
func (p *followed) add(m Mapping) {
	p.maps = slices.DeleteFunc(p.maps, func(o Mapping) bool { return o.Start < m.End && m.Start < o.End })
	i, _ := slices.BinarySearchFunc(p.maps, m, func(a, b Mapping) int { return cmp.Compare(a.Start, b.Start) })
	p.maps = slices.Insert(p.maps, i, m)
}

// process is what is known of one, new if nothing was.
func (f *Follower) process(pid int) *followed {
	p, ok := f.procs[pid]
	if ok {
		return p
	}
	if len(f.order) == maxFollowed {
		delete(f.procs, f.order[0])
		f.order = f.order[1:]
	}
	p = &followed{}
	f.procs[pid], f.order = p, append(f.order, pid)
	return p
}

// Mappings are those of a process, also if it is gone. The error says why they are not known.
func (f *Follower) Mappings(pid int) ([]Mapping, error) {
	f.Take()
	var out followed
	// What a process had from its parent at the fork, from generation to generation.
	for next, depth := pid, 0; ; depth++ {
		p, known := f.procs[next]
		if !known || !p.whole {
			maps, err := Maps(f.root, next)
			if err != nil {
				return nil, fmt.Errorf("the mappings of process %d: %w", pid, err)
			}
			for _, m := range maps {
				out.keep(m)
			}
			return out.maps, nil
		}
		for _, m := range p.maps {
			out.keep(m)
		}
		if p.parent == 0 || depth == maxFrames {
			return out.maps, nil
		}
		next = p.parent
	}
}

// keep adds a mapping unless a younger one lies there.
func (p *followed) keep(m Mapping) {
	if !slices.ContainsFunc(p.maps, func(o Mapping) bool { return o.Start < m.End && m.Start < o.End }) {
		p.add(m)
	}
}

// online are the CPUs that run: ranges such as "0-3,6".
func online(root string) ([]int, error) {
	b, err := os.ReadFile(root + "/sys/devices/system/cpu/online")
	if err != nil {
		return nil, err
	}
	return ranges(strings.TrimSpace(string(b)))
}

// maxCPUs is what the kernel may be built for.
const maxCPUs = 8192

func ranges(text string) ([]int, error) {
	out := []int{}
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err := errors.Join(err1, err2); err != nil || a < 0 || b < a || b >= maxCPUs {
			return nil, fmt.Errorf("list of CPUs %q makes no sense", text)
		}
		for n := a; n <= b; n++ {
			out = append(out, n)
		}
	}
	return out, nil
}
