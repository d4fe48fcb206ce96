// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/units"
)

// Watchdog ends or resets what does not report in time.
type Watchdog struct {
	// Name is who watches, or what is watched: "systemd-journald.service".
	Name string
	// Early and Late are when it acts after the last report that could come.
	Early, Late time.Duration
	// Resets: it resets the machine; otherwise it ends what it watches.
	Resets bool
	// Doubt says why what is watched may not be started at all, "" if it is.
	Doubt string
	From  Source
}

// Lease is a time for which others believe that this node does its work.
type Lease struct {
	Name string
	// Early and Late are when it is lost if this node stops to renew it.
	Early, Late time.Duration
	// Needs is what has to wait for the disk for it to be lost so.
	Needs string
	// Fenced is "no" where a node that wakes up again may write beside the one that took over, "yes" where
	// something keeps it from that, "" where it is not known.
	Fenced string
	// Address: what another node takes over is an address, and clients with it. What is at work here goes on. Checked: a
	// check that looks at this node decides about it.
	Address, Checked bool
	From             Source
}

const (
	// maxLeases bounds what is kept: a machine has a handful.
	maxLeases = 256
	// maxConfigs bounds the files of one directory of settings that are read.
	maxConfigs = 64
)

// value is a setting that was found in a text, with its line.
type value struct {
	text string
	line int
}

