// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/doctor/trend"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// A leak is planted in a kernel of its own (User Mode Linux) with little memory, and goes on until that kernel
// kills the leaking program for want of memory, or gives it none. The tests start themselves there as the first process, on this
// machine's files. Only the clock is ours: leakStep passes between two steps of a leak.
const (
	leakKind = "SHISA_LEAK"     // in the guest: what leaks
	leakOut  = "SHISA_LEAK_OUT" // where it is told
	leakStep = 10 * time.Minute
	// leakBytes is about how much a step takes, leakMax how many steps there are at most.
	leakBytes = 800 << 10
	leakMax   = 2000
)

// leaked is one step as the guest tells it.
type leaked struct {
	Point    evidence.MemoryPoint
	Forecast doctor.MemoryForecast
	// ME01 is what the rule said.
	ME01 doctor.Outcome
	// Over: the program was killed, or got no memory any more.
	Over bool
	Err  string
}

// leakBegin is where the clock of leaks begins.
var leakBegin = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// TestPlantedLeak forecasts leaks of a real kernel again and again, and holds that against what came.
func TestPlantedLeak(t *testing.T) {
	testenv.Need(t, "linux.uml", "go")
	program := filepath.Join(t.TempDir(), "guest.test")
	// Without the race detector, which does not work there.
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", build.Args, err, out)
	}
	for _, kind := range []string{"messages", "memory", "descriptors"} {
		t.Run(kind, func(t *testing.T) {
			all := plant(t, program, kind)
			end, forecasts := usedUp(t, all), 0
			for i, s := range all[:end*4/5] {
				if s.Point.Time.Sub(leakBegin) < doctor.MinSpan {
					if s.Forecast.Ends {
						t.Fatalf("after %d steps there is a forecast: %+v", i, s.Forecast)
					}
					continue
				}
				left := all[end].Point.Time.Sub(s.Point.Time)
				said := s.Forecast.End.Best.Sub(s.Point.Time).Round(time.Minute)
				off := said.Seconds()/left.Seconds() - 1
				if i%20 == 0 {
					t.Logf("step %d: %s left, forecast %s, %+.0f %%", i, left, said, 100*off)
				}
				if !s.Forecast.Ends || math.Abs(off) > 0.25 {
					t.Errorf("step %d: %s left, forecast %+v: %+.0f %%", i, left, s.Forecast, 100*off)
				}
				kernels := s.Forecast.SUnreclaim.Shape == trend.Grows
				if own := kind != "memory"; kernels != own || (s.ME01 == doctor.Fail) != own {
					t.Errorf("step %d: SUnreclaim %s, ME01 %s", i, s.Forecast.SUnreclaim.Shape, s.ME01)
				}
				forecasts++
			}
			if forecasts < 20 {
				t.Errorf("%d forecasts", forecasts)
			}
		})
	}
}

// usedUp is the step at which nothing was available any more, or the program was ended.
func usedUp(t *testing.T, all []leaked) int {
	t.Helper()
	last := len(all) - 1
	free := func(s leaked) int64 { return s.Point.Available - s.Point.Held }
	end := slices.IndexFunc(all, func(s leaked) bool { return s.Over || free(s) <= free(all[0])/100 })
	// The kernel may end with the program, when nothing is left that it could kill.
	before := all[last]
	if before.Over {
		before = all[max(last-1, 0)]
	}
	if free(before) > free(all[0])/10 {
		t.Fatalf("it ended before memory was used up, after %d steps: %+v", len(all), before)
	}
	if end < 0 {
		end = last
	}
	t.Logf("%d steps; available at first %d MiB, before the end %d MiB, of which %d MiB were held; used up at step %d",
		len(all), all[0].Point.Available>>20, before.Point.Available>>20, before.Point.Held>>20, end)
	return end
}

