// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"fmt"
	"path"
	"strings"
)

// asked runs a part whose failure does not end a script that has "set -e": a condition, what is negated or not waited
// for, the left side of "&&" and "||", parts of a pipe (POSIX.1-2017, "set", -e).
func (s *shell) asked(ctx context.Context, n *node) Truth {
	s.shielded++
	defer func() { s.shielded-- }()
	return s.run(ctx, n)
}

// failing ends a script that has "set -e" at a command that is known to fail. One of which that is not known ends
// nothing, or else each script with "set -e" would be in doubt, unless it is there to ask something.
func (s *shell) failing(n *node, t Truth) Truth {
	if t == Yes || t == Maybe && !s.asks(n) || s.shielded > 0 || s.ended == Yes || s.strict != Yes && s.strict != Maybe {
		return t
	}
	if s.way == Yes && (s.strict == Maybe || t == Maybe) {
		s.way, s.why = Maybe, fmt.Sprintf("line %d of %s may end it before", n.line, s.file)
	}
	s.leave(n)
	return t
}

// asks tells of a command whose status is an answer and no failure of its own.
func (s *shell) asks(n *node) bool {
	if n.kind != "simple" || len(n.words) == 0 {
		return false
	}
	switch path.Base(s.value(n.words[0])) {
	case "[", "test", "grep", "egrep", "fgrep", "cmp", "diff", "pgrep", "pidof", "mountpoint", "which":
		return true
	case "systemctl":
		return len(n.words) > 1 && strings.HasPrefix(n.words[1], "is-")
	}
	return false
}

// options takes those of "set".
func (s *shell) options(words []string) {
	t := strictBy(s.strict, words)
	if t != s.strict && s.way != Yes {
		t = Maybe
	}
	s.strict = t
}

// strictBy tells whether the first command that fails ends a shell, by its options, or by those of "set".
func strictBy(was Truth, words []string) Truth {
	for i := 0; i < len(words); i++ {
		w := words[i]
		if len(w) < 2 || w == "--" || w[0] != '-' && w[0] != '+' {
			break
		}
		if strings.HasPrefix(w, "--") {
			continue
		}
		named := strings.HasSuffix(w, "o") && i+1 < len(words)
		if strings.Contains(w, "e") || named && words[i+1] == "errexit" {
			was = truth(w[0] == '-')
		}
		if named {
			i++
		}
	}
	return was
}

// strictScript is strictBy of the options in the first line of a script that is run as a program.
func strictScript(text string) Truth {
	line, _, _ := strings.Cut(text, "\n")
	line, _ = strings.CutPrefix(line, "#!")
	f := strings.Fields(line)
	for i, w := range f {
		if interpreter(w) == "sh" && path.Base(w) != "busybox" {
			return strictBy(No, f[i+1:])
		}
	}
	return No
}
