// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Command stalls is the first process of a guest of User Mode Linux whose SCSI disk stops answering, or a check
// in a guest of QEMU. It makes the disk (scsi_debug), sets its limits, has the program predict what will happen, stops the disk, and says
// how long it took until a request failed and what the file system does then. For tests.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/uml"
)

// Scenario is what is done; its file is the only argument.
type Scenario struct {
	// Modules are files of the kernel's modules in their order, with parameters behind a blank.
	Modules []string `json:"modules"`
	// Set are files of sysfs and what is written to them; "DISK", "HOST" and "ADDRESS" stand for the names of the
	// disk, of its host and of its address.
	Set [][2]string `json:"set"`
	// Disks is how many there are to be, 1 if it is 0; the first one is meant.
	Disks int `json:"disks"`
	// Mkfs makes a file system of the type FS on the disk; none if FS is empty.
	FS   string   `json:"fs"`
	Mkfs []string `json:"mkfs"`
	Opts string   `json:"opts"`
	// Stop is what is written to scsi_debug's opts: 0x80 or 0x4. "" does nothing at all, "slow" does what
	// is to be done with a disk that nobody stops.
	Stop string `json:"stop"`
	// Do is "read", "flush", "write", or "many": reads that begin one after the other, of which the first that
	// fails counts.
	Do string `json:"do"`
	// Burst is how many bytes are read before at most, until one read is slow: for a disk of which some can be had
	// at once, and then little.
	Burst int64 `json:"burst"`
	// For is how long is waited for the request, in seconds; then the disk answers again.
	For int `json:"for"`
	// After is how long is waited before the file system is looked at, in seconds.
	After int `json:"after"`
	// Program predicts: its JSON is kept. Commands are run before, and their output is kept.
	Program  []string   `json:"program"`
	Commands [][]string `json:"commands"`
}

// Result is what came of it.
type Result struct {
	Failed string `json:"failed"` // why nothing came of it
	// Predicted is what Program wrote.
	Predicted json.RawMessage `json:"predicted"`
	// Outputs are those of Commands, with how each ended.
	Outputs []string `json:"outputs"`
	// Took is how long the request took, in ms; Errno its error, 0 for none.
	Took  int64 `json:"took"`
	Errno int   `json:"errno"`
	// State is that of the disk afterwards.
	State string `json:"state"`
	// Write is the error of a write to the file system afterwards, Read that of reading an old file, List of its
	// directory; Options are what is shown of its mount.
	Write   int    `json:"write"`
	Read    int    `json:"read"`
	List    int    `json:"list"`
	Options string `json:"options"`
	// Attributes are what /sys/fs tells: "errors_count", "withdraw".
	Attributes map[string]string `json:"attributes"`
}

const debugDir = "/sys/bus/pseudo/drivers/scsi_debug"

