// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// maxSmallBytes bounds files of /proc, /sys and /etc of which nobody expects much.
const maxSmallBytes = 1 << 20

// Options say how evidence is gathered.
type Options struct {
	// Now is the time that is taken for the present where the tree does not say one: that of a running
	// system, or of when a bundle was made.
	Now time.Time
	// Label tells the machine apart; "" takes the name that it has itself.
	Label string
	// Said is what logs said, where they were read before, and Series what was seen of memory, Spaces of
	// the room in file systems. They are
	// not read again then, which is for who gathers again and again; nil has them read.
	Said   *Said
	Series []MemoryPoint
	Spaces []SpacePoint
}

// Gather reads all that the rules need to know of a machine. What could not be read is in Gaps; the
// error is that of ctx.
//
// Each part of it is a function in the file of what it reads. They come in the order in which they need
// one another: mounts before what lies on them, the kernel's messages last.
func Gather(ctx context.Context, t tree.Tree, o Options) (*Evidence, error) {
	g := &gatherer{t: t, o: o, byDev: map[systemKey]int{}, e: &Evidence{Kind: t.Kind(), Now: o.Now.UTC(), Label: o.Label}}
	for _, part := range []func(context.Context){
		g.meta,   // gather.go
		g.host,   // host.go
		g.mounts, // mounts.go, nfs.go
		g.systems,
		g.room,    // space.go
		g.devices, // devices.go
		g.config,  // config.go, udev.go, nova.go
		g.multipath,
		g.memory,   // memory.go
		g.machines, // machines.go, images.go
		g.tasks,    // tasks.go
		g.log,      // log.go, boots.go
		g.hurt,     // disk.go
		g.cluster,  // cluster.go
		g.units,    // units.go
		g.menu,     // bootmenu.go
		g.clock,    // clock.go, clockkeep.go
		g.limits,   // stall.go, leases.go
	} {
		part(ctx)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	if g.e.Label == "" {
		g.e.Label = g.e.Host.Name
	}
	if g.e.Label == "" {
		g.e.Label = "unknown host"
	}
	return g.e, nil
}

// gatherer fills Evidence.
type gatherer struct {
	t tree.Tree
	o Options
	e *Evidence
	// named: the files that the log speaks of were looked for before, and hurtNames is what was found.
	named     bool
	hurtNames []OpenFile
	// byDev has the indexes of file systems.
	byDev map[systemKey]int
}

// Meta is /shisa/meta.json: what evidence was gathered of, and when.
type Meta struct {
	Label string `json:"label"`
	// Time is when, or for a dead disk that of its last sign of life.
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
}

func (g *gatherer) meta(ctx context.Context) {
	var m Meta
	if !g.own(ctx, PartHost, "meta.json", &m) {
		return
	}
	if g.e.Label == "" {
		g.e.Label = m.Label
	}
	if !m.Time.IsZero() {
		g.e.Now = m.Time.UTC()
	}
}

// gap notes what could not be read. object is "" for the part as a whole.
func (g *gatherer) gap(p Part, object, reason string) {
	g.e.Gaps = append(g.e.Gaps, Gap{p, object, reason})
}

// missed notes the error of reading something, unless it only says that it is not there.
func (g *gatherer) missed(p Part, object string, err error) {
	if err != nil && !tree.Missing(err) {
		g.gap(p, object, Reason(err))
	}
}

// Reason makes of an error of a tree the words for why something is not known.
func Reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "may not be read without more rights"
	case errors.Is(err, diskio.ErrTimeout):
		return "did not answer in time"
	case errors.Is(err, tree.ErrNotCollected) || errors.Is(err, tree.ErrAvoided):
		if named := new(fs.PathError); errors.As(err, &named) {
			return named.Err.Error()
		}
	}
	return err.Error()
}

// read gives a small file; known is false where there is none, and where it could not be read, which
// is a gap of the part then.
func (g *gatherer) read(ctx context.Context, p Part, name string) (b []byte, known bool) {
	b, err := g.t.Read(ctx, name, maxSmallBytes)
	g.missed(p, name, err)
	return b, err == nil || errors.Is(err, tree.ErrTooLarge)
}

// word gives a file of one line, without its end; "" as read.
func (g *gatherer) word(ctx context.Context, p Part, name string) (text string, known bool) {
	b, known := g.read(ctx, p, name)
	return strings.TrimSpace(string(b)), known
}

// list gives the names in a directory, none where there is none; whole is false where they could not
// be read, which is a gap of the part then.
func (g *gatherer) list(ctx context.Context, p Part, dir string) (names []tree.Entry, whole bool) {
	names, err := g.t.List(ctx, dir)
	g.missed(p, dir, err)
	return names, err == nil || tree.Missing(err)
}

// optional reads a file that not all systems have. A copy that has not all files is no worse for it:
// who needs this one sees that it is not there.
func (g *gatherer) optional(ctx context.Context, p Part, name string) []byte {
	b, err := g.t.Read(ctx, name, maxSmallBytes)
	g.unread(p, name, err)
	return b
}

// optionalWord is optional for a file of one line, without its end.
func (g *gatherer) optionalWord(ctx context.Context, p Part, name string) string {
	return strings.TrimSpace(string(g.optional(ctx, p, name)))
}

// optionalList gives the names in a directory that not all systems have.
func (g *gatherer) optionalList(ctx context.Context, p Part, dir string) []tree.Entry {
	all, err := g.t.List(ctx, dir)
	g.unread(p, dir, err)
	return all
}

// unread is missed for what may be missing in a copy. A bundle has an answer to all that was asked when it was
// made; what it has none for is not known.
func (g *gatherer) unread(p Part, name string, err error) {
	if g.t.Kind() == tree.Bundle || !errors.Is(err, tree.ErrNotCollected) {
		g.missed(p, name, err)
	}
}

// own reads a file of /shisa, which a tree has that was asked before: a bundle, or an overlay.
func (g *gatherer) own(ctx context.Context, p Part, name string, to any) bool {
	b, err := g.t.Read(ctx, "/shisa/"+name, 256<<20)
	if tree.Missing(err) || errors.Is(err, tree.ErrNotCollected) {
		return false
	}
	if err == nil {
		err = json.Unmarshal(b, to)
	}
	if err != nil {
		g.gap(p, "/shisa/"+name, Reason(err))
	}
	return err == nil
}
