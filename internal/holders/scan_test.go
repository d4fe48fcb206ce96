// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package holders

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/lab/hold"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/probe"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) {
	if hold.IsChild(os.Args) {
		hold.Serve()
	}
	if err := hold.Apart(); err != nil {
		fmt.Fprintln(os.Stderr, err) // the tests that need it say so, too
	}
	testenv.Main(m)
}

// ask gives the answer of a scan in the words that the makers judge by.
func ask(ctx context.Context, h Host, name string) (hold.Answer, *Report, error) {
	t, err := Resolve(ctx, h, name)
	if err != nil {
		return hold.Answer{}, nil, err
	}
	r, err := Scan(ctx, h, t, Options{})
	if err != nil {
		return hold.Answer{}, nil, err
	}
	a := hold.Answer{Audited: r.Audit.Read, Free: r.Verdict == Free}
	for _, m := range r.Mounts {
		if (m.Asked || m.Follows) && m.Count >= 0 {
			a.Unexplained += m.Unexplained
		}
	}
	for _, o := range r.Holders {
		s := hold.Seen{Word: string(o.Kind), PID: o.Process.PID, TID: o.Process.TID, Path: o.Path,
			Namespace: o.MountNamespace, Blocks: string(o.Blocks), FDs: o.AlsoFDs}
		if o.FD >= 0 {
			s.FDs = append([]int{o.FD}, s.FDs...)
		}
		a.Holders = append(a.Holders, s)
		if !o.SameMount && o.Blocks == BlocksUmount && o.Kind != Peer {
			s.Word = "peer" // what it holds is in a copy
			a.Holders = append(a.Holders, s)
		}
	}
	return a, r, nil
}

// byText is this host without the kernel's own lists.
func byText() Host {
	return Host{Linux: linux.Open(""), Self: os.Getpid(), NoKernel: errors.New("not asked")}
}

// byKernel is this host with the kernel's own lists.
func byKernel(t testing.TB) Host {
	t.Helper()
	testenv.NeedRoot(t)
	refs, err := probe.OpenRefs()
	if errors.Is(err, probe.ErrRefused) {
		testenv.Lacks(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := refs.Close(); err != nil {
			t.Error(err)
		}
	})
	return Host{Linux: linux.Open(""), Self: os.Getpid(), Kernel: refs}
}

// hosts are the ways to look at this host.
func hosts(t testing.TB) map[string]Host {
	t.Helper()
	all := map[string]Host{"text": byText()}
	if os.Geteuid() == 0 {
		all["kernel"] = byKernel(t)
	}
	return all
}

// about is what is asked about where a kind is made.
func about(d *hold.Disk, k hold.Kind) string {
	if k.Effect == hold.Hides {
		return d.Device // nothing is mounted any more
	}
	return d.Mount
}

// Without the kernel's own lists nobody is called free, and what /proc tells is told.
func TestKindsByText(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mkfs.erofs")
	h := byText()
	// What no text tells of: it is not named, and the answer is that it cannot be told.
	hidden := []string{"fd-in-flight", "fd-in-flight-net-namespace", "fanotify-event", "detached-mount", "lazy-fd",
		"namespace-empty", "namespace-bound", "unix-socket-relative", "bind-lazy-fd", "overlay-lazy-fd",
		"mount-context", "frozen", "blocked-open", "blocked-read", "io-uring-request", "aio-request", "fuse-backing", "fanotify-permission", "fd-in-flight-unaccepted", "fd-in-flight-orphan", "perf-uprobe",
		"bpf-uprobe"}
	for _, k := range hold.Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			d, err := hold.NewDisk(t.Context(), t.TempDir())
			if errors.Is(err, hold.ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			} else if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}()
			made, err := hold.Make(t.Context(), k, d.Place)
			if errors.Is(err, hold.ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			} else if err != nil {
				t.Fatal(err)
			}
			a, r, err := ask(t.Context(), h, about(d, k))
			if err := errors.Join(err, made.Release()); err != nil {
				t.Fatal(err)
			}
			if r.Verdict == Free || r.Verdict == Pinned || r.Status[len(r.Status)-1] != finding.StatusCannotTell {
				t.Errorf("verdict %s, status %d without the kernel's counter", r.Verdict, r.Status)
			}
			a.Audited, a.Free = true, k.Effect == hold.Harmless // that is not known
			if k.Effect == hold.Blocks {
				a.Unexplained = 0
			}
			for _, wrong := range made.Judge(a) {
				if wrong == "is missed without a word" || slices.Contains(hidden, k.Name) && strings.HasPrefix(wrong, "is not told") {
					continue
				}
				t.Errorf("%s %s; %+v", k.Name, wrong, a.Holders)
			}
		})
	}
}
