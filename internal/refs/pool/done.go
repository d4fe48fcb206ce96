// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"strings"
	"time"
)

// Done is what an act did (schema shisa.base-done/1).
type Done struct {
	// Status are the exit statuses that apply, the one that the program ends with first.
	Status []int  `json:"status"`
	Bases  string `json:"bases"`
	Pool   string `json:"pool"`
	// Begun: there was no pool before.
	Begun bool `json:"begun"`
	// Receipt is the ID of the receipt, "" where nothing was changed; Undo the command line that takes the act
	// back.
	Receipt string `json:"receipt"`
	Undo    string `json:"undo"`
	// CanUndo: something of what was done can be taken back.
	CanUndo bool `json:"-"`
	// Shielded got a shield, Touched were touched, Recorded had their content recorded, Restored are there
	// again, Unshielded lost their shield.
	Shielded   []string `json:"shielded"`
	Touched    []string `json:"touched"`
	Recorded   []string `json:"recorded"`
	Restored   []string `json:"restored"`
	Unshielded []string `json:"unshielded"`
	// Quarantined were set aside, each as ID.NAME; Purged were removed for good, by the same names.
	Quarantined []string `json:"quarantined"`
	Purged      []string `json:"purged"`
	// Pinned and Unpinned are the ids of pins.
	Pinned   []string `json:"pinned"`
	Unpinned []string `json:"unpinned"`
	// Recovered says of acts that had come to no end how they ended.
	Recovered []string `json:"recovered"`
	// Forgotten are those whose record was taken away.
	Forgotten []string `json:"forgotten"`
	// Stays is what is still kept about the bases when they are protected no more, by its place and number, each
	// with the reason.
	Stays []Left `json:"stays"`
	// Unseen are bases that stay in quarantine and may be needed by what could not be read, with that; and what the pool keeps and
	// could not be read, by the name of its directory.
	Unseen []Left `json:"unseen"`
	// Left are those for which it was not done, each with the reason.
	Left []Left `json:"left"`
	// Failure is why the act ended before its end, "" where it did not.
	Failure string `json:"failure"`
}

// Did tells whether anything was done.
func (d *Done) Did() bool {
	for _, what := range [][]string{d.Shielded, d.Touched, d.Recorded, d.Restored, d.Unshielded, d.Quarantined, d.Purged, d.Pinned,
		d.Unpinned, d.Recovered, d.Forgotten} {
		if len(what) > 0 {
			return true
		}
	}
	return false
}

// Left is something that was not done.
type Left struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Leave notes something that was not done.
func (d *Done) Leave(name string, err error) {
	d.Left = append(d.Left, Left{name, strings.TrimPrefix(err.Error(), name+": ")})
}

// What happened to a pool that is watched.
type What string

// The kinds of what happens.
const (
	// Removed: somebody took a base away.
	Removed What = "removed"
	// Restored: it is there again. NotRestored: it could not be had.
	Restored    What = "restored"
	NotRestored What = "not_restored"
	// NotNeeded: it was left away, since nobody needs it.
	NotNeeded What = "not_needed"
	// Passed: everything was looked at. Lost: something may have happened that nobody told.
	Passed What = "passed"
	Lost   What = "lost"
	// Reported: this node told the others what it needs.
	Reported What = "reported"
)

// Happened is one thing that happened while a pool was watched (schema shisa.base-event/1).
type Happened struct {
	Time time.Time `json:"time"`
	What What      `json:"what"`
	// Bases is the directory that it happened to.
	Bases string `json:"bases"`
	// Name is the base, "" for what is about all.
	Name string `json:"name"`
	// PID, Command and Unit are who did it, 0 and "" where that is not known.
	PID     int    `json:"pid"`
	Command string `json:"command"`
	Unit    string `json:"unit"`
	Why     string `json:"why"`
}