// settingIn finds NAME = VALUE, NAME: VALUE, NAME VALUE or --NAME=VALUE in a text of lines; the last one
// counts. Comments begin with "#", ";" or "!".
func settingIn(text []byte, names ...string) (v value, found bool) {
	for _, l := range joined(text, maxConfigLines) {
		body := strings.TrimLeft(l.text, "-\"' \t")
		if strings.HasPrefix(body, ";") || strings.HasPrefix(body, "!") {
			continue
		}
		end := strings.IndexFunc(body, func(r rune) bool {
			return !(r == '_' || r == '-' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
		})
		if end <= 0 || !slices.Contains(names, body[:end]) {
			continue
		}
		rest := strings.TrimLeft(body[end:], "\"' \t:=")
		if rest, _, _ = strings.Cut(rest, " #"); rest != "" {
			v, found = value{strings.Trim(strings.TrimRight(rest, " \t,;"), `"'`), l.number}, true
		}
	}
	return v, found
}

// among gives the first of some files that is there, or those of a directory, which ends in a slash.
func (g *gatherer) among(ctx context.Context, names ...string) (file string, text []byte) {
	for _, name := range names {
		if !strings.HasSuffix(name, "/") {
			if b := g.optional(ctx, PartConfig, name); b != nil {
				return name, b
			}
			continue
		}
		all := g.optionalList(ctx, PartConfig, strings.TrimSuffix(name, "/"))
		for _, e := range all[:min(len(all), maxConfigs)] {
			if !isRegular(e) || strings.HasPrefix(e.Name, ".") {
				continue
			}
			if b := g.optional(ctx, PartConfig, path.Join(name, e.Name)); b != nil {
				file, text = path.Join(name, e.Name), append(append(text, b...), '\n')
			}
		}
		if file != "" {
			return strings.TrimSuffix(name, "/"), text
		}
	}
	return "", nil
}

// program is a program whose node loses something when it waits for the disk.
type program struct {
	name, needs, fenced string
	// files are where its settings lie, the first that is there counts.
	files []string
	// must is a word that has to be in them, "" if the file alone says that it is used.
	must string
	// setting is the name of the time, unit its unit where it has none, usual what is taken without it.
	settings []string
	unit     time.Duration
	usual    time.Duration
	// early and late are factors of the time, plus is what comes on top of both.
	early, late float64
	plus        time.Duration
	// address: see Lease. also are names of settings that are read besides, by a function of its own.
	address bool
	also    []string
	// fences tells Fenced by the settings, nil if fenced says it; block: it asks to which block of YAML one belongs.
	fences func(g *gatherer, ctx context.Context, text []byte) string
	block  bool
}

// programs are those that are known. The usual values are those of their documents: etcd 3.5
// (--election-timeout), Patroni 3 (ttl, loop_wait), keepalived 2 (advert_int; 3 of them and a skew of one at most, RFC
// 5798 section 6.1), MySQL 8.0 (5 s until a member is suspected, then group_replication_member_expel_timeout),
// Consul 1.15 (raft_multiplier 5 of 1000 ms), Galera 4 (evs.suspect_timeout, evs.inactive_timeout),
// MongoDB 6 (electionTimeoutMillis), Kubernetes 1.28 (node-monitor-grace-period 40 s).
func programs() []program {
	return []program{
		{name: "etcd election", needs: "etcd's data lies on the disk", fenced: "yes",
			files:    []string{"/etc/etcd/etcd.conf.yml", "/etc/etcd/etcd.conf", "/etc/default/etcd", "/etc/kubernetes/manifests/etcd.yaml"},
			settings: []string{"election-timeout", "ETCD_ELECTION_TIMEOUT"}, unit: time.Millisecond, usual: time.Second, early: 1, late: 2},
		{name: "Patroni leader key", needs: "Patroni, or the PostgreSQL that it asks, waits for the disk",
			files: []string{"/etc/patroni/", "/etc/patroni.yml", "/etc/patroni.yaml"}, settings: []string{"ttl"}, unit: time.Second,
			usual: 30 * time.Second, early: 0.66, late: 1.34, fences: (*gatherer).patroniFences, block: true, also: []string{"mode", "watchdog"}},
		{name: "keepalived", needs: "keepalived itself waits for the disk, as for its log; what it sends needs none", fenced: "no",
			files: keepalivedFiles(), settings: []string{"advert_int"}, also: checkSettings(), unit: time.Second,
			usual: time.Second, early: 3, late: 4, address: true},
		{name: "Consul leader", needs: "Consul's data lies on the disk", fenced: "yes", must: "server",
			files: []string{"/etc/consul.d/", "/etc/consul/"}, settings: []string{"raft_multiplier"}, unit: time.Second,
			usual: 5 * time.Second, early: 0.5, late: 2},
		{name: "Galera suspect timeout", needs: "the node's cluster thread waits for the disk", fenced: "yes", must: "wsrep",
			files: []string{"/etc/mysql/mariadb.conf.d/", "/etc/mysql/conf.d/", "/etc/my.cnf.d/", "/etc/mysql/my.cnf", "/etc/my.cnf"},
			usual: 5 * time.Second, early: 1, late: 3},
		{name: "MySQL group membership", needs: "the member's group communication waits for the disk", fenced: "yes",
			must: "group_replication_group_name", files: []string{"/etc/mysql/mysql.conf.d/", "/etc/mysql/conf.d/", "/etc/my.cnf.d/",
				"/etc/mysql/my.cnf", "/etc/my.cnf"}, settings: expelSettings(), unit: time.Second, usual: 5 * time.Second, early: 1, late: 2,
			plus: 5 * time.Second},
		{name: "MongoDB election", needs: "mongod waits for the disk", fenced: "yes", must: "replSetName",
			files: []string{"/etc/mongod.conf"}, settings: []string{"electionTimeoutMillis"}, unit: time.Millisecond,
			usual: 10 * time.Second, early: 1, late: 1.5},
		{name: "Kubernetes node", needs: "the kubelet waits for the disk", files: []string{"/var/lib/kubelet/config.yaml"},
			usual: 40 * time.Second, early: 1, late: 1.5},
	}
}

func keepalivedFiles() []string {
	return []string{"/etc/keepalived/keepalived.conf", "/etc/keepalived/conf.d/"}
}

// checkSettings are those of a vrrp_script of keepalived.
func checkSettings() []string { return []string{"vrrp_script", "interval", "timeout", "fall"} }

// expelSettings are the names of one setting of MySQL: in its files "-" and "_" are the same, and "loose_" is for a plugin
// that may not be there.
func expelSettings() []string {
	const name = "group_replication_member_expel_timeout"
	return []string{name, "loose_" + name, "loose-" + name, strings.ReplaceAll(name, "_", "-"),
		"loose-" + strings.ReplaceAll(name, "_", "-")}
}

// keepalivedChecks reads the scripts by which keepalived decides whether this node is well (keepalived.conf(5) of 2.2,
// "vrrp_script"): each interval one is run, it has timeout to end, or one interval, and fall failures in a row count.
func keepalivedChecks(file string, text []byte) (all []Lease) {
	const most = 24 * time.Hour // of an interval; it is seconds
	name, line := "", 0
	interval, timeout, fall := time.Second, time.Duration(0), 1
	add := func() {
		run := timeout
		if run == 0 {
			run = interval
		}
		if name != "" && len(all) < maxConfigs {
			all = append(all, Lease{Name: "keepalived check " + name, Fenced: "no", Address: true, Checked: true,
				Early: time.Duration(fall-1)*interval + run, Late: time.Duration(fall)*max(interval, run) + interval,
				Needs: "the script of that check waits for the disk", From: Source{Path: file, Line: line}})
		}
	}
	for _, l := range joined(text, maxConfigLines) {
		for _, key := range checkSettings() {
			v, found := settingIn([]byte(l.text), key)
			if !found {
				continue
			}
			d := min(span(v.text, time.Second), most)
			switch n, err := strconv.Atoi(v.text); {
			case key == "vrrp_script":
				add()
				name, line = strings.TrimRight(v.text, " {"), l.number
				interval, timeout, fall = time.Second, 0, 1
			case key == "interval" && d > 0:
				interval = d
			case key == "timeout" && d > 0:
				timeout = d
			case key == "fall" && err == nil && n > 0 && n < 1000:
				fall = n
			}
		}
	}
	add()
	return all
}

// leases reads what is configured of clusters and of databases that elect a leader.
func (g *gatherer) leases(ctx context.Context) {
	l := &g.e.Limits
	c := &g.e.Cluster
	if c.Token > 0 {
		l.Leases = append(l.Leases, Lease{Name: "corosync token", Early: c.Token, Late: 2 * c.Token, Fenced: c.Fencing,
			Needs: "corosync itself waits for the disk; it lies in locked memory, and its network goes on", From: c.From})
	}
	g.operations(ctx)
	file, text := g.among(ctx, keepalivedFiles()...)
	l.Leases = append(l.Leases, keepalivedChecks(file, text)...)
	for _, p := range programs() {
		file, text := g.among(ctx, p.files...)
		if file == "" || p.must != "" && !strings.Contains(string(text), p.must) {
			continue
		}
		d, from := p.usual, Source{Path: file}
		if v, found := settingIn(text, p.settings...); found {
			if t := span(v.text, p.unit); t > 0 {
				d, from.Line = t, v.line
			}
		}
		fenced := p.fenced
		if p.fences != nil {
			fenced = p.fences(g, ctx, text)
		}
		l.Leases = append(l.Leases, Lease{Name: p.name, Early: p.plus + time.Duration(p.early*float64(d)), Address: p.address,
			Late: p.plus + time.Duration(p.late*float64(d)), Needs: p.needs, Fenced: fenced, From: from})
	}
}

// notKept is what is said of lines that leaseLines leaves out.
const notKept = "lines that no rule needs"

// leaseLines keeps of a file with settings of such a program the lines that leases reads, and of the others
// nothing: these files hold passwords in forms of their own. kept is false for other files; n is how
// many lines were left out.
func leaseLines(name string, text []byte) (less []byte, n int, kept bool) {
	var settings, words []string
	blocks := false
	for _, p := range programs() {
		if slices.ContainsFunc(p.files, func(f string) bool { return f == name || strings.HasSuffix(f, "/") && strings.HasPrefix(name, f) }) {
			settings, kept = append(append(settings, p.settings...), p.also...), true
			if p.must != "" {
				words = append(words, p.must)
			}
			blocks = blocks || p.block
		}
	}
	if !kept {
		return text, 0, false
	}
	lines := strings.Split(string(text), "\n")
	for i, l := range lines {
		if _, wanted := settingIn([]byte(l), settings...); wanted || strings.TrimSpace(l) == "" ||
			blocks && blockName(l) {
			continue
		}
		n++
		lines[i] = ""
		for _, w := range words {
			if strings.Contains(l, w) {
				lines[i] = w
			}
		}
	}
	return []byte(strings.Join(lines, "\n")), n, true
}

var (
	cibOp   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`<op\s[^>]*>`) })
	cibAttr = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`([a-z-]+)="([^"]*)"`) })
)

