// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// nfs is a machine with one NFS mount.
func nfs(change func(*evidence.Evidence), events ...evidence.Event) evidence.Evidence {
	return one("nfs4", func(e *evidence.Evidence) {
		e.FSs[0].Device, e.FSs[0].Source = "", "nas:/export"
		e.Mounts[0].Source, e.Mounts[0].Super = "nas:/export", "rw,vers=4.2,hard"
		e.Mounts[0].NFS = &evidence.NFS{Server: "nas", Export: "/export", Vers: "4.2", Waiting: -1}
		if change != nil {
			change(e)
		}
	}, events...)
}

func fromNAS(form string, before time.Duration) evidence.Event {
	return event(form, before, map[string]string{"server": "nas"})
}

func hangs(e *evidence.Evidence) {
	e.Mounts[0].Probe = &evidence.Answer{Errno: -1, StatfsErrno: -1, WriteErrno: -1, Hung: true, Waited: 2 * time.Second}
}

func notAskedFor(why string) func(*evidence.Evidence) {
	return func(e *evidence.Evidence) { e.Mounts[0].Probe, e.Mounts[0].NotAsked = nil, why }
}

func TestNF01(t *testing.T) {
	const m, h = "mount:h:/srv", time.Hour
	r := ruleNF01()
	stuck := func(kind string) []says { return []says{{m, Fail, kind, finding.Danger}} }
	runRules(t, []ruleCase{
		{"answers", r, nfs(nil), []says{{m, Pass, "", ""}}},
		{"hangs", r, nfs(hangs), stuck("nfs")},
		{"hangs and was said", r, nfs(hangs, fromNAS("nfs.hang", h)), stuck("nfs")},
		{"said, and not asked", r, nfs(notAskedFor("why"), fromNAS("nfs.hang", h)), stuck("nfs")},
		{"said of another server", r, nfs(notAskedFor("why"), event("nfs.hang", h, map[string]string{"server": "other"})),
			[]says{{m, Unknown, "", ""}}},
		{"the server is back", r, nfs(notAskedFor("why"), fromNAS("nfs.hang", 2*h), fromNAS("nfs.ok", h)), []says{{m, Unknown, "", ""}}},
		{"it hung, and answers", r, nfs(nil, fromNAS("nfs.hang", 2*h), fromNAS("nfs.ok", h)),
			[]says{{m, Fail, "did-not-answer", finding.Note}}},
		{"its counters say so", r, nfs(all(notAskedFor("waits"), func(e *evidence.Evidence) { e.Mounts[0].NFS.Stalled = true })), stuck("nfs")},
		{"its daemon is gone", r, one("fuse.sshfs", func(e *evidence.Evidence) { e.Mounts[0].Probe.Errno = int(unix.ENOTCONN) }), stuck("gone")},
		{"FUSE", r, one("fuse.sshfs", hangs), stuck("fuse")},
		{"a disk", r, one("ext4", hangs), stuck("device")},
		{"its disk answers nobody", r, one("ext4", func(e *evidence.Evidence) {
			e.Stalled = []evidence.ProbedDevice{{Name: "sda1", InFlight: 3, Waited: 2 * time.Second}}
		}), stuck("device")},
		{"another disk answers nobody", r, one("ext4", func(e *evidence.Evidence) {
			e.Stalled = []evidence.ProbedDevice{{Name: "sdb1", InFlight: 3, Waited: 2 * time.Second}}
		}), []says{{m, Pass, "", ""}}},
		{"not asked", r, one("fuse.sshfs", notAskedFor("below an automount point")), []says{{m, Unknown, "", ""}}},
		{"covered by another", r, one("tmpfs", func(e *evidence.Evidence) { e.Mounts[0].Hidden, e.Mounts[0].Probe = true, nil }), nil},
		{"of a disk that does not run", r, dead(evidence.FSLog{}, nil), nil},
	})
}

