// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// answer is that of a mount on which nothing is wrong.
func answer() *evidence.Answer {
	return &evidence.Answer{WriteErrno: -1, BlockSize: 4096, Blocks: 1 << 24, Free: 1 << 23, Avail: 1 << 23,
		Inodes: 1000, InodesFree: 900}
}

// one is a machine with one file system of a type on sda1 at /srv, and a log that was read.
func one(fsType string, change func(*evidence.Evidence), events ...evidence.Event) evidence.Evidence {
	e := evidence.Evidence{
		Host: evidence.Host{Name: "h", Booted: noon.Add(-24 * time.Hour)},
		Mounts: []evidence.Mount{{Mount: linux.Mount{ID: 30, Point: "/srv", Root: "/", Options: "rw,relatime", Type: fsType,
			Source: "/dev/sda1", Super: "rw"}, Own: true, Probe: answer()}},
		FSs: []evidence.FS{{Type: fsType, Device: "sda1", Mounts: []int{0}}},
		Log: evidence.Log{Events: events, From: noon.Add(-24 * time.Hour), To: noon, Sources: []evidence.LogSource{{Path: "/dev/kmsg"}}},
	}
	if change != nil {
		change(&e)
	}
	return e
}

// onSDA is a message about sda1, some time ago.
func onSDA(form string, before time.Duration) evidence.Event {
	return event(form, before, map[string]string{"device": "sda1"})
}

// unread is a log of which nothing is known.
func unread(e *evidence.Evidence) {
	e.Log = evidence.Log{}
	e.Gaps = append(e.Gaps, evidence.Gap{Part: evidence.PartLog, Reason: "no rights"})
}

func mountOption(list string) func(*evidence.Evidence) {
	return func(e *evidence.Evidence) { e.Mounts[0].Super = list }
}

func super(s evidence.Super) func(*evidence.Evidence) {
	return func(e *evidence.Evidence) { e.FSs[0].Super = &s }
}

// dead is a disk with an ext4 that nobody runs.
func dead(l evidence.FSLog, change func(*evidence.Evidence), events ...evidence.Event) evidence.Evidence {
	e := one("ext4", change, events...)
	e.Kind, e.Host.Booted = tree.Disk, time.Time{}
	e.FSs[0].Log, e.FSs[0].Device, e.FSs[0].Names = &l, "part 1", []string{"vda1", "sda1"}
	return e
}

func all(changes ...func(*evidence.Evidence)) func(*evidence.Evidence) {
	return func(e *evidence.Evidence) {
		for _, c := range changes {
			c(e)
		}
	}
}

// wrote gives an answer to a file without a name.
func wrote(errno unix.Errno) func(*evidence.Evidence) {
	return func(e *evidence.Evidence) { e.Mounts[0].Probe.WriteErrno = int(errno) }
}

type ruleCase struct {
	name string
	rule Rule
	e    evidence.Evidence
	want []says
}

func runRules(t *testing.T, cases []ruleCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.rule.Code+" "+c.name, func(t *testing.T) { ask(t, c.rule, &c.e, c.want...) })
	}
}

