// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"cmp"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/scan"
)

// The picture of images and what they rest on: bases at the left, overlays to the right of them,
// the worst at the top. What is alike and well is drawn as one box, so that a picture of thousands
// of images shows the few that count.
const (
	// keepClean is up to how many clean siblings are drawn one by one, keepAlike the same of
	// siblings that are hurt alike, keepTrees of siblings that others rest on.
	keepClean, keepAlike, keepTrees = 3, 8, 30
	// minRun is how many clean layers in a row are drawn as one.
	minRun = 4
	// maxBoxes bounds the boxes of one picture: a browser draws as many without delay.
	maxBoxes = 500
	// maxColumns bounds the width of the picture.
	maxColumns = 48
)

// node is a box of the picture.
type node struct {
	label, sub, title, href string
	st                      state
	ghost                   bool // not an image that was examined
	several                 bool // stands for more than one
	images                  int  // how many images it and what rests on it stand for
	worst                   int  // the worst place in its subtree, as in placeOf
	alike                   string
	kids                    []*node
	link                    check.BackingState // of the line to its base
	row                     float64            // of the picture, trees having a gap between them
	col                     int
}

// forest builds trees from images and edges.
type forest struct {
	images []*check.Image
	byPath map[string]int
	over   map[string][]scan.Edge // by what they rest on
	nodes  map[string]*node
	drawn  map[string]bool // the overlay has its place below a base
}

// forestOf gives what rests on what as trees, the worst first. Images that rest on nothing and that
// nothing rests on are trees of one box.
func forestOf(images []*check.Image, edges []scan.Edge) []*node {
	f := &forest{images: images, byPath: map[string]int{}, over: map[string][]scan.Edge{},
		nodes: map[string]*node{}, drawn: map[string]bool{}}
	for i, img := range images {
		f.byPath[img.Path] = i
	}
	rests := map[string]bool{}
	for _, e := range edges {
		f.over[e.To] = append(f.over[e.To], e)
		rests[e.From] = true
	}
	roots := []*node{}
	grow := func(path string) {
		if f.nodes[path] == nil {
			roots = append(roots, f.grow(path))
		}
	}
	for _, e := range edges {
		if !rests[e.To] {
			grow(e.To)
		}
	}
	for _, img := range images {
		if !rests[img.Path] {
			grow(img.Path)
		}
	}
	for _, e := range edges {
		grow(e.To) // what is left hangs on itself
	}
	return prune(shape(roots))
}

// grow makes the box of path and of all that rests on it. It goes as deep as there are images.
func (f *forest) grow(path string) *node {
	n := f.box(path)
	f.nodes[path] = n
	for _, e := range f.over[path] {
		if n.ghost && n.sub == "" {
			n.sub, n.st = ghostState(e.State)
		}
		if f.drawn[e.From] || f.nodes[e.From] != nil {
			continue // it rests on a second file, or on itself
		}
		f.drawn[e.From] = true
		kid := f.grow(e.From)
		kid.link = e.State
		n.kids = append(n.kids, kid)
	}
	n.worst = placeOf(n.st)
	for _, k := range n.kids {
		n.worst = min(n.worst, k.worst)
		n.images += k.images
	}
	return n
}

// box makes the box of one image, or of a file that was not examined.
func (f *forest) box(name string) *node {
	n := &node{label: Name(path.Base(name)), title: Name(name), images: 1}
	i, ok := f.byPath[name]
	if !ok {
		n.ghost, n.images, n.st = true, 0, stateNoCheck
		return n
	}
	img := f.images[i]
	n.st = imageState(img)
	n.href = "#" + anchorOf(i)
	what := worstOf(img)
	n.alike = n.st.class + " " + what
	n.sub = n.st.word
	switch {
	case what != "":
		n.sub += " " + what
	case img.VirtualBytes >= 0:
		n.sub += ", disk of " + Bytes(img.VirtualBytes)
	}
	if who := user(img.Use); who != "" && img.Use.State == check.UseWrite {
		n.sub += ", runs " + who
	}
	n.title += ": " + verdictOf(img)
	return n
}

// anchorOf names the place of image i in the page.
func anchorOf(i int) string { return "image-" + strconv.Itoa(i+1) }

