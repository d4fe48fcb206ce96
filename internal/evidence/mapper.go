// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

const (
	// maxMappers bounds the devices that are asked, maxWords a number in an answer.
	maxMappers = 4096
	maxWords   = 1 << 20
	// mapperTimeout is how long device mapper is waited for. Others may hold its lock.
	mapperTimeout = time.Second
)

// Mapped is /shisa/mapper.json: what device mapper says of devices of several paths. Of others it is not asked: the
// table of one that is encrypted has its key.
type Mapped struct {
	Devices []MappedDevice `json:"devices"`
}

// MappedDevice is one of them.
type MappedDevice struct {
	Name string `json:"name"` // "dm-3"
	// Table and Status are of its multipath target, as dmsetup(8) prints them behind the type.
	Table  string `json:"table"`
	Status string `json:"status"`
	// Why says why it was not read, "" if it was.
	Why string `json:"why"`
}

// mapper asks device mapper about the devices of several paths that there are. Without one it touches nothing: to
// open its device would have the kernel load it.
func (p *prober) mapper(ctx context.Context) {
	out := Mapped{Devices: []MappedDevice{}}
	names, err := p.t.List(ctx, classBlock)
	if err != nil {
		return // nothing is known of any device, which is told where they are read
	}
	for _, n := range names {
		dir := classBlock + "/" + n.Name
		if !strings.HasPrefix(n.Name, "dm-") || !strings.HasPrefix(p.text(ctx, dir+"/dm/uuid"), "mpath-") ||
			len(out.Devices) == maxMappers {
			continue
		}
		d := MappedDevice{Name: n.Name}
		d.Table, d.Status, err = askMapper(ctx, p.text(ctx, dir+"/dm/name"))
		if err != nil {
			d.Why = Reason(err)
		}
		out.Devices = append(out.Devices, d)
	}
	if len(out.Devices) > 0 {
		p.put("mapper.json", out)
	}
}

// askMapper is diskio.AskMapper that is not waited for longer than mapperTimeout.
func askMapper(ctx context.Context, name string) (table, status string, err error) {
	type both struct{ table, status string }
	got, err := diskio.Within(ctx, mapperTimeout, func() (b both, err error) {
		b.table, b.status, err = diskio.AskMapper(name)
		return b, err
	}, nil)
	return got.table, got.status, err
}

// queues tells from the table of a multipath target whether requests are kept while there is no path:
// "NUMBER FEATURE... NUMBER HANDLER... GROUPS ..." (Documentation and drivers/md/dm-mpath.c, multipath_status).
func queues(table string) (queue, known bool) {
	f := strings.Fields(table)
	if len(f) == 0 {
		return false, false
	}
	n, err := strconv.Atoi(f[0])
	if err != nil || n < 0 || n >= len(f) {
		return false, false
	}
	for _, feature := range f[1 : 1+n] {
		if feature == "queue_if_no_path" {
			return true, true
		}
	}
	return false, true
}

// pathsIn counts from the status of a multipath target the paths that the kernel uses and those that it gave up:
//
//	2 0 0  0  1  1   A 0  2  2   8:16 A 0 0 1   8:32 F 3 0 1
//	features hw n at state, selector's words, paths, words of each, then each path: device, state, failures, words
func pathsIn(status string) (active, failed int, known bool) {
	w := words{f: strings.Fields(status)}
	w.skip(w.number()) // features
	w.skip(w.number()) // of the hardware handler
	groups := w.number()
	w.skip(1) // the group that is used
	for range groups {
		w.skip(1)          // its state
		w.skip(w.number()) // of the path selector
		paths, more := w.number(), w.number()
		for range paths {
			w.skip(1)
			switch w.next() {
			case "A":
				active++
			case "F":
				failed++
			default:
				w.wrong = true
			}
			w.skip(1 + more)
			if w.wrong {
				return 0, 0, false
			}
		}
		if w.wrong {
			return 0, 0, false
		}
	}
	return active, failed, !w.wrong && len(w.f) == 0
}

// words are read one after the other; wrong is set where there is none, or no number.
type words struct {
	f     []string
	wrong bool
}

func (w *words) next() string {
	if len(w.f) == 0 {
		w.wrong = true
		return ""
	}
	s := w.f[0]
	w.f = w.f[1:]
	return s
}

func (w *words) number() int {
	n, err := strconv.Atoi(w.next())
	if err != nil || n < 0 || n > maxWords {
		w.wrong = true
		return 0
	}
	return n
}

func (w *words) skip(n int) {
	if n > len(w.f) {
		w.wrong, n = true, len(w.f)
	}
	w.f = w.f[n:]
}

// mapped takes in what device mapper said: that is how things stand, whatever is configured.
func (g *gatherer) mapped(ctx context.Context) {
	var m Mapped
	g.own(ctx, PartDevices, "mapper.json", &m)
	for _, x := range m.Devices {
		for i := range g.e.Devices {
			d := &g.e.Devices[i]
			if d.Name != x.Name || d.Paths == nil {
				continue
			}
			queue, known := queues(x.Table)
			if known {
				d.Paths.Queue, d.Paths.Table = queue, x.Table
			}
			active, failed, counted := pathsIn(x.Status)
			if counted {
				d.Paths.Active, d.Paths.Failed = active, failed
			}
			switch {
			case x.Why != "":
				g.gap(PartDevices, d.Name, "its table in the kernel was not read: "+x.Why)
			case !known || !counted:
				g.gap(PartDevices, d.Name, fmt.Sprintf("its table in the kernel is not understood: %.80q, %.80q", x.Table, x.Status))
			}
		}
	}
}
