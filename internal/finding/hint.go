// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package finding

import (
	"errors"
	"strings"
)

// hinted is an error with advice that is kept apart from its text.
type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// WithHint adds advice to err: what the user could do next. The text of err is unchanged; nil
// stays nil.
func WithHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hinted{err, hint}
}

// HintOf returns the advice that err or an error it wraps carries, or "".
func HintOf(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

// Word gives an argument as a shell takes it, for advice that names a command: names of files are anybody's.
func Word(arg string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=:,@%"
	if arg != "" && strings.Trim(arg, plain) == "" {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// LastWord is Word for the last argument of a command that is no flag, whatever it begins with.
func LastWord(arg string) string {
	if strings.HasPrefix(arg, "-") {
		return "-- " + Word(arg)
	}
	return Word(arg)
}