func TestFS01(t *testing.T) {
	const fs, h = "filesystem:h:sda1", time.Hour
	r := ruleFS01()
	lost := []says{{fs, Fail, "gave-up", finding.Lost}}
	was := []says{{fs, Fail, "gave-up", finding.Note}}
	before := []says{{fs, Fail, "gave-up-before", finding.Note}}
	well := []says{{fs, Pass, "", ""}}
	cannot := []says{{fs, Unknown, "", ""}}
	onDisk := func(o Outcome, kind string, s finding.Severity) []says {
		return []says{{"filesystem:h:part 1", o, kind, s}}
	}
	zero := super(evidence.Super{})
	counted := super(evidence.Super{Errors: 5, LastError: noon.Add(-h), OnError: "continue"})
	old := super(evidence.Super{Errors: 5, LastError: noon.Add(-100 * h)})
	checked := super(evidence.Super{Checked: noon.Add(-h)})
	runRules(t, []ruleCase{
		{"healthy", r, one("ext4", zero), well},
		{"another type", r, one("xfs", nil), nil},
		{"rw in the options and aborted", r, one("ext4", zero, onSDA("ext4.abort", h)), lost},
		{"said of one before, of which no umount was told", r, one("ext4", zero, onSDA("ext4.abort", h), onSDA("ext4.ro", h)), well},
		{"said and counted", r, one("ext4", counted, onSDA("ext4.abort", h), onSDA("ext4.ro", h)), lost},
		{"another disk aborted", r, one("ext4", zero, event("ext4.abort", h, map[string]string{"device": "sdb1"})), well},
		{"mounted anew since", r, one("ext4", zero, onSDA("ext4.abort", 2*h), onSDA("ext4.mounted", h)), before},
		{"aborted after it was mounted", r, one("ext4", zero, onSDA("ext4.mounted", 3*h), onSDA("ext4.abort", h)), lost},
		{"an abort of the boot before", r, one("ext4", zero, onSDA("ext4.abort", 48*h)), before},
		{"checked since", r, one("ext4", checked, onSDA("ext4.abort", 2*h)), before},
		{"the kernel's word", r, one("ext4", mountOption("rw,errors=remount-ro,emergency_ro")), lost},
		{"the file system is ro and the mount is not", r, one("ext4", mountOption("ro,errors=remount-ro")), lost},
		{"mounted for reading", r, one("ext4", func(e *evidence.Evidence) {
			e.Mounts[0].Options, e.Mounts[0].Super = "ro,relatime", "ro"
		}), well},
		{"no write is taken", r, one("ext4", wrote(unix.EROFS)), lost},
		{"no space is no fault of it", r, one("ext4", wrote(unix.ENOSPC)), well},
		{"a write is taken, whatever was said", r, one("ext4", wrote(0), onSDA("ext4.abort", h)), was},
		{"errors and it goes on", r, one("ext4", counted), []says{{fs, Fail, "errors", finding.Danger}}},
		{"a message of an error", r, one("ext4", nil, onSDA("ext4.error", h)), []says{{fs, Fail, "errors", finding.Danger}}},
		{"errors of long ago", r, one("ext4", old), well},
		{"shut down by hand", r, one("ext4", nil, onSDA("ext4.shutdown", h)), []says{{fs, Fail, "shut-down", finding.Danger}}},
		{"nothing known", r, one("ext4", unread), cannot},
		{"only old errors known", r, one("ext4", all(unread, old)), cannot},
		{"counters without a log", r, one("ext4", all(unread, zero)), well},
		{"a write without a log", r, one("ext4", all(unread, wrote(0))), well},
		{"aborted on a dead disk", r, dead(evidence.FSLog{Dirty: true}, zero, onSDA("ext4.abort", h)), onDisk(Fail, "gave-up", finding.Lost)},
		{"the journal has an error", r, dead(evidence.FSLog{Dirty: true}, super(evidence.Super{State: "clean", Aborted: -5})),
			onDisk(Fail, "gave-up", finding.Lost)},
		{"unmounted", r, dead(evidence.FSLog{}, super(evidence.Super{State: "clean"})), onDisk(Pass, "", "")},
		{"a clean superblock and no log proves nothing", r, dead(evidence.FSLog{Dirty: true},
			all(unread, super(evidence.Super{State: "clean"}))), onDisk(Unknown, "", "")},
		{"a log that ends before proves nothing", r, dead(evidence.FSLog{Dirty: true}, func(e *evidence.Evidence) {
			e.Log.To = noon.Add(-h)
		}), onDisk(Unknown, "", "")},
		{"cut off with its log going on", r, dead(evidence.FSLog{Dirty: true}, nil), onDisk(Pass, "", "")},
	})
}

