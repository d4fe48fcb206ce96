// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package scan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs"
)

// withoutHost takes a census of the files alone, as of a host without processes.
func withoutHost(ctx context.Context, o refs.Options) (*refs.Census, error) {
	c, err := refs.Look(ctx, o)
	if err == nil {
		c.Gaps = slices.DeleteFunc(c.Gaps, func(b finding.Blind) bool { return b.Reason == "they were not asked for" })
	}
	return c, err
}

func stands(rep *Report) (all []string) {
	for _, p := range rep.Pools {
		all = append(all, fmt.Sprintf("%s %d needed %d unprotected %d missing %d", filepath.Base(filepath.Dir(p.Bases)), p.Count,
			p.Needed, p.Unprotected, p.Missing))
	}
	return all
}

// shield gives a base its second name.
func shield(t *testing.T, base string) {
	t.Helper()
	e, err := diskio.LookEntry(base)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(filepath.Dir(base), ".shisa/shields")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Link(base, fmt.Sprintf("%s/%d.%s", dir, e.Ino, filepath.Base(base)))); err != nil {
		t.Fatal(err)
	}
}

// TestPools holds that a base which is missing is the cause of what its overlays say, that one without a shield is
// worth knowing and no fault, and that a shield which has the last of a base is told.
func TestPools(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	vm := dir + "/pool/11111111-1111-4111-8111-111111111111"
	makeImage(t, dir+"/pool/_base/here", "", 0)
	makeImage(t, dir+"/pool/_base/idle", "", 0)
	makeImage(t, vm+"/disk", "../_base/here", 0)
	opts := Options{Census: withoutHost}
	run := func(want ...string) *Report {
		t.Helper()
		rep, err := Run(t.Context(), []string{dir}, opts)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, append(show(rep, dir), stands(rep)...)); d != "" {
			t.Errorf("Run (-want +got):\n%s", d)
		}
		return rep
	}
	run("clean [0]", "BI02 [pool/_base] affects [] machines [] explains []", "pool 2 needed 1 unprotected 1 missing 0")
	shield(t, dir+"/pool/_base/here")
	run("clean [0]", "pool 2 needed 1 unprotected 0 missing 0")

	// One that was removed and only its shield keeps is neither there nor missing.
	spare := dir + "/pool/_base/spare"
	if err := os.WriteFile(spare, make([]byte, 4096), 0o644); err != nil {
		t.Fatal(err)
	}
	shield(t, spare)
	if err := os.Remove(spare); err != nil {
		t.Fatal(err)
	}
	run("clean [0]", "pool 2 needed 1 unprotected 0 missing 0")
	names, err := filepath.Glob(dir + "/pool/_base/.shisa/shields/*.spare")
	if err != nil || len(names) != 1 || os.Remove(names[0]) != nil {
		t.Fatal(names, err)
	}

	makeImage(t, vm+"/disk.rescue", dir+"/pool/_base/gone", 0)
	makeImage(t, dir+"/pool/other/disk", "../_base/gone", 0)
	rep := run("found [3]",
		"BI01 [pool/_base/gone] affects [pool/11111111-1111-4111-8111-111111111111/disk.rescue pool/other/disk] "+
			"machines [11111111-1111-4111-8111-111111111111] explains [CH01 CH01]",
		"pool 2 needed 1 unprotected 0 missing 1")
	if got := rep.Causes[0].Summary; got != "the base gone is needed and not there; 2 images rest on it" {
		t.Errorf("the cause says %q", got)
	}
	if err := os.Remove(dir + "/pool/_base/here"); err != nil {
		t.Fatal(err)
	}
	rep, err = Run(t.Context(), []string{dir}, opts)
	if err != nil || rep.Causes[1].Next != "its shield has it, the very file: shisa base restore "+dir+"/pool/_base here" {
		t.Errorf("Run = %+v, %v, want that the shield is named", rep.Causes, err)
	}
	shields, err := filepath.Glob(dir + "/pool/_base/.shisa/shields/*")
	if err != nil || len(shields) != 1 {
		t.Fatal(shields, err)
	}
	if err := os.Link(shields[0], dir+"/pool/_base/here"); err != nil {
		t.Fatal(err)
	}
	// What cannot be told of a pool is not looked at, and not clean.
	opts.Census = func(context.Context, refs.Options) (*refs.Census, error) { return nil, errors.New("no answer") }
	rep, err = Run(t.Context(), []string{dir + "/pool/_base"}, opts)
	if err != nil || rep.Status[0] != finding.StatusCannotTell || rep.Verdict == finding.Clean {
		t.Errorf("Run with a pool that does not answer = %v %v, %v", rep.Verdict, rep.Status, err)
	}
	opts.Census = func(ctx context.Context, o refs.Options) (*refs.Census, error) { return refs.Look(ctx, o) }
	rep, err = Run(t.Context(), []string{dir}, opts)
	if err != nil || !slices.Contains(rep.Status, finding.StatusCannotTell) {
		t.Errorf("Run with what the census did not see = %v %v, %v", rep.Verdict, rep.Status, err)
	}
}

// TestPoolsOfHost: the pools of this host are those that its configuration names, whatever they are called.
func TestPoolsOfHost(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	put(t, root+"/etc/nova/nova.conf", "[DEFAULT]\ninstances_path = /srv/nova\n[image_cache]\nsubdirectory_name = cache\n")
	put(t, root+"/etc/libvirt/storage/vms.xml", `<pool type="dir"><name>vms</name><target><path>/srv/vms</path></target></pool>`)
	makeImage(t, root+"/srv/nova/1/disk", "../cache/gone", 0)
	makeImage(t, root+"/srv/nova/2/disk", "../cache/here", 0)
	makeImage(t, root+"/srv/nova/cache/here", "", 0)
	makeImage(t, root+"/srv/vms/golden.qcow2", "", 0)
	makeImage(t, root+"/srv/vms/vm.qcow2", "golden.qcow2", 0)
	makeImage(t, root+"/srv/vms/lost.qcow2", "silver.qcow2", 0)
	put(t, root+"/proc/1/comm", "init\n")
	rep, err := Run(t.Context(), nil, Options{Census: withoutHost, Check: check.Options{Root: root}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"nova 1 needed 1 unprotected 1 missing 1", "srv 1 needed 1 unprotected 1 missing 1"}
	if d := cmp.Diff(want, stands(rep)); d != "" {
		t.Errorf("pools (-want +got):\n%s", d)
	}
	codes := []string{}
	for _, c := range rep.Causes {
		codes = append(codes, c.Code+" "+filepath.Base(c.Objects[0]))
	}
	if d := cmp.Diff([]string{"BI01 gone", "BI01 silver.qcow2", "BI02 cache", "BI02 vms"}, codes); d != "" {
		t.Errorf("causes (-want +got):\n%s", d)
	}
}
