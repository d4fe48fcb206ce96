// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

//go:build amd64

package stack

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// start runs a program until it waits in a system call, and ends it with the test.
func start(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(name, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	wait(t, c.Process.Pid, "pause|nanosleep|34|230|35|7|271|232")
	return c
}

// wait waits until the process sleeps in one of the system calls (by number).
func wait(t *testing.T, pid int, calls string) {
	t.Helper()
	want := regexp.MustCompile("^(" + calls + ") ")
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		if err == nil && want.Match(b) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d does not come to rest: %q, %v", pid, b, err)
		}
	}
}

// sample copies registers and stack of a process that sleeps: what an engine copies in the kernel.
// With few, only the registers that a call keeps.
func sample(t testing.TB, pid, stackBytes int, few bool) Sample {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		t.Fatal(err)
	}
	defer unix.PtraceDetach(pid)
	if err := unix.PtraceInterrupt(pid); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &r); err != nil {
		t.Fatal(err)
	}
	s := Sample{PC: r.Rip, Stack: make([]byte, stackBytes)}
	for n, v := range map[int]uint64{3: r.Rbx, 6: r.Rbp, 7: r.Rsp, 12: r.R12, 13: r.R13, 14: r.R14, 15: r.R15} {
		s.Set(n, v)
	}
	if !few {
		for n, v := range map[int]uint64{0: r.Rax, 1: r.Rdx, 2: r.Rcx, 4: r.Rsi, 5: r.Rdi, 8: r.R8} {
			s.Set(n, v)
		}
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.ReadAt(s.Stack, int64(r.Rsp))
	if n == 0 {
		t.Fatal(err)
	}
	s.Stack = s.Stack[:n]
	return s
}

func names(frames []Frame) string {
	var out []string
	for _, f := range frames {
		guess := ""
		if f.Guessed {
			guess = "?"
		}
		out = append(out, guess+f.Symbol)
	}
	return strings.Join(out, " ")
}

// build compiles the poller without frame pointers.
func build(t *testing.T, flags ...string) string {
	t.Helper()
	testenv.Need(t, "gcc")
	to := filepath.Join(t.TempDir(), "poller")
	args := append([]string{"-O2", "-fomit-frame-pointer", "-o", to, "testdata/poller.c"}, flags...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return to
}

func TestUser(t *testing.T) {
	testenv.NeedRoot(t)
	const deep = "GuestInfo_Wait GuestInfo_GetDiskInfo "
	for _, c := range []struct {
		name  string
		flags []string
		how   string
		bytes int
		want  string // of the functions' names
		why   string
	}{
		{"a call", nil, "call", 64 << 10,
			"^pause " + deep + "GuestInfo_GetDiskInfo GuestInfo_GetDiskInfo main .*__libc_start_main.* _start$", "^$"},
		{"static", []string{"-static"}, "call", 64 << 10,
			"^(__libc_)?pause " + deep + "GuestInfo_GetDiskInfo GuestInfo_GetDiskInfo main .* _start$", "^$"},
		{"without the table's index", []string{"-Wl,--no-eh-frame-hdr"}, "call", 64 << 10,
			"^pause " + deep + ".* main .* _start$", "^$"},
		{"a signal", nil, "signal", 64 << 10,
			"^pause " + deep + "on_signal [^ ]* ([^ ]* )*raise main .*_start$", "^$"},
		{"a callback", nil, "callback", 64 << 10,
			"^pause " + deep + "compare [^ ]* .*(qsort|msort)[^ ]* main .* _start$", "^$"},
		{"a short copy", nil, "call", 6000,
			"^pause " + deep + "GuestInfo_GetDiskInfo$", "the copy of the stack, 6000 bytes, ends here"},
		{"stripped", []string{"-s", "-rdynamic"}, "call", 64 << 10,
			"^pause " + deep + "GuestInfo_GetDiskInfo GuestInfo_GetDiskInfo main .*$", "^$"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pid := start(t, build(t, c.flags...), c.how).Process.Pid
			maps, err := Maps("", pid)
			if err != nil {
				t.Fatal(err)
			}
			frames, why := NewUnwinder("", nil).User(t.Context(), pid, sample(t, pid, c.bytes, true), maps)
			if !regexp.MustCompile(c.want).MatchString(names(frames)) || !regexp.MustCompile(c.why).MatchString(why) {
				t.Errorf("User = %s (%q), want %s (%q)", names(frames), why, c.want, c.why)
			}
		})
	}
}

