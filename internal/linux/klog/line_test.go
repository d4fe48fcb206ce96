// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package klog_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/linux/klog"
)

func TestKmsgRecords(t *testing.T) {
	tests := []struct {
		name, record string
		want         klog.Record
		bad          bool
	}{
		{"with device", "3,1234,45611572557,-;sd 0:0:0:0: [sda] Attached\n SUBSYSTEM=scsi\n DEVICE=+scsi:0:0:0:0\n",
			klog.Record{Priority: 3, Sequence: 1234, HasSince: true, Since: 45611572557 * time.Microsecond,
				Text: "sd 0:0:0:0: [sda] Attached", Subsystem: "scsi", Device: "+scsi:0:0:0:0"}, false},
		{"of a program", "30,7,12,-;systemd[1]: Started x.\n",
			klog.Record{Priority: 6, Facility: 3, Sequence: 7, HasSince: true, Since: 12 * time.Microsecond,
				Text: "systemd[1]: Started x."}, false},
		{"goes on", "6,8,12,+;more", klog.Record{Priority: 6, Sequence: 8, HasSince: true,
			Since: 12 * time.Microsecond, Continued: true, Text: "more"}, false},
		{"with the caller", "6,8,12,-,caller=T1;a; b", klog.Record{Priority: 6, Sequence: 8, HasSince: true,
			Since: 12 * time.Microsecond, Text: "a; b"}, false},
		{"escaped", `6,8,12,-;a\x09b\x5cx \xzz\x4`, klog.Record{Priority: 6, Sequence: 8, HasSince: true,
			Since: 12 * time.Microsecond, Text: "a\tb\\x \\xzz\\x4"}, false},
		{"no semicolon", "6,8,12,-", klog.Record{}, true},
		{"no numbers", "a,b,c,-;x", klog.Record{}, true},
		{"negative", "6,-1,12,-;x", klog.Record{}, true},
		{"time past all clocks", "6,1,9223372036854775807,-;x", klog.Record{}, true},
		{"too short", "6;x", klog.Record{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := klog.ParseKmsg(tt.record)
			if (err != nil) != tt.bad {
				t.Fatalf("error %v, want one: %v", err, tt.bad)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDmesgLines(t *testing.T) {
	tokyo := time.FixedZone("JST", 9*3600)
	none := klog.Record{Priority: -1, Facility: -1, Sequence: -1}
	with := func(fn func(r *klog.Record)) klog.Record {
		r := none
		fn(&r)
		return r
	}
	boot := with(func(r *klog.Record) { r.HasSince, r.Since, r.Text = true, 12345678901*time.Microsecond, "text" })
	tests := []struct {
		name, line string
		want       klog.Record
		ok         bool
	}{
		{"plain", "[12345.678901] text", boot, true},
		{"padded", "[    0.000000] Linux version", with(func(r *klog.Record) {
			r.HasSince, r.Text = true, "Linux version"
		}), true},
		{"with caller", "[12345.678901][ T1234] text", boot, true},
		{"with processor", "[12345.678901] [C0] text", boot, true},
		{"no caller", "[12345.678901] [drm] text", with(func(r *klog.Record) {
			r.HasSince, r.Since, r.Text = true, boot.Since, "[drm] text"
		}), true},
		{"raw", "<3>[12345.678901] text", with(func(r *klog.Record) {
			*r = boot
			r.Priority, r.Facility = 3, 0
		}), true},
		{"decoded", "kern  :err   : [12345.678901] text", with(func(r *klog.Record) {
			*r = boot
			r.Priority, r.Facility = 3, 0
		}), true},
		{"of the day", "[Sun Nov  1 09:00:00 2026] text", with(func(r *klog.Record) {
			r.Wall, r.Text = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), "text"
		}), true},
		{"iso", "2026-11-22T09:00:00,678901+09:00 text", with(func(r *klog.Record) {
			r.Wall, r.Text = time.Date(2026, 11, 22, 0, 0, 0, 678901000, time.UTC), "text"
		}), true},
		{"nothing", "text", klog.Record{}, false},
		{"other brackets", "[drm] text", klog.Record{}, false},
		{"not closed", "[12345.678901 text", klog.Record{}, false},
		{"empty", "", klog.Record{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := klog.ParseDmesg(tt.line, tokyo)
			if ok != tt.ok {
				t.Fatalf("ParseDmesg = %v, want %v", ok, tt.ok)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestUnstampTakesOnlyTimes(t *testing.T) {
	for in, want := range map[string]string{
		"[12345.678901] text":     "text",
		"[    1.000000][T1] text": "text",
		"[drm] text":              "[drm] text",
		"[1.5] text":              "[1.5] text",
		"[-1.500000] text":        "[-1.500000] text",
		"text":                    "text",
		"[":                       "[",
		"":                        "",
	} {
		if got, _, _ := klog.Unstamp(in); got != want {
			t.Errorf("Unstamp(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzKlog(f *testing.F) {
	for _, name := range []string{"kernel.txt", "devices.txt", "programs.txt"} {
		for _, s := range samples(f, name) {
			f.Add(s.program, s.line)
		}
	}
	f.Add("kernel", "6,1,2,-;a\\x41\n SUBSYSTEM=x\n")
	f.Add("kernel", "<3>[    1.000000][T1] x")
	m := klog.New()
	f.Fuzz(func(t *testing.T, program, line string) {
		got, ok := m.Match(program, line)
		if ok != (got.Form != nil) {
			t.Fatal("a match without a form")
		}
		for _, field := range got.Fields {
			if field.Name == "" || len(field.Value) > len(line) {
				t.Fatalf("%+v", field)
			}
		}
		_, _ = klog.ParseKmsg(line)
		_, _ = klog.ParseDmesg(line, time.UTC)
		rest, _, _ := klog.Unstamp(line)
		if len(rest) > len(line) {
			t.Fatal("more than there was")
		}
	})
}

// BenchmarkMatch is of a log as it is: nine lines of ten are nothing.
func BenchmarkMatch(b *testing.B) {
	m := klog.New()
	lines := []string{
		"audit: type=1400 audit(1763800000.123:456): apparmor=\"ALLOWED\" operation=\"open\" profile=\"x\"",
		"IPv6: ADDRCONF(NETDEV_CHANGE): veth1234: link becomes ready",
		"br0: port 2(veth1234) entered forwarding state",
		"usb 1-1: new high-speed USB device number 2 using xhci_hcd",
		"INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.2 msecs",
		"systemd[1]: Reached target Basic System.",
		"EXT4-fs warning: mounting with data=journal disables delayed allocation",
		"SELinux:  policy capability network_peer_controls=1",
		"e1000: eth0 NIC Link is Up 1000 Mbps Full Duplex, Flow Control: RX",
		"EXT4-fs error (device vda1): ext4_journal_check_start:83: comm kworker/u4:1: Detected aborted journal",
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Match("kernel", lines[i%len(lines)])
	}
}

func BenchmarkNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		klog.New()
	}
}
