// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

import (
	"strconv"
	"strings"
	"time"
)

// Machine is how a guest is run.
//
// Its clock counts what its processor does, two nanoseconds for each instruction, and jumps to the next
// timer where it is idle: hours of waiting pass in seconds, a test's deadlines mean the same on every
// machine, and a machine that is busy, or stands still for a minute, is no kernel that hangs. QEMU has
// that for one processor.
type Machine struct {
	Program   string // QEMU if empty
	CPUs      int    // 1 if 0; more have the host's clock
	MemoryMiB int    // 1024 if 0
	// HostClock has the guest's clock be the host's, for devices of QEMU that take their time from it.
	HostClock bool
	// Limit is how much of the host's processor the guest may take, defaultLimit if 0. It does not depend on
	// what else the machine does; a kernel that hangs takes one processor for itself.
	Limit time.Duration
	// Kernel are further words for the kernel's command line.
	Kernel []string
	// Args are further arguments of QEMU, for disks.
	Args []string
}

const (
	instructions = "shift=1,sleep=off" // of -icount: 2^1 ns each
	defaultLimit = 10 * time.Minute
)

func (m Machine) hostClock() bool { return m.HostClock || m.CPUs > 1 }

// arguments of QEMU. There is no KVM: it is not everywhere, and where it is the guest's processor would
// be another one each time. The first serial line is the console, the second the report.
//
// All processors of a guest are one thread: with one for each, a machine that is busy runs one while
// another waits for it.
func (m Machine) arguments(kernel, files string) []string {
	args := []string{"-accel", "tcg,thread=single", "-smp", strconv.Itoa(max(m.CPUs, 1))}
	if !m.hostClock() {
		args = append(args, "-icount", instructions)
	}
	return append(append(args, m.Args...),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-cpu", "max,la57=off", "-m", strconv.Itoa(or(m.MemoryMiB, 1024)),
		"-kernel", kernel, "-initrd", files, "-append", strings.Join(m.words(), " "),
		"-chardev", "file,id=console,path=/proc/self/fd/3", "-serial", "chardev:console",
		"-chardev", "stdio,id=report,signal=off", "-serial", "chardev:report",
		"-chardev", "socket,id=monitor,fd=4", "-mon", "chardev=monitor,mode=readline",
	)
}

// words are the kernel's command line. A kernel that does not let anybody else have its processor for 20 s
// says where, and is gone; with the host's clock it cannot tell that from a host that does other things, so
// it does not look, and the limit has to do. An NMI has it say where it is, too.
func (m Machine) words() []string {
	words := []string{"console=ttyS0", "panic=-1", "mitigations=off", "nokaslr", "random.trust_cpu=on", "quiet",
		"loglevel=4", "unknown_nmi_panic"}
	if m.hostClock() {
		words = append(words, "nosoftlockup")
	} else {
		words = append(words, "softlockup_panic=1")
	}
	return append(words, m.Kernel...)
}

func or(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}