// operations reads the monitors of pacemaker's resources: the one with the shortest timeout is the first
// to fail.
func (g *gatherer) operations(ctx context.Context) {
	const file = "/var/lib/pacemaker/cib/cib.xml"
	text := g.optional(ctx, PartCluster, file)
	found := Lease{Name: "pacemaker monitor", Fenced: g.e.Cluster.Fencing, From: Source{Path: file},
		Needs: "a resource whose monitor looks at the disk is on this node"}
	ops := cibOp().FindAll(text, maxConfigLines)
	for _, op := range ops {
		a := map[string]string{}
		for _, m := range cibAttr().FindAllStringSubmatch(string(op), 32) {
			a[m[1]] = m[2]
		}
		timeout, interval := span(a["timeout"], time.Second), span(a["interval"], time.Second)
		if timeout <= 0 {
			timeout = 20 * time.Second // default-action-timeout
		}
		if a["name"] == "monitor" && (found.Early == 0 || timeout < found.Early) {
			found.Early, found.Late = timeout, timeout+interval
		}
	}
	if found.Early > 0 {
		g.e.Limits.Leases = append(g.e.Limits.Leases, found)
	}
}

// watchdogs reads who resets the machine or ends a service that does not report.
func (g *gatherer) watchdogs(ctx context.Context) {
	l := &g.e.Limits
	add := func(name string, d time.Duration, resets bool, from Source) {
		l.watch(Watchdog{Name: name, Late: d, Resets: resets, From: from})
	}
	for _, file := range []string{"/etc/systemd/system.conf", "/etc/systemd/system.conf.d/"} {
		at, text := g.among(ctx, file)
		if v, found := settingIn(text, "RuntimeWatchdogSec"); found {
			add("systemd (RuntimeWatchdogSec)", span(v.text, time.Second), true, Source{Path: at, Line: v.line})
		}
	}
	if at, text := g.among(ctx, "/etc/watchdog.conf"); at != "" {
		if v, found := settingIn(text, "watchdog-timeout"); found {
			add("watchdogd", span(v.text, time.Second), true, Source{Path: at, Line: v.line})
		}
	}
	if at, text := g.among(ctx, "/etc/sysconfig/sbd", "/etc/default/sbd"); at != "" {
		d, from := 5*time.Second, Source{Path: at} // its default
		if v, found := settingIn(text, "SBD_WATCHDOG_TIMEOUT"); found {
			d, from.Line = span(v.text, time.Second), v.line
		}
		if v, found := settingIn(text, "SBD_DEVICE"); found && v.text != "" {
			add("sbd", d, true, from)
		}
	}
	if at, _ := g.among(ctx, "/etc/sanlock/sanlock.conf"); at != "" {
		l.Watchdogs = append(l.Watchdogs, Watchdog{Name: "sanlock", Early: 60 * time.Second, Late: 80 * time.Second, Resets: true,
			From: Source{Path: at}})
	}
	if at, _ := g.among(ctx, "/etc/mysql/my.cnf", "/etc/my.cnf"); at != "" {
		// innodb_fatal_semaphore_wait_threshold
		l.Watchdogs = append(l.Watchdogs, Watchdog{Name: "mysqld (InnoDB)", Early: 600 * time.Second, Late: 660 * time.Second,
			From: Source{Path: at}})
	}
	g.serviceWatchdogs()
}