// TestNF01Says: of NFS the server and the share are named, with the time since when no answer came, as far as the
// kernel said so, and what is to be asked of whom.
func TestNF01Says(t *testing.T) {
	const who, waits = "the NFS server nas does not answer this machine", ": who uses its share /export, mounted at /srv, waits"
	at := func(before time.Duration) string {
		return ", since " + noon.Add(-before).Format("2006-01-02 15:04:05 UTC") + " at the latest"
	}
	until := func(ev evidence.Event, before time.Duration) evidence.Event {
		ev.Last = noon.Add(-before)
		return ev
	}
	const h = time.Hour
	for name, c := range map[string]struct {
		events []evidence.Event
		want   string
	}{
		"nothing was said":            {nil, who + waits},
		"said twice":                  {[]evidence.Event{fromNAS("nfs.hang", 2*h), fromNAS("nfs.hang", h)}, who + at(2*h) + waits},
		"answered between":            {[]evidence.Event{fromNAS("nfs.hang", 3*h), fromNAS("nfs.ok", 2*h), fromNAS("nfs.hang", h)}, who + at(h) + waits},
		"answered between, as one":    {[]evidence.Event{until(fromNAS("nfs.hang", 3*h), h), fromNAS("nfs.ok", 2*h)}, who + at(h) + waits},
		"answered since":              {[]evidence.Event{fromNAS("nfs.hang", 2*h), fromNAS("nfs.ok", h)}, who + waits},
		"answered since, last of all": {[]evidence.Event{until(fromNAS("nfs.ok", 3*h), h), fromNAS("nfs.hang", 2*h)}, who + waits},
	} {
		t.Run(name, func(t *testing.T) {
			e := nfs(hangs, c.events...)
			r := ruleNF01()
			all := r.judge(&e)
			if len(all) != 1 || all[0].Finding == nil {
				t.Fatalf("%+v, want one finding", all)
			}
			f := all[0].Finding
			if f.Summary != c.want {
				t.Errorf("it says %q, want %q", f.Summary, c.want)
			}
			if x := f.Remedies; len(x) < 2 || x[0].Command != "rpcinfo -t nas nfs" || x[1].Command != "shisa doctor" ||
				!strings.HasPrefix(x[1].Text, "on nas itself: ") || !strings.Contains(x[1].Text, "/export") {
				t.Errorf("what to do is %+v, want to ask the server, and the doctor there", x)
			}
		})
	}
}

func TestNF02And03And04(t *testing.T) {
	const m, share = "mount:h:/srv", "share::nas:/export"
	full := func(e *evidence.Evidence) { e.Mounts[0].Probe.Avail = 0 }
	soft := func(e *evidence.Evidence) { e.Mounts[0].NFS.Soft = true }
	image := func(e *evidence.Evidence) { e.Images = []evidence.Image{{Path: "/srv/vm.qcow2"}} }
	exports := func(e *evidence.Evidence) { e.Config.Exports = []string{"/srv/export"} }
	runRules(t, []ruleCase{
		{"room", ruleNF02(), nfs(nil), []says{{share, Pass, "", ""}}},
		{"full", ruleNF02(), nfs(full), []says{{share, Fail, "full", finding.Danger}}},
		{"does not answer", ruleNF02(), nfs(hangs), []says{{share, Unknown, "", ""}}},
		{"not asked", ruleNF02(), nfs(notAskedFor("why")), []says{{share, Unknown, "", ""}}},
		{"a server with room", ruleNF02(), one("xfs", exports), []says{{"share::h:/srv/export", Pass, "", ""}}},
		{"a server that is full", ruleNF02(), one("xfs", all(exports, full)), []says{{"share::h:/srv/export", Fail, "full", finding.Danger}}},
		{"hard", ruleNF03(), nfs(nil), []says{{m, Pass, "", ""}}},
		{"soft 4", ruleNF03(), nfs(soft), []says{{m, Fail, "soft", finding.Note}}},
		{"soft 3", ruleNF03(), nfs(all(soft, func(e *evidence.Evidence) { e.Mounts[0].NFS.Vers = "3" })), []says{{m, Pass, "", ""}}},
		{"soft of no version", ruleNF03(), nfs(all(soft, func(e *evidence.Evidence) { e.Mounts[0].NFS.Vers = "" })),
			[]says{{m, Unknown, "", ""}}},
		{"no images", ruleNF04(), nfs(soft), nil},
		{"images on a soft mount", ruleNF04(), nfs(all(soft, image)), []says{{m, Fail, "unsafe", finding.Warning}}},
		{"images without locks", ruleNF04(), nfs(all(image, func(e *evidence.Evidence) { e.Mounts[0].NFS.NoLock = true })),
			[]says{{m, Fail, "unsafe", finding.Warning}}},
		{"images on a hard mount", ruleNF04(), nfs(image), []says{{m, Pass, "", ""}}},
	})
}

