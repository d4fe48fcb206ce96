// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// maxCronLines bounds the lines of all crontabs that run at a start.
const maxCronLines = 1000

// crontabs reads the lines "@reboot" of crontabs (crontab(5)), and goes through their commands.
func (l *loader) crontabs(ctx context.Context) {
	l.crontab(ctx, "/etc/crontab", true)
	for _, dir := range []string{"/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron", "/var/spool/cron/tabs"} {
		all, err := l.list(ctx, dir)
		if err != nil {
			continue // list has noted what is not known
		}
		for i := range all {
			if all[i].kind&fs.ModeDir == 0 {
				l.crontab(ctx, all[i].path(), dir == "/etc/cron.d")
			}
		}
	}
}

// crontab reads one; user tells that a name of a user stands before each command.
func (l *loader) crontab(ctx context.Context, name string, user bool) {
	b, err := l.t.Read(ctx, name, maxFileBytes)
	if err != nil && !errors.Is(err, tree.ErrTooLarge) {
		if !l.absent(name, err) && !(errors.Is(err, tree.ErrNotCollected) && l.t.Kind() != tree.Bundle) {
			l.gap(name, err)
		}
		return
	}
	n := 0
	for line := range lines(string(b)) {
		n++
		rest, is := strings.CutPrefix(strings.TrimLeft(line, blanks), "@reboot")
		if !is || rest == "" || strings.IndexByte(blanks, rest[0]) < 0 || len(l.AtReboot) >= maxCronLines {
			continue
		}
		rest = strings.TrimLeft(rest, blanks)
		if user {
			i := strings.IndexAny(rest, blanks)
			if i < 0 {
				continue
			}
			rest = strings.TrimLeft(rest[i:], blanks)
		}
		c := CronLine{Command: rest, From: Source{name, n}}
		c.Acts = l.line(ctx, "@reboot "+rest, rest, c.From)
		l.AtReboot = append(l.AtReboot, c)
	}
}

// line goes through a command that is no unit's.
func (l *loader) line(ctx context.Context, text, command string, from Source) []Act {
	u := &Unit{Name: path.Base(from.Path) + ".service", Path: from.Path, State: Loaded, Settings: []Setting{
		{"Service", "Type", "oneshot", from},
		{"Service", "ExecStart", ":/bin/sh -c " + quoted(command), from},
	}}
	d := l.doingOf(ctx, u)
	for i := range d.acts {
		a := &d.acts[i]
		a.Unit = ""
		a.Setting = Setting{Key: "@reboot", Value: command, From: from}
		a.Chain[0] = Step{text, from}
	}
	return d.acts
}

// quoted makes one word of a text (systemd.syntax(7), "Quoting").
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
