// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// says is what a rule is to say of an object: an outcome, and of a failure its kind and severity.
type says struct {
	object   string
	outcome  Outcome
	kind     string
	severity finding.Severity
}

// ask compares what a rule says.
func ask(t *testing.T, r Rule, e *evidence.Evidence, want ...says) {
	t.Helper()
	e.Label, e.Now = "h", noon
	if e.Kind == "" {
		e.Kind = tree.Live
	}
	got := r.judge(e)
	if len(got) != len(want) {
		t.Errorf("%s gives %d results, want %d: %+v", r.Code, len(got), len(want), got)
		return
	}
	for i, g := range got {
		s := says{object: g.Object.String(), outcome: g.Outcome}
		if g.Finding != nil {
			s.kind, s.severity = g.Finding.Kind, g.Finding.Severity
			if g.Finding.ID != idOf(r.Code, s.kind, g.Object) || g.Finding.Confidence <= 0 || g.Finding.Confidence > 1 {
				t.Errorf("%s: the finding %+v has a wrong id or confidence", r.Code, g.Finding)
			}
		}
		if s != want[i] {
			t.Errorf("%s says %+v, want %+v (%s)", r.Code, s, want[i], g.Why)
		}
		if g.Outcome == Unknown && g.Why == "" {
			t.Errorf("%s does not say why it cannot tell about %s", r.Code, g.Object)
		}
	}
}

// disk is a SCSI disk.
func disk(name, state string) evidence.Device {
	return evidence.Device{Block: linux.Block{Name: name, Disk: name}, Driver: "sd", State: state, Timeouts: -1,
		Vendor: "VMware  ", Model: "Virtual disk    ", Timeout: 30 * time.Second}
}

func event(form string, before time.Duration, fields map[string]string) evidence.Event {
	return evidence.Event{Form: form, Fields: fields, Time: noon.Add(-before), Exact: true, Text: form, Count: 1}
}