func TestPR01And02(t *testing.T) {
	const task, host, h = "task:h:ls[17]", "host:h:h", time.Hour
	waits := func(x evidence.Task) func(*evidence.Evidence) {
		x.TID, x.Same = 17, true
		return func(e *evidence.Evidence) { e.Tasks = evidence.Tasks{Looked: 5, Waiting: []evidence.Task{x}} }
	}
	looked := func(e *evidence.Evidence) { e.Tasks.Looked = 5 }
	asleep := func(a *evidence.Answer) func(*evidence.Evidence) {
		return func(e *evidence.Evidence) {
			waits(evidence.Task{Comm: "ls", Asleep: true, Mounts: []string{e.Mounts[0].Point}})(e)
			e.Mounts[0].Probe = a
		}
	}
	said := event("hung.task", h, map[string]string{"comm": "ls", "pid": "17", "seconds": "122"})
	lately, old := said, said
	lately.Time = noon.Add(-3 * time.Minute)
	old.Time, old.Last = noon.Add(-48*h), noon.Add(-48*h)
	unasked := func(e *evidence.Evidence) {
		e.Gaps = append(e.Gaps, evidence.Gap{Part: evidence.PartTasks, Reason: "a copy"})
	}
	silent := func(e *evidence.Evidence) { e.Log.HungSilent = true }
	runRules(t, []ruleCase{
		{"nobody waits", rulePR01(), one("ext4", looked), []says{{host, Pass, "", ""}}},
		{"one waits", rulePR01(), one("ext4", waits(evidence.Task{Comm: "ls", Mounts: []string{"/srv"}})),
			[]says{{task, Fail, "waits", finding.Warning}}},
		{"a thread of the kernel", rulePR01(), one("ext4", waits(evidence.Task{Comm: "ls", Kernel: true})),
			[]says{{task, Fail, "kernel-thread", finding.Note}}},
		{"one that writes for a disk", rulePR01(), one("ext4", waits(evidence.Task{Comm: "ls", Kernel: true, Devices: []string{"sda1"}})),
			[]says{{task, Fail, "waits", finding.Warning}}},
		{"for a server that hangs", rulePR01(), one("fuse.sshfs", asleep(&evidence.Answer{Hung: true})),
			[]says{{task, Fail, "waits", finding.Warning}}},
		{"for a server that answers others", rulePR01(), one("fuse.sshfs", asleep(&evidence.Answer{Blocks: 1})),
			[]says{{task, Fail, "server-waits", finding.Note}}},
		{"for a server that lets nobody else look", rulePR01(), one("fuse.sshfs", asleep(&evidence.Answer{Errno: int(unix.EACCES)})),
			[]says{{task, Unknown, "", ""}}},
		{"for a server that was not asked", rulePR01(), one("fuse.sshfs", asleep(nil)), []says{{task, Unknown, "", ""}}},
		{"one that got on", rulePR01(), one("ext4", func(e *evidence.Evidence) {
			e.Tasks = evidence.Tasks{Looked: 5, Waiting: []evidence.Task{{Comm: "ls", TID: 17}}}
		}), []says{{host, Pass, "", ""}}},
		{"not looked", rulePR01(), one("ext4", unasked), []says{{host, Unknown, "", ""}}},
		{"nobody hangs", rulePR02(), one("ext4", looked), []says{{host, Pass, "", ""}}},
		{"hangs", rulePR02(), one("ext4", waits(evidence.Task{Comm: "ls"}), said), []says{{task, Fail, "hung", finding.Warning}}},
		{"hung, and waits no more", rulePR02(), one("ext4", looked, said), []says{{task, Fail, "hung", finding.Note}}},
		{"hangs in a copy", rulePR02(), one("ext4", unasked, lately), []says{{task, Fail, "hung", finding.Warning}}},
		{"hangs, and the kernel is silent", rulePR02(), one("ext4", all(unasked, silent), said), []says{{task, Fail, "hung",
			finding.Warning}}},
		{"hung, and the kernel says so no more", rulePR02(), one("ext4", unasked, said), []says{{task, Fail, "hung", finding.Note}}},
		{"of another boot", rulePR02(), one("ext4", unasked, old), []says{{task, Fail, "hung", finding.Note}}},
		{"the kernel is silent", rulePR02(), one("ext4", all(unasked, silent)), []says{{host, Unknown, "", ""}}},
		{"the kernel is silent, and nobody waits", rulePR02(), one("ext4", all(looked, silent)), []says{{host, Pass, "", ""}}},
		{"no log", rulePR02(), one("ext4", unread), []says{{host, Unknown, "", ""}}},
	})
}

