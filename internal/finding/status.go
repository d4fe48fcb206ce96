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
// left out where anything else applies; no status at all is clean. A number that is none of them
// counts as failed, for it must not pass for clean.
func OrderStatus(applies ...int) []int {
	order := []int{
		StatusUsage, StatusInterrupted, StatusHalfDone, StatusFound, StatusRefused,
		StatusCannotTell, StatusFailed, StatusClean,
	}
	ranks := []int{}
	for _, s := range applies {
		r := slices.Index(order, s)
		if r < 0 {
			r = slices.Index(order, StatusFailed)
		}
		ranks = append(ranks, r)
	}
	slices.Sort(ranks)
	out := []int{}
	for _, r := range slices.Compact(ranks) {
		out = append(out, order[r])
	}
	if len(out) == 0 {
		return []int{StatusClean}
	}
	if last := len(out) - 1; last > 0 && out[last] == StatusClean {
		out = out[:last]
	}
	return out
}
