// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Bounds: a large server has some 600 files of units.
const (
	maxUnits  = 20000 // files and links in all directories
	maxNames  = 10000 // units with those that are only named
	maxLinks  = 40    // symbolic links that one name leads through
	maxAlias  = 8     // names that lead to names (FOLLOW_MAX in src/shared/unit-file.c)
	maxGaps   = 200
	maxBytes  = 64 << 20 // of all files together
	maxDropIn = 1000     // of one unit
)

// searchPath are the directories of units of the system, the first wins (systemd.unit(5), "Unit File Load
// Path"; lookup_paths_init() in src/basic/path-lookup.c). With /usr merged /lib is /usr/lib.
func searchPath(merged bool) []string {
	all := []string{
		"/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient",
		"/run/systemd/generator.early", "/etc/systemd/system", "/etc/systemd/system.attached",
		"/run/systemd/system", "/run/systemd/system.attached", "/run/systemd/generator",
		"/usr/local/lib/systemd/system",
	}
	if !merged {
		all = append(all, "/lib/systemd/system")
	}
	return append(all, "/usr/lib/systemd/system", "/run/systemd/generator.late")
}

// entry is a name in a directory of units.
type entry struct {
	name string
	dir  string
	link string // where it leads to if it is a symbolic link, as it is written
	kind fs.FileMode
}

func (e *entry) path() string { return path.Join(e.dir, e.name) }

// file is what is in a file of settings.
type file struct {
	settings []Setting
	masked   bool // empty, or a device
	bad      string
	unread   string
	missing  bool
}

// loader reads.
type loader struct {
	t tree.Tree
	*Set
	parents map[string]string // directory -> where it really is
	reals   []string          // the directories of units, as they really are
	// near are files that lie with the units of a plain directory, by the last part of their names.
	near map[string]string
	// usual are units that every system has, for a plain directory.
	usual map[string]string
	bytes int
	// scripts are the bytes of scripts that are kept.
	scripts int
	// allSteps is what was gone through of commands.
	allSteps int
	entries  int
}

// Load reads all units of a system, with what judging them needs of other files: scripts, whether
// programs and paths of conditions exist, presets, crontabs. What could not be read is in Gaps; the error
// is that of ctx, or that there is no directory of units at all (fs.ErrNotExist, or
// [tree.ErrNotCollected] where nobody can tell).
func Load(ctx context.Context, t tree.Tree) (*Set, error) {
	l := newLoader(t)
	l.merged(ctx)
	l.dirs = searchPath(l.MergedUsr)
	if err := l.system(ctx); err != nil {
		return nil, err
	}
	return l.Set, ctx.Err()
}

func newLoader(t tree.Tree) *loader {
	return &loader{t: t, parents: map[string]string{"/": "/"}, Set: &Set{byName: map[string]*Unit{},
		files: map[string]*file{}, names: map[string]string{}, aliases: map[string][]string{},
		sub: map[string][]entry{}, programs: map[string]program{}, paths: map[string]Truth{},
		doings: map[string]*doing{}, wanted: map[string][]Start{}, acts: map[string][]Act{}, edges: map[string][]Start{},
		lacking: map[string]string{}, linked: map[string][]Start{}}}
}

// system reads all but what a plain directory does not have.
func (l *loader) system(ctx context.Context) error {
	l.identity(ctx)
	l.version(ctx)
	if err := l.directories(ctx); err != nil {
		return err
	}
	if l.Bare = l.names["basic.target"] == "" && l.names["sysinit.target"] == ""; l.Bare {
		l.usual = usualUnits()
	}
	l.presets(ctx)
	l.build(ctx)
	l.allActs(ctx)
	l.join()
	l.crontabs(ctx)
	return nil
}

// gap notes what could not be read.
func (l *loader) gap(name string, err error) {
	if len(l.Gaps) < maxGaps && !slices.ContainsFunc(l.Gaps, func(g Gap) bool { return g.Path == name }) {
		l.Gaps = append(l.Gaps, Gap{name, reason(err)})
	}
}

// reason takes the name off an error.
func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "may not be read without more rights"
	case errors.Is(err, diskio.ErrTimeout):
		return "did not answer in time"
	}
	if named := new(fs.PathError); errors.As(err, &named) {
		return named.Err.Error()
	}
	return err.Error()
}