// watch adds a watchdog that acts after w.Late. What is watched reports at half of the time: the last report may just
// have been.
func (l *Limits) watch(w Watchdog) {
	if w.Late > 0 && len(l.Watchdogs) < maxLeases {
		w.Early = w.Late / 2
		l.Watchdogs = append(l.Watchdogs, w)
	}
}

// serviceWatchdogs reads WatchdogSec= of the services that are started, or that may be (systemd.service(5)).
func (g *gatherer) serviceWatchdogs() {
	set := g.e.Units
	if set == nil {
		return
	}
	reached := set.Reached("default.target", "sysinit.target")
	for _, u := range set.Units {
		chain, started := reached[u.Name]
		if s, found := u.Last("Service", "WatchdogSec"); found && started {
			g.e.Limits.watch(Watchdog{Name: u.Name, Late: span(s.Value, time.Second), Doubt: units.DoubtOf(chain),
				From: Source{Path: s.From.Path, Line: s.From.Line}})
		}
	}
}

var spanPart = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)`) })

// span reads a time as systemd, pacemaker and others write it: "3min", "1min 30s", "20", of which unit is
// the unit; 0 for what is no time, and for "infinity".
func span(text string, unit time.Duration) time.Duration {
	known := map[string]time.Duration{"": unit, "us": time.Microsecond, "ms": time.Millisecond, "msec": time.Millisecond,
		"s": time.Second, "sec": time.Second, "second": time.Second, "seconds": time.Second,
		"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
		"h": time.Hour, "hr": time.Hour, "hour": time.Hour, "hours": time.Hour, "d": 24 * time.Hour}
	var sum float64
	rest := strings.TrimSpace(text)
	for n := 0; rest != "" && n < 8; n++ {
		m := spanPart().FindStringSubmatch(rest)
		if m == nil {
			return 0
		}
		u, is := known[m[2]]
		v, err := strconv.ParseFloat(m[1], 64)
		if !is || err != nil {
			return 0
		}
		sum += v * float64(u)
		rest = strings.TrimSpace(rest[len(m[0]):])
	}
	if rest != "" || sum > float64(10*365*24*time.Hour) {
		return 0
	}
	return time.Duration(sum)
}
