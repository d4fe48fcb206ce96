// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

//go:build amd64

package stack

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// seeds are small programs: C with and without symbols, for this machine.
func seeds(f *testing.F) [][]byte {
	f.Helper()
	testenv.Need(f, "gcc")
	var out [][]byte
	for _, flags := range [][]string{{"-nostdlib"}, {"-s", "-nostdlib"}} {
		to := filepath.Join(f.TempDir(), "p")
		args := append([]string{"-O1", "-x", "c", "-o", to, "-", "-Wl,-e,f,-z,noseparate-code,--build-id"}, flags...)
		c := exec.Command("gcc", args...)
		c.Stdin = bytes.NewBufferString("int g(int n) { volatile char b[64]; b[1] = n; return n ? g(n-1)+b[1] : 0; }\n" +
			"int f(int n) { return g(n)+1; }\n")
		if out, err := c.CombinedOutput(); err != nil {
			f.Fatalf("gcc: %v\n%s", err, out)
		}
		b, err := os.ReadFile(to)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

type file struct{ *bytes.Reader }

func (f file) Size() int64 { return f.Reader.Size() }

// FuzzModule reads files and walks stacks by them.
func FuzzModule(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, []byte("0123456701234567"), uint64(0x1000))
	}
	f.Fuzz(func(t *testing.T, b, memory []byte, pc uint64) {
		m, err := parse(file{bytes.NewReader(b)}, host)
		if err != nil {
			return
		}
		at := Mapping{Start: 0x400000, End: 0x400000 + uint64(len(b)), Path: "/p"}
		u := &Unwinder{arch: host, modules: map[key]*module{{path: "/p"}: m}}
		s := Sample{PC: at.Start + pc%uint64(len(b)+1), Stack: memory}
		for n := range 17 {
			s.Set(n, 0x7ff000)
		}
		frames, _ := u.User(t.Context(), 0, s, []Mapping{at})
		if len(frames) > maxFrames {
			t.Errorf("%d frames", len(frames))
		}
		for _, e := range m.table {
			if len(m.table) < 1000 {
				m.rules(e.start)
				m.rules(e.start + e.size - 1)
			}
		}
	})
}

// FuzzTable executes the programs of a section alone, which mutations reach faster.
func FuzzTable(f *testing.F) {
	cie := "\x14\x00\x00\x00\x00\x00\x00\x00\x01zR\x00\x01\x78\x10\x01\x1b\x0c\x07\x08\x90\x01\x00\x00"
	fde := "\x18\x00\x00\x00\x1c\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x41\x0e\x10\x83\x02\x0a\x0b\x0f\x03\x77\x08\x06"
	f.Add([]byte(cie+fde+"\x00\x00\x00\x00"), []byte("01234567abcdefgh"))
	f.Fuzz(func(t *testing.T, b, memory []byte) {
		table, _ := newTable(b, 0x1000)
		for i, e := range table {
			if i == 64 {
				break
			}
			r, ok := table.rules(e.start + e.size/2)
			if !ok {
				continue
			}
			w := walk{arch: host, base: 0x7ff000, Sample: Sample{Stack: memory}}
			for n := range 17 {
				w.Set(n, 0x7ff000)
			}
			if next, how := w.apply(r); how == byTable {
				if sp, _ := next.reg(7); sp < w.base {
					t.Errorf("the walk went down to 0x%x", sp)
				}
			}
		}
	})
}

func FuzzMaps(f *testing.F) {
	f.Add([]byte("7f1c5a1c3000-7f1c5a318000 r-xp 00026000 fe:00 3152  /usr/lib/a b (deleted)\n" +
		"7f1c5a1c3000-7f1c5a318000 rw-p 00000000 00:00 0 \n"))
	f.Add([]byte("- r-xp"))
	f.Fuzz(func(t *testing.T, b []byte) {
		maps, err := parseMaps(b)
		if err != nil {
			return
		}
		for _, m := range maps {
			find(maps, m.Start)
		}
	})
}

// FuzzFollow takes records as they stand in a ring.
func FuzzFollow(f *testing.F) {
	record := func(kind uint32, misc uint16, body []byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, kind)
		b = binary.LittleEndian.AppendUint16(b, misc)
		b = binary.LittleEndian.AppendUint16(b, uint16(8+len(body)+idBytes))
		return append(append(b, body...), make([]byte, idBytes)...)
	}
	f.Add(record(unix.PERF_RECORD_FORK, 0, make([]byte, 24)))
	f.Add(record(unix.PERF_RECORD_MMAP2, unix.PERF_RECORD_MISC_MMAP_BUILD_ID, make([]byte, 80)))
	f.Add(record(unix.PERF_RECORD_COMM, unix.PERF_RECORD_MISC_COMM_EXEC, make([]byte, 24)))
	f.Fuzz(func(t *testing.T, b []byte) {
		mem := make([]byte, 2048+4096)
		data := mem[2048:]
		n := copy(data, b)
		binary.LittleEndian.PutUint64(mem[headAt:], uint64(n))
		fl := &Follower{root: "/dev/null", procs: map[int]*followed{}}
		for _, e := range (ring{mem: mem, data: data}).drain(nil) {
			fl.note(e)
		}
		if len(fl.order) != len(fl.procs) {
			t.Errorf("%d processes in order, %d known", len(fl.order), len(fl.procs))
		}
	})
}