// absent tells of an error that says no more than that something is not there. That a copy has no /run
// is no gap: what is there is made anew at each start.
func (l *loader) absent(name string, err error) bool {
	return tree.Missing(err) || errors.Is(err, tree.ErrNotCollected) && l.t.Kind() != tree.Bundle &&
		strings.HasPrefix(name, "/run/")
}

// merged finds out whether /lib, /bin and /sbin are links to the directories in /usr.
func (l *loader) merged(ctx context.Context) {
	l.MergedUsr = l.real(ctx, "/lib") == "/usr/lib"
}

// real gives where a directory really is: its symbolic links are followed inside the tree. Of what is not
// there the name is kept.
func (l *loader) real(ctx context.Context, dir string) string {
	return l.chase(ctx, dir, maxLinks)
}

func (l *loader) chase(ctx context.Context, name string, left int) string {
	name = path.Clean(name)
	if at, known := l.parents[name]; known {
		return at
	}
	if left == 0 || ctx.Err() != nil || len(l.parents) > maxNames {
		return name
	}
	at := path.Join(l.chase(ctx, path.Dir(name), left-1), path.Base(name))
	if to, err := l.t.Link(ctx, at); err == nil && to != "" {
		if !path.IsAbs(to) {
			to = path.Dir(at) + "/" + to
		}
		at = l.along(ctx, to, left-1)
	}
	l.parents[name] = at
	return at
}

// along resolves a name part by part, so that ".." leaves where a link leads to and not the link.
func (l *loader) along(ctx context.Context, name string, left int) string {
	at := "/"
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			at = path.Dir(at)
		default:
			at = l.chase(ctx, path.Join(at, part), left)
		}
	}
	return at
}

// target gives where a symbolic link leads to: all links but the last are followed.
func (l *loader) target(ctx context.Context, e *entry) string {
	to := e.link
	if !path.IsAbs(to) {
		to = e.dir + "/" + to
	}
	to = strings.TrimRight(to, "/")
	i := strings.LastIndexByte(to, '/')
	return path.Join(l.along(ctx, to[:max(i, 0)], maxLinks), to[i+1:])
}

// identity reads /etc/machine-id.
func (l *loader) identity(ctx context.Context) {
	const name = "/etc/machine-id"
	b, err := l.t.Read(ctx, name, 4096)
	switch {
	case err == nil || errors.Is(err, tree.ErrTooLarge):
		word, _, _ := strings.Cut(string(b), "\n")
		l.MachineID, l.HasID = strings.TrimSpace(word), true
		l.FirstBoot = l.MachineID == "uninitialized"
	case tree.Missing(err):
		l.FirstBoot = true
	default:
		l.gap(name, err)
	}
}

// version finds out which systemd there is, by the name of its own library.
func (l *loader) version(ctx context.Context) {
	dirs := []string{"/usr/lib/systemd", "/usr/lib64/systemd"}
	for _, triple := range []string{"x86_64-linux-gnu", "aarch64-linux-gnu"} {
		dirs = append(dirs, "/usr/lib/"+triple+"/systemd")
	}
	if !l.MergedUsr {
		dirs = append(dirs, "/lib/systemd")
	}
	for _, dir := range dirs {
		all, err := l.t.List(ctx, dir)
		if err != nil {
			if !l.absent(dir, err) {
				l.gap(dir, err)
			}
			continue
		}
		for _, f := range all {
			rest, is := strings.CutPrefix(f.Name, "libsystemd-shared-")
			if n, err := strconv.Atoi(rest[:min(3, len(rest))]); is && err == nil && n >= 100 {
				l.Version = n
				return
			}
		}
	}
}