// plant plants a leak, and gives all steps until it ended.
func plant(t *testing.T, program, kind string) (all []leaked) {
	t.Helper()
	own, err := os.MkdirTemp("", "uml-") // the names of its sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(own)
	preload, err := uml.Preload(own)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(own, "out")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "linux.uml", "mem=160M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw",
		"con=null", "con0=null,fd:1", "uml_dir="+own, "quiet", "init="+program, leakKind+"="+kind, leakOut+"="+out)
	c.Env = append(os.Environ(), preload)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it is several processes
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	said, ended := c.CombinedOutput()
	// A kernel that stopped may leave processes of its own.
	if err := syscall.Kill(-c.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Error(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatalf("the guest left nothing: %v, %v\n%s", err, ended, said)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	for {
		var s leaked
		if err := d.Decode(&s); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if s.Err != "" {
			t.Fatalf("%s\n%s", s.Err, said)
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		t.Fatalf("the guest told nothing: %v\n%s", ended, said)
	}
	return all
}

// inLeak tells whether this is the guest, or the program that leaks in it; then it never returns.
func inLeak() {
	kind := os.Getenv(leakKind)
	switch {
	case kind == "":
		return
	case os.Getpid() != 1:
		err := leak(kind, os.Stdin)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	f, err := os.OpenFile(os.Getenv(leakOut), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err == nil {
		if err = watchLeak(kind, json.NewEncoder(f)); err != nil {
			err = json.NewEncoder(f).Encode(leaked{Err: err.Error()})
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		fmt.Println(err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1)
}

// watchLeak has a program leak step by step, and tells what memory and the doctor say after each.
func watchLeak(kind string, tell *json.Encoder) error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	// At the end nothing of this program may have to be read again.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return err
	}
	ctx := context.Background()
	live, err := tree.OpenLive(ctx)
	if err != nil {
		return err
	}
	defer live.Close()
	for name, value := range map[string]string{"fs/file-max": "1000000", "fs/nr_open": "1000000", "kernel/msgmnb": "268435456",
		"kernel/msgmax": "8192"} {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	c := exec.Command("/proc/self/exe")
	steps, err := c.StdinPipe()
	if err != nil {
		return err
	}
	c.Stderr = os.Stdout
	done, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return err
	}
	// The kernel has to choose that one.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.Process.Pid), []byte("1000"), 0); err != nil {
		return err
	}
	answers := bufio.NewReader(done)
	var series []evidence.MemoryPoint
	for i := range leakMax {
		if _, err = io.WriteString(steps, "+"); err == nil {
			_, err = answers.ReadByte()
		}
		s, failed := lookAt(ctx, live, leakBegin.Add(time.Duration(i)*leakStep), series)
		s.Over = err != nil
		if failed == nil {
			failed = tell.Encode(s)
		}
		if failed != nil || s.Over {
			return failed
		}
		series = append(series, s.Point)
	}
	return errors.New("it went on")
}

// lookAt looks at the memory of this machine as of a time, and asks the rule.
func lookAt(ctx context.Context, l tree.Tree, now time.Time, series []evidence.MemoryPoint) (s leaked, err error) {
	m, err := evidence.GatherMemory(ctx, l, now)
	if err != nil {
		return s, err
	}
	s.Point = m.Series[len(m.Series)-1]
	m.Series = append(series[:len(series):len(series)], s.Point)
	s.Forecast = doctor.Forecast(m, doctor.MinSpan)
	e := &evidence.Evidence{Kind: tree.Live, Label: "guest", Now: now, Memory: *m}
	for _, r := range doctor.Rules() {
		if r.Code == "ME01" {
			s.ME01 = r.Judge(e)[0].Outcome
		}
	}
	return s, nil
}

// leak leaks a step for each byte of its input, until it is killed.
func leak(kind string, steps io.Reader) error {
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1000000, Max: 1000000}); err != nil {
		return err
	}
	var one [1]byte
	queue, _, no := unix.Syscall(unix.SYS_MSGGET, unix.IPC_PRIVATE, 0o600, 0)
	if no != 0 {
		return no
	}
	for {
		if _, err := steps.Read(one[:]); err != nil {
			return err
		}
		if err := leakOnce(kind, queue); err != nil {
			return err
		}
		if _, err := os.Stdout.Write(one[:]); err != nil {
			return err
		}
	}
}

func leakOnce(kind string, queue uintptr) error {
	switch kind {
	case "memory":
		b, err := unix.Mmap(-1, 0, leakBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		for i := 0; i < len(b); i += os.Getpagesize() {
			b[i] = 1
		}
		return err
	case "messages": // in kmalloc-4k
		message := make([]byte, 8+4000)
		message[0] = 1
		for range leakBytes / 4096 {
			if err := sendMessage(queue, message); err != nil {
				return err
			}
		}
	case "descriptors": // a struct file and more each
		for range leakBytes / 512 {
			if _, err := unix.Eventfd(0, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// sendMessage puts a message into a queue of System V, without waiting.
func sendMessage(queue uintptr, message []byte) error {
	_, _, no := unix.Syscall6(unix.SYS_MSGSND, queue, uintptr(unsafe.Pointer(&message[0])), uintptr(len(message)-8), unix.IPC_NOWAIT, 0, 0)
	if no != 0 {
		return no
	}
	return nil
}
