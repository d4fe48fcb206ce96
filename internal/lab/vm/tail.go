// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package vm

// Tail is a writer that keeps the last Max bytes of what is written to it.
type Tail struct {
	Max  int
	kept []byte
}

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - t.Max; over > t.Max { // not with every write
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

// Bytes is what was kept.
func (t *Tail) Bytes() []byte { return t.kept[max(0, len(t.kept)-t.Max):] }
