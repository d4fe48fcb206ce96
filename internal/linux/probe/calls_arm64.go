// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import "golang.org/x/sys/unix"

// userRegs is how many registers DWARF numbers: x0 to x30, the stack pointer, the program counter.
const userRegs = 33

func calls() []call {
	return append(allCalls(),
		call{unix.SYS_FSTATAT, "newfstatat", pathAt(1) | bufAt(2) | classStat},
	)
}
