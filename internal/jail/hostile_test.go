// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package jail

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/shisa-vm/shisa/internal/guest/files"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// fake is a jail whose child does what play does with the other end of each lane.
func fake(t *testing.T, play func(fd int)) *Jail {
	t.Helper()
	j := &Jail{disks: []volume.Disk{{Name: "disk"}}, free: make(chan *lane, lanes), words: new(words),
		most: maxItems, budget: newBudget(nil), done: make(chan struct{}), freed: make(chan struct{}), cmd: exec.Command("sleep", "600")}
	window, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	j.windows = window
	var ours []*os.File
	for range lanes {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, os.NewFile(uintptr(fds[0]), "lane"))
		if err := waits(ours[len(ours)-1], look); err != nil {
			t.Fatal(err)
		}
		j.free <- &lane{sock: ours[len(ours)-1], window: window, buf: make([]byte, maxMessage)}
		done := make(chan struct{})
		go func() { defer close(done); defer unix.Close(fds[1]); play(fds[1]) }()
		t.Cleanup(func() { <-done })
	}
	if err := j.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go j.wait(ours)
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
		<-j.freed
	})
	return j
}

// answers plays a child that answers each call with the same message.
func answers(put func(*message)) func(int) {
	return func(fd int) {
		buf := make([]byte, maxMessage)
		for {
			if _, err := receive(fd, buf); err != nil {
				return
			}
			a := new(message)
			put(a)
			if send(fd, a.b) != nil {
				return
			}
		}
	}
}

// jsonOf answers with a value as JSON.
func jsonOf(text string) func(*message) {
	return func(m *message) {
		m.putInt(0)
		m.putInt(markItem)
		m.putString(text)
		m.putInt(markEnd)
		m.putInt(0)
	}
}

// listOf answers with a list of one item.
func listOf(put func(*message)) func(*message) {
	return func(m *message) {
		m.putInt(0)
		m.putInt(markItem)
		put(m)
		m.putInt(markEnd)
		m.putInt(0)
	}
}

// TestHostileChild has a child say what no reader says. The call has to end, with an error.
func TestHostileChild(t *testing.T) {
	layout := func(j *Jail) error { _, err := j.Layout(context.Background()); return err }
	within := func(j *Jail) error {
		j.volumes.Store(1)
		_, err := j.Within(context.Background(), 0, 0, 1)
		return err
	}
	names := func(j *Jail) error {
		return (&FS{j: j}).Names(context.Background(), 2, func(_ files.Entry, f files.File, err error) error {
			if err == nil {
				_ = f.Stat().Mode
			}
			return err
		})
	}
	inodes := func(j *Jail) error {
		return (&FS{j: j}).Inodes(context.Background(), func(*files.Stat) error { return nil })
	}
	open := func(j *Jail) error { _, err := j.FS(context.Background(), 0); return err }
	info := func(text string) func(int) { return answers(func(m *message) { m.putInt(0); m.putString(text) }) }
	entry := func(name string, rest ...int64) func(*message) {
		return listOf(func(m *message) {
			m.putString(name)
			m.putInt(12)
			m.putInt(0)
			for _, v := range rest {
				m.putInt(v)
			}
		})
	}
	for name, tc := range map[string]struct {
		play func(int)
		call func(*Jail) error
	}{
		"no volume":           {answers(jsonOf(`{"Volumes":[null]}`)), layout},
		"disk of a volume":    {answers(jsonOf(`{"Volumes":[{"Disk":7}]}`)), layout},
		"volume in itself":    {answers(jsonOf(`{"Volumes":[{"In":[0]}]}`)), layout},
		"volume below none":   {answers(jsonOf(`{"Volumes":[{"In":[-1]}]}`)), layout},
		"disk of a table":     {answers(jsonOf(`{"Tables":[{"Disk":1,"In":-1}]}`)), layout},
		"volume of a table":   {answers(jsonOf(`{"Tables":[{"Disk":0,"In":0}]}`)), layout},
		"disk of a problem":   {answers(jsonOf(`{"Problems":[{"Disk":-2}]}`)), layout},
		"range of a table":    {answers(jsonOf(`{"Tables":[{"In":-1,"Ranges":[{"Offset":-1}]}]}`)), layout},
		"endless blocks":      {info(`{"block_bytes":65537}`), open},
		"negative blocks":     {info(`{"block_bytes":-1}`), open},
		"no JSON":             {answers(jsonOf(`{"Volumes":[`)), layout},
		"too many objects":    {answers(manyObjects), layout},
		"hit of no volume":    {answers(jsonOf(`{"Volume":1}`)), within},
		"hit before zero":     {answers(jsonOf(`{"Volume":0,"Offset":-1,"Length":1}`)), within},
		"hit past all":        {answers(jsonOf(`{"At":9223372036854775807,"Length":1}`)), within},
		"empty pages":         {answers(func(m *message) { m.putInt(5); m.putInt(markMore) }), inodes},
		"end that goes on":    {answers(func(m *message) { m.putInt(5); m.putInt(markEnd); m.putInt(0) }), inodes},
		"no end":              {answers(func(m *message) { m.putInt(0); m.putInt(markMore) }), inodes},
		"unknown mark":        {answers(func(m *message) { m.putInt(0); m.putInt(9); m.putInt(0) }), inodes},
		"unknown error":       {answers(func(m *message) { m.putInt(0); m.putInt(markEnd); m.putInt(9) }), inodes},
		"no number":           {answers(func(m *message) { m.b = append(m.b, 1) }), inodes},
		"nothing":             {answers(func(*message) {}), inodes},
		"negative size":       {answers(listOf(func(m *message) { m.putStat(&files.Stat{Size: -1}) })), inodes},
		"endless sectors":     {answers(listOf(func(m *message) { m.putStat(&files.Stat{Sectors: math.MaxInt64}) })), inodes},
		"a name for nothing":  {answers(entry("x", 0, 0)), names},
		"a name with a slash": {answers(entry("../x", 0, 3, 0)), names},
		"a name of nothing":   {answers(entry("", 0, 3, 0)), names},
		"closed socket":       {func(int) {}, layout},
		"long string":         {answers(listOf(func(m *message) { m.putUint(math.MaxUint64) })), names},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := tc.call(fake(t, tc.play)); err == nil {
				t.Error("it is believed")
			}
		})
	}
}

