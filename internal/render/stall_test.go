// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/doctor/stall"
	machine "github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
)

const evilName = "sda\x1b[2J<script>"

// stalled is what a machine with three disks and a mount of a server does in ten minutes; names are as somebody
// gave them who wants to fool the reader.
func stalled(name string) *StallDocument {
	m := stall.Machine{HZ: 250, HungTask: 2 * time.Minute, Leases: []stall.Lease{
		{Name: "etcd election", From: "/etc/default/etcd", Lost: stall.Span{Low: time.Second, High: 2 * time.Second}},
		{Name: "keepalived", From: "/etc/keepalived/keepalived.conf", Needs: "a check waits for the disk",
			Lost: stall.Span{Low: 3 * time.Second, High: 4 * time.Second}}},
		Watchdogs: []stall.Watchdog{{Name: "a.service", From: "/etc/a", At: stall.Span{Low: time.Minute, High: 2 * time.Minute}}}}
	ext4 := []stall.FS{{Type: "ext4", Point: "/srv/" + name, Journal: true}}
	var s doctor.Stall
	s.Label, s.NotKnown = name, []string{"what " + name + " is"}
	for _, d := range []stall.Disk{
		{Name: name, Model: "VMware Virtual disk", Driver: "sd", HostDriver: "vmw_pvscsi", Timeout: 180 * time.Second,
			EHTimeout: 10 * time.Second, MaxRetries: 5, MaxMedium: 2, FSs: ext4},
		{Name: "vda", Driver: "virtio_blk", FSs: ext4},
		{Name: "sdx", Driver: "sd", FSs: ext4, MaxRetries: -2},
		{Name: "/mnt/" + name, Model: "server:/export", NFS: &stall.NFS{Soft: true, Version: 3}},
	} {
		one := doctor.StalledDisk{Timeline: stall.Predict(m, d, 10*time.Minute), Rules: []machine.UdevRule{}}
		if d.HostDriver == "vmw_pvscsi" {
			one.Policy, one.By, one.AtBoot = 255*time.Second, name, 60*time.Second
			one.Rules = append(one.Rules, machine.UdevRule{Seconds: 60, From: machine.Source{Path: "/etc/udev/rules.d/" + name, Line: 3}})
		}
		s.Disks = append(s.Disks, one)
	}
	return NewStall([]*doctor.Stall{&s}, 10*time.Minute)
}

func TestStall(t *testing.T) {
	info := PageInfo{Version: "v1", Host: "test", When: doctorNoon}
	for _, c := range []struct {
		name  string
		write func(*strings.Builder, *StallDocument) error
	}{
		{"stall.txt", func(b *strings.Builder, d *StallDocument) error { return Stall(b, d, Style{Width: 100}) }},
		{"stall.all.txt", func(b *strings.Builder, d *StallDocument) error { return Stall(b, d, Style{Width: 100, All: true}) }},
		{"stall.html", func(b *strings.Builder, d *StallDocument) error { return StallHTML(b, d, info) }},
	} {
		for _, evil := range []bool{false, true} {
			var b strings.Builder
			d := stalled("sda")
			if evil {
				d = stalled(evilName)
			}
			if err := c.write(&b, d); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(b.String(), "\x1b") || strings.Contains(b.String(), "<script") && strings.HasSuffix(c.name, "html") {
				t.Errorf("%s: a string got out as it came in", c.name)
			}
			if !evil {
				golden(t, c.name, b.String())
			}
		}
	}
}

// TestStallStatus: what goes on when storage is back is clean, what is not known is said.
func TestStallStatus(t *testing.T) {
	real := stall.Disk{Name: "sda", Driver: "sd", HostDriver: "vmw_pvscsi", Timeout: 30 * time.Second, MaxRetries: 5, MaxMedium: 2}
	unread := stall.Disk{Name: "sdx", Driver: "sd", MaxRetries: -2}
	inert := stall.Disk{Name: "vda", Driver: "virtio_blk"}
	for _, c := range []struct {
		name  string
		disks []stall.Disk
		for_  time.Duration
		want  int
	}{
		{"no disk", nil, time.Hour, finding.StatusClean},
		{"one that waits for ever", []stall.Disk{inert}, time.Hour, finding.StatusClean},
		{"a short stall", []stall.Disk{real}, 20 * time.Second, finding.StatusClean},
		{"a long one", []stall.Disk{inert, real}, time.Hour, finding.StatusFound},
		{"a driver that is not known", []stall.Disk{inert, unread}, time.Hour, finding.StatusCannotTell},
		{"both", []stall.Disk{unread, real}, time.Hour, finding.StatusFound},
	} {
		s := &doctor.Stall{}
		for _, d := range c.disks {
			s.Disks = append(s.Disks, doctor.StalledDisk{Timeline: stall.Predict(stall.Machine{}, d, c.for_)})
		}
		if got := NewStall([]*doctor.Stall{s}, c.for_).Status[0]; got != c.want {
			t.Errorf("%s: status %d, want %d", c.name, got, c.want)
		}
	}
}