// TestAgainstGDB holds every frame's address against the debugger's.
func TestAgainstGDB(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "gdb", "gcc", "python3")
	for _, args := range [][]string{
		{build(t), "call"},
		{build(t, "-static-pie", "-fPIE"), "signal"},
		{build(t, "-fno-omit-frame-pointer", "-no-pie"), "callback"},
		{"python3", "-c", "import time\ndef a(n):\n  time.sleep(3600) if n == 0 else a(n-1)\na(5)"},
		{"sleep", "3600"},
	} {
		t.Run(filepath.Base(args[0])+" "+args[len(args)-1][:4], func(t *testing.T) {
			pid := start(t, args[0], args[1:]...).Process.Pid
			maps, err := Maps("", pid)
			if err != nil {
				t.Fatal(err)
			}
			s := sample(t, pid, 256<<10, true)
			frames, why := NewUnwinder("", nil).User(t.Context(), pid, s, maps)
			var got []string
			for _, f := range frames {
				got = append(got, f.String())
			}
			c := exec.Command("gdb", "-nx", "-batch", "-p", strconv.Itoa(pid),
				"-iex", "set debuginfod enabled off", "-ex", "set backtrace past-main on",
				"-ex", "set backtrace past-entry on", "-ex", "bt -frame-info location-and-address -frame-arguments none")
			out, err := c.Output()
			if err != nil {
				t.Fatalf("gdb: %v\n%s", err, out)
			}
			// Functions that were inlined are frames of the same address there, as those of a recursion
			// are with both.
			frames = slices.CompactFunc(frames, func(a, b Frame) bool { return a.pc == b.pc })
			var want []uint64
			for _, m := range regexp.MustCompile(`(?m)^#\d+ +(?:0x([0-9a-f]+)|<sig)`).FindAllStringSubmatch(string(out), -1) {
				pc, _ := strconv.ParseUint(m[1], 16, 64) // 0: the frame of a signal
				if len(want) == 0 || want[len(want)-1] != pc {
					want = append(want, pc)
				}
			}
			same := len(want) == len(frames) && why == ""
			for i := 0; same && i < len(want); i++ {
				same = want[i] == frames[i].pc || want[i] == 0
			}
			if !same {
				t.Errorf("User = %s (%q), gdb:\n%s", strings.Join(got, "\n"), why, out)
			}
		})
	}
}

func TestGoProgram(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\n\nimport \"syscall\"\n\n//go:noinline\nfunc poll() { "+
		"syscall.Syscall(34, 0, 0, 0) }\n\nfunc main() { poll(); println() }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "agent")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", to, src).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	c := start(t, to)
	// The thread that waits need not be the first.
	pid := c.Process.Pid
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil {
		t.Fatal(err)
	}
	tid := pid
	for _, f := range tasks {
		if b, err := os.ReadFile(f); err == nil && bytes.HasPrefix(b, []byte("34 ")) {
			tid, _ = strconv.Atoi(filepath.Base(filepath.Dir(f)))
		}
	}
	wait(t, tid, "34")
	maps, err := Maps("", pid)
	if err != nil {
		t.Fatal(err)
	}
	frames, why := NewUnwinder("", nil).User(t.Context(), pid, sample(t, tid, 16<<10, true), maps)
	if !strings.Contains(names(frames), "?main.poll ?main.main ?runtime.main") {
		t.Errorf("User = %s (%q), want main.poll and main.main as guesses", names(frames), why)
	}
}

// TestGone walks the stack of a program that ended: only what was followed is left of it.
func TestGone(t *testing.T) {
	testenv.NeedRoot(t)
	program := build(t)
	f, err := Follow("")
	if err != nil {
		testenv.Lacks(t, "perf events of all processes: "+err.Error())
	}
	defer f.Close()
	// As agents do: a shell starts it.
	c := exec.Command("sh", "-c", program+" call & echo $!; wait")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 32)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil {
		t.Fatal(err)
	}
	wait(t, pid, "34")
	s := sample(t, pid, 16<<10, true)
	want, err := Maps("", pid)
	if err != nil {
		t.Fatal(err)
	}
	unix.Kill(-c.Process.Pid, unix.SIGKILL)
	c.Wait()
	maps, err := f.Mappings(pid)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel's own page is mapped without a word, and the dynamic loader's stays.
	want = slices.DeleteFunc(want, func(m Mapping) bool { return strings.HasPrefix(m.Path, "[") })
	for _, w := range want {
		got, ok := find(maps, w.Start)
		if !ok || got.Path != w.Path || got.Start != w.Start || got.End != w.End || got.Offset != w.Offset {
			t.Errorf("mapping %+v, followed %+v", w, got)
		}
	}
	frames, why := NewUnwinder("", nil).User(t.Context(), pid, s, maps)
	if !strings.HasPrefix(names(frames), "pause GuestInfo_Wait GuestInfo_GetDiskInfo GuestInfo_GetDiskInfo GuestInfo_GetDiskInfo main ") ||
		why != "" {
		t.Errorf("User = %s (%q)", names(frames), why)
	}
	if f.Lost() > 0 {
		t.Errorf("%d records were lost", f.Lost())
	}
	if _, err := f.Mappings(1 << 30); err == nil {
		t.Error("Mappings of a process that never was: no error")
	}
}

