// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/plan"
)

func TestDropin(t *testing.T) {
	for _, c := range []struct{ unit, path, file, line string }{
		{"vmtoolsd.service", "/mnt/pool", "vmtoolsd.service.d/50-shisa-mnt-pool.conf", `"-/mnt/pool"`},
		{"agent@b.service", "/mnt/a b%c", "agent@b.service.d/50-shisa-mnt-a_b_c-22bed265.conf", `"-/mnt/a b%%c"`},
		{"a.service", `/mnt/say "no" \`, "", `"-/mnt/say "'"'"no"'"'" \\"`},
		{"a.service", "/mnt/it's", "", `"-/mnt/it's"`},
		{"a.service", "/mnt/ü", "", `"-/mnt/ü"`},
	} {
		got, err := Dropin(c.unit, c.path)
		if err != nil {
			t.Errorf("Dropin(%s, %s) = %v", c.unit, c.path, err)
			continue
		}
		if want := "/etc/systemd/system/" + c.file; c.file != "" && got.Path != want {
			t.Errorf("Dropin(%s, %s) is %s, want %s", c.unit, c.path, got.Path, want)
		}
		if want := "[Service]\nInaccessiblePaths=" + c.line + "\n"; !strings.HasSuffix(got.Content, "\n"+want) {
			t.Errorf("Dropin(%s, %s) holds %q, want %q", c.unit, c.path, got.Content, want)
		}
	}
	names := map[string]string{}
	for _, path := range []string{"/a/b", "/a-b", "/a b", "/a_b", "/a/b/", "/" + strings.Repeat("x", 200),
		"/" + strings.Repeat("x", 201), "/a.b", "/ü", "/ö"} {
		name := dropinName(path)
		if was, ok := names[name]; ok && filepath.Clean(path) != was {
			t.Errorf("%s and %s both have the drop-in %s", path, was, name)
		}
		if len(name) > plan.MaxTextName {
			t.Errorf("the name of the drop-in of %s has %d bytes", path, len(name))
		}
		names[name] = filepath.Clean(path)
	}
}

func TestDropinRefused(t *testing.T) {
	for _, c := range []struct {
		unit, path string
		refused    bool
	}{
		{"a.service", "/", true}, {"a.service", "/usr", true}, {"a.service", "/var/lib", true},
		{"a.service", "mnt/x", false}, {"a.service", "/mnt/../x", false}, {"a.service", "/mnt/x/", false},
		{"a.service", "/mnt/a\nb", true}, {"a.service", "/mnt/\xff", true}, {"a.service", "/mnt/\x7f", true},
		{"a.mount", "/mnt/x", true}, {"session-3.scope", "/mnt/x", true}, {"a", "/mnt/x", true},
		{"docker.service", "/mnt/x", true}, {"udisks2.service", "/mnt/x", true}, {"sshd.service", "/mnt/x", true},
		{"user@1000.service", "/mnt/x", true}, {"getty@tty1.service", "/mnt/x", true},
		{"../a.service", "/mnt/x", false}, {"a b.service", "/mnt/x", false}, {".service", "/mnt/x", false},
		{strings.Repeat("a", 250) + ".service", "/mnt/x", false}, {"..service", "/mnt/x", false},
	} {
		if _, err := Dropin(c.unit, c.path); err == nil || errors.Is(err, ErrRefused) != c.refused {
			t.Errorf("Dropin(%.30s, %q) = %v, refused: want %v", c.unit, c.path, err, c.refused)
		}
	}
}

func TestDropinPlan(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "lib/systemd/system")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.service", "b@.service", `c\x2dd.service`} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for unit, restart := range map[string]string{"a.service": "a.service", "b@x.service": "b@x.service",
		`c\x2dd.service`: `'c\x2dd.service'`} {
		p, err := DropinPlan(root, unit, "/mnt/x")
		if err != nil || len(p.Files) != 1 || len(p.Then) != 2 || p.Then[1].Command != "systemctl restart "+restart {
			t.Errorf("DropinPlan(%s) = %+v, %v", unit, p, err)
		}
	}
	if _, err := DropinPlan(root, "c.service", "/mnt/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("DropinPlan of no unit = %v, want %v", err, fs.ErrNotExist)
	}
}

func process(comm, unit string, args ...string) holders.Process {
	return holders.Process{PID: 100, Comm: comm, Unit: unit, Cmdline: args}
}

func TestCures(t *testing.T) {
	in := func(p holders.Process, container string) holders.Process { p.Container = container; return p }
	user := func(p holders.Process, unit string) holders.Process { p.UserUnit, p.UID = unit, 1000; return p }
	for _, c := range []struct {
		name  string
		seen  Seen
		path  string
		agent string
		kinds []WayKind
		want  []string // texts or sentences that are in it
	}{
		{"vmtoolsd", Seen{process("vmtoolsd", "open-vm-tools.service"), Polls, 7e8}, "/mnt/x", "open-vm-tools",
			[]WayKind{WayOption, WayDropin}, []string{"disable-query-diskinfo=true", "restart open-vm-tools.service"}},
		{"a name that the kernel cuts", Seen{process("prometheus-node", "prometheus-node-exporter.service"), Polls, 1}, "/mnt/a.b c",
			"node_exporter", []WayKind{WayOption, WayDropin}, []string{`|^/mnt/a.b.c($|/)"`, "mount-points-exclude="}},
		{"by its program's file", Seen{process("x", "my.service", "/opt/node_exporter", "--web"), Runs, 0}, "/mnt/x",
			"node_exporter", []WayKind{WayOption, WayDropin}, []string{"restart my.service"}},
		{"by its unit", Seen{process("agent", "datadog-agent.service"), Runs, 0}, "/mnt/x", "datadog-agent",
			[]WayKind{WayOption, WayDropin}, []string{"- '/mnt/x$'"}},
		{"netdata", Seen{process("netdata", "netdata.service"), Polls, 1}, "/mnt/a b", "netdata",
			[]WayKind{WayOption, WayDropin}, []string{"/var/lib/docker/* /mnt/a*b\n"}},
		{"a path that its option cannot name", Seen{process("collectd", "collectd.service"), Polls, 1}, "/mnt/a b", "collectd",
			[]WayKind{WayDropin}, nil},
		{"collectd", Seen{process("collectd", "collectd.service"), Polls, 1}, "/mnt/x", "collectd",
			[]WayKind{WayOption, WayDropin}, []string{"MountPoint \"/mnt/x\"\n  IgnoreSelected true"}},
		{"zabbix", Seen{process("zabbix_agentd", "zabbix-agent.service"), Polls, 1}, "/mnt/x", "zabbix-agent",
			[]WayKind{WayOption, WayDropin}, []string{"DenyKey=vfs.fs.size[/mnt/x,*]"}},
		{"no option of its own", Seen{process("snmpd", "snmpd.service"), Polls, 1}, "/mnt/x", "snmpd",
			[]WayKind{WayDropin}, nil},
		{"an instance of a template", Seen{process("df", "check-mk-agent@7.service"), Polls, 1}, "/mnt/x", "",
			[]WayKind{WayDropin}, []string{"check-mk-agent@7.service.d/"}},
		{"updatedb without a unit", Seen{process("updatedb.plocat", "cron.service"), Holds, 0}, "/mnt/x", "updatedb",
			[]WayKind{WayOption}, []string{"PRUNEPATHS=\"... /mnt/x\""}},
		{"unknown, polling", Seen{process("watcher", "watcher.service"), Polls, 1}, "/mnt/x", "",
			[]WayKind{WayDropin}, []string{"does not see", "--write-dropin watcher.service --apply /mnt/x"}},
		{"unknown, holding", Seen{process("db", "db.service"), Holds, 0}, "/mnt/x", "",
			[]WayKind{WayDropin}, []string{"only if it has no business there"}},
		{"a unit that mounts", Seen{process("udisksd", "udisks2.service"), Holds, 0}, "/mnt/x", "",
			[]WayKind{WayNone}, []string{"mount for nobody"}},
		{"a shell", Seen{process("bash", "session-3.scope"), Holds, 0}, "/mnt/x", "",
			[]WayKind{WayNone}, []string{"no service of systemd"}},
		{"a user's unit", Seen{user(process("gvfsd-trash", "user@1000.service"), "gvfs-daemon.service"), Holds, 0}, "/mnt/x",
			"gvfsd-trash", []WayKind{WayOption}, []string{"x-gvfs-notrash"}},
		{"a user's unit, unknown", Seen{user(process("x", "user@1000.service"), "x.service"), Holds, 0}, "/mnt/x", "",
			[]WayKind{WayUserDropin}, []string{"PrivateUsers=yes\nInaccessiblePaths=\"-/mnt/x\"\n", "does not reach it",
				"~/.config/systemd/user/x.service.d/50-shisa-mnt-x.conf", "systemctl --user --machine=1000@ daemon-reload",
				"systemctl --user --machine=1000@ restart x.service"}},
		{"a user's unit that mounts", Seen{user(process("gvfsd", "user@1000.service"), "gvfs-daemon.service"), Holds, 0}, "/mnt/x", "",
			[]WayKind{WayNone}, []string{"mount for nobody"}},
		{"a user's unit that belongs to the session", Seen{user(process("x", "user@1000.service"), "dbus.service"), Holds, 0}, "/mnt/x",
			"", []WayKind{WayNone}, []string{"mount for nobody"}},
		{"a user's scope", Seen{user(process("x", "user@1000.service"), "app-x-7.scope"), Holds, 0}, "/mnt/x", "",
			[]WayKind{WayNone}, []string{"no service"}},
		{"a container", Seen{in(process("node_exporter", "docker-1.scope"), "docker:4f1a"), Polls, 1}, "/mnt/x",
			"node_exporter", []WayKind{WayPropagation}, []string{"rslave"}},
		{"a pod", Seen{in(process("x", ""), "kubernetes:p/1"), Holds, 0}, "/mnt/x", "", []WayKind{WayPropagation},
			[]string{"HostToContainer"}},
		{"another runtime", Seen{in(process("x", ""), "lxc:a"), Holds, 0}, "/mnt/x", "", []WayKind{WayPropagation},
			[]string{"propagation rslave"}},
		{"a machine", Seen{holders.Process{PID: 7, Comm: "qemu", Machine: "vm-17"}, Holds, 0}, "/mnt/x", "",
			[]WayKind{WayNone}, []string{"vm-17"}},
	} {
		got := cureOf(c.seen, c.path)
		var kinds []WayKind
		all := ""
		for _, w := range got.Ways {
			kinds = append(kinds, w.Kind)
			all += w.What + "\n" + w.File + "\n" + w.Text + "\n" + strings.Join(w.Commands, "\n") + "\n"
			if w.What == "" || w.Commands == nil || w.Text != "" && w.Kind != WayPropagation && w.File == "" {
				t.Errorf("%s: the way %+v says too little", c.name, w)
			}
		}
		if got.Agent != c.agent || !slices.Equal(kinds, c.kinds) {
			t.Errorf("%s: the cure is of %q with %v, want %q with %v", c.name, got.Agent, kinds, c.agent, c.kinds)
		}
		for _, text := range c.want {
			if !strings.Contains(all, text) {
				t.Errorf("%s: %q is not in\n%s", c.name, text, all)
			}
		}
	}
}

// Every option that is given has a file and a text, and none has a line break that a path put there.
func TestAgentOptions(t *testing.T) {
	for _, a := range agents() {
		if len(a.programs)+len(a.units) == 0 {
			t.Errorf("%s is known by nothing", a.name)
		}
		if a.option == nil {
			continue
		}
		plain, ok := a.option("/mnt/x")
		if !ok || plain.File == "" || plain.Text == "" || plain.What == "" {
			t.Errorf("%s: the option is %+v, %v", a.name, plain, ok)
		}
		odd, ok := a.option("/mnt/a \"b' $c`d\\e#f[g],h;i%")
		if ok && strings.Count(odd.Text, "\n") != strings.Count(plain.Text, "\n") {
			t.Errorf("%s: an odd path gives %q", a.name, odd.Text)
		}
		if ok && a.name != "monit" && strings.ContainsAny(strings.TrimPrefix(odd.Text, "ARGS="), "`\\#;") {
			t.Errorf("%s: an odd path gives %q", a.name, odd.Text)
		}
	}
}

func TestOnce(t *testing.T) {
	holds := func(pid int, unit string, how How) Seen {
		return Seen{Process: holders.Process{PID: pid, Unit: unit}, How: how}
	}
	got := once([]Seen{holds(1, "a.service", Runs), holds(2, "a.service", Holds), holds(3, "session-1.scope", Holds),
		holds(4, "session-1.scope", Holds), holds(3, "session-1.scope", Holds), holds(5, "a.service", Polls)})
	var pids []int
	for _, s := range got {
		pids = append(pids, s.Process.PID)
	}
	if !slices.Equal(pids, []int{5, 3, 4}) {
		t.Errorf("once = %v, want [5 3 4]", pids)
	}
}

func TestSeen(t *testing.T) {
	r := &holders.Report{Holders: []holders.Holder{{}, {Process: holders.Process{PID: 7}}}}
	if got := SeenIn(r); len(got) != 1 || got[0].Process.PID != 7 || got[0].How != Holds {
		t.Errorf("SeenIn = %+v, want process 7 alone: the kernel is no program", got)
	}
	p := &trace.PollReport{Pollers: []trace.Poller{
		{Process: holders.Process{PID: 8}, PeriodNS: 5, Paths: []string{"/a", "/b"}},
		{Process: holders.Process{PID: 9}, Paths: []string{"/b"}}}}
	if got := SeenPolling(p, "/a"); len(got) != 1 || got[0].Process.PID != 8 || got[0].PeriodNS != 5 {
		t.Errorf("SeenPolling = %+v, want process 8 alone", got)
	}
}

// A program of a known name that runs here is told of, though nobody saw it look.
func TestAdviseRunning(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, sleep, "600")
	cmd.Args[0] = "/usr/bin/vmtoolsd"
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); cmd.Wait() }()
	h := linux.Open("")
	// Started is told a moment before the process has its new arguments.
	for {
		p, err := h.Process(ctx, cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Args) > 0 && p.Args[0] == cmd.Args[0] {
			break
		}
		time.Sleep(time.Millisecond)
	}
	a, err := Advise(ctx, h, "/mnt/nothing-here", nil)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(a.Cures, func(c Cure) bool { return c.Process.PID == cmd.Process.Pid })
	if i < 0 || a.Cures[i].Agent != "open-vm-tools" || a.Cures[i].How != Runs || a.Mounted || a.Wrong == "" {
		t.Errorf("Advise = %+v, want a cure for process %d", a, cmd.Process.Pid)
	}
	if _, err := Advise(ctx, h, "/usr", nil); !errors.Is(err, ErrRefused) {
		t.Errorf("Advise of /usr = %v, want %v", err, ErrRefused)
	}
}
