// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// udevDirs are where rules lie, the strongest first: of two files with one name the first counts
// (udev(7), "RULES FILES").
var udevDirs = []string{"/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d",
	"/usr/lib/udev/rules.d", "/lib/udev/rules.d"}

const (
	maxUdevFiles = 4096
	maxUdevLines = 1 << 16 // of one file
)

// udev finds the rules that set a timeout of disks, in the order in which udev reads them.
func (g *gatherer) udev(ctx context.Context) {
	type file struct{ dir, name string }
	first := map[string]string{}
	var files []file
	for _, dir := range udevDirs {
		if target, err := g.t.Link(ctx, path.Dir(path.Dir(dir))); err == nil && target != "" {
			continue // /lib is /usr/lib where the two are one
		}
		names := g.optionalList(ctx, PartConfig, dir)
		for _, n := range names {
			if strings.HasSuffix(n.Name, ".rules") && len(files) < maxUdevFiles {
				files = append(files, file{dir, n.Name})
			}
			if first[n.Name] == "" {
				first[n.Name] = dir
			}
		}
	}
	slices.SortStableFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	for _, f := range files {
		name := f.dir + "/" + f.name
		text := g.optional(ctx, PartConfig, name)
		if text == nil {
			continue
		}
		rules := ParseUdev(name, text)
		for i := range rules {
			if by := first[f.name]; by != f.dir {
				rules[i].Overridden = by + "/" + f.name
			}
		}
		g.e.Config.Udev = append(g.e.Config.Udev, rules...)
	}
}

// udevItem is one condition or assignment: KEY{attribute}OPERATOR"value".
var udevItem = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`([A-Z_]+(?:\{[^}]*\})?)\s*(==|!=|\+=|-=|:=|=)\s*e?"((?:[^"\\]|\\.)*)"`)
})

// ParseUdev reads the rules of a file that set the timeout of a block device, with what is wrong about
// them (udev(7)).
func ParseUdev(name string, text []byte) []UdevRule {
	var rules []UdevRule
	for _, l := range joined(text, maxUdevLines) {
		items := udevItem().FindAllStringSubmatch(l.text, -1)
		r := UdevRule{From: Source{Path: name, Line: l.number}}
		for _, it := range items {
			if it[2] == "==" || it[2] == "!=" {
				r.Match = append(r.Match, it[1]+it[2]+it[3])
			} else {
				r.Sets = append(r.Sets, it[1]+it[2]+it[3])
			}
		}
		if r.timeout() {
			r.Broken = r.broken()
			rules = append(rules, r)
		}
	}
	return rules
}

// line is a line of a file with its number; those that end in a backslash are joined.
type line struct {
	number int
	text   string
}

func joined(text []byte, limit int) []line {
	var lines []line
	open := false
	for i, l := range strings.Split(string(text), "\n") {
		if i == limit {
			break
		}
		trimmed := strings.TrimSpace(l)
		if !open && (trimmed == "" || trimmed[0] == '#') {
			continue
		}
		part, more := strings.CutSuffix(trimmed, `\`)
		if open {
			lines[len(lines)-1].text += " " + part
		} else {
			lines = append(lines, line{i + 1, part})
		}
		open = more
	}
	return lines
}

var (
	// attrTimeout is today's form: ATTR{timeout}="180", on the SCSI device or through the disk.
	attrTimeout = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^ATTR\{(?:device/)?timeout\}:?=(\d+)$`) })
	// runTimeout is the old one: RUN+="/bin/sh -c 'echo 180 >/sys$DEVPATH/device/timeout'".
	runTimeout = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(?:RUN|PROGRAM)[^=+:]*[+:]?=.*echo\s+(\d+)\s*>\s*(\S*?timeout)`)
	})
	// matchTimeout asks for a timeout where it was to be set.
	matchTimeout = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^ATTRS\{(?:device/)?timeout\}={1,2}(\d+)$`) })
)

// timeout tells whether a rule sets a timeout of disks, or was meant to, and takes its seconds.
func (r *UdevRule) timeout() bool {
	for _, s := range r.Sets {
		for _, form := range []*regexp.Regexp{attrTimeout(), runTimeout(), matchTimeout()} {
			if m := form.FindStringSubmatch(s); m != nil {
				n, err := strconv.Atoi(m[1])
				if err != nil {
					return false
				}
				r.Seconds = n
				return true
			}
		}
	}
	return false
}

// broken says why a rule does nothing.
func (r *UdevRule) broken() string {
	has := func(list []string, part string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, part) })
	}
	for _, s := range r.Sets {
		if matchTimeout().MatchString(s) {
			// open-vm-tools as of September 2017 had ATTRS{timeout}="180".
			return "ATTRS{} is a condition and can set nothing; ATTR{} sets an attribute"
		}
		m := runTimeout().FindStringSubmatch(s)
		if m == nil {
			continue
		}
		// The event of the disk has its directory in DEVPATH, where the timeout is below device/; that of
		// its SCSI device has it right there.
		disk := has(r.Match, "SUBSYSTEM==block") || has(r.Match, "SUBSYSTEMS==scsi") && has(r.Match, "DEVTYPE}==disk") ||
			has(r.Match, "KERNEL==sd")
		scsi := has(r.Match, "DEVTYPE}==scsi_device") || has(r.Match, "SUBSYSTEM==scsi")
		path := m[2]
		switch {
		case !strings.HasPrefix(path, "/sys"):
			return path + " is not in /sys"
		case disk && !scsi && !strings.HasSuffix(path, "/device/timeout"):
			return path + " is not where the timeout of a disk is: that is below device/"
		case scsi && strings.HasSuffix(path, "/device/timeout"):
			return path + " is not where the timeout of a SCSI device is"
		}
	}
	return ""
}
