// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stack

import (
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"debug/gosym"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

const (
	// openTimeout is how long the file of a program is waited for: its storage may be dead.
	openTimeout = 2 * time.Second
	// maxModules bounds how many files are kept, the oldest goes first.
	maxModules = 128
	// maxSymbolBytes and maxSegments bound what is read of a file: a browser with all its symbols
	// has 60 MiB of them.
	maxSymbolBytes = 128 << 20
	maxSegments    = 1 << 10
	// maxGoFunctions bounds the functions of a program in Go. Large ones have 300,000.
	maxGoFunctions = 1 << 20
	maxBuildID     = 64
)

// key tells files apart.
type key struct {
	path       string
	dev, inode uint64
	buildID    string
}

// module is what a file tells about the functions in it. Addresses are those in the file.
type module struct {
	segments []segment
	table    table
	symbols  []symbol
	buildID  string
	why      string // it could not be read
}

type segment struct{ offset, vaddr, size uint64 }

type symbol struct {
	addr, size uint64
	name       string
}

// vaddr is the file's own address for one in a mapping of it.
func (m *module) vaddr(at Mapping, addr uint64) (uint64, bool) {
	off := addr - at.Start + at.Offset
	for _, s := range m.segments {
		if off >= s.offset && off-s.offset < s.size {
			return s.vaddr + off - s.offset, true
		}
	}
	return 0, false
}

func (m *module) rules(vaddr uint64) (*row, bool) { return m.table.rules(vaddr) }

// symbol is the function at an address, and how many bytes into it; "" with the address where none
// is known.
func (m *module) symbol(vaddr uint64) (string, uint64) {
	i, exact := slices.BinarySearchFunc(m.symbols, vaddr, func(s symbol, a uint64) int { return cmp.Compare(s.addr, a) })
	if !exact {
		i--
	}
	if i < 0 {
		return "", vaddr
	}
	s := m.symbols[i]
	// Hand-written code often gives no size: it goes on to the next function.
	if s.size > 0 && vaddr-s.addr >= s.size {
		return "", vaddr
	}
	return s.name, vaddr - s.addr
}

// module is the file of a mapping; nil with the reason where it cannot be read.
func (u *Unwinder) module(ctx context.Context, pid int, at Mapping) (*module, string) {
	if !strings.HasPrefix(at.Path, "/") {
		return nil, fmt.Sprintf("%s is no file", cmp.Or(at.Path, "what is mapped there"))
	}
	if u.skip != nil && u.skip(at) {
		return nil, at.Path + " is where opening it would keep the mount busy"
	}
	k := key{at.Path, at.Dev, at.Inode, at.BuildID}
	m, ok := u.modules[k]
	if !ok {
		m = u.read(ctx, pid, at)
		if len(u.order) == maxModules {
			delete(u.modules, u.order[0])
			u.order = u.order[1:]
		}
		u.modules[k], u.order = m, append(u.order, k)
	}
	if m.why != "" {
		return nil, m.why
	}
	return m, ""
}

// read reads the file of a mapping: by the mapping itself while the process lives, then by its name
// as the process sees it, then by its name. It must be the file that was mapped.
func (u *Unwinder) read(ctx context.Context, pid int, at Mapping) *module {
	proc := u.root + "/proc/" + strconv.Itoa(pid)
	names := []string{
		fmt.Sprintf("%s/map_files/%x-%x", proc, at.Start, at.End),
		proc + "/root" + at.Path,
		u.root + at.Path,
	}
	var last error
	for _, name := range names {
		m, err := diskio.Within(ctx, openTimeout, func() (*module, error) { return u.load(name, at) }, nil)
		if err == nil {
			return m
		}
		if last == nil || !errors.Is(err, errAnother) {
			last = err
		}
		if errors.Is(err, diskio.ErrTimeout) {
			break
		}
	}
	return &module{why: fmt.Sprintf("read %s: %v", at.Path, last)}
}

var errAnother = errors.New("another file has that name now")

func (u *Unwinder) load(name string, at Mapping) (*module, error) {
	f, err := diskio.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := parse(f, u.arch)
	if err != nil {
		return nil, err
	}
	// Some file systems show other numbers in a process' mappings than to stat (overlayfs before
	// Linux 6.8, btrfs): a build ID decides where there is one.
	if at.BuildID != "" {
		if m.buildID != at.BuildID {
			return nil, errAnother
		}
	} else if at.Inode != 0 && f.Stat().Ino != at.Inode {
		return nil, errAnother
	}
	return m, nil
}

// parse reads an ELF file.
func parse(f interface {
	ReadAt([]byte, int64) (int, error)
	Size() int64
}, a arch) (*module, error) {
	e, err := elf.NewFile(f)
	if err != nil {
		return nil, err
	}
	if e.Class != elf.ELFCLASS64 || e.ByteOrder != binary.LittleEndian || uint16(e.Machine) != a.machine {
		return nil, fmt.Errorf("a program for another machine (%v)", e.Machine)
	}
	if len(e.Progs) > maxSegments {
		return nil, fmt.Errorf("%d segments", len(e.Progs))
	}
	m := &module{}
	for _, p := range e.Progs {
		if p.Type == elf.PT_LOAD {
			m.segments = append(m.segments, segment{p.Off, p.Vaddr, p.Filesz})
		}
	}
	if s := e.Section(".eh_frame"); s != nil {
		if b, err := content(s, f.Size()); err == nil {
			m.table, _ = newTable(b, s.Addr) // a broken table is good up to there
		}
	}
	if s := e.Section(".note.gnu.build-id"); s != nil {
		if b, err := content(s, f.Size()); err == nil {
			m.buildID = buildID(b)
		}
	}
	m.symbols = symbols(e, f.Size())
	return m, nil
}

// content is a section's bytes, unless it is compressed or claims more than there may be.
func content(s *elf.Section, fileBytes int64) ([]byte, error) {
	if s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_COMPRESSED != 0 || s.FileSize > maxTableBytes ||
		s.FileSize > uint64(fileBytes) {
		return nil, errTable
	}
	return s.Data()
}

// buildID is the description of the note NT_GNU_BUILD_ID, in hex.
func buildID(b []byte) string {
	r := reader{b: b}
	name, desc, kind := r.u32(), r.u32(), r.u32()
	if kind != 3 || name != 4 || string(r.bytes(4)) != "GNU\x00" || desc > maxBuildID {
		return ""
	}
	return hex.EncodeToString(r.bytes(uint64(desc)))
}

// symbols are the functions that a file names, by their addresses.
func symbols(e *elf.File, fileBytes int64) []symbol {
	for _, s := range e.Sections {
		// Those that the two lists below are read from.
		if t := s.Type; (t == elf.SHT_SYMTAB || t == elf.SHT_DYNSYM || t == elf.SHT_STRTAB) &&
			(s.Flags&elf.SHF_COMPRESSED != 0 || s.FileSize > maxSymbolBytes || s.FileSize > uint64(fileBytes)) {
			return nil
		}
	}
	static, _ := e.Symbols()
	dynamic, _ := e.DynamicSymbols()
	var out []symbol
	for _, s := range slices.Concat(static, dynamic) {
		kind := elf.ST_TYPE(s.Info)
		if (kind == elf.STT_FUNC || kind == elf.STT_GNU_IFUNC || kind == elf.STT_NOTYPE && named(e, s)) &&
			s.Section != elf.SHN_UNDEF && s.Name != "" {
			name, _, _ := strings.Cut(s.Name, "@") // without the symbol's version
			out = append(out, symbol{s.Value, s.Size, name})
		}
	}
	if len(static) == 0 {
		out = append(out, goSymbols(e, fileBytes)...)
	}
	// Of several names at one address the one with a size, then the shortest: aliases inside of the
	// C library have underscores before.
	slices.SortStableFunc(out, func(a, b symbol) int {
		return cmp.Or(cmp.Compare(a.addr, b.addr), cmp.Compare(b.size, a.size),
			cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	return slices.CompactFunc(out, func(a, b symbol) bool { return a.addr == b.addr })
}

// named tells whether a symbol without a type is code: hand-written code has such.
func named(e *elf.File, s elf.Symbol) bool {
	i := int(s.Section)
	return i > 0 && i < len(e.Sections) && e.Sections[i].Flags&elf.SHF_EXECINSTR != 0 &&
		!strings.HasPrefix(s.Name, "$")
}

// goSymbols are the functions in the tables that a program in Go keeps also where it was stripped.
func goSymbols(e *elf.File, fileBytes int64) []symbol {
	text := e.Section(".text")
	for _, name := range []string{".gopclntab", ".data.rel.ro.gopclntab"} {
		s := e.Section(name)
		if s == nil || text == nil {
			continue
		}
		b, err := content(s, fileBytes)
		// The number of functions stands after eight bytes of header; each has eight in a table.
		if err != nil || len(b) < 16 {
			continue
		}
		if n := binary.LittleEndian.Uint64(b[8:]); n > maxGoFunctions || n > uint64(len(b))/8 {
			continue
		}
		t, err := gosym.NewTable(nil, gosym.NewLineTable(bytes.Clone(b), text.Addr))
		if err != nil {
			continue
		}
		out := make([]symbol, 0, len(t.Funcs))
		for _, f := range t.Funcs {
			out = append(out, symbol{f.Entry, f.End - f.Entry, f.Name})
		}
		return out
	}
	return nil
}
