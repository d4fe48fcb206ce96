// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stall

import (
	"slices"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const s = time.Second

// debugDisk is the disk that the measured times are of: scsi_debug, with limits as the kernel sets them.
func debugDisk(timeout time.Duration) Disk {
	return Disk{Name: "sda", Driver: "sd", HostDriver: "scsi_debug", Timeout: timeout, EHTimeout: 10 * s,
		MaxRetries: 5, MaxMedium: 2}
}

// at gives the event of a kind in a case.
func at(t *testing.T, l Timeline, kind string, c Case) Event {
	t.Helper()
	for _, e := range l.Events {
		if e.Kind == kind && (e.Case == c || e.Case == "") {
			return e
		}
	}
	t.Fatalf("no event %s in case %s among %d", kind, c, len(l.Events))
	return Event{}
}

// TestMeasured holds predictions against what kernels of 6.1 did: User Mode Linux with 100 ticks a second, and
// QEMU's guests with 250 and warped time. The time has to lie in the interval, and what is predicted for a single
// request within 15 % of it.
func TestMeasured(t *testing.T) {
	for _, c := range []struct {
		name     string
		hz       int
		timeout  int
		change   func(*Disk)
		kind     string
		in       Case
		measured float64 // seconds
	}{
		{"T=1", 100, 1, nil, "medium_offline", Medium, 7.13},
		{"T=2", 100, 2, nil, "medium_offline", Medium, 10.05},
		{"T=3", 100, 3, nil, "medium_offline", Medium, 13.15},
		{"T=6", 100, 6, nil, "medium_offline", Medium, 19.18},
		{"T=10", 100, 10, nil, "medium_offline", Medium, 30.23},
		{"T=30", 250, 30, nil, "medium_offline", Medium, 91.8},
		{"T=180", 250, 180, nil, "medium_offline", Medium, 541.9},
		{"T=300", 250, 300, nil, "medium_offline", Medium, 934.5},
		{"one timeout is enough", 100, 2, func(d *Disk) { d.MaxMedium = 1 }, "medium_offline", Medium, 6.69},
		{"T=1, many timeouts", 100, 1, many, "retries_used", Medium, 14.37},
		{"T=3, many timeouts", 100, 3, many, "retries_used", Medium, 26.31},
		{"T=180, many timeouts", 250, 180, many, "retries_used", Medium, 1082.6},
		{"T=300, many timeouts", 250, 300, many, "retries_used", Medium, 1869},
		{"no retry", 100, 2, func(d *Disk) { d.MaxRetries = 0 }, "retries_used", Medium, 3.41},
		{"one retry", 100, 2, func(d *Disk) { d.MaxRetries = 1 }, "retries_used", Medium, 6.68},
		{"T=1, dead", 100, 1, nil, "dead_offline", Dead, 66.52},
		{"T=2, dead", 100, 2, nil, "dead_offline", Dead, 68.49},
		{"T=30, dead", 250, 30, nil, "dead_offline", Dead, 124.1},
		{"T=180, dead", 250, 180, nil, "dead_offline", Dead, 438.9},
		{"dead, short tests", 100, 2, func(d *Disk) { d.EHTimeout = s }, "dead_offline", Dead, 31.76},
		{"dead, short tests and a deadline", 100, 2, func(d *Disk) { d.EHTimeout, d.EHDeadline = s, 3*s }, "dead_offline",
			Dead, 30.32},
		{"dead, a deadline", 100, 2, func(d *Disk) { d.EHDeadline = 15 * s }, "dead_offline", Dead, 47.93},
		{"dead, one retry", 100, 2, func(d *Disk) { d.EHTimeout, d.MaxRetries = s, 1 }, "dead_offline", Dead, 31.39},
		{"T=1, flush", 100, 1, nil, "flush_fails", Medium, 10.21},
		{"T=3, flush", 100, 3, nil, "flush_fails", Medium, 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := debugDisk(time.Duration(c.timeout) * s)
			if c.change != nil {
				c.change(&d)
			}
			measured := time.Duration(c.measured * float64(s))
			for _, hz := range []int{c.hz, 0} {
				e := at(t, Predict(Machine{HZ: hz}, d, 0), c.kind, c.in)
				if measured < e.At.Low || measured > e.At.High {
					t.Errorf("HZ %d: measured %s, predicted between %s and %s", hz, measured, e.At.Low, e.At.High)
				}
				if off := float64(e.Usual-measured) / float64(measured); off > 0.15 || off < -0.15 {
					t.Errorf("HZ %d: measured %s, predicted %s for a single request: %.0f %% off", hz, measured, e.Usual, 100*off)
				}
			}
		})
	}
}

