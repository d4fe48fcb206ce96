// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package testenv

import (
	"bufio"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// What a test started may take a moment to be gone after the test's end, a long one on a busy
// machine. Only what stays for good is waited for to the end.
const leakPatience = 2 * time.Minute

// NoWait is for the variable GORACE: without it each program with the race detector waits for a second
// before it ends. Run sets it for what the tests start.
const NoWait = "atexit_sleep_ms=0"

// Main runs the tests of a package and fails them if they leave something behind: a temporary
// file, an open file descriptor, a goroutine, a child process, a mount or a loop device. A package
// calls it from its TestMain.
func Main(m *testing.M) { os.Exit(Checked(m).Run()) }

// Checked is m with the checks of Main, for those who have their own way of running it.
func Checked(m interface{ Run() int }) interface{ Run() int } { return checked{m} }

type checked struct{ m interface{ Run() int } }

// Run runs the tests and then looks for what is left. All temporary files of the tests are below
// one new directory, so that mounts and loop devices of others are not taken for ours.
func (c checked) Run() int {
	flag.Parse()
	if f := flag.Lookup("test.fuzzworker"); f != nil && f.Value.String() == "true" {
		return c.m.Run() // killed at its end, nothing after this would run
	}
	dir, err := os.MkdirTemp("", "shisa-test-")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir) // as the kernel names it in mounts
	}
	if err == nil {
		err = os.Setenv("TMPDIR", dir)
	}
	if err == nil && os.Getenv("GORACE") == "" {
		err = os.Setenv("GORACE", NoWait)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		return 1
	}
	if signal.Ignored(os.Interrupt) {
		// As a shell starts what it runs in the background. Programs that tests start would inherit it.
		signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	}
	before := openFiles()
	status := c.m.Run()
	if status == 0 {
		for _, leak := range leaks(dir, before) {
			fmt.Fprintln(os.Stderr, "FAIL: the tests left behind:", leak)
			status = 1
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		return 1
	}
	return status
}

// leaks lists what is left, after giving it a moment to go.
func leaks(dir string, before map[string]string) []string {
	for end := time.Now().Add(leakPatience); ; time.Sleep(20 * time.Millisecond) {
		left := slices.Concat(newFiles(before), children(), mounts(dir), loops(dir), below(dir))
		if err := goleak.Find(); err != nil {
			left = append(left, err.Error())
		}
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// openFiles maps the descriptors of this process to what they are open on.
func openFiles() map[string]string {
	files := map[string]string{}
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return files
	}
	for _, n := range names {
		// The descriptor that ReadDir itself used is gone again: its link cannot be read.
		if to, err := os.Readlink("/proc/self/fd/" + n.Name()); err == nil {
			files[n.Name()] = to
		}
	}
	return files
}

func newFiles(before map[string]string) []string {
	var left []string
	for fd, to := range openFiles() {
		// The runtime keeps these two to wait for input, and makes them when it first needs to.
		ours := to == "anon_inode:[eventpoll]" || to == "anon_inode:[eventfd]"
		if before[fd] != to && !ours {
			left = append(left, fmt.Sprintf("file descriptor %s open on %s", fd, to))
		}
	}
	slices.Sort(left)
	return left
}

// children lists processes that this one started and that have not ended or were not waited for.
func children() []string {
	var left []string
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, t := range tasks {
		pids, err := os.ReadFile(t)
		if err != nil {
			continue // a thread that ended; its children are on another one's list
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			left = append(left, fmt.Sprintf("process %s %s", pid, strings.TrimSpace(string(name))))
		}
	}
	return left
}

// mounts lists what is mounted below dir.
func mounts(dir string) []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	defer f.Close()
	var left []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 4 && inside(dir, fields[4]) {
			left = append(left, "mount on "+fields[4])
		}
	}
	return left
}

// loops lists loop devices whose file is below dir.
func loops(dir string) []string {
	var left []string
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, n := range names {
		file, err := os.ReadFile(n)
		if err == nil && inside(dir, strings.TrimSpace(string(file))) {
			left = append(left, strings.Split(n, "/")[3]+" on "+strings.TrimSpace(string(file)))
		}
	}
	return left
}

// below lists the files in dir.
func below(dir string) []string {
	var left []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir && len(left) < 20 {
			left = append(left, "temporary file "+path)
		}
		return err
	})
	if err != nil {
		left = append(left, err.Error())
	}
	return left
}

func inside(dir, path string) bool { return strings.HasPrefix(path, dir+"/") }
