// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package sweep

import (
	"path/filepath"
	"strings"
)

// QemuImg is the tool to compare with. It has nothing to recover with.
func QemuImg(program string) Tool {
	return Tool{Repair: func(c Case, dir string) []string { return fill(program, c.QemuImg, dir) }}
}

// Shisa is our program. What it keeps lies on the same disk.
func Shisa(program string) Tool {
	state := func(dir string, argv []string) []string {
		return append(argv, "--state", filepath.Join(dir, "state"))
	}
	return Tool{
		Repair: func(c Case, dir string) []string { return state(dir, fill(program, c.Shisa, dir)) },
		Recover: func(dir string) []string {
			return state(dir, []string{program, "recover", dir})
		},
		RecoverExits: []int{0, 3},
		Undo: func(dir string) []string {
			return state(dir, []string{program, "undo", filepath.Join(dir, imageName)})
		},
	}
}

// fill puts names into the words of a command line.
func fill(program string, words []string, dir string) []string {
	argv := []string{program}
	r := strings.NewReplacer("{}", filepath.Join(dir, imageName), "{dir}", dir)
	for _, w := range words {
		argv = append(argv, r.Replace(w))
	}
	return argv
}