func TestBlockRules(t *testing.T) {
	part := evidence.Device{Block: linux.Block{Name: "sda1", Disk: "sda", Partition: 1}}
	mounted := []evidence.FS{{Type: "ext4", Device: "sda1", Mounts: []int{0}}}
	virtio := evidence.Device{Block: linux.Block{Name: "vda"}, Driver: "virtio_blk"}
	array := func(a evidence.Array) []evidence.Device {
		return []evidence.Device{{Block: linux.Block{Name: "md0"}, Array: &a}}
	}
	paths := func(m evidence.Multipath) []evidence.Device {
		return []evidence.Device{{Block: linux.Block{Name: "dm-0", Mapper: "mpatha"}, Paths: &m}}
	}
	vmware := []string{"ATTRS{vendor}==VMware*", "ATTRS{model}==Virtual disk*"}
	rule := func(u evidence.UdevRule) evidence.Config {
		u.From = evidence.Source{Path: "/lib/udev/rules.d/99-x.rules", Line: 3}
		return evidence.Config{Udev: []evidence.UdevRule{u}}
	}
	slow := disk("sda", "running")
	slow.Timeout = 180 * time.Second
	counted := disk("sda", "running")
	counted.Timeouts = 3
	for _, c := range []struct {
		name string
		rule Rule
		e    evidence.Evidence
		want []says
	}{
		{"a disk that runs", ruleBL01(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "running"), part, virtio}},
			[]says{{"device:h:sda", Pass, "", ""}}},
		{"an offline disk", ruleBL01(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "offline")}},
			[]says{{"device:h:sda", Fail, "offline", finding.Lost}}},
		{"requests wait", ruleBL01(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "transport-offline")}},
			[]says{{"device:h:sda", Fail, "blocked", finding.Lost}}},
		{"taken out with a mount on it", ruleBL01(), evidence.Evidence{
			Devices: []evidence.Device{disk("sda", "cancel"), part}, FSs: mounted},
			[]says{{"device:h:sda", Fail, "going", finding.Warning}}},
		{"taken out", ruleBL01(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "cancel"), part}},
			[]says{{"device:h:sda", Fail, "going", finding.Note}}},
		{"a state that was not read", ruleBL01(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "")}},
			[]says{{"device:h:sda", Unknown, "", ""}}},
		{"no devices were read", ruleBL01(), evidence.Evidence{Gaps: []evidence.Gap{{Part: evidence.PartDevices, Reason: "x"}}},
			[]says{{"host:h:h", Unknown, "", ""}}},

		{"a rule that works", ruleBL05(), evidence.Evidence{Devices: []evidence.Device{slow},
			Config: rule(evidence.UdevRule{Match: vmware, Seconds: 180})},
			[]says{{"file:h:/lib/udev/rules.d/99-x.rules", Pass, "", ""}}},
		{"a broken rule", ruleBL05(), evidence.Evidence{Config: rule(evidence.UdevRule{Match: vmware, Seconds: 180, Broken: "x"})},
			[]says{{"file:h:/lib/udev/rules.d/99-x.rules", Fail, "broken", finding.Warning}}},
		{"a rule without effect", ruleBL05(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "running")},
			Config: rule(evidence.UdevRule{Match: vmware, Seconds: 180})},
			[]says{{"file:h:/lib/udev/rules.d/99-x.rules", Fail, "not_applied", finding.Warning}}},
		{"a rule for other disks", ruleBL05(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "running")},
			Config: rule(evidence.UdevRule{Match: []string{"ATTRS{vendor}==NETAPP*"}, Seconds: 180})},
			[]says{{"file:h:/lib/udev/rules.d/99-x.rules", Pass, "", ""}}},
		{"a rule that is replaced", ruleBL05(), evidence.Evidence{
			Config: rule(evidence.UdevRule{Match: vmware, Seconds: 180, Broken: "x", Overridden: "/etc/x"})}, nil},

		{"no timeouts", ruleBL06(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "running"), virtio}},
			[]says{{"device:h:sda", Pass, "", ""}}},
		{"a command timed out", ruleBL06(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "running")},
			Log: evidence.Log{Events: []evidence.Event{event("scsi.waited", time.Hour, map[string]string{"device": "sda"})}}},
			[]says{{"device:h:sda", Fail, "said", finding.Danger}}},
		{"another error", ruleBL06(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "running")},
			Log: evidence.Log{Events: []evidence.Event{event("scsi.result", time.Hour,
				map[string]string{"device": "sda", "hostbyte": "DID_BAD_TARGET"})}}},
			[]says{{"device:h:sda", Pass, "", ""}}},
		{"long ago, once", ruleBL06(), evidence.Evidence{Devices: []evidence.Device{disk("sda", "running")},
			Log: evidence.Log{Events: []evidence.Event{event("scsi.waited", 40*24*time.Hour, map[string]string{"device": "sda"})}}},
			[]says{{"device:h:sda", Fail, "said", finding.Note}}},
		{"of a machine that is off", ruleBL06(), evidence.Evidence{Kind: tree.Disk,
			Log: evidence.Log{Events: []evidence.Event{event("scsi.result", time.Hour,
				map[string]string{"device": "sdb", "hostbyte": "DID_TIME_OUT"})}}},
			[]says{{"device:h:sdb", Fail, "said", finding.Danger}}},
		{"a controller", ruleBL06(), evidence.Evidence{
			Devices: []evidence.Device{{Block: linux.Block{Name: "nvme0n1"}, Driver: "nvme", State: "live"}},
			Log:     evidence.Log{Events: []evidence.Event{event("nvme.timeout", time.Hour, map[string]string{"controller": "nvme0"})}}},
			[]says{{"device:h:nvme0n1", Fail, "said", finding.Danger}}},
		{"only counted", ruleBL06(), evidence.Evidence{Devices: []evidence.Device{counted}},
			[]says{{"device:h:sda", Fail, "counted", finding.Note}}},

		{"all paths", ruleBL07(), evidence.Evidence{Devices: paths(evidence.Multipath{Active: 2})},
			[]says{{"device:h:dm-0", Pass, "", ""}}},
		{"one path is gone", ruleBL07(), evidence.Evidence{Devices: paths(evidence.Multipath{Active: 1, Failed: 1})},
			[]says{{"device:h:dm-0", Fail, "fewer_paths", finding.Warning}}},
		{"no path, kept for ever", ruleBL07(), evidence.Evidence{Devices: paths(evidence.Multipath{Failed: 2, Queue: true,
			NoPathRetry: "queue"})}, []says{{"device:h:dm-0", Fail, "no_path", finding.Lost}}},

		{"a whole array", ruleBL08(), evidence.Evidence{Devices: array(evidence.Array{Level: "raid1", State: "clean",
			Wanted: 2, Active: 2, Action: "check"})}, []says{{"device:h:md0", Pass, "", ""}}},
		{"degraded", ruleBL08(), evidence.Evidence{Devices: array(evidence.Array{Level: "raid5", State: "active",
			Wanted: 3, Active: 2, Failed: []string{"sdc1"}, Action: "idle"})},
			[]says{{"device:h:md0", Fail, "degraded", finding.Danger}}},
		{"recovering", ruleBL08(), evidence.Evidence{Devices: array(evidence.Array{Level: "raid1", State: "clean",
			Wanted: 2, Active: 1, Action: "recover"})}, []says{{"device:h:md0", Fail, "recovering", finding.Warning}}},
		{"broken", ruleBL08(), evidence.Evidence{Devices: array(evidence.Array{Level: "raid0", State: "broken",
			Wanted: 2, Active: 1})}, []says{{"device:h:md0", Fail, "broken", finding.Lost}}},
		{"not put together", ruleBL08(), evidence.Evidence{Devices: array(evidence.Array{Level: "raid1", State: "clear"})}, nil},
		{"a state that was not read", ruleBL08(), evidence.Evidence{Devices: array(evidence.Array{Level: "raid1"})},
			[]says{{"device:h:md0", Unknown, "", ""}}},
	} {
		t.Run(c.rule.Code+"/"+c.name, func(t *testing.T) { ask(t, c.rule, &c.e, c.want...) })
	}
}