func ghostState(s check.BackingState) (string, state) {
	switch s {
	case check.BackingMissing:
		return "MISSING", stateOf(finding.Lost)
	case check.BackingUnreadable:
		return "UNREADABLE", stateOf(finding.Lost)
	case check.BackingLoop:
		return "LOOP", stateOf(finding.Lost)
	case check.BackingTooDeep:
		return "too deep, not followed", stateOf(finding.Warning)
	}
	return "not followed", stateNoCheck
}

// shape puts siblings in the order worst first, and makes one box of those that are alike and of
// long runs of clean layers.
func shape(kids []*node) []*node {
	slices.SortStableFunc(kids, func(a, b *node) int {
		return cmp.Or(cmp.Compare(a.worst, b.worst), cmp.Compare(b.images, a.images),
			strings.Compare(a.title, b.title))
	})
	kids = fold(kids)
	for i, k := range kids {
		kids[i] = squeeze(k)
		kids[i].kids = shape(kids[i].kids)
	}
	return kids
}

// kind says which siblings n is drawn as one with, and how many of them are drawn one by one.
func (n *node) kind() (string, int) {
	switch {
	case n.worst == placeOf(stateClean) && !n.ghost:
		return "clean", keepClean
	case len(n.kids) > 0 || n.ghost:
		return "trees", keepTrees
	}
	return "alike " + n.alike, keepAlike
}

// fold keeps the first siblings of each kind and makes one box of the rest.
func fold(kids []*node) []*node {
	total, kept, boxes := map[string]int{}, map[string]int{}, map[string]*node{}
	for _, k := range kids {
		kind, _ := k.kind()
		total[kind]++
	}
	out := make([]*node, 0, len(kids))
	for _, k := range kids {
		kind, keep := k.kind()
		switch {
		case total[kind] <= keep:
			out = append(out, k)
			continue
		case kind != "clean" && kept[kind] < keep-2:
			kept[kind]++
			out = append(out, k)
			continue
		case boxes[kind] == nil:
			boxes[kind] = &node{st: k.st, worst: k.worst, link: k.link, alike: k.alike}
			out = append(out, boxes[kind])
		}
		boxes[kind].add(k)
	}
	for kind, b := range boxes {
		if kind == "clean" {
			b.tell(Count(int64(b.images), "clean image", "clean images"))
		} else {
			b.tell(Count(int64(b.images), "more image", "more images"))
		}
	}
	return out
}

// add counts k and what rests on it into the box n of several.
func (n *node) add(k *node) {
	n.several = true
	n.images += max(k.images, 1)
	if k.worst < n.worst {
		n.worst, n.st = k.worst, k.st
	}
	if n.title == "" {
		n.title = k.title
	}
}

// tell gives a box of several its words.
func (n *node) tell(label string) {
	n.label, n.sub = label, n.st.word
	if _, what, ok := strings.Cut(n.alike, " "); ok && what != "" {
		n.sub += " " + what
	}
	n.title = label + ", the first is " + n.title
}

// squeeze makes one box of a run of clean layers that have one overlay each.
func squeeze(n *node) *node {
	run, last := 0, n
	for k := n; k.st == stateClean && !k.ghost && !k.several && len(k.kids) == 1; k = k.kids[0] {
		run, last = run+1, k
	}
	if run < minRun {
		return n
	}
	box := &node{st: stateClean, worst: n.worst, link: n.link, title: n.title, several: true,
		images: run, kids: last.kids}
	box.tell(Count(int64(run), "clean layer", "clean layers"))
	return box
}

// prune makes one box of what would make the picture larger than maxBoxes and maxColumns, level by
// level so that each base keeps its first overlays.
func prune(roots []*node) []*node {
	top := &node{kids: roots}
	left := maxBoxes
	level := []*node{top}
	for depth := 0; len(level) > 0; depth++ {
		next := []*node{}
		for _, n := range level {
			keep := min(len(n.kids), left)
			if depth >= maxColumns {
				keep = 0
			}
			left -= keep
			if keep < len(n.kids) {
				rest := &node{st: n.kids[keep].st, worst: n.kids[keep].worst, link: n.kids[keep].link}
				for _, k := range n.kids[keep:] {
					rest.add(k)
				}
				rest.tell(Count(int64(rest.images), "more image", "more images"))
				n.kids = append(slices.Clone(n.kids[:keep]), rest)
			}
			next = append(next, n.kids...)
		}
		level = next
	}
	return top.kids
}
