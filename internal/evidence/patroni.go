// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"errors"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// patroniFences tells whether a watchdog resets a node before its leader key is lost (patroni/watchdog/base.py of
// Patroni 3: "required" makes no leader without one, "automatic", which is usual, takes one where it can).
func (g *gatherer) patroniFences(ctx context.Context, text []byte) string {
	switch strings.ToLower(within(text, "watchdog", "mode", "automatic")) {
	case "required", "require":
		return "yes"
	case "off", "false", "no", "disable", "disabled":
		return "no"
	case "automatic", "auto":
		const devices = "/sys/class/watchdog"
		all, err := g.t.List(ctx, devices)
		g.unread(PartConfig, devices, err)
		known := len(g.optionalList(ctx, PartConfig, "/sys/class")) > 0
		if known && len(all) == 0 && (err == nil || tree.Missing(err) || errors.Is(err, tree.ErrNotCollected)) {
			return "no" // there is none to take
		}
	}
	return ""
}

// within gives a setting of a block of YAML, usual if the block does not have it, and "" if it is written in a way that is
// not read here.
func within(text []byte, block, name, usual string) string {
	depth := -1 // of the block, where it has begun
	lines := strings.Split(string(text), "\n")
	for _, l := range lines[:min(len(lines), maxConfigLines)] {
		body := strings.TrimLeft(l, " ")
		indent := len(l) - len(body)
		if strings.TrimSpace(body) == "" || body[0] == '#' {
			continue
		}
		if depth >= 0 && indent <= depth {
			depth = -1
		}
		rest, is := strings.CutPrefix(body, block+":")
		switch rest, _, _ = strings.Cut(rest, "#"); {
		case is && strings.TrimSpace(rest) == "":
			depth = indent
		case is:
			return ""
		}
		if v, found := settingIn([]byte(l), name); found && depth >= 0 && indent > depth {
			return v.text
		}
	}
	return usual
}

// blockName tells whether a line is the name of a block of YAML that is in no other one.
func blockName(l string) bool {
	name, is := strings.CutSuffix(strings.TrimRight(l, " \r"), ":")
	return is && name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_0123456789") == ""
}