func manyObjects(m *message) {
	m.putInt(7)
	for range 4 {
		m.putInt(markItem)
		m.putString(strings.Repeat("{", 8<<10))
	}
	m.putInt(markMore)
}

// TestListWithoutEnd: a child that goes on listing is not listened to for ever.
func TestListWithoutEnd(t *testing.T) {
	j := fake(t, answers(func(m *message) {
		m.putInt(5)
		m.putInt(markItem)
		m.putStat(&files.Stat{Ino: 12})
		m.putInt(markMore)
	}))
	j.most = 1000
	n := int64(0)
	err := (&FS{j: j}).Inodes(t.Context(), func(*files.Stat) error { n++; return nil })
	if !errors.As(err, new(*CrashError)) || n != j.most+1 {
		t.Errorf("%d inodes, %v; want %d and a crash", n, err, j.most+1)
	}
}

// TestHostileView: a view that contradicts itself is incomplete.
func TestHostileView(t *testing.T) {
	for _, text := range []string{`{}`, `{"state":"fine"}`, `{"state":"clean","problems":[{"hides":true}]}`,
		`{"state":"clean","more":-1}`} {
		if v := (&FS{j: fake(t, answers(jsonOf(text)))}).View(); v.State != files.Incomplete {
			t.Errorf("%s: %s, want incomplete", text, v.State)
		}
	}
}

// TestInherits looks whether a child has a descriptor that this program was started with.
func TestInherits(t *testing.T) {
	testenv.NeedRoot(t) // nobody else sees what descriptors a child has
	fds := make([]int, 2)
	if err := unix.Pipe(fds); err != nil { // stays open over exec
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	pipe, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fds[0]))
	if err != nil {
		t.Fatal(err)
	}
	j := start(t, strings.NewReader("x"), 1)
	dir := fmt.Sprintf("/proc/%d/fd", j.cmd.Process.Pid)
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range all {
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && to == pipe {
			t.Errorf("descriptor %s is %s of whoever started us", fd.Name(), to)
		}
	}
}

// TestDiesWithParent kills a parent whose child does not look at its sockets.
func TestDiesWithParent(t *testing.T) {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), parentEnv+"=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, scan := fmt.Sscan(line, &pid); err != nil || scan != nil {
		t.Fatalf("%q: %v", line, errors.Join(err, scan))
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // it was killed
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if state := stateOf(pid); state == "" || state == "Z" {
			return
		}
	}
	t.Errorf("process %d lives on", pid)
	_ = unix.Kill(pid, unix.SIGKILL)
}

