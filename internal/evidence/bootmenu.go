// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"errors"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// BootMenu is how a machine's kernel is chosen, and how somebody gets at its command line.
type BootMenu struct {
	// Loader is "grub", "systemd-boot" or "extlinux"; "" where nothing of any was found.
	Loader string
	From   Source
	// Timeout is how long the menu waits, in seconds: 0 not at all, -1 for ever. Set tells whether that is known.
	Timeout int
	Set     bool
	// Hidden: it is only shown for a key that is pressed in time.
	Hidden bool
	// Serial is the line that puts the menu on a serial line, "" if none does; Consoles are those of the
	// kernel's command line.
	Serial   string
	Consoles []string
	// Locked: changing the command line takes a password.
	Locked bool
	// NoEditor: it cannot be changed at all.
	NoEditor bool
	// Command is the kernel's command line in the first entry.
	Command string
	// Apart: /boot lies on a file system of its own that nothing was seen of.
	Apart bool
	// Unread says what could not be read of all that, "" if nothing was in the way.
	Unread string
}

// Bounds of what is read of a loader's configuration.
const (
	maxMenuLines = 20000
	maxMenuDepth = 64
	maxMenuDirs  = 64
)

// menu looks for the configuration of a boot loader: where Debian, Red Hat, SUSE and Arch keep it.
func (g *gatherer) menu(ctx context.Context) {
	m := &g.e.Menu
	grub := []string{"/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"}
	for _, dir := range []string{"/boot/efi/EFI", "/efi/EFI", "/boot/EFI"} {
		for _, e := range g.menuList(ctx, dir) {
			grub = append(grub, path.Join(dir, e.Name, "grub.cfg"))
		}
	}
	g.menuFile(ctx, "grub", m.grub, grub...)
	g.menuFile(ctx, "systemd-boot", m.loader, "/boot/loader/loader.conf", "/efi/loader/loader.conf",
		"/boot/efi/loader/loader.conf")
	g.menuFile(ctx, "extlinux", m.extlinux, "/boot/extlinux/extlinux.conf", "/boot/syslinux/syslinux.cfg", "/extlinux.conf")
	own := slices.ContainsFunc(g.e.Config.Fstab, func(f FstabEntry) bool { return f.Point == "/boot" })
	m.Apart = m.Loader == "" && own && len(g.menuList(ctx, "/boot")) == 0
}

// menuFile reads the first of some files that is there and tells how long the menu waits, for a loader, unless
// another one was found.
func (g *gatherer) menuFile(ctx context.Context, loader string, read func(string), names ...string) {
	m := &g.e.Menu
	for _, at := range names {
		if m.Loader != "" && (m.Loader != loader || m.Set) {
			return
		}
		text, err := g.t.Read(ctx, at, maxSmallBytes)
		g.menuMissed(at, err)
		if len(text) > 0 {
			m.Loader, m.From = loader, Source{Path: at}
			read(string(text))
		}
	}
}

func (g *gatherer) menuList(ctx context.Context, dir string) []tree.Entry {
	all, err := g.t.List(ctx, dir)
	g.menuMissed(dir, err)
	return all[:min(len(all), maxMenuDirs)]
}

// menuMissed tells of what could not be read. It is no gap of the evidence: no rule needs it.
func (g *gatherer) menuMissed(name string, err error) {
	if err != nil && !tree.Missing(err) && !errors.Is(err, tree.ErrTooLarge) && g.e.Menu.Unread == "" {
		g.e.Menu.Unread = name + ": " + Reason(err)
	}
}

// grub reads what GRUB's configuration sets (GRUB manual 2.06, "Writing full configuration files"). Which branch of a
// condition is taken is not known; that of a start that failed before ("recordfail") is left out, and where GRUB asks
// itself what it is able to, the newer one counts.
func (m *BootMenu) grub(text string) {
	var conditions []string
	newer := false
	for n, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || n >= maxMenuLines {
			continue
		}
		switch words[0] {
		case "if":
			if len(conditions) < maxMenuDepth {
				conditions = append(conditions, line)
			}
		case "else", "elif":
			if k := len(conditions); k > 0 {
				conditions[k-1] = ""
			}
		case "fi":
			if k := len(conditions); k > 0 {
				conditions = conditions[:k-1]
			}
		case "set":
			within := strings.Join(conditions, "\n")
			if strings.Contains(within, "recordfail") {
				continue
			}
			able := strings.Contains(within, "feature_timeout_style")
			m.grubSet(strings.Join(words[1:], " "), able, newer)
			newer = newer || able
		case "serial", "terminal_input":
			if words[0] == "serial" || slices.Contains(words, "serial") {
				m.Serial = strings.TrimSpace(line)
			}
		case "linux", "linux16", "linuxefi":
			if m.Command == "" && len(words) > 2 {
				m.command(words[2:])
			}
		}
	}
}

// grubSet takes one assignment. One that is only for GRUBs that are able to do more is better than others.
func (m *BootMenu) grubSet(text string, able, newer bool) {
	name, value, _ := strings.Cut(text, "=")
	value = strings.Trim(value, `"'`)
	switch name {
	case "timeout":
		if n, err := strconv.Atoi(value); err == nil && (able || !newer) {
			m.Timeout, m.Set = n, true
		}
	case "timeout_style":
		m.Hidden = value == "hidden" || value == "countdown"
	case "superusers":
		m.Locked = value != ""
	}
}

// command takes the kernel's command line.
func (m *BootMenu) command(words []string) {
	m.Command = strings.Join(words, " ")
	for _, w := range words {
		if c, ok := strings.CutPrefix(w, "console="); ok {
			m.Consoles = append(m.Consoles, c)
		}
	}
}

// loader reads the settings of systemd-boot: loader.conf(5).
func (m *BootMenu) loader(text string) {
	m.Set = true // without one there is no menu unless a key is pressed
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "timeout":
			if n, err := strconv.Atoi(words[1]); err == nil {
				m.Timeout = n
			} else if words[1] == "menu-force" {
				m.Timeout = -1
			}
		case "editor":
			m.NoEditor = slices.Contains([]string{"no", "0", "false", "off"}, words[1])
		}
	}
	m.Hidden = m.Timeout == 0
}

// extlinux reads the settings of EXTLINUX: the SYSLINUX wiki, "Config"; TIMEOUT is in tenths of a second.
func (m *BootMenu) extlinux(text string) {
	m.Hidden = true
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch strings.ToUpper(words[0]) {
		case "TIMEOUT":
			if n, err := strconv.Atoi(words[1]); err == nil {
				m.Timeout, m.Set = n/10, true
			}
		case "PROMPT":
			m.Hidden = words[1] == "0"
		case "SERIAL":
			m.Serial = strings.TrimSpace(line)
		case "NOESCAPE":
			m.NoEditor = words[1] == "1"
		case "APPEND":
			if m.Command == "" {
				m.command(words[1:])
			}
		}
	}
}
