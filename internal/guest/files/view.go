// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package files

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Notes collects what makes up a [View] while a file system is read. The zero value is ready and
// says [Clean]. It may be used by several goroutines at once.
type Notes struct {
	mu   sync.Mutex
	view View
	seen map[Problem]struct{}
}

// Replayed notes that the journal had something to replay, and how much of it was.
func (n *Notes) Replayed(transactions, blocks int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.view.Transactions += transactions
	n.view.Blocks += blocks
	if n.view.State != Incomplete {
		n.view.State = Recovered
	}
}

// Note adds a problem; the same one counts once.
func (n *Notes) Note(p Problem) {
	if p.Offset < 0 {
		p.Length = 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.Hides {
		n.view.State = Incomplete
	}
	if _, again := n.seen[p]; again {
		return
	}
	if len(n.view.Problems) == MaxProblems {
		n.view.More++
		return
	}
	if n.seen == nil {
		n.seen = make(map[Problem]struct{})
	}
	n.seen[p] = struct{}{}
	n.view.Problems = append(n.view.Problems, p)
}

// Fail notes a part that could not be read, which hides something, and gives the error for it. What
// was noted where it was met is not noted again.
func (n *Notes) Fail(what string, offset int64, ino Ino, err error) error {
	if known := new(Error); errors.As(err, &known) && known.noted {
		return err
	}
	n.Note(Problem{What: fmt.Sprintf("%s: %v", what, err), Offset: offset, Ino: ino, Hides: true})
	return &Error{What: what, Offset: offset, Ino: ino, Err: err, noted: true}
}

// View gives what was noted so far.
func (n *Notes) View() View {
	n.mu.Lock()
	defer n.mu.Unlock()
	v := n.view
	if v.State == "" {
		v.State = Clean
	}
	v.Problems = slices.Clone(v.Problems)
	return v
}
