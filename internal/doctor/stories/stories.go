// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package stories tells of machines that are ill, as files that they would show, each with the cause that
// whoever wrote it knows. It takes one source of evidence after the other away and counts what the doctor says
// then: how often it is right, how often it says that it is not certain or where to look, and how often it
// names something that is not the cause. It is for tests, for the bench, and one for shisa demo.
package stories

import (
	"bufio"
	"embed"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/linux/tree"
)

//go:embed testdata/*.txt
var texts embed.FS

//go:embed testdata/full-server.txt
var fullServer string

// FullServer is the story of two guests that hang on a full server, where the image of one has leaks: the one of
// which shisa demo tells. A program that needs no other holds none of the others.
func FullServer() (*Story, error) { return Parse("full-server", fullServer) }

// Noon is when all evidence of stories was gathered.
func Noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// Story is some machines with what is wrong.
type Story struct {
	Name, Title string
	// Causes are what is wrong, the first first; none of a story in which all is well.
	Causes []Answer
	// Accept are other objects by which the cause is named as well when something is not known: the same
	// fault, seen from elsewhere.
	Accept []string
	// Shared is what the sick machines have in common and the healthy have not, "" where that is not asked.
	Shared   string
	Machines []*Machine
}

// Answer is a cause as the doctor is to name it. It explains Least findings at least.
type Answer struct {
	Certainty doctor.Certainty
	Object    string
	Least     int
}

// Machine is a machine by its files.
type Machine struct {
	Name  string
	Kind  tree.Kind
	files map[string]string
	links map[string]string

	mounts []linux.Mount
	probes evidence.Probed
	tasks  evidence.Tasks
	asked  evidence.Asked
	log    []string
	whole  *evidence.Evidence
}

// All reads the stories, in the order of their names. An error names the line.
func All() ([]*Story, error) {
	names, err := texts.ReadDir("testdata")
	if err != nil {
		return nil, err
	}
	var all []*Story
	for _, n := range names {
		text, err := texts.ReadFile("testdata/" + n.Name())
		if err != nil {
			return nil, err
		}
		s, err := Parse(strings.TrimSuffix(n.Name(), ".txt"), string(text))
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// Parse reads a story: a line for each thing that there is. README.md in testdata describes the lines.
func Parse(name, text string) (*Story, error) {
	s := &Story{Name: name}
	var m *Machine
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for number := 1; lines.Scan(); number++ {
		line := lines.Text()
		word, rest, _ := strings.Cut(line, " ")
		rest = strings.TrimSpace(rest)
		err := error(nil)
		switch {
		case line == "" || word == "#":
		case word == "machine":
			m = newMachine(rest)
			s.Machines = append(s.Machines, m)
		case m == nil:
			err = s.head(word, rest)
		default:
			err = m.line(word, rest)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, number, err)
		}
	}
	for _, m := range s.Machines {
		if err := m.finish(); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", name, m.Name, err)
		}
	}
	return s, lines.Err()
}

// head reads what stands before the first machine.
func (s *Story) head(word, rest string) error {
	f := strings.Fields(rest)
	switch word {
	case "title":
		s.Title = rest
	case "cause": // cause likely OBJECT LEAST
		if len(f) != 3 {
			return fmt.Errorf("want: cause CERTAINTY OBJECT LEAST")
		}
		least, err := strconv.Atoi(f[2])
		s.Causes = append(s.Causes, Answer{doctor.Certainty(f[0]), f[1], least})
		return err
	case "accept":
		s.Accept = append(s.Accept, f...)
	case "shared":
		s.Shared = rest
	default:
		return fmt.Errorf("%q is not known before the first machine", word)
	}
	return nil
}

// newMachine makes a machine on which all is well and nothing is mounted: "NAME [KIND]".
func newMachine(rest string) *Machine {
	name, kind, _ := strings.Cut(rest, " ")
	m := &Machine{Name: name, Kind: tree.Bundle, files: map[string]string{}, links: map[string]string{}}
	if kind != "" {
		m.Kind = tree.Kind(kind)
	}
	for file, text := range map[string]string{
		"/etc/hostname":                   name + "\n",
		"/proc/sys/kernel/hostname":       name + "\n",
		"/proc/sys/kernel/osrelease":      "6.1.0-41-amd64\n",
		"/proc/sys/kernel/random/boot_id": "11112222-3333-4444-5555-666677778888\n",
		"/proc/stat":                      "btime 1772323200\n", // midnight
		"/proc/vmstat":                    "oom_kill 0\n",
		"/proc/meminfo": "MemTotal: 8000000 kB\nMemFree: 5000000 kB\nMemAvailable: 6000000 kB\nSUnreclaim: 90000 kB\n" +
			"SReclaimable: 200000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n",
		"/sys/fs/ext4/features/lazy_itable_init": "supported\n",
	} {
		if m.Kind != tree.Disk || strings.HasPrefix(file, "/etc/") {
			m.files[file] = text
		}
	}
	m.log = []string{"00:00:01 kernel: Linux version 6.1.0-41-amd64 (debian-kernel@lists.debian.org)",
		"11:59:50 CRON[99]: (root) CMD (true)"}
	m.tasks = evidence.Tasks{Looked: 120, Waiting: []evidence.Task{}}
	return m
}