func main() {
	if os.Getpid() != 1 {
		os.Exit(check())
	}
	if err := prepare(); err != nil {
		fmt.Println(err)
		return
	}
	say, err := uml.NewReporter()
	if err != nil {
		fmt.Println(err)
		return
	}
	r := &Result{Attributes: map[string]string{}, Outputs: []string{}, Predicted: json.RawMessage("null")}
	if err := run(r); err != nil {
		r.Failed = err.Error()
	}
	if err := say.Say(r); err != nil {
		fmt.Println(err)
	}
	// Not by PowerOff: what is written to a disk that does not answer would be waited for.
	fmt.Println(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// check is for a guest that has a first process of its own: what came of the scenario goes to stdout.
func check() int {
	r := &Result{Attributes: map[string]string{}, Outputs: []string{}, Predicted: json.RawMessage("null")}
	if err := run(r); err != nil {
		r.Failed = err.Error()
	}
	text, err := json.Marshal(r)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(string(text))
	return 0
}

// prepare mounts what is needed, and leaves /tmp of the host, where the scenario lies.
func prepare() error {
	for _, m := range []struct{ fs, at string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m.fs, m.at, m.fs, unix.MS_NOSUID, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

func run(r *Result) error {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	var s Scenario
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	for _, m := range s.Modules {
		file, parameters, _ := strings.Cut(m, " ")
		if err := uml.Load(file, parameters); err != nil {
			return err
		}
	}
	d, err := find(max(s.Disks, 1))
	if err != nil {
		return err
	}
	if s.FS != "" {
		if err := d.mount(&s); err != nil {
			return err
		}
	}
	for _, set := range s.Set {
		name := strings.NewReplacer("DISK", d.name, "HOST", d.host, "ADDRESS", d.address).Replace(set[0])
		if err := os.WriteFile(name, []byte(set[1]+"\n"), 0); err != nil {
			return err
		}
	}
	for _, c := range s.Commands {
		out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
		r.Outputs = append(r.Outputs, fmt.Sprintf("%s\n%v", out, err))
	}
	if len(s.Program) > 0 {
		if err := predict(r, s.Program); err != nil {
			return err
		}
	}
	if s.Stop == "" {
		return nil
	}
	return d.stall(r, &s)
}

// predict has the program say what will happen. It ends with 3 where that is bad.
func predict(r *Result, argv []string) error {
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = []string{"HOME=/run", "TMPDIR=/run", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	said := new(bytes.Buffer)
	c.Stderr = said
	out, err := c.Output()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) {
		return fmt.Errorf("%v: %w: %s", argv, err, said)
	}
	r.Predicted = out
	return nil
}

// target is the disk.
type target struct{ name, host, address, at string }

// find waits until n disks are there.
func find(n int) (*target, error) {
	for range 100 {
		all, err := filepath.Glob("/sys/block/sd*")
		if err != nil {
			return nil, err
		}
		if len(all) == n {
			link, err := os.Readlink(all[0] + "/device")
			if err != nil {
				return nil, err
			}
			d := &target{name: filepath.Base(all[0]), address: filepath.Base(link), at: "/run/at"}
			host, _, _ := strings.Cut(d.address, ":")
			d.host = "host" + host
			return d, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, errors.New("the disk did not come")
}

func (d *target) mount(s *Scenario) error {
	argv := append(append([]string{}, s.Mkfs...), "/dev/"+d.name)
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", argv, err, out)
	}
	err := os.Mkdir(d.at, 0o755)
	if err == nil {
		err = unix.Mount("/dev/"+d.name, d.at, s.FS, 0, s.Opts)
	}
	if err == nil {
		err = os.WriteFile(d.at+"/old", []byte("hello\n"), 0o644)
	}
	unix.Sync()
	time.Sleep(time.Second) // what mounting began has ended
	return err
}

// stall stops the disk and does what is to be done.
func (d *target) stall(r *Result, s *Scenario) error {
	if err := d.drain(s.Burst); err != nil {
		return err
	}
	opts := func(v string) error {
		if s.Stop == "slow" {
			return nil
		}
		return os.WriteFile(debugDir+"/opts", []byte(v), 0)
	}
	if s.Stop != "slow" {
		if err := os.WriteFile(debugDir+"/every_nth", []byte("-1"), 0); err != nil {
			return err
		}
	}
	err := opts(s.Stop)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	begun := time.Now()
	go func() { done <- d.do(s.Do) }()
	select {
	case err = <-done:
	case <-time.After(time.Duration(s.For) * time.Second):
		r.Took = -1
		if err := opts("0"); err != nil {
			return err
		}
		err = <-done // it goes on, or never
	}
	if r.Took == 0 {
		r.Took = time.Since(begun).Milliseconds()
	}
	r.Errno = errnoOf(err)
	state, err := os.ReadFile("/sys/block/" + d.name + "/device/state")
	if err != nil {
		return err
	}
	r.State = strings.TrimSpace(string(state))
	if s.FS != "" {
		time.Sleep(time.Duration(s.After) * time.Second)
		d.look(r, s.FS)
	}
	return nil
}

// drain reads from the beginning of the disk, past the kernel's cache, until a read takes more than a second.
func (d *target) drain(n int64) error {
	if n == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/"+d.name, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	slow := false
	for at := int64(0); err == nil && !slow && at < n; at += int64(len(b)) {
		begun := time.Now()
		_, err = unix.Pread(int(f.Fd()), b, at)
		slow = time.Since(begun) > time.Second
	}
	if err == nil && !slow {
		err = fmt.Errorf("%d bytes were read, and nothing was slow", n)
	}
	return errors.Join(err, f.Close())
}

func errnoOf(err error) int {
	if err == nil {
		return 0
	}
	if n := unix.Errno(0); errors.As(err, &n) {
		return int(n)
	}
	return -1
}

// do sends one request and waits for it.
func (d *target) do(what string) error {
	switch what {
	case "write":
		return write(d.at + "/new")
	case "many":
		return d.many()
	}
	f, err := os.OpenFile("/dev/"+d.name, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	if what == "flush" {
		return errors.Join(f.Sync(), f.Close())
	}
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	_, err = unix.Pread(int(f.Fd()), b, 4<<20)
	return errors.Join(err, f.Close())
}

// many begins reads one after the other for ten seconds, and gives the first error.
func (d *target) many() error {
	const reads, pause = 25, 400 * time.Millisecond
	failed := make(chan error, reads)
	for i := range reads {
		time.AfterFunc(time.Duration(i)*pause, func() {
			if err := d.do("read"); err != nil {
				failed <- err
			}
		})
	}
	return <-failed
}

func write(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 16384))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// look tells what the file system does after the stall.
func (d *target) look(r *Result, fs string) {
	r.Write = errnoOf(write(d.at + "/after"))
	_, err := os.ReadFile(d.at + "/old")
	r.Read = errnoOf(err)
	_, err = os.ReadDir(d.at)
	r.List = errnoOf(err)
	mounts, err := os.ReadFile("/proc/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 3 && f[1] == d.at {
			r.Options = f[3]
		}
	}
	if err != nil {
		r.Options = err.Error()
	}
	all, err := filepath.Glob("/sys/fs/" + fs + "/*/*")
	if err != nil {
		return
	}
	for _, name := range all {
		switch base := filepath.Base(name); base {
		case "errors_count", "withdraw":
			if b, err := os.ReadFile(name); err == nil {
				r.Attributes[base] = strings.TrimSpace(string(b))
			} else {
				r.Attributes[base] = strconv.Quote(err.Error())
			}
		}
	}
}