// parentEnv makes a test program start a child, and tell of it.
const parentEnv = "SHISA_TEST_PARENT"

func beParent() int {
	j, err := Start(context.Background(), []volume.Disk{{Name: "x", Data: strings.NewReader("x"), Size: 1}})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(j.cmd.Process.Pid)
	time.Sleep(time.Hour)
	return 0
}

// stateOf is the letter in /proc/PID/stat, "" if there is no such process.
func stateOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:min(1, len(rest))]
}

// TestReadDisk reads at the end of a disk and where no disk is.
func TestReadDisk(t *testing.T) {
	d := &volume.Disk{Data: strings.NewReader("abc"), Size: 3}
	for _, tc := range []struct {
		off  int64
		want int
	}{{0, 3}, {2, 1}, {3, 0}, {math.MaxInt64, 0}} {
		if n, err := readDisk(d, make([]byte, 8), tc.off); n != tc.want || err == nil {
			t.Errorf("at %d: %d, %v; want %d and an end", tc.off, n, err, tc.want)
		}
	}
}

// TestWire sends values through messages.
func TestWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(0, math.MaxInt64/2)
		word := rapid.Uint32()
		when := files.Time{Seconds: rapid.Int64().Draw(t, "s"), Nanoseconds: word.Draw(t, "ns")}
		st := files.Stat{Ino: files.Ino(rapid.Uint64().Draw(t, "ino")), Mode: word.Draw(t, "mode"),
			Links: word.Draw(t, "links"), UID: word.Draw(t, "uid"), GID: word.Draw(t, "gid"),
			Size: size.Draw(t, "size"), Sectors: size.Draw(t, "sectors") / 512, Major: word.Draw(t, "major"),
			Minor: word.Draw(t, "minor"), Atime: when, Mtime: when, Ctime: when, Birth: when, Deleted: when,
			Generation: word.Draw(t, "generation"), Flags: word.Draw(t, "flags"), Project: word.Draw(t, "project")}
		x := files.Extent{Offset: size.Draw(t, "off"), Length: size.Draw(t, "len"),
			Volume: rapid.Int64().Draw(t, "volume"), Unwritten: rapid.Bool().Draw(t, "u"),
			Shared: rapid.Bool().Draw(t, "x")}
		o := files.Owner{Range: files.Range{Offset: x.Offset, Length: x.Length}, Use: files.UseData,
			Ino: st.Ino, File: x.Volume, What: rapid.StringN(0, 100, 400).Draw(t, "what")}
		e := &files.Error{What: o.What, Offset: x.Volume, Ino: st.Ino, Err: errors.New(o.What)}
		m := new(message)
		m.putStat(&st)
		m.putExtent(x)
		m.putOwner(o)
		m.putError(fmt.Errorf("wrapped: %w", e))
		if got := m.stat(); *got != st {
			t.Fatalf("%+v, want %+v", *got, st)
		}
		if got := m.extent(); got != x {
			t.Fatalf("%+v, want %+v", got, x)
		}
		if got := m.owner(); got != o {
			t.Fatalf("%+v, want %+v", got, o)
		}
		if got := m.error(); got.Error() != e.Error() || m.bad || len(m.b) > 0 {
			t.Fatalf("%v, want %v; bad %v, %d bytes left", got, e, m.bad, len(m.b))
		}
	})
}

// FuzzMessage takes any bytes for a message.
func FuzzMessage(f *testing.F) {
	m := new(message)
	m.putStat(&files.Stat{Ino: 2})
	m.putExtent(files.Extent{Length: 1})
	m.putOwner(files.Owner{What: "x"})
	m.putError(errors.New("x"))
	f.Add(m.b)
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &message{b: b}
		for len(m.b) > 0 && !m.bad {
			if s := m.stat(); !m.bad && s.Size < 0 {
				t.Error("a negative size")
			}
			if x := m.extent(); !m.bad && !inside(x.Offset, x.Length) {
				t.Errorf("%+v", x)
			}
			m.owner()
			_ = m.error() // what it is does not matter
			if len(m.string()) > len(b) {
				t.Error("a string longer than the message")
			}
		}
	})
}
