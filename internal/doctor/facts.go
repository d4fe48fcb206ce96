// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"strconv"

	"github.com/shisa-vm/shisa/internal/evidence"
)

// facts are what rules of users can ask about an object. A fact that is not there is not known.
type facts struct {
	object Object
	from   evidence.Source
	values map[string]string
}

// factTable names what can be asked of each kind. A name with ".*" has further names below it.
var factTable = []struct {
	kind  Kind
	names []string
	of    func(*evidence.Evidence) []facts
}{
	{Host, []string{"name", "kernel", "os", "virtual", "processors", "memory_total_bytes", "memory_available_bytes",
		"sunreclaim_bytes", "sysctl.*", "module.*"}, hostFacts},
	{Mount, []string{"name", "type", "source", "options", "super_options", "answers", "read_only", "free_bytes",
		"free_percent", "inodes_free_percent"}, mountFacts},
	{FileSystem, []string{"name", "type", "uuid", "label", "errors", "state", "on_error", "reserved_blocks"}, fsFacts},
	{Device, []string{"name", "driver", "host_driver", "vendor", "model", "serial", "state", "timeout_seconds",
		"eh_timeout_seconds", "max_retries", "size_bytes", "read_only", "rotational", "removable"}, deviceFacts},
	{Image, []string{"name", "format", "backing", "backing_state", "corrupt", "dirty", "leaks", "corruptions"}, imageFacts},
	{Machine, []string{"name", "uuid", "state", "status"}, machineFacts},
}

// factKinds are the kinds that can be asked about.
func factKinds() []string {
	var all []string
	for _, t := range factTable {
		all = append(all, string(t.kind))
	}
	return all
}

// factNames are the facts of a kind, nil for one that cannot be asked about.
func factNames(k Kind) []string {
	for _, t := range factTable {
		if t.kind == k {
			return t.names
		}
	}
	return nil
}

func factsOf(e *evidence.Evidence, k Kind) []facts {
	for _, t := range factTable {
		if t.kind == k {
			return t.of(e)
		}
	}
	return nil
}

// text keeps a fact that is known: an empty one is not.
func (f *facts) text(name, value string) {
	if value != "" {
		f.values[name] = value
	}
}

func (f *facts) number(name string, n int64) { f.values[name] = strconv.FormatInt(n, 10) }
func (f *facts) truth(name string, b bool)   { f.values[name] = strconv.FormatBool(b) }

// percent keeps a part of a whole; of nothing there is none.
func (f *facts) percent(name string, part, whole uint64) {
	if whole > 0 {
		f.values[name] = strconv.FormatFloat(100*float64(part)/float64(whole), 'f', 1, 64)
	}
}

func about(o Object, from evidence.Source) facts {
	return facts{object: o, from: from, values: map[string]string{"name": o.Name}}
}

func hostFacts(e *evidence.Evidence) []facts {
	f := about(hostObject(e), evidence.Source{})
	f.text("kernel", e.Host.Kernel)
	f.text("os", e.Host.OS)
	f.text("virtual", e.Host.Virtual)
	if e.Host.Processors > 0 {
		f.number("processors", int64(e.Host.Processors))
	}
	if e.Memory.Total > 0 {
		f.number("memory_total_bytes", e.Memory.Total)
		f.number("memory_available_bytes", e.Memory.Available)
		f.number("sunreclaim_bytes", e.Memory.SUnreclaim)
	}
	for name, s := range e.Config.Sysctl {
		f.text("sysctl."+name, s.Value)
	}
	for name, s := range e.Config.Modules {
		f.text("module."+name, s.Value)
	}
	return []facts{f}
}

func mountFacts(e *evidence.Evidence) []facts {
	var all []facts
	for i := range e.Mounts {
		m := &e.Mounts[i]
		f := about(mountObject(e, i), m.From)
		f.text("type", m.Type)
		f.text("source", m.Source)
		f.text("options", m.Options)
		f.text("super_options", m.Super)
		if a := m.Probe; a != nil {
			f.truth("answers", !a.Hung)
			if !a.Hung && a.StatfsErrno == 0 {
				f.truth("read_only", a.ReadOnly)
				f.number("free_bytes", int64(min(a.Avail*a.BlockSize, 1<<62)))
				f.percent("free_percent", a.Avail, a.Blocks)
				f.percent("inodes_free_percent", a.InodesFree, a.Inodes)
			}
		}
		all = append(all, f)
	}
	return all
}

func fsFacts(e *evidence.Evidence) []facts {
	var all []facts
	for i := range e.FSs {
		x := &e.FSs[i]
		f := about(fsObject(e, i), x.From)
		f.text("type", x.Type)
		f.text("uuid", x.UUID)
		f.text("label", x.Label)
		if s := x.Super; s != nil {
			f.number("errors", s.Errors)
			f.text("state", s.State)
			f.text("on_error", s.OnError)
			f.number("reserved_blocks", int64(min(s.Reserved, 1<<62)))
		}
		all = append(all, f)
	}
	return all
}

func deviceFacts(e *evidence.Evidence) []facts {
	var all []facts
	for i := range e.Devices {
		d := &e.Devices[i]
		f := about(deviceObject(e, d.Name), d.From)
		f.text("driver", d.Driver)
		f.text("host_driver", d.HostDriver)
		f.text("vendor", d.Vendor)
		f.text("model", d.Model)
		f.text("serial", d.Serial)
		f.text("state", d.State)
		if d.Timeout > 0 {
			f.number("timeout_seconds", int64(d.Timeout.Seconds()))
		}
		if d.EHTimeout > 0 {
			f.number("eh_timeout_seconds", int64(d.EHTimeout.Seconds()))
		}
		if d.MaxRetries > -2 {
			f.number("max_retries", int64(d.MaxRetries))
		}
		f.number("size_bytes", d.SizeBytes)
		f.truth("read_only", d.ReadOnly)
		f.truth("rotational", d.Rotational)
		f.truth("removable", d.Removable)
		all = append(all, f)
	}
	return all
}

func imageFacts(e *evidence.Evidence) []facts {
	var all []facts
	for i := range e.Images {
		x := &e.Images[i]
		f := about(imageObject(e, i), x.From)
		f.text("format", x.Format)
		f.text("backing", x.Backing)
		f.text("backing_state", x.BackingState)
		if x.Unread == "" {
			f.truth("corrupt", x.Corrupt)
			f.truth("dirty", x.Dirty)
		}
		if x.Checked != nil {
			f.number("leaks", x.Checked.Leaks)
			f.number("corruptions", x.Checked.Corruptions)
		}
		all = append(all, f)
	}
	return all
}

func machineFacts(e *evidence.Evidence) []facts {
	var all []facts
	for i := range e.Machines {
		m := &e.Machines[i]
		f := about(machineObject(e, i), m.From)
		f.text("uuid", m.UUID)
		f.text("state", m.State)
		if m.QMP != nil {
			f.text("status", m.QMP.Status)
		}
		all = append(all, f)
	}
	return all
}