// line reads one line about a machine.
func (m *Machine) line(word, rest string) error {
	f := strings.Fields(rest)
	switch {
	case strings.HasPrefix(word, "/"):
		return m.file(word, rest)
	case word == "log":
		m.log = append(m.log, rest)
		return nil
	case len(f) < 2:
		return fmt.Errorf("%q is too short", word)
	}
	switch word {
	case "mount":
		all, bad := linux.ParseMounts([]byte(rest + "\n"))
		if bad > 0 || len(all) != 1 {
			return fmt.Errorf("%q is no line of mountinfo", rest)
		}
		m.mounts = append(m.mounts, all[0])
		m.files["/proc/1/mountinfo"] += rest + "\n"
		m.probes.Mounts = append(m.probes.Mounts, evidence.ProbedMount{ID: all[0].ID, Namespace: namespace,
			Point: all[0].Point, Answer: answer(50)})
	case "probe":
		return m.probe(f[0], f[1], strings.Join(f[2:], " "))
	case "disk", "part":
		m.disk(word, f)
	case "task":
		m.task(f)
	case "hung":
		return m.hung(f)
	case "image":
		m.image(f)
	case "vm":
		m.vm(f)
	default:
		return fmt.Errorf("%q is not known of a machine", word)
	}
	return nil
}

// file reads "PATH = TEXT", in which \n is the end of a line, and "PATH -> TARGET".
func (m *Machine) file(name, rest string) error {
	how, text, _ := strings.Cut(rest, " ")
	switch how {
	case "=":
		m.files[name] = strings.ReplaceAll(text, `\n`, "\n") + "\n"
	case "->":
		m.links[name] = text
	default:
		return fmt.Errorf("want: %s = TEXT, or -> TARGET", name)
	}
	return nil
}

const namespace = 4026531841

// answer is that of a mount of which so much is used.
func answer(percent uint64) *evidence.Answer {
	const blocks = 2_500_000 // of 4 KiB: 10 GB
	left := blocks - blocks*percent/100
	return &evidence.Answer{BlockSize: 4096, Blocks: blocks, Free: left, Avail: left, Inodes: 600_000, InodesFree: 500_000,
		WriteErrno: -1}
}

// probe reads what a mount answered: "hung", "full", "used PERCENT", "stat ERRNO", "not WHY".
func (m *Machine) probe(point, how, more string) error {
	i := slices.IndexFunc(m.probes.Mounts, func(p evidence.ProbedMount) bool { return p.Point == point })
	if i < 0 {
		return fmt.Errorf("%s is not mounted", point)
	}
	p := &m.probes.Mounts[i]
	n, err := strconv.Atoi(more)
	switch how {
	case "hung":
		p.Answer = &evidence.Answer{Errno: -1, StatfsErrno: -1, Hung: true, Waited: 3 * time.Second, WriteErrno: -1}
		return nil
	case "full":
		p.Answer = answer(100)
		return nil
	case "not":
		p.Answer, p.Why = nil, more
		return nil
	case "stat":
		p.Answer.Errno = n
	case "used":
		p.Answer = answer(uint64(n))
	default:
		err = fmt.Errorf("%q is no answer", how)
	}
	return err
}

// disk reads "NAME DRIVER [STATE]" of a disk, and "NAME DISK" of a part of one.
func (m *Machine) disk(word string, f []string) {
	dir := "/sys/class/block/" + f[0]
	m.files[dir+"/size"] = "20971520\n"
	m.files[dir+"/ro"] = "0\n"
	if word == "part" {
		m.files[dir+"/partition"] = strings.TrimPrefix(f[0], f[1]) + "\n"
		return
	}
	if f[1] == "-" {
		return
	}
	m.links[dir+"/device/driver"] = "../../bus/drivers/" + f[1]
	if len(f) > 2 {
		m.files[dir+"/device/state"] = f[2] + "\n"
	}
	if f[1] == "sd" {
		m.files[dir+"/device/timeout"] = "30\n"
	}
}

