// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package testenv

import "os"

// Rounds is how many rounds a test has that tries random things: few; many with SHISA_SWEEP=1, for
// which "make sweeps" runs each test that calls this, without -race, which would take many times as
// long and find no more; and all in the long sweeps.
func Rounds(few, many, all int) int {
	switch {
	case Long():
		return all
	case os.Getenv("SHISA_SWEEP") == "1":
		return many
	}
	return few
}