// TestOneDeviceManyFileSystems: what was said of another file system that was on the device is none of this
// one's: by the UUID of what was mounted, by another disk behind the device, by the boot.
func TestOneDeviceManyFileSystems(t *testing.T) {
	const fs, h = "filesystem:h:sda1", time.Hour
	r := ruleFS01()
	with := func(ev evidence.Event, key, value string) evidence.Event {
		ev.Fields[key] = value
		return ev
	}
	mounted := func(uuid string, before time.Duration) evidence.Event {
		return with(onSDA("ext4.mounted", before), "uuid", uuid)
	}
	const this, other = "00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"
	known := func(e *evidence.Evidence) { e.FSs[0].UUID = this }
	earlier := onSDA("ext4.abort", 2*h)
	earlier.Boot = "1111"
	booted := func(e *evidence.Evidence) { e.Host.BootID = "22-22" }
	well, lost := []says{{fs, Pass, "", ""}}, []says{{fs, Fail, "gave-up", finding.Lost}}
	before := []says{{fs, Fail, "gave-up-before", finding.Note}}
	runRules(t, []ruleCase{
		{"its own, before", r, one("ext4", known, mounted(this, 3*h), onSDA("ext4.abort", 2*h), mounted(this, h)), before},
		{"another one's", r, one("ext4", known, mounted(other, 3*h), onSDA("ext4.abort", 2*h), mounted(this, h)), well},
		{"another one's, its UUID by its last mount", r, one("ext4", nil, mounted(other, 3*h), onSDA("ext4.abort", 2*h),
			mounted(this, h)), well},
		{"of one of which no mount was told", r, one("ext4", nil, onSDA("xfs.mounted", 3*h), onSDA("ext4.abort", 2*h)), lost},
		{"after another one was unmounted", r, one("ext4", known, mounted(other, 3*h), onSDA("ext4.unmounted", 2*h),
			onSDA("ext4.abort", h)), lost},
		{"of the disk that was there", r, one("ext4", nil, onSDA("ext4.abort", 2*h),
			with(onSDA("blk.capacity", h), "from", "0")), well},
		{"a disk that grew", r, one("ext4", nil, onSDA("ext4.abort", 2*h), with(onSDA("blk.capacity", h), "from", "8")), lost},
		{"of another boot", r, one("ext4", booted, earlier), before},
	})
}

func TestFS02(t *testing.T) {
	const fs, h = "filesystem:h:sda1", time.Hour
	r := ruleFS02()
	eio := func(e *evidence.Evidence) { e.Mounts[0].Probe.Errno = int(unix.EIO) }
	mute := func(e *evidence.Evidence) { e.Mounts[0].Probe = nil }
	down := []says{{fs, Fail, "shut-down", finding.Lost}}
	runRules(t, []ruleCase{
		{"healthy", r, one("xfs", nil), []says{{fs, Pass, "", ""}}},
		{"stat says EIO and statfs works", r, one("xfs", all(eio, unread)), down},
		{"the kernel said so", r, one("xfs", eio, onSDA("xfs.logio", h), onSDA("xfs.shutdown", h)), down},
		{"it was not asked, the kernel said so", r, one("xfs", mute, onSDA("xfs.shutdown", h)), down},
		{"somebody asked for it", r, one("xfs", eio, onSDA("xfs.user", h)), []says{{fs, Fail, "by-hand", finding.Danger}}},
		{"the log failed, and a word of a user too", r, one("xfs", eio, onSDA("xfs.user", h), onSDA("xfs.logio", h)), down},
		{"it answers since", r, one("xfs", nil, onSDA("xfs.shutdown", h)), []says{{fs, Fail, "shut-down", finding.Note}}},
		{"before it was mounted", r, one("xfs", nil, onSDA("xfs.shutdown", 2*h), onSDA("xfs.mounted", h)),
			[]says{{fs, Fail, "shut-down-before", finding.Note}}},
		{"nothing known", r, one("xfs", all(mute, unread)), []says{{fs, Unknown, "", ""}}},
		{"the disk itself fails", r, one("xfs", func(e *evidence.Evidence) {
			e.Mounts[0].Probe.Errno, e.Mounts[0].Probe.StatfsErrno = int(unix.EIO), int(unix.EIO)
		}), []says{{fs, Pass, "", ""}}},
	})
}

func TestFS03(t *testing.T) {
	const fs, h = "filesystem:h:sda1", time.Hour
	r := ruleFS03()
	ro := []says{{fs, Fail, "forced-ro", finding.Lost}}
	runRules(t, []ruleCase{
		{"healthy", r, one("btrfs", nil), []says{{fs, Pass, "", ""}}},
		{"forced", r, one("btrfs", mountOption("ro,space_cache=v2")), ro},
		{"forced and said", r, one("btrfs", mountOption("ro"), onSDA("btrfs.abort", h), onSDA("btrfs.ro", h)), ro},
		{"by hand", r, one("btrfs", func(e *evidence.Evidence) { e.Mounts[0].Options, e.Mounts[0].Super = "ro", "ro" }),
			[]says{{fs, Pass, "", ""}}},
		{"over", r, one("btrfs", wrote(0), onSDA("btrfs.ro", h)), []says{{fs, Fail, "forced-ro", finding.Note}}},
		{"of a disk", r, func() evidence.Evidence { e := one("btrfs", nil); e.Kind = tree.Disk; return e }(),
			[]says{{fs, Unknown, "", ""}}},
	})
}