func TestSkipped(t *testing.T) {
	testenv.NeedRoot(t)
	pid := start(t, build(t), "call").Process.Pid
	maps, err := Maps("", pid)
	if err != nil {
		t.Fatal(err)
	}
	u := NewUnwinder("", func(m Mapping) bool { return strings.Contains(m.Path, "libc") })
	frames, why := u.User(t.Context(), pid, sample(t, pid, 16<<10, true), maps)
	if len(frames) == 0 || frames[0].Symbol != "" || !strings.Contains(frames[0].Module, "libc") ||
		!strings.Contains(why, "would keep the mount busy") {
		t.Errorf("User = %v (%q), want one frame without a name, and why", frames, why)
	}
}

func TestKernel(t *testing.T) {
	k, err := readKernel(strings.NewReader("ffffffff81000000 T _stext\nffffffff81000000 T startup_64\n" +
		"ffffffff81000100 t mntput\nffffffff81000200 D data\nffffffffc0000000 t xfs_open\t[xfs]\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range k.Frames([]uint64{0xffffffff81000110, 0xffffffff81000100, 0xffffffffc0000020, 1}) {
		got = append(got, f.String())
	}
	want := []string{"kernel`mntput+0x10", "kernel`_stext+0x100", "xfs`xfs_open+0x20", "kernel+0x1"}
	if !slices.Equal(got, want) {
		t.Errorf("Frames = %q, want %q", got, want)
	}
	// What is before the kernel's own code is a program that watches it; a module may call from later on.
	k, err = readKernel(strings.NewReader("ffffffff81000000 T _stext\nffffffff81000040 T mntget\n" +
		"ffffffff82000000 T _etext\nffffffffc0000000 t ovl_exit\t[overlay]\n"))
	if err != nil {
		t.Fatal(err)
	}
	stack := []uint64{0xffffffffc0009999, 0xffffffffc0008888, 0xffffffff81000045, 0xffffffffc0000010}
	if got := k.Inner(stack); !slices.Equal(got, stack[2:]) {
		t.Errorf("the stack is %x, want %x", got, stack[2:])
	}
	if got := k.Inner(stack[:2]); len(got) != 2 {
		t.Errorf("of a stack without the kernel's code %x is left", got)
	}
	if _, err := readKernel(strings.NewReader("0000000000000000 T _stext\n")); err != ErrHidden {
		t.Errorf("hidden addresses: %v", err)
	}
	if _, err := readKernel(strings.NewReader("x T _stext\n")); err == nil {
		t.Error("an address that is none: no error")
	}
	if got := (*Kernel)(nil).Frames([]uint64{16}); got[0].String() != "kernel+0x10" {
		t.Errorf("without symbols: %v", got)
	}
}

func TestOwnKernel(t *testing.T) {
	testenv.NeedRoot(t)
	k, err := OpenKernel("")
	if err != nil {
		t.Fatal(err)
	}
	if len(k.addrs) < 1000 {
		t.Errorf("%d functions", len(k.addrs))
	}
}

// BenchmarkUser walks ten frames, with the files read before, and each time anew.
func BenchmarkUser(b *testing.B) {
	out, err := exec.Command("sh", "-c", "command -v python3").Output()
	if err != nil {
		testenv.Lacks(b, "python3")
	}
	c := exec.Command(strings.TrimSpace(string(out)), "-c", "import time; time.sleep(3600)")
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	time.Sleep(time.Second)
	maps, err := Maps("", c.Process.Pid)
	if err != nil {
		b.Fatal(err)
	}
	s := sample(b, c.Process.Pid, 16<<10, true)
	b.Run("files=read", func(b *testing.B) {
		u := NewUnwinder("", nil)
		for b.Loop() {
			u.User(b.Context(), c.Process.Pid, s, maps)
		}
	})
	b.Run("files=new", func(b *testing.B) {
		for b.Loop() {
			NewUnwinder("", nil).User(b.Context(), c.Process.Pid, s, maps)
		}
	})
}
