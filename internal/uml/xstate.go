// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package uml

import (
	_ "embed"
	"path/filepath"
)

//go:generate clang-14 -O2 -Wall -Wextra -Werror -fPIC -fno-stack-protector -ffreestanding -shared -nostdlib -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,noseparate-code -o xstate.so xstate.c
//go:generate llvm-strip-14 xstate.so

// xstate is a library for the kernel's own process on x86-64, the only one that has User Mode Linux: xstate.c says
// what for.
//
//go:embed xstate.so
var xstate []byte

const xstateName = "xstate.so"

// Preload puts into a directory what User Mode Linux 6.1 has to load first to run on processors with AMX, and gives
// what makes it do so, for its environment.
func Preload(dir string) (string, error) {
	return preloads(dir), (&File{Content: xstate}).put(filepath.Join(dir, xstateName))
}

func preloads(dir string) string { return "LD_PRELOAD=" + filepath.Join(dir, xstateName) }
