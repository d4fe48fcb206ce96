// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import "strings"

// What next returns beside the value of an option, as getopt_long does.
const (
	optEnd     = -1
	optUnknown = '?'
	optMissing = ':'
)

// Values of long options that have no short form.
const (
	optOutput = 256 + iota
	optBackingChain
	optObject
	optImageOpts
)

// longOption is an option with a long name.
type longOption struct {
	name string
	arg  bool // it takes an argument
	val  rune // what next returns
}

// getopt scans a command line as glibc's getopt_long does with a leading ':' in its list of short
// options. qemu-img's messages name argv[optind-1], which is often not the culprit, so the position
// has to move in the same way, the reordering of argv included.
type getopt struct {
	argv  []string
	short string // letters; one that takes an argument is followed by ':'
	long  []longOption
	// inOrder stops at the first argument that is no option.
	inOrder bool

	optind int
	optarg string
	rest   string // of a word with several short options
	// The words [first, last) are no options and were passed over.
	first, last int
}

// newGetopt scans argv[1:]; argv is copied, since it gets reordered.
func newGetopt(argv []string, short string, long []longOption, inOrder bool) *getopt {
	return &getopt{
		argv: append([]string(nil), argv...), short: short, long: long, inOrder: inOrder,
		optind: 1, first: 1, last: 1,
	}
}

// culprit is the word that qemu-img names in its message.
func (g *getopt) culprit() string { return g.argv[g.optind-1] }

// operands are the arguments that are no options, once next has returned optEnd.
func (g *getopt) operands() []string { return g.argv[min(g.optind, len(g.argv)):] }

// next gives the next option: its value, optUnknown, optMissing where its argument is not there, or
// optEnd.
func (g *getopt) next() rune {
	g.optarg = ""
	if g.rest == "" {
		if v, done := g.nextWord(); done {
			return v
		}
	}
	c := g.rest[0]
	g.rest = g.rest[1:]
	if g.rest == "" {
		g.optind++
	}
	i := strings.IndexByte(g.short, c)
	if i < 0 || c == ':' || c == ';' {
		return optUnknown
	}
	if !strings.HasPrefix(g.short[i+1:], ":") {
		return rune(c)
	}
	switch {
	case g.rest != "":
		g.optarg = g.rest
		g.optind++
	case g.optind == len(g.argv):
		return optMissing
	default:
		g.optarg = g.argv[g.optind]
		g.optind++
	}
	g.rest = ""
	return rune(c)
}

// nextWord moves to the next word with options. done is false if it holds short ones.
func (g *getopt) nextWord() (v rune, done bool) {
	g.last = min(g.last, g.optind)
	g.first = min(g.first, g.optind)
	if !g.inOrder {
		if g.first != g.last && g.last != g.optind {
			g.exchange()
		} else if g.last != g.optind {
			g.first = g.optind
		}
		for g.optind < len(g.argv) && !isOption(g.argv[g.optind]) {
			g.optind++
		}
		g.last = g.optind
	}
	if g.optind < len(g.argv) && g.argv[g.optind] == "--" {
		g.optind++
		if g.first != g.last && g.last != g.optind {
			g.exchange()
		} else if g.first == g.last {
			g.first = g.optind
		}
		g.last, g.optind = len(g.argv), len(g.argv)
	}
	if g.optind >= len(g.argv) {
		if g.first != g.last {
			g.optind = g.first
		}
		return optEnd, true
	}
	word := g.argv[g.optind]
	switch {
	case !isOption(word):
		return optEnd, true
	case strings.HasPrefix(word, "--"):
		return g.longOption(word[2:]), true
	}
	g.rest = word[1:]
	return 0, false
}

func isOption(word string) bool { return len(word) > 1 && word[0] == '-' }

// exchange moves the words that are no options behind the options that followed them.
func (g *getopt) exchange() {
	words := append([]string(nil), g.argv[g.first:g.last]...)
	copy(g.argv[g.first:], g.argv[g.last:g.optind])
	g.first += g.optind - g.last
	g.last = g.optind
	copy(g.argv[g.first:], words)
}

func (g *getopt) longOption(word string) rune {
	name, value, hasValue := strings.Cut(word, "=")
	found := g.lookup(name)
	g.optind++
	switch {
	case found == nil, hasValue && !found.arg:
		return optUnknown
	case hasValue:
		g.optarg = value
	case found.arg && g.optind >= len(g.argv):
		return optMissing
	case found.arg:
		g.optarg = g.argv[g.optind]
		g.optind++
	}
	return found.val
}

// lookup finds an option by its name or an unambiguous beginning of it.
func (g *getopt) lookup(name string) *longOption {
	var found *longOption
	for i := range g.long {
		o := &g.long[i]
		switch {
		case o.name == name:
			return o
		case !strings.HasPrefix(o.name, name):
		case found == nil:
			found = o
		case o.arg != found.arg || o.val != found.val:
			// An exact match may follow, but no two names here begin with one another.
			return nil
		}
	}
	return found
}