func TestFS04(t *testing.T) {
	const h = time.Hour
	r := ruleFS04()
	hurt := func(form, ino string, before time.Duration) evidence.Event {
		return event(form, before, map[string]string{"device": "sda1", "inode": ino})
	}
	runRules(t, []ruleCase{
		{"healthy", r, one("ext4", nil), nil},
		{"two files", r, one("ext4", nil, hurt("ext4.endbio", "12", 2*h), hurt("ext4.dataloss", "12", 2*h), hurt("ext4.endbio", "13", h)),
			[]says{{"file:h:sda1:inode 13", Fail, "content", finding.Danger}, {"file:h:sda1:inode 12", Fail, "content", finding.Danger}}},
		{"xfs", r, one("xfs", nil, hurt("xfs.writeback", "131", h)), []says{{"file:h:sda1:inode 131", Fail, "content", finding.Danger}}},
		{"with its name", r, one("xfs", func(e *evidence.Evidence) {
			e.FSs[0].Hurt = []evidence.HurtFile{{Inode: 131, Path: "/db/file"}}
		}, hurt("xfs.writeback", "131", h)), []says{{"file:h:sda1:/db/file", Fail, "content", finding.Danger}}},
		{"no inode is named", r, one("xfs", nil, onSDA("xfs.writeback", h)), nil},
		{"nothing known", r, one("ext4", unread), []says{{"host:h:h", Unknown, "", ""}}},
	})
}

func TestFS05And06And09(t *testing.T) {
	const fs, h = "filesystem:h:sda1", time.Hour
	part := func(o Outcome, kind string, s finding.Severity) []says {
		return []says{{"filesystem:h:part 1", o, kind, s}}
	}
	btrfs := func(n int64) func(*evidence.Evidence) {
		return super(evidence.Super{DeviceErrors: map[string]map[string]int64{"1": {"write_errs": n}}})
	}
	runRules(t, []ruleCase{
		{"clean", ruleFS05(), dead(evidence.FSLog{}, super(evidence.Super{State: "clean"})), part(Pass, "", "")},
		{"marked", ruleFS05(), dead(evidence.FSLog{}, super(evidence.Super{State: "errors", Errors: 2, LastError: noon.Add(-h)})),
			part(Fail, "errors-noted", finding.Danger)},
		{"checked since", ruleFS05(), dead(evidence.FSLog{}, super(evidence.Super{State: "clean", Errors: 2,
			LastError: noon.Add(-2 * h), Checked: noon.Add(-h)})), part(Fail, "errors-noted", finding.Note)},
		{"counters", ruleFS05(), one("btrfs", btrfs(3)), []says{{fs, Fail, "errors-noted", finding.Danger}}},
		{"no counters", ruleFS05(), one("btrfs", btrfs(0)), []says{{fs, Pass, "", ""}}},
		{"none", ruleFS05(), one("xfs", super(evidence.Super{})), nil},
		{"dirty", ruleFS06(), dead(evidence.FSLog{Dirty: true, Replayed: 3}, nil), part(Fail, "not-unmounted", finding.Note)},
		{"not whole", ruleFS06(), dead(evidence.FSLog{Dirty: true, Incomplete: []string{"inode 3"}}, nil),
			part(Fail, "not-whole", finding.Warning)},
		{"unmounted", ruleFS06(), dead(evidence.FSLog{}, nil), part(Pass, "", "")},
		{"mounted", ruleFS06(), one("ext4", nil), nil},
		{"continue", ruleFS09(), one("ext4", super(evidence.Super{OnError: "continue"})), []says{{fs, Fail, "continues", finding.Note}}},
		{"remount-ro", ruleFS09(), one("ext4", super(evidence.Super{OnError: "remount-ro"})), []says{{fs, Pass, "", ""}}},
		{"unknown", ruleFS09(), one("ext4", nil), []says{{fs, Unknown, "", ""}}},
	})
}

