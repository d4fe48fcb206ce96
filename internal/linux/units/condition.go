// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Condition is one condition or assertion of a unit (systemd.unit(5), "Conditions and Asserts").
type Condition struct {
	Setting Setting
	// Kind is what is asked, as "PathExists", Of the path or text that it is asked of.
	Kind, Of string
	// Not: the answer is turned round. Or: of all conditions of this kind of mark one has to be met.
	Not, Or bool
	// Assert: if it is not met the unit fails, instead of being left out.
	Assert bool
}

// asksPath tells whether a condition is asked of a path, which has to be absolute.
func asksPath(kind string) bool {
	return slices.Contains([]string{"PathExists", "PathExistsGlob", "PathIsDirectory", "PathIsSymbolicLink",
		"PathIsMountPoint", "PathIsReadWrite", "PathIsEncrypted", "DirectoryNotEmpty", "FileNotEmpty",
		"FileIsExecutable", "NeedsUpdate"}, kind)
}

// Conditions gives the conditions and assertions of a unit that count (config_parse_unit_condition_path()).
func (u *Unit) Conditions() []Condition {
	var all []Condition
	for _, s := range u.Settings {
		kind, is := strings.CutPrefix(s.Key, "Condition")
		assert := false
		if !is {
			kind, assert = strings.CutPrefix(s.Key, "Assert")
		}
		if s.Section != "Unit" || !is && !assert {
			continue
		}
		if s.Value == "" { // takes all before it back, whatever they ask
			all = slices.DeleteFunc(all, func(c Condition) bool { return c.Assert == assert })
			continue
		}
		c := Condition{Setting: s, Kind: kind, Assert: assert}
		text := s.Value
		if text[0] == '|' {
			c.Or, text = true, strings.TrimLeft(text[1:], blanks)
		}
		if text != "" && text[0] == '!' {
			c.Not, text = true, strings.TrimLeft(text[1:], blanks)
		}
		if c.Of = text; asksPath(kind) {
			if !path.IsAbs(text) {
				continue // systemd ignores it
			}
			c.Of = path.Clean(text)
		}
		all = append(all, c)
	}
	return all
}

// decided joins the answers of a list (condition_test_list()).
func decided(assert bool, all []Condition, ask func(*Condition) Truth) (Truth, []Condition) {
	var maybe, or []Condition
	any := No
	for i := range all {
		c := &all[i]
		if c.Assert != assert {
			continue
		}
		t := ask(c)
		switch {
		case c.Or:
			or = append(or, *c)
			if t == Yes || t == Maybe && any == No {
				any = t
			}
		case t == No:
			return No, []Condition{*c}
		case t == Maybe:
			maybe = append(maybe, *c)
		}
	}
	switch {
	case len(or) > 0 && any == No:
		return No, or
	case len(or) > 0 && any == Maybe:
		return Maybe, append(maybe, or...)
	case len(maybe) > 0:
		return Maybe, maybe
	}
	return Yes, nil
}

// truth answers one condition, turned round if it says so.
func (l *loader) truth(ctx context.Context, c *Condition) Truth {
	t := l.asked(ctx, c)
	if c.Not && t != Maybe {
		t = map[Truth]Truth{Yes: No, No: Yes}[t]
	}
	return t
}

// asked answers what is asked, as of the files.
func (l *loader) asked(ctx context.Context, c *Condition) Truth {
	if l.Flat || strings.Contains(c.Of, "%") {
		return Maybe
	}
	switch c.Kind {
	case "PathExists", "FileIsExecutable":
		return l.exists(ctx, c.Of)
	case "PathExistsGlob":
		return l.glob(ctx, c.Of)
	case "PathIsDirectory", "DirectoryNotEmpty":
		return l.directory(ctx, c.Of, c.Kind == "DirectoryNotEmpty")
	case "PathIsSymbolicLink":
		_, err := l.t.Link(ctx, c.Of)
		return answer(err, errors.Is(err, fs.ErrInvalid))
	case "FileNotEmpty":
		b, err := l.t.Read(ctx, c.Of, 1)
		if len(b) == 0 && err == nil || errors.Is(err, diskio.ErrSpecial) {
			return No
		}
		return answer(err, false)
	case "PathIsMountPoint", "PathIsReadWrite", "PathIsEncrypted":
		if l.exists(ctx, c.Of) == No {
			return No
		}
	case "FirstBoot":
		if isTrue(c.Of) || isFalse(c.Of) {
			return truth(isTrue(c.Of) == l.FirstBoot)
		}
	case "User", "Group":
		if c.Of == "root" || c.Of == "0" || c.Of == "@system" && c.Kind == "User" {
			return Yes
		}
	case "Virtualization":
		if slices.Contains(containers(), c.Of) && l.noContainer(ctx) {
			return No
		}
	case "KernelCommandLine":
		return l.argument(ctx, c.Of)
	case "Architecture":
		return l.architecture(ctx, c.Of)
	case "Host":
		return l.host(ctx, c.Of)
	}
	return Maybe
}

// containers are the words of ConditionVirtualization= that are met in containers only (systemd-detect-virt(1)).
func containers() []string {
	return []string{"container", "systemd-nspawn", "lxc", "lxc-libvirt", "openvz", "docker", "podman", "rkt", "wsl", "proot",
		"pouch", "private-users"}
}