// directories lists the directories of units.
func (l *loader) directories(ctx context.Context) error {
	var none error
	there := false
	for _, dir := range l.dirs {
		l.reals = append(l.reals, dir)
		if at := l.real(ctx, dir); at != dir {
			l.reals = append(l.reals, at)
		}
	}
	for _, dir := range l.dirs {
		all, err := l.list(ctx, dir)
		if err != nil {
			none = cmp.Or(none, err)
			continue
		}
		there = true
		for _, e := range all {
			l.name(ctx, &e)
			if (e.kind.IsDir() || e.kind&fs.ModeSymlink != 0) && subdirectory(e.name) {
				inside, err := l.list(ctx, path.Join(dir, e.name))
				if err == nil {
					l.sub[path.Join(dir, e.name)] = inside
				}
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("there is no directory of units: %w", none)
	}
	return nil
}

// subdirectory tells whether a directory adds to a unit.
func subdirectory(name string) bool {
	switch path.Ext(name) {
	case ".d", ".wants", ".requires", ".upholds":
		return true
	}
	return false
}

// name keeps a file of a unit, if no directory before has one of its name (unit_file_build_name_map()).
func (l *loader) name(ctx context.Context, e *entry) {
	if !valid(e.name) || e.kind.IsDir() {
		return
	}
	if _, seen := l.names[e.name]; seen {
		return
	}
	if e.kind&fs.ModeSymlink == 0 {
		l.names[e.name] = e.path()
		return
	}
	// A link into a directory of units is another name; one to somewhere else is a file that lies
	// elsewhere, or a mask (unit_file_resolve_symlink()).
	to := l.target(ctx, e)
	switch {
	case to == "/dev/null":
		l.names[e.name] = e.path()
		l.files[e.path()] = &file{masked: true}
	case !l.within(to):
		l.names[e.name] = e.path()
	case path.Base(to) != e.name && sound(e.name, path.Base(to)): // a link to a file of its own name changes nothing
		l.names[e.name] = path.Base(to)
	}
}

// within tells whether a name lies in a directory of units.
func (l *loader) within(name string) bool {
	return slices.ContainsFunc(l.reals, func(dir string) bool { return strings.HasPrefix(name, dir+"/") })
}

// sound tells whether one name may be an alias of another (unit_validate_alias_symlink()).
func sound(alias, name string) bool {
	if !valid(name) || typeOf(alias) != typeOf(name) {
		return false
	}
	switch {
	case isInstance(alias) && isTemplate(name), isTemplate(alias) && isTemplate(name):
		return true
	case isInstance(alias) && isInstance(name):
		_, a, _, _ := parts(alias)
		_, b, _, _ := parts(name)
		return a == b
	}
	return !strings.Contains(alias, "@") && !strings.Contains(name, "@")
}

// list gives what is in a directory.
func (l *loader) list(ctx context.Context, dir string) ([]entry, error) {
	found, err := l.t.List(ctx, dir)
	if err != nil && !errors.Is(err, tree.ErrTooLarge) {
		if !l.absent(dir, err) {
			l.gap(dir, err)
		}
		return nil, err
	}
	var all []entry
	for _, f := range found {
		if l.entries++; l.entries > maxUnits {
			l.gap(dir, fmt.Errorf("there are more than %d files of units, the rest is not read", maxUnits))
			break
		}
		e := entry{name: f.Name, dir: dir, kind: f.Type}
		if f.Type&fs.ModeSymlink != 0 {
			if e.link, err = l.t.Link(ctx, e.path()); err != nil {
				l.gap(e.path(), err)
				continue
			}
		}
		all = append(all, e)
	}
	return all, nil
}

// read gives what is in a file of settings.
func (l *loader) read(ctx context.Context, name string) *file {
	if f := l.files[name]; f != nil {
		return f
	}
	f := &file{}
	l.files[name] = f
	if l.bytes > maxBytes {
		f.unread = fmt.Sprintf("the files of units have more than %d bytes, the rest is not read", maxBytes)
		l.gap(name, errors.New(f.unread))
		return f
	}
	b, err := l.t.Read(ctx, name, maxFileBytes)
	switch {
	case err == nil:
		l.bytes += len(b)
		f.masked = len(b) == 0
		var cut bool
		f.settings, f.bad, cut = parse(name, string(b))
		if cut {
			f.unread = fmt.Sprintf("it has more than %d settings", maxSettings)
			l.gap(name, errors.New(f.unread))
		}
	case l.absent(name, err):
		f.missing = true
	default:
		f.unread = reason(err)
		l.gap(name, err)
	}
	return f
}
