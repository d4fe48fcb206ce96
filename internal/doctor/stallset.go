// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/stall"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/plan"
)

// ErrInert: the timeout of a disk does nothing, or it is not known whether it does, and no plan is made
// to set it. For errors.Is.
var ErrInert = errors.New("has no timeout that does something")

// ErrNoDevice: there is no such disk, for errors.Is.
var ErrNoDevice = errors.New("is no disk of this machine")

// Bounds of a timeout that is set, in seconds: below 1 nothing works, and above a day nobody means it. The
// kernel's own arithmetic in ticks overflows far above.
const (
	MinTimeoutSeconds = 1
	MaxTimeoutSeconds = 86400
)

// timeoutRules is the file of a rule that sets the timeout of one disk. It is read after those of vendors,
// which begin with 99 too (open-vm-tools: 99-vmware-scsi-udev.rules).
const timeoutRules = "/etc/udev/rules.d/99-zz-shisa-timeout-"

// TimeoutPlan plans the timeout of disks of the machine that runs: a rule of udev for each of them, and the
// value in force now. device is the one that is meant; "" means all whose timeout does something. The
// plan lacks what apply.DraftTexts fills in. The errors are ErrInert and ErrNoDevice.
func TimeoutPlan(e *evidence.Evidence, device string, seconds int) (*plan.Texts, error) {
	name := strings.TrimPrefix(device, "/dev/")
	var disks []*evidence.Device
	for _, d := range stallDisks(e) {
		dev := deviceOf(e, d.Name)
		if dev == nil || name != "" && name != d.Name {
			continue
		}
		if name == "" && !stall.Classify(d.Driver, d.HostDriver).Effective() {
			continue // all that have one are meant
		}
		if err := settable(d); err != nil {
			return nil, err
		}
		if dev.Paths == nil {
			disks = append(disks, dev)
			continue
		}
		for _, low := range dev.On {
			if one := deviceOf(e, low); one != nil {
				disks = append(disks, one)
			}
		}
	}
	switch {
	case len(disks) > 0:
	case name != "":
		return nil, fmt.Errorf("%.80q %w", device, ErrNoDevice)
	default:
		return nil, fmt.Errorf("no disk of this machine %w", ErrInert)
	}
	p := &plan.Texts{Why: fmt.Sprintf("a disk may leave a request without an answer for %d s before it is aborted", seconds)}
	for _, d := range disks {
		if err := planTimeout(p, e, d, seconds); err != nil {
			return nil, err
		}
	}
	p.Costs = costs(e, disks, seconds)
	p.Then = []plan.Told{{Command: "udevadm control --reload", Why: "have udev read the rules; it notices new files by itself too"}}
	return p, nil
}

// settable refuses disks whose timeout does nothing.
func settable(d stall.Disk) error {
	switch class := stall.Classify(d.Driver, d.HostDriver); class {
	case stall.Inert:
		driver := d.HostDriver
		if d.Driver != "sd" {
			driver = d.Driver
		}
		return fmt.Errorf("%s %w: %s answers for it, and a request waits there until it is answered", d.Name, ErrInert, driver)
	case stall.Unknown, stall.Stacked:
		return fmt.Errorf("%s %w, as far as is known: what its driver does is not", d.Name, ErrInert)
	}
	return nil
}

// planTimeout adds the rule and the setting of one disk.
func planTimeout(p *plan.Texts, e *evidence.Evidence, d *evidence.Device, seconds int) error {
	at := e.Limits.Disks[d.Name].Path
	match, id, err := onlyDisk(d, at)
	if err != nil {
		return err
	}
	attribute, value, file := "device/timeout", strconv.Itoa(seconds), path.Join(path.Dir(path.Dir(at)), "timeout")
	if d.Driver == "nvme" {
		// In milliseconds (Documentation/ABI/stable/sysfs-block).
		attribute, value, file = "queue/io_timeout", strconv.Itoa(seconds*1000), path.Join(at, "queue/io_timeout")
	}
	rule := fmt.Sprintf(`ACTION=="add|change", SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", %s, ATTR{%s}="%s"`, match, attribute, value)
	note := ""
	rules, _ := rulesFor(e, d)
	for _, u := range rules {
		if u.Runs() && !strings.HasPrefix(u.From.Path, timeoutRules) {
			// What rules run comes after all that rules assign; of what is run, the last one counts.
			rule += fmt.Sprintf(`, RUN+="/bin/sh -c 'echo %s > /sys%%p/%s'"`, value, attribute)
			note = "# RUN as well, since " + u.From.Path + " runs a program that sets it.\n"
			break
		}
	}
	model := strings.Join(strings.Fields(d.Vendor+" "+d.Model), " ")
	p.Live = append(p.Live, plan.Live{Path: file, What: "the timeout of " + d.Name + unitOf(d), Value: value})
	name := timeoutRules + id + ".rules"
	if slices.ContainsFunc(p.Files, func(f plan.Text) bool { return f.Path == name }) {
		return nil // another path to the same disk
	}
	p.Files = append(p.Files, plan.Text{Path: name, Mode: "0644", Content: fmt.Sprintf(
		"# Made by shisa doctor stall --set %d, for %s (%s).\n%s%s\n", seconds, d.Name, plain(model), note, rule)})
	return nil
}

func unitOf(d *evidence.Device) string {
	if d.Driver == "nvme" {
		return " (in ms)"
	}
	return " (in seconds)"
}

