// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"context"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// maxSteps bounds what is gone through for one unit, maxAllSteps for all together.
const (
	maxSteps    = 20000
	maxAllSteps = 1000000
)

// step counts, and tells whether there is too much.
func (r *runner) step() bool {
	r.steps++
	r.allSteps++
	if r.steps > maxSteps || r.allSteps > maxAllSteps {
		r.cut = true
	}
	return r.cut
}

// costs counts a text that is read: 64 bytes are a step. It tells whether that is too much.
func (r *runner) costs(text string) bool {
	r.steps += len(text) / 64
	r.allSteps += len(text) / 64
	return r.step()
}

// maxActs bounds what one unit is said to do.
const maxActs = 50

// runner goes through the commands of a unit without running any. It notes what they would do to the machine, and which
// files they would make or remove.
type runner struct {
	*loader
	u *Unit
	// made are files that are there or not after what was gone through, as far as it is known.
	made map[string]Truth
	// fresh are files that only last until a restart, and that the unit makes itself: they are not there when
	// it is started.
	fresh map[string]bool
	// tested are the files that decided something.
	tested map[string]bool
	// disarmed are the units that will not be started by themselves any more.
	disarmed map[string]Source
	did      []did
	starting []started
	doubts   []string
	steps    int
	cut      bool
}

// did is an act, with the files that were made or removed before it.
type did struct {
	Act
	made map[string]Truth
}

// place is where a command stands.
type place struct {
	way     Truth
	why     string
	chain   []Step
	depth   int
	delay   time.Duration
	at      string
	missing string
	lax     bool  // a name that is not found may be found all the same
	strict  Truth // a shell that is started here is told to end at the first command that fails
}

func (r *runner) doubt(text string) {
	if !slices.Contains(r.doubts, text) && len(r.doubts) < 20 {
		r.doubts = append(r.doubts, text)
	}
}

// act notes what is done.
func (r *runner) act(p place, what string) {
	if p.way == No || len(r.did) >= maxActs {
		return
	}
	a := Act{What: what, Unit: r.u.Name, Chain: p.chain, Delay: p.delay, At: p.at, Missing: p.missing}
	if p.way == Maybe {
		a.Doubt = p.why
	}
	for name, from := range r.disarmed {
		if name == r.u.Name || r.triggersOf(name) == r.u.Name {
			a.Guards = append(a.Guards, Guard{Kind: Disarms, Text: "it sees to it that " + name + " is not started again",
				Lasting: true, From: from})
		}
	}
	r.did = append(r.did, did{a, maps.Clone(r.made)})
}

// triggersOf gives what a timer or path starts.
func (l *loader) triggersOf(name string) string {
	if u := l.byName[name]; u != nil && u.Type() != "socket" {
		if to := l.byName[u.Triggered()]; to != nil {
			return to.Name
		}
	}
	return ""
}

// written notes that something is written to a file: the kernel's trigger, or any other, which is there then.
func (r *runner) written(s *shell, n *node, name, said string) {
	name = path.Clean(name)
	switch {
	case s.way == No || s.ended == Yes || strings.Contains(name, unknown):
	case name == "/proc/sysrq-trigger":
		p := s.to(n, n.words)
		if len(p.chain) > 0 {
			p.chain[len(p.chain)-1].Text = "writes " + shown([]string{said}) + " to " + name
		}
		switch first := (strings.TrimSpace(said) + " ")[:1]; first {
		case "b":
			r.act(p, Reboot)
		case "o":
			r.act(p, PowerOff)
		case "c":
			r.act(p, Crash)
		}
	case path.IsAbs(name):
		r.set(s.way, name, Yes)
	}
}

// set notes that a file is there or gone, as far as it is known that it gets there.
func (r *runner) set(way Truth, name string, there Truth) {
	if way != Yes {
		there = Maybe
	}
	r.made[path.Clean(name)] = there
}

// there tells whether a file exists at this moment.
func (r *runner) there(ctx context.Context, name string) Truth {
	name = path.Clean(name)
	r.tested[name] = true
	if t, known := r.made[name]; known {
		return t
	}
	for dir := path.Dir(name); dir != "/" && dir != "."; dir = path.Dir(dir) {
		if r.made[dir] == No {
			return No
		}
	}
	if r.fresh[name] {
		return No
	}
	if r.Flat {
		return Maybe
	}
	if volatile(name) {
		return Maybe // what was there before is gone, and others may make it anew
	}
	return r.exists(ctx, name)
}

// volatile tells whether a file is gone after a restart.
func volatile(name string) bool {
	for _, dir := range []string{"/run", "/var/run", "/tmp", "/dev", "/proc", "/sys", "/var/lock"} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// test answers test(1). last is its last word.
func (r *runner) test(ctx context.Context, last string, words []string) Truth {
	if len(words) > 0 && (words[len(words)-1] == "]" || words[len(words)-1] == "]]") {
		words = words[:len(words)-1]
	}
	if i := slices.Index(words, "-o"); i > 0 {
		return joined(false, r.test(ctx, last, words[:i]), r.test(ctx, last, words[i+1:]))
	}
	if i := slices.Index(words, "||"); i > 0 {
		return joined(false, r.test(ctx, last, words[:i]), r.test(ctx, last, words[i+1:]))
	}
	for _, and := range []string{"-a", "&&"} {
		if i := slices.Index(words, and); i > 0 {
			return joined(true, r.test(ctx, last, words[:i]), r.test(ctx, last, words[i+1:]))
		}
	}
	if len(words) > 0 && words[0] == "!" {
		return opposite(r.test(ctx, last, words[1:]))
	}
	if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(w, unknown) }) {
		return Maybe
	}
	switch len(words) {
	case 1:
		return truth(words[0] != "")
	case 2:
		return r.testFile(ctx, words[0], words[1])
	case 3:
		switch words[1] {
		case "=", "==":
			if !strings.ContainsAny(words[2], "*?[") {
				return truth(words[0] == words[2])
			}
		case "!=":
			if !strings.ContainsAny(words[2], "*?[") {
				return truth(words[0] != words[2])
			}
		}
	}
	return Maybe
}

func (r *runner) testFile(ctx context.Context, op, name string) Truth {
	switch op {
	case "-z":
		return truth(name == "")
	case "-n":
		return truth(name != "")
	}
	if !path.IsAbs(name) {
		return Maybe
	}
	switch op {
	case "-e", "-f", "-r", "-x", "-s", "-d", "-a", "-w":
		t := r.there(ctx, name)
		if _, ours := r.made[path.Clean(name)]; t == Yes && !ours && (op == "-s" || op == "-d" || op == "-f") && !r.Flat {
			switch dir := r.directory(ctx, name, false); {
			case op == "-d":
				return dir
			case op == "-f" && dir == Yes:
				return No
			case op == "-s":
				if b, err := r.t.Read(ctx, name, 1); err == nil && len(b) == 0 {
					return No
				}
			}
		}
		return t
	case "-L", "-h":
		r.tested[path.Clean(name)] = true
		if t, known := r.made[path.Clean(name)]; known && t == No {
			return No
		}
		if _, err := r.t.Link(ctx, name); err == nil && !r.Flat {
			return Yes
		}
	}
	return Maybe
}

// shown makes a text of words, for people.
func shown(words []string) string {
	text := strings.ReplaceAll(strings.Join(words, " "), unknown, "…")
	if len(text) > 200 {
		text = text[:200] + "…"
	}
	return strings.Join(strings.Fields(text), " ")
}