func many(d *Disk) { d.MaxMedium = 1000 }

// TestNeverFails: where the timer is set anew, no length of a stall has an error come of it.
func TestNeverFails(t *testing.T) {
	root := FS{Type: "ext4", Point: "/", Journal: true}
	for _, c := range []struct{ driver, host string }{{"virtio_blk", ""}, {"sd", "virtio_scsi"}, {"sd", "storvsc_host_t"},
		{"sd", "storvsc"}, {"vbd", ""}, {"xen-blkfront", ""}} {
		d := Disk{Name: "vda", Driver: c.driver, HostDriver: c.host, Timeout: s, MaxRetries: -2, MaxMedium: -1, FSs: []FS{root}}
		l := Predict(Machine{}, d, 1000*time.Hour)
		if l.Effective {
			t.Errorf("%s/%s: its timeout is said to do something", c.driver, c.host)
		}
		for _, o := range l.Outcomes {
			if o.Word != Recovers || !o.Certain {
				t.Errorf("%s/%s, %s: %s (certain: %t), want that it recovers for certain", c.driver, c.host, o.Case, o.Word, o.Certain)
			}
		}
	}
	// Endless tries of a disk that is never set offline.
	d := debugDisk(s)
	d.MaxRetries, d.MaxMedium = -1, 1<<31
	d.FSs = []FS{root}
	l := Predict(Machine{}, d, 1000*time.Hour)
	if o := l.Outcomes[0]; o.Word != Recovers {
		t.Errorf("endless tries: %s, want that it recovers", o.Word)
	}
}

// TestOutcomes are stalls of ten minutes, and what comes of them.
func TestOutcomes(t *testing.T) {
	ext4 := []FS{{Type: "ext4", Point: "/", Journal: true}}
	pvscsi := func(t int) Disk {
		return Disk{Name: "sda", Driver: "sd", HostDriver: "pvscsi", Timeout: time.Duration(t) * s, EHTimeout: 10 * s,
			MaxRetries: 5, MaxMedium: 2, FSs: ext4}
	}
	etcd := Machine{Leases: []Lease{{Name: "etcd election", Lost: Span{s, 2 * s}}}}
	for _, c := range []struct {
		name    string
		m       Machine
		d       Disk
		stalled time.Duration
		medium  Word
		dead    Word
		sure    bool // of medium
	}{
		{"T=30, 10 s", Machine{}, pvscsi(30), 10 * s, Survives, Survives, true},
		{"T=30, 45 s", Machine{}, pvscsi(30), 45 * s, Recovers, GoesOff, true},
		{"T=30, 10 min", Machine{}, pvscsi(30), 600 * s, GoesOff, GoesOff, true},
		{"T=180, 10 min", Machine{}, pvscsi(180), 600 * s, GoesOff, GoesOff, false},
		{"T=300, 10 min", Machine{}, pvscsi(300), 599 * s, Recovers, GoesOff, true},
		{"T=3600, 10 min", Machine{}, pvscsi(3600), 600 * s, Survives, Survives, true},
		{"etcd", etcd, pvscsi(3600), 600 * s, SwitchesO, SwitchesO, true},
		{"a panic over hung tasks", Machine{HungTask: 120 * s, Panic: true}, pvscsi(3600), 600 * s, Reboots, Reboots, true},
		{"hung tasks", Machine{HungTask: 120 * s}, pvscsi(3600), 600 * s, Recovers, Recovers, true},
	} {
		l := Predict(c.m, c.d, c.stalled)
		if l.Outcomes[0].Word != c.medium || l.Outcomes[1].Word != c.dead || l.Outcomes[0].Certain != c.sure {
			t.Errorf("%s: %s (certain: %t) and %s, want %s (%t) and %s", c.name, l.Outcomes[0].Word, l.Outcomes[0].Certain,
				l.Outcomes[1].Word, c.medium, c.sure, c.dead)
		}
	}
}

