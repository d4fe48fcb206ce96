// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"fmt"
	"sync"
)

// maxNotes is how many things that could not be read are told; beyond, that there are more.
const maxNotes = 1000

// notes tells what could not be read, each once. Programs ask for the same again and again.
type notes struct {
	log func(string)

	mu   sync.Mutex
	seen map[string]struct{}
}

func (n *notes) add(what string, err error) {
	if n.log == nil {
		return
	}
	text := fmt.Sprintf("%s: %v", what, err)
	n.mu.Lock()
	_, again := n.seen[text]
	count := len(n.seen)
	if !again && count <= maxNotes {
		if n.seen == nil {
			n.seen = make(map[string]struct{})
		}
		n.seen[text] = struct{}{}
	}
	n.mu.Unlock()
	switch {
	case again || count > maxNotes:
	case count == maxNotes:
		n.log("more could not be read, which is not told here any more")
	default:
		n.log(text)
	}
}
