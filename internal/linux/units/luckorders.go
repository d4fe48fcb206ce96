// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import "slices"

// Of most orders it makes no difference which it is. What follows keeps those from being gone through.

// settled goes to those of some nodes from which one comes to nothing any more that lacks something and was not met. When
// that is makes no difference, and so they are got out of the way.
func (l *luck) settled(to []int, m met) met {
	b, steps := []byte(m), len(to)
	for _, from := range to {
		queue := []int{from}
		free := b[from/8]&(1<<(from%8)) == 0
		for at := 0; at < len(queue) && free; at++ {
			n := &l.nodes[queue[at]]
			free = !n.lacks
			for _, next := range [][]int{n.hard, n.soft} {
				for _, x := range next {
					if steps++; b[x/8]&(1<<(x%8)) == 0 && !slices.Contains(queue, x) {
						queue = append(queue, x)
					}
				}
			}
			if len(queue) > maxSettled {
				free = false
			}
		}
		for _, i := range queue {
			if free {
				b[i/8] |= 1 << (i % 8)
			}
		}
	}
	l.left -= steps / 64
	return met(b)
}

// maxSettled is how many nodes are looked at from one to tell that it makes no difference.
const maxSettled = 64

// together gives those of some nodes that have something in common with the first, by others of them if need
// be: they lead to a node that was not met yet.
func (l *luck) together(all []int, m met) []int {
	if len(all) < 2 {
		return all
	}
	of, group := map[int]int{}, make([]int, len(all)) // which of them leads to a node; which belong together, by the first
	first := func(i int) int {
		for group[i] != i {
			i = group[i]
		}
		return i
	}
	for i, from := range all {
		group[i] = i
		for queue := []int{from}; len(queue) > 0; queue = queue[1:] {
			at := queue[0]
			l.left--
			if other, is := of[at]; is { // and all beyond it
				a, b := first(i), first(other)
				group[max(a, b)] = min(a, b)
				continue
			}
			of[at] = i
			n := &l.nodes[at]
			for _, next := range [][]int{n.hard, n.soft} {
				for _, to := range next {
					if !m.has(to) {
						queue = append(queue, to)
					}
				}
			}
		}
	}
	var some []int
	for i, n := range all {
		if first(i) == 0 {
			some = append(some, n)
		}
	}
	return some
}
