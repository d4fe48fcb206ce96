// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// ProbeOptions say how the running system is asked.
type ProbeOptions struct {
	// Now is the time of the evidence, Version that of the program.
	Now     time.Time
	Label   string
	Version string
	// Write asks each mount that can be written to for a file without a name.
	Write bool
	// Asker remembers children that hang; nil for a new one.
	Asker *ask.Asker
	// Patience bounds how long mounts are waited for.
	Patience ask.Options
	// Between is the time between two looks at the tasks that wait, 0 for the usual two seconds.
	Between time.Duration
}

// Probe asks the running system what no file tells: whether its mounts answer, and which tasks wait for
// storage twice. Its answers are files for [tree.Overlay]. It takes below ten seconds whatever hangs, and
// well below one where nothing does.
//
// A tree that is told what to avoid is told of the mounts that did not answer.
func Probe(ctx context.Context, t tree.Tree, o ProbeOptions) (map[string][]byte, error) {
	p := &prober{t: t, o: o, files: map[string][]byte{}}
	if p.o.Asker == nil {
		p.o.Asker = &ask.Asker{}
	}
	p.put("meta.json", Meta{Label: o.Label, Time: o.Now, Version: o.Version})
	var wait sync.WaitGroup
	for _, part := range []func(context.Context){
		p.mounts, // probemounts.go
		p.tasks,  // probetasks.go
		p.mapper, // mapper.go
	} {
		wait.Go(func() { part(ctx) })
	}
	wait.Wait()
	p.machines(ctx) // probemachines.go: it wants to know which mounts answer
	return p.files, ctx.Err()
}

// prober asks.
type prober struct {
	t tree.Tree
	o ProbeOptions

	// served: something is mounted that a process serves, and tasks may wait for it.
	served bool

	mu    sync.Mutex
	files map[string][]byte
}

// put makes a file of /shisa.
func (p *prober) put(name string, content any) {
	b, err := json.Marshal(content)
	if err != nil {
		return // our own types: there are no values among them that JSON does not have
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files["/shisa/"+name] = b
}
