// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package finding

import "slices"

// The exit statuses of the program: a contract, see doc/exit-status.md. Two is never among them:
// the Go runtime uses it when a program panics.
const (
	StatusClean       = 0   // clean, done or allowed
	StatusFailed      = 1   // nothing at all could be done
	StatusFound       = 3   // something is wrong
	StatusCannotTell  = 4   // the evidence is incomplete
	StatusRefused     = 5   // policy, a lock, in use, or changed while looking
	StatusHalfDone    = 6   // a change was interrupted or failed its check
	StatusUsage       = 64  // the command line makes no sense
	StatusInterrupted = 130 // by the user
)

// OrderStatus gives each of the statuses that apply once, the one to exit with first. Clean is
// left out where anything else applies; no status at all is clean.
func OrderStatus(applies ...int) []int {
	out := []int{}
	for _, s := range []int{
		StatusUsage, StatusInterrupted, StatusHalfDone, StatusFound, StatusRefused,
		StatusCannotTell, StatusFailed,
	} {
		if slices.Contains(applies, s) {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		out = append(out, StatusClean)
	}
	return out
}
