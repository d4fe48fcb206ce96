// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"io/fs"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// memory is a tree of files in memory.
type memory map[string]string

func (memory) Kind() tree.Kind { return tree.Disk }

func (m memory) Read(_ context.Context, name string, limit int64) ([]byte, error) {
	for range 40 {
		text, is := m[name]
		if !is {
			return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
		}
		to, link := strings.CutPrefix(text, "->")
		if !link {
			if int64(len(text)) > limit {
				return []byte(text[:limit]), &fs.PathError{Op: "read", Path: name, Err: tree.ErrTooLarge}
			}
			return []byte(text), nil
		}
		if !path.IsAbs(to) {
			to = path.Join(path.Dir(name), to)
		}
		name = to
	}
	return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrInvalid}
}

func (m memory) Open(context.Context, string) (tree.File, error) { return nil, fs.ErrNotExist }

func (m memory) List(_ context.Context, name string) ([]tree.Entry, error) {
	seen := map[string]bool{}
	var all []tree.Entry
	for n, text := range m {
		rest, in := strings.CutPrefix(n, strings.TrimSuffix(name, "/")+"/")
		first, _, deeper := strings.Cut(rest, "/")
		if !in || seen[first] {
			continue
		}
		seen[first] = true
		e := tree.Entry{Name: first, Size: int64(len(text))}
		if deeper {
			e.Type = fs.ModeDir
		} else if strings.HasPrefix(text, "->") {
			e.Type = fs.ModeSymlink
		}
		all = append(all, e)
	}
	if all == nil {
		return nil, &fs.PathError{Op: "list", Path: name, Err: fs.ErrNotExist}
	}
	return all, nil
}

func (m memory) Link(_ context.Context, name string) (string, error) {
	text, is := m[name]
	to, link := strings.CutPrefix(text, "->")
	if !is {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrNotExist}
	} else if !link {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return to, nil
}

// bounded loads a tree in a time that is bounded whatever is in it.
func bounded(t *testing.T, m memory) {
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
	defer stop()
	s, err := Load(ctx, m)
	if err != nil {
		if ctx.Err() != nil {
			t.Fatal("it takes too long")
		}
		return
	}
	reached := s.ReachedFirst("default.target")
	for name := range reached {
		if u := s.Unit(name); u == nil || u.State != Loaded && !without(name) {
			t.Errorf("%s is started, which is %+v", name, u)
		}
	}
	for _, u := range s.Units {
		for _, a := range s.Acts(u.Name) {
			if a.What == "" || len(a.Chain) == 0 || a.Unit != u.Name {
				t.Errorf("%s does %+v", u.Name, a)
			}
		}
		u.Soonest()
	}
	for i := range s.AtReboot {
		if len(s.AtReboot[i].Acts) > maxActs+len(actions()) {
			t.Errorf("%+v", s.AtReboot[i])
		}
	}
	if _, err := LoadFlat(ctx, m); err != nil && ctx.Err() != nil {
		t.Fatal("it takes too long")
	}
}

// FuzzUnit loads a system with a unit file, a drop-in and a preset of any content.
func FuzzUnit(f *testing.F) {
	f.Add("[Unit]\nWants=x@%i.service \\\n y.target\nConditionPathExists=|!/a\n[Service]\nExecStart=-@/bin/sh sh -c 'reboot' ; /x\n",
		"[Service]\nExecStart=\n[Install]\nWantedBy=default.target\nAlso=t@.service\n", "enable *\ndisable x* a b\n")
	f.Add("[Timer]\nOnBootSec=1h\nUnit=%p.service\n", "[Unit]\nRequires=x@a.service\n", "ignore [\n")
	f.Add("[Unit\n", "\xef\xbb\xbf[Unit]\n=\nx", "")
	f.Add("[Unit]\nWants=x@%i%i.service\n[Service]\nExecStart=/bin/systemctl start x@%i%i%i.service", "", "")
	f.Fuzz(func(t *testing.T, unit, dropIn, preset string) {
		m := memory{"/lib": "->usr/lib", "/usr/bin/sh": "\x7fELF", "/usr/bin/systemctl": "\x7fELF", "/bin": "->usr/bin"}
		for name, text := range map[string]string{"x.service": unit, "x@.service": unit, "x.timer": unit, "x.path": unit,
			"default.target.wants/x.service": "->../x.service", "default.target.wants/x@a.service": "->../x@.service",
			"default.target.wants/x.timer": "->../x.timer", "default.target": "[Unit]\n", "y.service": "->x.service",
			"x.service.d/a.conf": dropIn, "service.d/b.conf": dropIn} {
			m["/etc/systemd/system/"+name] = text
		}
		m["/etc/systemd/system-preset/1.preset"] = preset
		bounded(t, m)
	})
}

// FuzzScript goes through a script and a crontab of any content.
func FuzzScript(f *testing.F) {
	f.Add("#!/bin/sh\nif [ -e /a ] && ! test -f \"$X\"; then touch /a; reboot; elif x; then :; else exit 1; fi\n")
	f.Add("f() { case $1 in a|b) g;; *) f;; esac; }\nwhile :; do f; done <<EOF\nreboot\nEOF\n")
	f.Add("for i in 1 2 3; do echo b > /proc/sysrq-trigger; done; [[ -n $A || $B == c* ]] && eval \"reboot\"\n")
	f.Add("a=${b:-$(c `d`)} $((1+2)) { ( reboot ) & } | tee x; . /opt/x; exec /opt/x; systemd-run --on-active=5 /opt/x")
	f.Add("@reboot root shutdown -r +5\n@reboot")
	f.Fuzz(func(t *testing.T, text string) {
		m := memory{"/lib": "->usr/lib", "/opt/x": "#!/bin/sh\n" + text, "/usr/bin/sh": "\x7fELF", "/etc/crontab": text,
			"/usr/bin/reboot": "\x7fELF", "/usr/bin/systemctl": "\x7fELF",
			"/etc/systemd/system/default.target":                 "[Unit]\n",
			"/etc/systemd/system/default.target.wants/x.service": "->../x.service",
			"/etc/systemd/system/x.service":                      "[Service]\nExecStart=/opt/x\nExecStop=/usr/bin/sh /opt/x a\n"}
		bounded(t, m)
	})
}