// task reads "TID COMM MOUNT" of one that waits.
func (m *Machine) task(f []string) {
	tid, _ := strconv.Atoi(f[0])
	t := evidence.Task{PID: tid, TID: tid, Comm: f[1], WChan: "io_schedule", Same: true, Mounts: []string{},
		From: evidence.Source{Path: "/proc/" + f[0] + "/stat"}}
	if len(f) > 2 {
		t.Mounts = f[2:]
	}
	m.tasks.Between, m.tasks.Waiting = 2*time.Second, append(m.tasks.Waiting, t)
}

// hung reads "FROM TID COMM" of a task of which the kernel says every two minutes that it hangs, ten times.
func (m *Machine) hung(f []string) error {
	at, err := time.Parse(time.TimeOnly, f[0])
	if err != nil || len(f) != 3 {
		return fmt.Errorf("want: hung FROM TID COMM")
	}
	for i := range 10 {
		now := at.Add(time.Duration(i) * 2 * time.Minute)
		m.log = append(m.log, fmt.Sprintf("%s kernel: [%5d.000000] INFO: task %s:%s blocked for more than %d seconds.",
			now.Format(time.TimeOnly), now.Hour()*3600+now.Minute()*60+now.Second(), f[2], f[1], 120+i*121))
	}
	return nil
}

// image reads "PATH FORMAT [backing PATH STATE] [leaks N]".
func (m *Machine) image(f []string) {
	x := evidence.Image{Path: f[0], Format: f[1], Users: []evidence.ImageUser{}, From: evidence.Source{Path: f[0]}}
	for i := 2; i+1 < len(f); i++ {
		switch f[i] {
		case "backing":
			x.Backing, x.BackingPath, x.BackingFormat, x.BackingState = f[i+1], f[i+1], "qcow2", "ok"
		case "missing":
			x.Backing, x.BackingPath, x.BackingFormat, x.BackingState = f[i+1], f[i+1], "qcow2", "missing"
		case "leaks":
			n, _ := strconv.ParseInt(f[i+1], 10, 64)
			x.Checked = &evidence.Checked{Leaks: n, LeakBytes: n << 16, Codes: []string{"QC03"}, Time: Noon()}
		}
	}
	m.asked.Images = append(m.asked.Images, x)
}

// vm reads "NAME UUID STATE DISK..." of a virtual machine as libvirt writes it down; the state "nospace" is that
// of one that QEMU stopped since there was no room.
func (m *Machine) vm(f []string) {
	state := "state='" + f[2] + "'"
	if f[2] == "nospace" {
		state = "state='paused' reason='ioerror'"
	}
	disks := ""
	for i, d := range f[3:] {
		disks += fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>"+
			"<target dev='vd%c'/></disk>", d, 'a'+i)
	}
	m.files["/run/libvirt/qemu/"+f[0]+".xml"] = fmt.Sprintf("<domstatus %s pid='%d'><domain type='kvm'><name>%s</name>"+
		"<uuid>%s</uuid><devices>%s</devices></domain></domstatus>\n", state, 1000+len(m.files), f[0], f[1], disks)
	if f[2] == "nospace" {
		m.log = append(m.log, "11:40:00 "+f[0]+": No space left on device")
	}
}

// finish makes the files of what was said by lines.
func (m *Machine) finish() error {
	for i, l := range m.log {
		if !strings.HasPrefix(l, "2026-") {
			m.log[i] = "2026-03-01T" + l
		}
	}
	slices.Sort(m.log)
	for _, l := range m.log {
		at, said, _ := strings.Cut(l, " ")
		m.files["/var/log/syslog"] += at + "+00:00 " + m.Name + " " + said + "\n"
	}
	own := map[string]any{"meta.json": evidence.Meta{Label: m.Name, Time: Noon()}}
	if m.Kind != tree.Disk {
		m.links["/proc/1/ns/mnt"] = fmt.Sprintf("mnt:[%d]", namespace)
		own["probes.json"], own["tasks.json"] = m.probes, m.tasks
		own["machines.json"] = m.asked
	}
	for name, value := range own {
		text, err := json.Marshal(value)
		if err != nil {
			return err
		}
		m.files["/shisa/"+name] = string(text)
	}
	return nil
}

// Sources are the evidence that can be taken away: each file, and what many have in common.
func (m *Machine) Sources() []string {
	var all []string
	for name := range m.files {
		all = append(all, name)
	}
	for name := range m.links {
		all = append(all, name)
	}
	for _, group := range []string{"/proc", "/sys", "/etc", "/run", "/var/log", "/shisa", "/sys/class/block", "/sys/fs"} {
		if slices.ContainsFunc(all, func(n string) bool { return path.Dir(n) != group && strings.HasPrefix(n, group+"/") }) {
			all = append(all, group)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
