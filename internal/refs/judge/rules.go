// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package judge

import (
	"time"

	"github.com/shisa-vm/shisa/internal/refs"
)

// Verdict is what may be done with a base.
type Verdict string

// The verdicts.
const (
	// Keep: it stays where it is.
	Keep Verdict = "keep"
	// MayQuarantine: it may be set aside.
	MayQuarantine Verdict = "may_quarantine"
	// MayPurge: it was set aside, and may be removed for good.
	MayPurge Verdict = "may_purge"
	// RestoreNow: it is needed and was set aside.
	RestoreNow Verdict = "restore_now"
)

// Rule is why something may not be done.
type Rule string

// The rules of refs/protocol, by the words that they have there.
const (
	NoReport   Rule = "no_report"
	Incomplete Rule = "incomplete"
	Used       Rule = "used"
	NotSeen    Rule = "not_seen"
	Pinned     Rule = "pinned"
	Stranger   Rule = "stranger"
	Nobody     Rule = "nobody"
)

// The rules about one base.
const (
	// TooYoung: it, or one of its names, was changed too lately. TimeAhead: it is from the future.
	TooYoung  Rule = "too_young"
	TimeAhead Rule = "time_ahead"
	// NoShield: it has no second name. Linked: it has names that nobody here knows.
	NoShield Rule = "no_shield"
	Linked   Rule = "linked"
	// NewCandidate: no use was found for the first time. NotSince: a node has not spoken since then.
	NewCandidate Rule = "new_candidate"
	NotSince     Rule = "not_since"
	// NotChosen: others were asked for.
	NotChosen Rule = "not_chosen"
	// NoName: its name cannot be told in a document.
	NoName Rule = "no_name"
	// NotLongEnough: it was not in quarantine for long enough. PurgeOff: the pool does not allow it.
	NotLongEnough Rule = "not_long_enough"
	PurgeOff      Rule = "purge_off"
	// WasClaimed: somebody is removing it, or was.
	WasClaimed Rule = "claimed"
	// NameTaken: another file has its name by now, which is needed, and may not hold the same.
	NameTaken Rule = "name_taken"
)

// The rules about all of them. The last ones are breakers: something became less that does not become less.
const (
	NoPool     Rule = "no_pool"
	Unreadable Rule = "unreadable"
	// Indexed: headers were remembered and not read.
	Indexed Rule = "indexed"
	NoClock Rule = "no_clock"
	// Unfinished: an act came to no end.
	Unfinished Rule = "unfinished"
	// ClockOff: the clocks of this host and of the file server are a day apart.
	ClockOff Rule = "clock_off"
	// TooMany: more would be set aside at once than the pool allows.
	TooMany Rule = "too_many"
	// NodeGone: a node that was known is not known any more.
	NodeGone Rule = "node_gone"
	// TwoMachines: two machines speak under one name.
	TwoMachines Rule = "two_machines"
	// WentBack: a node gave a lower number than it had given.
	WentBack Rule = "went_back"
	// NoOverlays: no image rests on any other, and some did: anywhere, below one directory, or on one file system below it.
	NoOverlays Rule = "no_overlays"
	// OtherStorage: the bases, or a directory that is looked through, lie on another file system than before.
	OtherStorage Rule = "other_storage"
)

const (
	// clocksApart is how far the clocks of this host and of the file server may be apart. Ages are told by one of
	// them alone, so that a day does no harm: more is a clock that is wrong.
	clocksApart = 24 * time.Hour
	// atOnce is for how long what was set aside counts as set aside at once, maxAtOnce how much that is at most.
	atOnce    = 24 * time.Hour
	maxAtOnce = 100
	// maxBoots is how many runs of a machine are kept in the notes.
	maxBoots = 8
	// maxNoted bounds how many file systems are noted of one node.
	maxNoted = 2000
)

// Blocker is one thing that speaks against a change.
type Blocker struct {
	Rule Rule `json:"rule"`
	// Node and Path are what it is about, "" if it is about none.
	Node string `json:"node"`
	Path string `json:"path"`
	// Why says it in words.
	Why string `json:"why"`
}

// Decided is what is decided about one base.
type Decided struct {
	Name string `json:"name"`
	// ID is that of its quarantine, "" for one that was not set aside.
	ID    string     `json:"id"`
	Path  string     `json:"path"`
	State refs.State `json:"state"`
	// Inode and SizeBytes are what it is, whatever its name is.
	Inode          uint64 `json:"inode"`
	SizeBytes      int64  `json:"size_bytes"`
	AllocatedBytes int64  `json:"allocated_bytes"`
	// Since is when it was set aside, zero if it was not.
	Since   time.Time `json:"since,omitempty"`
	Verdict Verdict   `json:"verdict"`
	// Uses are all that need it.
	Uses []refs.Reference `json:"uses"`
	// Blockers are all that speaks against the next step with this base.
	Blockers []Blocker `json:"blockers"`
	// EvidenceDigest is of all that the decision rests on.
	EvidenceDigest string `json:"evidence_digest"`

	changed, modified time.Time
	links             uint64
	shield            string
}

// Said is what the decision knows of a node.
type Said struct {
	Node string `json:"node"`
	// Seq and Time are those of its last report, 0 and zero if it has never said anything.
	Seq      uint64    `json:"seq"`
	Time     time.Time `json:"time,omitempty"`
	Complete bool      `json:"complete"`
	// Retired: a person said that it does not come back.
	Retired bool   `json:"retired"`
	SHA256  string `json:"sha256"`
}

// Known is a node that something else than the pool tells of.
type Known struct{ Node, From string }

// Options are what a decision needs beside what was seen.
type Options struct {
	// Node is this host.
	Node string
	// Now is the time by the clock of the file server, Local by that of this host.
	Now, Local time.Time
	// Known are nodes that use the pool as others say: Nova, the configuration, the server of the files.
	Known []Known
	// Unknown are sources of such nodes that could not be read.
	Unknown []error
	// Only are the names or ids that are meant, none for all.
	Only []string
	// Mine are the ids of the quarantines that who asks has claimed.
	Mine []string
	// Acting: who asks is in the midst of an act, whose intent is none that came to no end.
	Acting bool
	// NoOverlays are nodes of which a person knows that no image rests on others there any more.
	NoOverlays []string
	// OtherStorage are nodes of which a person knows that the file systems there became others.
	OtherStorage []string
}
