// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package finding

import "testing"

// TestWord: a shell takes each as one word that is the argument.
func TestWord(t *testing.T) {
	for arg, want := range map[string]string{"/a/b-1.qcow2": "/a/b-1.qcow2", "": "''", "a b": "'a b'", "it's": `'it'\''s'`,
		"$HOME": "'$HOME'", "a;rm": "'a;rm'", "~": "'~'"} {
		if got := Word(arg); got != want {
			t.Errorf("Word(%q) = %s, want %s", arg, got, want)
		}
	}
}

// TestLastWord: what begins like a flag is none.
func TestLastWord(t *testing.T) {
	for arg, want := range map[string]string{"a b": "'a b'", "--kept": "-- --kept", "-x y": "-- '-x y'", "-": "-- -", "a-b": "a-b"} {
		if got := LastWord(arg); got != want {
			t.Errorf("LastWord(%q) = %s, want %s", arg, got, want)
		}
	}
}