// noContainer tells whether the system is known to run in no container: it has a disk of its own, or runs and systemd has not
// noted that it does (/run/systemd/container, systemd(1)).
func (l *loader) noContainer(ctx context.Context) bool {
	switch l.t.Kind() {
	case tree.Disk:
		return true
	case tree.Live:
		return l.exists(ctx, "/run/systemd/system") == Yes && l.exists(ctx, "/run/systemd/container") == No
	}
	return false
}

// argument tells whether an argument is on the kernel's command line of a running machine; that of another start is not
// known (condition_test_kernel_command_line()).
func (l *loader) argument(ctx context.Context, of string) Truth {
	if l.t.Kind() != tree.Live || !l.noContainer(ctx) {
		return Maybe
	}
	b, err := l.t.Read(ctx, "/proc/cmdline", maxFileBytes)
	if err != nil {
		return Maybe
	}
	for _, w := range words(string(b)) {
		if name, _, _ := strings.Cut(w, "="); w == of || name == of {
			return Yes
		}
	}
	return No
}

// architecture compares that of systemd's own program, as its ELF header says it. A 32-bit program may run on a
// kernel of 64 bits, whose architecture counts.
func (l *loader) architecture(ctx context.Context, of string) Truth {
	if of == "native" {
		return Yes
	}
	b, err := l.t.Read(ctx, "/usr/lib/systemd/systemd", 20)
	if len(b) < 20 || string(b[:4]) != "\x7fELF" || err != nil && !errors.Is(err, tree.ErrTooLarge) {
		return Maybe
	}
	const elf64, little = 2, 1
	if b[4] != elf64 {
		return Maybe
	}
	machine := int(b[18]) | int(b[19])<<8
	if b[5] != little {
		machine = int(b[19]) | int(b[18])<<8
	}
	name := map[int]string{62: "x86-64", 183: "arm64", 22: "s390x", 243: "riscv64", 258: "loongarch64", 21: "ppc64"}[machine]
	if name == "ppc64" && b[5] == little {
		name = "ppc64-le"
	}
	if name == "" {
		return Maybe
	}
	return truth(of == name)
}

// host compares the id of the machine, or its name, which may be a pattern (condition_test_host()). A machine without
// /etc/hostname is given a name by others.
func (l *loader) host(ctx context.Context, of string) Truth {
	if id := strings.ReplaceAll(strings.ToLower(of), "-", ""); len(id) == 32 && strings.Trim(id, "0123456789abcdef") == "" {
		if len(l.MachineID) != 32 {
			return Maybe
		}
		return truth(id == l.MachineID)
	}
	b, err := l.t.Read(ctx, "/etc/hostname", maxFileBytes)
	name := ""
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			name = line
			break
		}
	}
	ok, bad := path.Match(strings.ToLower(of), strings.ToLower(name))
	if err != nil || name == "" || name == "localhost" || bad != nil {
		return Maybe
	}
	return truth(ok)
}

func truth(b bool) Truth {
	if b {
		return Yes
	}
	return No
}

// answer makes one of an error of looking at something: there is none, it is not there, or that is not known.
// no tells of an error that says no as well.
func answer(err error, no bool) Truth {
	switch {
	case err == nil || errors.Is(err, tree.ErrTooLarge):
		return Yes
	case no || tree.Missing(err):
		return No
	}
	return Maybe
}

// exists tells whether there is something of a name; symbolic links are followed.
func (l *loader) exists(ctx context.Context, name string) Truth {
	if t, known := l.paths[name]; known {
		return t
	}
	_, err := l.t.Read(ctx, name, 1)
	t := answer(err, false)
	if errors.Is(err, diskio.ErrSpecial) || errors.Is(err, syscall.EISDIR) {
		t = Yes // a directory or a device
	}
	if t == Maybe {
		if _, err := l.t.List(ctx, name); err == nil {
			t = Yes
		}
	}
	if len(l.paths) < maxNames {
		l.paths[name] = t
	}
	return t
}

// directory tells whether there is a directory of a name, and something in it if that is asked.
func (l *loader) directory(ctx context.Context, name string, filled bool) Truth {
	all, err := l.t.List(ctx, name)
	if err == nil && filled {
		return truth(len(all) > 0)
	}
	return answer(err, errors.Is(err, syscall.ENOTDIR))
}

// glob tells whether anything has a name like a pattern, of which only the last part may be one.
func (l *loader) glob(ctx context.Context, pattern string) Truth {
	if !strings.ContainsAny(pattern, `*?[\`) {
		if _, err := l.t.Link(ctx, pattern); err == nil {
			return Yes // wherever it leads to
		}
		return l.exists(ctx, pattern)
	}
	if strings.ContainsAny(path.Dir(pattern), `*?[\`) {
		return Maybe
	}
	all, err := l.t.List(ctx, path.Dir(pattern))
	if err != nil {
		return answer(err, errors.Is(err, syscall.ENOTDIR))
	}
	for _, e := range all {
		if ok, err := path.Match(path.Base(pattern), e.Name); err != nil {
			return Maybe
		} else if ok && (e.Name[0] != '.' || path.Base(pattern)[0] == '.') {
			return Yes
		}
	}
	return No
}
