// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// program is what is known of a program on the system.
type program struct {
	path   string
	exists Truth
	// language is that of a script by its first line: "sh", "python", "perl" ...; "" for no script.
	language string
	script   string
	// unread says why a script could not be read whole.
	unread string
}

// searched are the directories where systemd and its children look for programs (DEFAULT_PATH in
// src/basic/path-util.h).
func (l *loader) searched() []string {
	all := []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"}
	if !l.MergedUsr {
		all = append(all, "/sbin", "/bin")
	}
	return all
}

// find looks a program up, by its path or its name.
func (l *loader) find(ctx context.Context, name string) program {
	if p, known := l.programs[name]; known {
		return p
	}
	p := program{path: name, exists: Maybe}
	switch {
	case strings.ContainsAny(name, unknown+"%"):
	case l.Flat:
		p = l.nearby(ctx, name)
	case strings.HasPrefix(name, "/"):
		p = l.look(ctx, name)
	case !strings.Contains(name, "/"):
		p.exists = No
		for _, dir := range l.searched() {
			if q := l.look(ctx, path.Join(dir, name)); q.exists != No {
				p = q
				break
			}
		}
	}
	if len(l.programs) < maxNames {
		l.programs[name] = p
	}
	return p
}

// look reads the begin of a program, and all of it if it is a script.
func (l *loader) look(ctx context.Context, name string) program {
	p := program{path: name}
	b, err := l.t.Read(ctx, name, 128)
	p.exists = answer(err, false)
	if errors.Is(err, diskio.ErrSpecial) {
		p.exists = No // a directory cannot be run
	}
	if p.exists == Maybe && !errors.Is(err, tree.ErrNotCollected) && !errors.Is(err, tree.ErrAvoided) {
		l.gap(name, err)
	}
	if p.exists != Yes || !strings.HasPrefix(string(b), "#!") {
		return p
	}
	first, _, _ := strings.Cut(string(b), "\n")
	p.language = languageOf(first[2:])
	if l.scripts > maxAllScripts {
		p.unread = fmt.Sprintf("the scripts of units have more than %d bytes, the rest is not read", maxAllScripts)
		l.gap(name, errors.New(p.unread))
		return p
	}
	if b, err = l.t.Read(ctx, name, maxScriptBytes); err == nil {
		p.script = string(b)
	} else {
		p.script, p.unread = string(b), reason(err)
		if !errors.Is(err, tree.ErrTooLarge) || p.language == "sh" {
			l.gap(name, err)
		}
	}
	l.scripts += len(p.script)
	return p
}

// maxAllScripts bounds what is kept of all scripts.
const maxAllScripts = 16 << 20

// languageOf names the language of a script by what is behind its "#!".
func languageOf(line string) string {
	f := strings.Fields(line)
	if len(f) > 1 && path.Base(f[0]) == "env" {
		f = f[1:]
		for len(f) > 1 && (f[0][0] == '-' || strings.Contains(f[0], "=")) {
			f = f[1:]
		}
	}
	if len(f) == 0 {
		return ""
	}
	return interpreter(f[0])
}

// interpreter names the language that a program reads, "" if it is none of those that are known.
func interpreter(name string) string {
	base := path.Base(name)
	if slices.Contains([]string{"sh", "bash", "dash", "ash", "ksh", "mksh", "zsh", "rbash", "busybox"}, base) {
		return "sh"
	}
	base = strings.TrimRight(base, "0123456789.")
	if slices.Contains([]string{"python", "perl", "ruby", "node", "php", "lua", "tclsh", "awk", "expect", "fish"}, base) {
		return base
	}
	return ""
}

// nearby looks for a script of a program's name among the files that lie with the units. Of others nothing is
// known.
func (l *loader) nearby(ctx context.Context, name string) program {
	at := l.near[path.Base(name)]
	if at == "" {
		return program{path: name, exists: Maybe}
	}
	p := l.look(ctx, at)
	p.exists = Maybe
	return p
}