// plain keeps what may stand in a comment.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// onlyDisk gives the conditions of udev that one disk alone meets, and a short name for it: its WWID where
// it has one, else where it is attached, with vendor and model. The numbers of SCSI hosts and the names of
// disks are given anew at each start, and are left open.
//
//	/sys/devices/pci0000:00/0000:03:00.0/host2/target2:0:1/2:0:1:0/block/sda
//	    /devices/pci0000:00/0000:03:00.0/host*/target*:0:1/*:0:1:0/block/*
func onlyDisk(d *evidence.Device, at string) (match, id string, err error) {
	if !strings.HasPrefix(at, "/sys/devices/") || at != path.Clean(at) {
		return "", "", fmt.Errorf("%s: where it is in /sys was not found out", d.Name)
	}
	if w := strings.TrimSpace(d.WWID); w != "" && literal(w) {
		attribute := "device/wwid"
		if d.Driver == "nvme" {
			attribute = "wwid"
		}
		return fmt.Sprintf(`ATTR{%s}=="%s"`, attribute, w), word(w), nil
	}
	if d.Driver == "nvme" {
		return "", "", fmt.Errorf("%s has no WWID by which a rule could name it alone", d.Name)
	}
	parts := strings.Split(strings.TrimPrefix(at, "/sys"), "/")
	n := len(parts)
	address := strings.Split(parts[max(0, n-3)], ":")
	if n < 6 || len(address) != 4 || parts[n-2] != "block" || !strings.HasPrefix(parts[n-5], "host") {
		return "", "", fmt.Errorf("%s is attached in a way that is not known, and has no WWID by which a rule could name it", d.Name)
	}
	parts[n-1], parts[n-3] = "*", "*:"+strings.Join(address[1:], ":")
	parts[n-4], parts[n-5] = "target*:"+strings.Join(address[1:3], ":"), "host*"
	place := strings.Join(parts, "/")
	vendor, model := strings.TrimSpace(d.Vendor), strings.TrimSpace(d.Model)
	if strings.Trim(place, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/:._-*") != "" || !literal(vendor) ||
		!literal(model) {
		return "", "", fmt.Errorf("%s has a name that a rule of udev cannot hold", d.Name)
	}
	return fmt.Sprintf(`DEVPATH=="%s", ATTR{device/vendor}=="%s", ATTR{device/model}=="%s"`, place, vendor, model),
		word(strings.Join(append(strings.Split(parts[n-6], ":"), address[1:]...), "-")), nil
}

// literal tells whether a value stands for itself alone in a condition of udev.
func literal(s string) bool {
	return s != "" && len(s) < 128 && !strings.ContainsAny(s, `"*?[]|\$%`) && s == plain(s)
}

// word makes a part of a file's name.
func word(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, s[:min(len(s), 64)])
}

// costs are what a longer timeout costs, each in a sentence.
func costs(e *evidence.Evidence, disks []*evidence.Device, seconds int) []string {
	longest := time.Duration(0)
	var all []string
	t := time.Duration(seconds) * time.Second
	for _, d := range disks {
		now, then := stallDisk(e, d), stallDisk(e, d)
		then.Timeout = t
		m := stall.Machine{HZ: e.Limits.HZ}
		was, will := stall.FirstError(m, now, stall.Medium), stall.FirstError(m, then, stall.Medium)
		longest = max(longest, will.High)
		all = append(all, fmt.Sprintf("%s gives up after %s to %s without an answer; with %s that was %s to %s. Until then whoever "+
			"writes or reads there waits", d.Name, seconds0(will.Low), seconds0(will.High), never(d.Timeout), seconds0(was.Low),
			seconds0(was.High)))
	}
	return append(append(all, memoryCosts(e)...), lateCosts(e, longest)...)
}

// seconds0 is a time in whole seconds.
func seconds0(d time.Duration) string {
	if d == stall.Never {
		return "never"
	}
	return d.Round(time.Second).String()
}

func memoryCosts(e *evidence.Evidence) []string {
	kept := int64(0)
	if n, err := strconv.ParseInt(e.Config.Sysctl["vm.dirty_bytes"].Value, 10, 64); err == nil && n > 0 {
		kept = n
	} else if n, err := strconv.ParseInt(e.Config.Sysctl["vm.dirty_ratio"].Value, 10, 64); err == nil && n > 0 && n <= 100 {
		kept = e.Memory.Available / 100 * n
	}
	text := "what is written meanwhile is kept in memory"
	if kept > 0 {
		text += fmt.Sprintf(", up to about %d MiB", kept>>20)
	}
	return []string{text + "; it is lost if the machine is reset or loses power before storage is back",
		"when that is full every program that writes waits, and processes that pile up may use the memory up (OOM)"}
}

// lateCosts are those that come since somebody else is faster than the disk.
func lateCosts(e *evidence.Evidence, longest time.Duration) []string {
	var all []string
	m := stallMachine(e)
	if m.HungTask > 0 && m.HungTask < longest {
		text := fmt.Sprintf("the kernel complains of tasks that hang after %s", m.HungTask)
		if m.Panic {
			text = fmt.Sprintf("the kernel panics over tasks that hang after %s (kernel.hung_task_panic), long before the disk gives up",
				m.HungTask)
		}
		all = append(all, text)
	}
	for _, l := range e.Limits.Leases {
		if l.Early >= longest || len(all) >= 16 {
			continue
		}
		text := fmt.Sprintf("%s is lost after %s, if %s: others take over before the disk gives up", l.Name, l.Early, l.Needs)
		if l.Fenced != "yes" {
			text += ", and what this node has kept is written when storage is back"
		}
		all = append(all, text)
	}
	for _, w := range e.Limits.Watchdogs {
		if w.Resets && w.Early < longest && len(all) < 32 {
			all = append(all, fmt.Sprintf("%s resets the machine after %s, if what serves it waits for the disk", w.Name, w.Late))
		}
	}
	return all
}