func TestFS08(t *testing.T) {
	const fs = "filesystem:h:sda1"
	r := ruleFS08()
	room := func(free, avail, inodes uint64) evidence.Evidence {
		return one("ext4", func(e *evidence.Evidence) {
			e.Mounts[0].Probe.Free, e.Mounts[0].Probe.Avail, e.Mounts[0].Probe.InodesFree = free, avail, inodes
		})
	}
	fails := func(kind string, s finding.Severity) []says { return []says{{fs, Fail, kind, s}} }
	runRules(t, []ruleCase{
		{"room", r, one("ext4", nil), []says{{fs, Pass, "", ""}}},
		{"full", r, room(0, 0, 900), fails("full", finding.Danger)},
		{"full but for root", r, room(800_000, 0, 900), fails("reserved", finding.Danger)},
		{"no inodes", r, room(1<<23, 1<<23, 0), fails("inodes", finding.Danger)},
		{"few inodes", r, room(1<<23, 1<<23, 5), fails("inodes-low", finding.Warning)},
		{"nearly", r, room(200_000, 200_000, 900), fails("nearly-full", finding.Warning)},
		{"four percent of much is room", r, room(700_000, 700_000, 900), []says{{fs, Pass, "", ""}}},
		{"an image of a CD", r, one("squashfs", func(e *evidence.Evidence) { e.Mounts[0].Probe.Free, e.Mounts[0].Probe.Avail = 0, 0 }), nil},
		{"for reading", r, one("ext4", func(e *evidence.Evidence) {
			e.Mounts[0].Options, e.Mounts[0].Probe.Avail = "ro", 0
		}), nil},
		{"covered by another", r, one("ext4", func(e *evidence.Evidence) { e.Mounts[0].Hidden, e.Mounts[0].Probe = true, nil }), nil},
		{"no answer", r, one("ext4", func(e *evidence.Evidence) {
			e.Mounts[0].Probe = &evidence.Answer{Errno: -1, StatfsErrno: -1, Hung: true}
		}), []says{{fs, Unknown, "", ""}}},
		{"not asked", r, one("ext4", func(e *evidence.Evidence) { e.Mounts[0].Probe, e.Mounts[0].NotAsked = nil, "why" }),
			[]says{{fs, Unknown, "", ""}}},
	})
}

func TestFS10(t *testing.T) {
	r := ruleFS10()
	table := func(ids map[string]string, all ...evidence.FstabEntry) evidence.Evidence {
		return evidence.Evidence{IDs: ids, Config: evidence.Config{Fstab: all}}
	}
	line := func(source, point, fsType string, options ...string) evidence.FstabEntry {
		return evidence.FstabEntry{Source: source, Point: point, Type: fsType, Options: options, From: evidence.Source{Path: "/etc/fstab", Line: 1}}
	}
	ids := map[string]string{"UUID=AB-1": "sda1", "LABEL=data": "sdb1"}
	runRules(t, []ruleCase{
		{"the root", r, table(ids, line("UUID=ab-1", "/", "ext4")), []says{{"mount:h:/", Pass, "", ""}}},
		{"a table that cannot be read", r, evidence.Evidence{Gaps: []evidence.Gap{{Part: evidence.PartConfig,
			Object: "/etc/fstab", Reason: "no"}}}, []says{{"host:h:h", Unknown, "", ""}}},
		{"another file that cannot be read", r, evidence.Evidence{Gaps: []evidence.Gap{{Part: evidence.PartConfig,
			Object: "/etc/multipath.conf", Reason: "no"}}}, nil},
		{"a disk that is not there", r, table(ids, line("UUID=2", "/data", "xfs", "defaults")),
			[]says{{"mount:h:/data", Fail, "absent", finding.Warning}}},
		{"not there and not needed", r, table(ids, line("LABEL=none", "/data", "xfs", "nofail")),
			[]says{{"mount:h:/data", Fail, "absent-optional", finding.Note}}},
		{"a disk more", r, table(ids, line(`"LABEL=data"`, "/data", "xfs")), []says{{"mount:h:/data", Fail, "no-nofail", finding.Note}}},
		{"a disk more, not needed", r, table(ids, line("/dev/disk/by-label/data", "/data", "xfs", "x-systemd.automount")),
			[]says{{"mount:h:/data", Pass, "", ""}}},
		{"a server", r, table(ids, line("nas:/e", "/mnt", "nfs4", "hard")), []says{{"mount:h:/mnt", Fail, "no-nofail", finding.Note}}},
		{"by hand, in memory, swap, bound", r, table(ids, line("UUID=2", "/a", "ext4", "noauto"), line("tmpfs", "/t", "tmpfs"),
			line("UUID=3", "none", "swap"), line("/a", "/b", "none", "bind")), nil},
		{"nothing known of disks", r, table(nil, line("UUID=2", "/data", "xfs")), []says{{"mount:h:/data", Unknown, "", ""}}},
		{"mounted", r, func() evidence.Evidence {
			e := one("xfs", nil)
			e.Config.Fstab = []evidence.FstabEntry{line("/dev/sda1", "/srv", "xfs", "nofail")}
			return e
		}(), []says{{"mount:h:/srv", Pass, "", ""}}},
	})
}
