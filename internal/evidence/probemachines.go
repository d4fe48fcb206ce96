// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// imageTimeout is how long one image is waited for.
const imageTimeout = 2 * time.Second

// machines asks which processes run virtual machines, what they have open, and how those stand; then it
// reads the headers of their disks where the storage answers. It comes after the mounts were asked.
func (p *prober) machines(ctx context.Context) {
	var out Asked
	c, err := linux.Open("").Census(ctx)
	if err != nil {
		out.Gaps = append(out.Gaps, Gap{PartImages, "/proc", Reason(err)})
	} else {
		for _, why := range c.MachineGaps(ctx) {
			out.Gaps = append(out.Gaps, Gap{PartImages, "/proc", why})
		}
		for _, f := range c.MachineFiles(ctx) {
			if f.Process.Emulator() {
				out.add(ctx, f)
			}
		}
	}
	g := &gatherer{t: p.t, e: &Evidence{}}
	domains := g.domains(ctx)
	for i := range out.Processes {
		domains = join(domains, &out.Processes[i])
	}
	s := &slowStorage{t: p.t, mounts: p.mounted(ctx)}
	out.Images = describeAll(ctx, diskPaths(domains), s.open, p.t.Link, &out.Gaps)
	for i := range out.Images {
		out.users(&out.Images[i])
	}
	p.put("machines.json", out)
}

// add keeps a file of a process; what is no disk is not kept.
func (a *Asked) add(ctx context.Context, f linux.MachineFile) {
	i := slices.IndexFunc(a.Processes, func(p MachineProcess) bool { return p.PID == f.Process.PID })
	if i < 0 {
		i = len(a.Processes)
		p := MachineProcess{PID: f.Process.PID, Name: f.Process.Machine(), Command: f.Process.Command()}
		socket, why := monitorOf(f.Process.Args)
		p.QMPWhy = why
		if socket != "" {
			q, err := askQMP(ctx, socket)
			if p.QMP = q; err != nil {
				p.QMPWhy = socket + ": " + Reason(err)
			}
		}
		a.Processes = append(a.Processes, p)
	}
	if isDisk(f.Path) {
		a.Processes[i].Files = append(a.Processes[i].Files, MachineFile{f.Path, f.Writing, f.Deleted})
	}
}

// isDisk tells by its name whether a file that QEMU has open may be a disk: no library, no device of the
// kernel's but a block device.
func isDisk(name string) bool {
	for _, dir := range []string{"/usr/", "/lib", "/proc/", "/sys/", "/etc/", "/dev/kvm", "/dev/vhost", "/dev/net",
		"/dev/ptmx", "/dev/pts", "/dev/null", "/dev/urandom", "/dev/shm", "/dev/hugepages", "/memfd:", "anon_inode:",
		"socket:", "pipe:", "/var/log/"} {
		if strings.HasPrefix(name, dir) {
			return false
		}
	}
	return strings.HasPrefix(name, "/")
}

// users says who has an image open.
func (a *Asked) users(img *Image) {
	for _, p := range a.Processes {
		for _, f := range p.Files {
			if img.Is(f.Path) {
				img.Users = append(img.Users, ImageUser{PID: p.PID, Command: p.Command, Machine: p.Name, Writing: f.Writing})
				break
			}
		}
	}
}

// mounted is what mounts answered, from what was asked before.
func (p *prober) mounted(ctx context.Context) *Evidence {
	p.mu.Lock()
	text := p.files["/shisa/probes.json"]
	p.mu.Unlock()
	if text == nil {
		text, _ = json.Marshal(Probed{})
	}
	g := &gatherer{t: tree.Overlay(p.t, map[string][]byte{"/shisa/probes.json": text}), byDev: map[systemKey]int{},
		e: &Evidence{}}
	g.mounts(ctx)
	return g.e
}

// slowStorage opens images of this machine. On file systems that may hang it reads only where the mount
// answered just now, and waits no longer than imageTimeout even there.
type slowStorage struct {
	t      tree.Tree
	mounts *Evidence
}

func (s *slowStorage) open(ctx context.Context, name string) (tree.File, error) {
	f, err := s.t.Open(ctx, name)
	if err == nil || !errors.Is(err, tree.ErrAvoided) {
		return f, err
	}
	i := s.mounts.MountOf(name)
	if i < 0 || s.mounts.Mounts[i].Probe == nil || s.mounts.Mounts[i].Probe.Hung {
		return nil, err // whatever it lies on did not answer
	}
	got, err := diskio.Within(ctx, imageTimeout, func() (*diskio.File, error) { return diskio.Open(name) },
		func(f *diskio.File) { f.Close() })
	if err != nil {
		return nil, err
	}
	return &slowFile{ctx, got}, nil
}

// slowFile reads in time.
type slowFile struct {
	ctx context.Context
	*diskio.File
}

func (f *slowFile) Mtime() time.Time { return f.Stat().ModTime }

func (f *slowFile) Born() time.Time {
	at, err := diskio.Within(f.ctx, imageTimeout, func() (time.Time, error) { return f.File.Born(), nil }, nil)
	if err != nil {
		return time.Time{}
	}
	return at
}

func (f *slowFile) ReadAt(b []byte, off int64) (int, error) {
	own := make([]byte, len(b)) // a read that comes late must not write into memory that is used again
	n, err := diskio.Within(f.ctx, imageTimeout, func() (int, error) { return f.File.ReadAt(own, off) }, nil)
	return copy(b, own[:max(n, 0)]), err
}