// TestDoubtfulWatchdog: of a service that may not be started the condition says so.
func TestDoubtfulWatchdog(t *testing.T) {
	for doubt, want := range map[string]string{"": "it waits for the disk itself", "x": "it waits for the disk itself, and runs, " +
		"which is not sure: x"} {
		l := Predict(Machine{Watchdogs: []Watchdog{{Name: "a.service", At: Span{s, s}, Doubt: doubt}}}, Disk{Name: "sda", Driver: "sd"}, 600*s)
		i := slices.IndexFunc(l.Events, func(e Event) bool { return e.Kind == "watchdog" })
		if i < 0 || l.Events[i].If != want {
			t.Errorf("events %+v, want one if %q", l.Events, want)
		}
	}
}

// FuzzPredict: any values give events in order, each with a latest time that is not before its earliest.
func FuzzPredict(f *testing.F) {
	f.Add("sd", "scsi_debug", int64(30), int64(10), int64(-1), 5, int64(2), 250, "12", "ext4", int64(600))
	f.Add("sd", "iscsi_tcp", int64(1)<<62, int64(-1), int64(1)<<62, -1, int64(1)<<62, 1, "queue", "xfs", int64(-5))
	f.Add("nvme", "", int64(4294967), int64(0), int64(0), 1<<62, int64(-1), 0, "99999999999", "btrfs", int64(1)<<62)
	f.Add("sd", "ahci", int64(1)<<33, int64(1)<<33, int64(1)<<33, 1<<40, int64(1)<<40, 100000, "x", "gfs2", int64(60))
	f.Fuzz(func(t *testing.T, driver, host string, timeout, eh, deadline int64, retries int, medium int64, hz int, mpath, fs string, stalled int64) {
		d := Disk{Name: "a", Driver: driver, HostDriver: host, Timeout: time.Duration(timeout), EHTimeout: time.Duration(eh),
			EHDeadline: time.Duration(deadline), MaxRetries: retries, MaxMedium: medium, AdminTimeout: time.Duration(eh),
			FSs: []FS{{Type: fs, Journal: medium&1 == 0, Commit: time.Duration(deadline)}}, Arrays: []string{"md0"}}
		if len(mpath) > 0 {
			d.Multipath = &Multipath{mpath, time.Duration(eh)}
			d.ISCSI = &ISCSI{time.Duration(deadline), time.Duration(eh), time.Duration(timeout)}
		}
		if retries == 3 {
			d.NFS = &NFS{Timeo: time.Duration(timeout), Retrans: int(medium), Soft: eh > 0, Version: hz, UDP: deadline > 0}
		}
		l := Predict(Machine{HZ: hz, HungTask: time.Duration(timeout)}, d, time.Duration(stalled))
		for i, e := range l.Events {
			if e.At.Low < 0 || e.At.High < e.At.Low || e.Usual < 0 || i > 0 && e.At.Low < l.Events[i-1].At.Low {
				t.Errorf("%s: from %d to %d, usually %d", e.Kind, e.At.Low, e.At.High, e.Usual)
			}
			if e.Text == "" || e.Why == "" || e.Harm.String() == "unknown" {
				t.Errorf("%+v does not say what it is", e)
			}
		}
		if len(l.Outcomes) != 2 {
			t.Errorf("%d outcomes, want 2", len(l.Outcomes))
		}
	})
}