func TestMemoryRules(t *testing.T) {
	const gib = 1 << 30
	series := func(n int, own func(i int) int64) []evidence.MemoryPoint {
		ps := make([]evidence.MemoryPoint, n)
		for i := range ps {
			ps[i] = evidence.MemoryPoint{Time: noon.Add(time.Duration(i-n) * time.Hour), SUnreclaim: own(i),
				Available: 12*gib - own(i)}
		}
		return ps
	}
	memory := func(own int64, ps []evidence.MemoryPoint) evidence.Evidence {
		return evidence.Evidence{Memory: evidence.Memory{Total: 16 * gib, SUnreclaim: own, Series: ps}}
	}
	killed := func(form string) evidence.Evidence {
		return evidence.Evidence{Log: evidence.Log{Events: []evidence.Event{
			event(form, time.Hour, map[string]string{"comm": "mysqld", "pid": "17"})}}}
	}
	for _, c := range []struct {
		name string
		rule Rule
		e    evidence.Evidence
		want []says
	}{
		{"nothing is known", ruleME01(), evidence.Evidence{Gaps: []evidence.Gap{{Part: evidence.PartMemory, Reason: "x"}}},
			[]says{{"host:h:h", Unknown, "", ""}}},
		{"little, and not watched", ruleME01(), memory(gib, series(1, func(int) int64 { return gib })),
			[]says{{"host:h:h", Pass, "", ""}}},
		{"much, and not watched", ruleME01(), memory(4*gib, series(1, func(int) int64 { return 4 * gib })),
			[]says{{"host:h:h", Unknown, "", ""}}},
		{"a leak, tomorrow", ruleME01(), memory(9*gib, series(40, func(i int) int64 { return gib + int64(i)*gib/5 })),
			[]says{{"host:h:h", Fail, "leak", finding.Danger}}},
		{"a leak, in a week", ruleME01(), memory(2*gib, series(40, func(i int) int64 { return gib + int64(i)*gib/20 })),
			[]says{{"host:h:h", Fail, "leak", finding.Warning}}},
		{"a leak, in months", ruleME01(), memory(2*gib, series(100, func(i int) int64 { return gib + int64(i)*gib/500 })),
			[]says{{"host:h:h", Fail, "leak", finding.Note}}},
		{"a sawtooth", ruleME01(), memory(2*gib, series(100, func(i int) int64 { return gib + int64(i%20)*gib/10 })),
			[]says{{"host:h:h", Pass, "", ""}}},
		{"nobody was ended", ruleME02(), evidence.Evidence{Memory: evidence.Memory{OOMKills: -1}},
			[]says{{"host:h:h", Pass, "", ""}}},
		{"somebody was ended", ruleME02(), killed("oom.kill"), []says{{"host:h:h", Fail, "host", finding.Danger}}},
		{"by its own limit", ruleME02(), killed("oom.cgroup"), []says{{"host:h:h", Fail, "cgroup", finding.Note}}},
		{"only counted", ruleME02(), evidence.Evidence{Memory: evidence.Memory{OOMKills: 2}},
			[]says{{"host:h:h", Fail, "counted", finding.Note}}},
	} {
		t.Run(c.rule.Code+"/"+c.name, func(t *testing.T) { ask(t, c.rule, &c.e, c.want...) })
	}
}