func TestUM01(t *testing.T) {
	busy := event("umount.busy", time.Hour, map[string]string{"path": "/srv"})
	gone := func(after time.Duration) evidence.Event {
		ev := event("unit.stopped", time.Hour-after, map[string]string{"unit": "/srv"})
		ev.Text = "Unmounted /srv."
		return ev
	}
	super := onSDA("ext4.unmounted", time.Hour-300*time.Millisecond)
	runRules(t, []ruleCase{
		{"nothing", ruleUM01(), one("ext4", nil), nil},
		{"a moment", ruleUM01(), one("ext4", nil, busy, gone(400*time.Millisecond)), []says{{"mount:h:/srv", Fail, "prober", finding.Note}}},
		{"a moment, by the kernel", ruleUM01(), one("ext4", nil, busy, super), []says{{"mount:h:/srv", Fail, "prober", finding.Note}}},
		{"a holder", ruleUM01(), one("ext4", nil, busy, gone(3*time.Second)), []says{{"mount:h:/srv", Unknown, "", ""}}},
		{"for good", ruleUM01(), one("ext4", nil, busy), []says{{"mount:h:/srv", Unknown, "", ""}}},
	})
}

// TestRecovery: the storage comes first, then a copy, and nothing writes before that; each step that can
// harm says so.
func TestRecovery(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		e := one(fsType, func(e *evidence.Evidence) {
			part := evidence.Device{}
			part.Name, part.Disk, part.Partition = "sda1", "sda", 1
			e.Devices = []evidence.Device{part, disk("sda", "offline")}
		})
		steps := recovery(&e, 0)
		at := func(word string) int {
			for i, s := range steps {
				if strings.Contains(s.Command+" "+s.Text, word) {
					return i
				}
			}
			t.Errorf("%s: no step has %q", fsType, word)
			return -1
		}
		order := []int{at("echo running > /sys/block/sda/device/state"), at("copy what can be read"), at("shisa umount /srv"),
			at(checker(fsType, "COPY")), at("mount /srv")}
		for i := 1; i < len(order); i++ {
			if order[i] <= order[i-1] && fsType != "x" && i != len(order)-1 {
				t.Errorf("%s: the steps are out of order: %v", fsType, order)
			}
		}
		for _, s := range steps {
			if s.Text == "" || strings.HasPrefix(s.Command, "echo") && (s.Undo == "" || s.Risk == "") {
				t.Errorf("%s: %+v", fsType, s)
			}
		}
	}
	e := one("ext4", func(e *evidence.Evidence) { e.Mounts[0].Point = "/" })
	for _, s := range recovery(&e, 0) {
		if strings.Contains(s.Command, "umount") {
			t.Errorf("the root is to be unmounted: %+v", s)
		}
	}
	d := dead(evidence.FSLog{Dirty: true}, nil)
	d.Kind = tree.Disk
	for _, s := range recovery(&d, 0) {
		if strings.Contains(s.Command, "/dev/") || strings.Contains(s.Command, "mount") {
			t.Errorf("of a disk that nobody runs: %+v", s)
		}
	}
	if got := quoted("/a b'c"); got != `'/a b'\''c'` {
		t.Errorf("quoted = %s", got)
	}
}
