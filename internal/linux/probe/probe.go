// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package probe asks the kernel itself, by programs that the kernel checks before it runs them
// (BPF): who refers to a mount, and who takes and drops such references. The programs are the C
// files of this directory; the objects made of them are kept beside them, so that a build needs no
// compiler of C. Only this package loads BPF.
//
// Each object is loaded by itself: where the kernel refuses one, the others still work.
package probe

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type question -type found -type mount_found -type super_found -type found_kind -type mount_flag -type path_flag -type inode_flag mounts mounts.c -- -O2 -Wall -Werror
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type held -type task_found refs refs.c -- -O2 -Wall -Werror
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type sleeper_found underway underway.c -- -O2 -Wall -Werror

// ErrRefused means that this kernel does not load the programs, or not for this user.
var ErrRefused = errors.New("the kernel refuses the program")

// load gives the programs and maps of spec to the kernel and fills objects, a pointer to one of the
// structs that bpf2go makes. What it gives back matches ErrRefused where the kernel said no.
func load(name string, spec *ebpf.CollectionSpec, objects any) error {
	return loadWith(name, spec, objects, nil)
}

// loadWith is load with types that are not of the kernel itself but of its modules.
func loadWith(name string, spec *ebpf.CollectionSpec, objects any, types []*btf.Spec) error {
	o := &ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{ExtraRelocationTargets: types}}
	err := unlimited(func() error { return spec.LoadAndAssign(objects, o) })
	if err != nil {
		return fmt.Errorf("load %s: %w: %w", name, ErrRefused, &oneLine{err})
	}
	return nil
}

// unlimited tries try, where it is not permitted once more with the limit of locked memory taken
// away, which until Linux 5.11 maps count against.
func unlimited(try func() error) error {
	err := try()
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	var before unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &before) != nil {
		return err
	}
	all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if unix.Setrlimit(unix.RLIMIT_MEMLOCK, &all) != nil {
		return err
	}
	err = try()
	return errors.Join(err, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &before))
}

// oneLine is an error of which only the first line is shown: the verifier's log has as many as it
// looked at.
type oneLine struct{ err error }

func (o *oneLine) Error() string {
	line, _, _ := strings.Cut(o.err.Error(), "\n")
	if !errors.Is(o.err, unix.EPERM) {
		return line
	}
	// The module's hint is right before Linux 5.11 only, and of many reasons gives one.
	return strings.TrimSuffix(line, " (MEMLOCK may be too low, consider rlimit.RemoveMemlock)") +
		"; the kernel does not say why: its lockdown, a security module, seccomp or missing rights, or before Linux " +
		"5.11 the limit of locked memory"
}

func (o *oneLine) Unwrap() error { return o.err }
