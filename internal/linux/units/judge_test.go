// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// written writes files below a directory; a text that begins with "->" is a symbolic link.
func written(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(text, "->"); link {
			err = os.Symlink(to, at)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(at, 0o755)
		} else {
			err = os.WriteFile(at, []byte(text), mode(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// mode makes scripts and programs of the files that begin as such.
func mode(text string) os.FileMode {
	if strings.HasPrefix(text, "#!") || strings.HasPrefix(text, "\x7fELF") {
		return 0o755
	}
	return 0o644
}

func loaded(t testing.TB, dir string) *Set {
	t.Helper()
	l, err := tree.OpenDirectory(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := Load(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// said is what systemd says of a unit that it loaded.
type said struct {
	State   string
	Path    string
	DropIns []string
	Names   []string
	Exec    []string
	// Conditions are those that count, as "ConditionPathExists: !/x".
	Conditions []string
}

// judge runs systemd's manager on the units below a directory, without starting any. It gives what it
// loaded, and the units for which its first transaction has a start job.
const judge = `set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd /usr/local/lib/systemd
for d in etc/systemd usr/local/lib/systemd usr/lib/systemd/system run/systemd; do
	mkdir -p "$1/$d"; mount --bind "$1/$d" "/$d"
done
for d in /usr/lib/systemd/system-generators /etc/init.d; do mount -t tmpfs tmpfs $d; done
exec setpriv --reuid=65534 --regid=65534 --clear-groups env -i PATH="$PATH" LC_ALL=C SYSTEMD_LOG_TARGET=console \
	SYSTEMD_UNIT_PATH="$2" \
	/usr/lib/systemd/systemd --test --system --unit=default.target`

func judged(t *testing.T, dir string) (all map[string]said, jobs []string, root string) {
	t.Helper()
	c := exec.Command("unshare", "-m", "sh", "-c", judge, "sh", dir, strings.Join(searchPath(true), ":"))
	var words bytes.Buffer
	c.Stderr = &words
	out, err := c.Output()
	root = "default.target"
	if strings.Contains(words.String(), "Falling back to rescue.target") {
		root = "rescue.target"
	} else if strings.Contains(words.String(), "ordering cycle") {
		root = "a cycle" // of which systemd leaves out some unit, whichever
	} else if strings.Contains(words.String(), "Failed to") && err != nil {
		root = "nothing"
	} else if err != nil {
		t.Fatalf("systemd --test: %v, %s", err, words.String())
	}
	if err != nil {
		return nil, nil, root
	}
	all = map[string]said{}
	name := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		key, value, _ := strings.Cut(line, ": ")
		u := all[name]
		switch {
		case strings.HasPrefix(line, "-> Unit "):
			name = strings.TrimSuffix(line[8:], ":")
			u = said{Names: []string{name}}
		case key == "Name" || key == "Alias":
			u.Names = append(u.Names, value)
		case key == "Unit Load State":
			u.State = value
		case key == "Fragment Path":
			u.Path = value
		case key == "DropIn Path":
			u.DropIns = append(u.DropIns, value)
		case key == "Command Line":
			u.Exec = append(u.Exec, bare(value))
		case strings.HasPrefix(key, "Condition") && strings.HasSuffix(value, " untested"):
			u.Conditions = append(u.Conditions, key+": "+strings.TrimSuffix(value, " untested"))
		case key == "Action":
			if of, is := strings.CutSuffix(value, " -> start"); is && !without(of) {
				jobs = append(jobs, of)
			}
		}
		if name != "" {
			all[name] = u
		}
	}
	slices.Sort(jobs)
	return all, slices.Compact(jobs), root
}

// systemdVersion is that of this machine.
func systemdVersion(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("systemctl", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))[1]
}

// openDir makes a directory that anybody may look into, as systemd does without rights.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for up := dir; up != "/tmp" && up != "/"; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// vendor are the targets that a system has, and a few more that stand for what it starts.
func vendor() map[string]string {
	all := map[string]string{
		"etc/machine-id": "0123456789abcdef0123456789abcdef\n",
		"lib":            "->usr/lib",
	}
	for name, text := range map[string]string{
		"default.target":    "->multi-user.target",
		"multi-user.target": "[Unit]\nRequires=basic.target\nAfter=basic.target\nConflicts=rescue.target\nAllowIsolate=yes\n",
		"basic.target": "[Unit]\nRequires=sysinit.target\nWants=sockets.target timers.target paths.target\n" +
			"After=sysinit.target\n",
		"sysinit.target": "[Unit]\nWants=local-fs.target\nAfter=local-fs.target\n",
	} {
		all["usr/lib/systemd/system/"+name] = text
	}
	for _, name := range []string{"rescue", "shutdown", "sockets", "timers", "paths", "local-fs"} {
		text := "[Unit]\nDescription=x\n"
		if name != "timers" && name != "sockets" && name != "paths" {
			text += "DefaultDependencies=no\n"
		}
		all["usr/lib/systemd/system/"+name+".target"] = text
	}
	return all
}

// chance makes trees of units.
type chance struct{ *rand.Rand }

func (c chance) of(all ...string) string { return all[c.IntN(len(all))] }

func (c chance) dir() string {
	return c.of("etc/systemd/system", "etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system",
		"usr/lib/systemd/system", "usr/lib/systemd/system", "run/systemd/generator", "etc/systemd/system.control",
		"run/systemd/transient", "run/systemd/generator.early", "run/systemd/generator.late")
}

func (c chance) unit() string {
	return c.of("a.service", "b.service", "foo-bar.service", "foo-bar-baz.service", "t@.service", "t@1.service",
		"t@x-y.service", "foo-t@.service", "foo-t@2.service", "a.timer", "b.socket", "x.target", "y-z.target",
		"multi-user.target", "timers.target", "d.path", "e.service", "f.service", "g.service", "h.service")
}

// reference is a name that a unit may want.
func (c chance) reference() string {
	if c.IntN(8) == 0 {
		return c.of("gone.service", "t@%i.service", "t@.service", "t@%i.service", "bad name.service", "foo-t@%j.service")
	}
	return c.unit()
}

// text makes a unit file.
func (c chance) text(name string) string {
	var b strings.Builder
	if c.IntN(6) == 0 {
		b.WriteString("# a comment\n\n; one more\n")
	}
	b.WriteString("[Unit]\n")
	for range c.IntN(4) {
		key := c.of("Wants", "Wants", "Wants", "Requires", "BindsTo", "OnFailure", "Before", "Requisite")
		fmt.Fprintf(&b, "%s%s%s%s\n", key, c.of("=", " = ", "= "), c.reference(), c.of("", "", " "+c.reference(),
			" \\\n  "+c.reference(), "\\\n# no\n "+c.reference(), " \""+c.reference()+"\""))
	}
	for range c.IntN(3) {
		fmt.Fprintf(&b, "%s=%s\n", c.of("ConditionPathExists", "ConditionKernelCommandLine", "ConditionFirstBoot",
			"ConditionPathIsDirectory", "ConditionVirtualization"), c.of("/etc", "!/etc/x", "|/a", "|!/a b", "yes", "", "no"))
	}
	if c.IntN(10) == 0 {
		b.WriteString("DefaultDependencies=no\n")
	}
	switch typeOf(name) {
	case "service":
		b.WriteString("[Service]\n" + c.of("", "Type=oneshot\n", "Type=oneshot\nRemainAfterExit=yes\n", "Type=dbus\n",
			"Restart=always\n", "[X-Ours]\nExecStart=/bin/no\n[Service]\n"))
		for range 1 + c.IntN(2) {
			b.WriteString("ExecStart=" + c.command() + "\n")
		}
		if c.IntN(4) == 0 {
			b.WriteString("ExecStop=" + c.command() + "\n")
		}
	case "timer":
		b.WriteString("[Timer]\n" + c.of("OnBootSec=5min\n", "OnCalendar=daily\nOnBootSec=\n", "OnCalendar=\nOnBootSec=1\n",
			"OnBootSec=1d\nUnit="+c.unit()+"\n"))
	case "path":
		b.WriteString("[Path]\n" + c.of("PathExists=/etc/x\n", "DirectoryNotEmpty=/etc\n", "\n"))
	case "socket":
		b.WriteString("[Socket]\nListenStream=" + c.of("/run/x", "") + "\n")
	}
	return b.String()
}

func (c chance) command() string {
	return c.of("/bin/true", "/bin/true", "/bin/sh -c 'echo %i; x'", "-/bin/false --x", "@/bin/sh sh -c true",
		"/bin/true a ; /bin/false b", `/bin/echo "a b" 'c d' \x41 \073 a\ b`, "/bin/true a \\; b", "+!/bin/true", "true x",
		"", "/bin/true \\\n  next %n %p %j %% %N", "bin/true", "/bin/true 'open", "/bin/", "-bin/true", "/bin/true \"%I\"x",
		"/bin/echo ${HOME} $X", `/bin/echo "it's" 'a"b' \t\n \q`, ":/bin/true $$")
}

// tree makes the files of a system.
func (c chance) tree() map[string]string {
	files := vendor()
	for range 6 + c.IntN(14) {
		name, dir := c.unit(), c.dir()
		at := dir + "/" + name
		switch c.IntN(14) {
		case 0:
			files[at] = "->/dev/null"
		case 1:
			files[at] = ""
		case 2:
			files[at] = "->" + c.unit()
		case 3:
			files[at] = "->" + c.of("/usr/lib/systemd/system/", "/lib/systemd/system/", "/etc/systemd/system/",
				"../../../usr/lib/systemd/system/") + c.unit()
		case 4, 5:
			files[dir+"/"+c.of(name, "foo-.service", "foo-bar-.service", "service", "t@.service", "foo-@.service",
				"foo-t@.service", "target", "multi-user.target")+".d/"+c.of("10", "20", "a")+
				c.of(".conf", ".conf", ".txt")] = c.of(c.text(name), "", "->/dev/null", "[Service]\nExecStart=\n",
				"[Service]\nExecStart=\nExecStart=/bin/false\n", "[Unit]\nWants="+c.unit()+"\n", "->nowhere")
		case 6, 7, 8:
			files[dir+"/"+c.of("multi-user.target", "timers.target", "basic.target", "x.target", name)+
				c.of(".wants/", ".wants/", ".requires/")+c.of(name, c.reference())] = "->" + c.of("/dev/null", "../"+name,
				"/usr/lib/systemd/system/"+name, "/etc/systemd/system/"+name, "../"+name)
		default:
			files[at] = c.text(name)
		}
	}
	return files
}

// TestRandomTreesAsSystemd holds what is loaded of random trees against systemd's own manager: state, file,
// drop-ins, names, commands and conditions of each unit, and what would be started. Of what is doubted it may start
// any; that each doubt is luck is held against all orders that there are.
func TestRandomTreesAsSystemd(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "unshare", "setpriv", "/usr/lib/systemd/systemd")
	version := systemdVersion(t)
	started, units, cycles := 0, 0, 0
	for seed := range testenv.Rounds(25, 400, 4000) {
		dir := openDir(t)
		c := chance{rand.New(rand.NewPCG(7, uint64(seed)))}
		files := c.tree()
		files["usr/lib/systemd/libsystemd-shared-"+version+".so"] = "x"
		written(t, dir, files)
		s := loaded(t, dir)
		want, jobs, root := judged(t, dir)
		if root == "a cycle" {
			cycles++
			jobs = nil
		} else if first, _ := reaches(s, "default.target"); root != "default.target" && len(first) > 0 {
			t.Errorf("seed %d: default.target is started, and systemd does not", seed)
		}
		if wrong := needless(s, "default.target"); wrong != "" {
			t.Errorf("seed %d: %s", seed, wrong)
		}
		sure, all := reaches(s, root)
		for _, name := range jobs {
			if !slices.Contains(all, name) {
				t.Errorf("seed %d: systemd starts %s, we think it does not", seed, name)
			}
		}
		for _, name := range sure {
			if !slices.Contains(jobs, name) {
				t.Errorf("seed %d: systemd does not start %s: %v", seed, name, s.Reached(root)[name])
			}
		}
		started += len(jobs)
		for name, w := range want {
			if slices.Sort(w.Names[1:]); s.Unit(name) == nil && (w.State == "not-found" || isInstance(name)) || without(name) {
				// An instance is named after the alias that its unit was loaded by first: of h.service, a link to
				// g.service, %p may be either.
				continue
			}
			units++
			if u := s.Unit(name); w.State == "error" && u != nil && u.State == Masked {
				w.State = "masked" // by another name than its own; neither is started
			}
			if slices.Sort(w.Conditions); w.State != "loaded" {
				w.Conditions, w.Exec, w.DropIns, w.Names = nil, nil, nil, nil
			}
			w.DropIns = slices.DeleteFunc(w.DropIns, func(name string) bool { // which add nothing
				return slices.Contains([]string{"->/dev/null", "->nowhere"}, files[name[1:]])
			})
			if d := cmp.Diff(w, saying(s, name), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("seed %d: %s (-systemd +shisa)\n%s", seed, name, d)
			}
		}
		if t.Failed() {
			t.Logf("the tree:\n%s", listed(files))
			return
		}
	}
	t.Logf("%d units loaded, %d starts, %d trees with cycles", units, started, cycles)
	if started < 60 || units < 100 {
		t.Error("the trees are too poor to say anything")
	}
}

// reaches gives what is started from a root, without doubt and at all.
func reaches(s *Set, root string) (sure, all []string) {
	for name, chain := range s.Reached(root) {
		if without(name) {
			continue
		}
		all = append(all, name)
		if !slices.ContainsFunc(chain, func(e Start) bool { return e.Doubt != "" }) {
			sure = append(sure, name)
		}
	}
	return sure, all
}

// listed lists what a tree has besides what all have.
func listed(files map[string]string) string {
	var b strings.Builder
	all := vendor()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if files[name] != all[name] || all[name] == "" {
			fmt.Fprintf(&b, "%s:\n\t%s\n", name, strings.ReplaceAll(files[name], "\n", "\n\t"))
		}
	}
	return b.String()
}

// saying makes of a unit what systemd would print of it.
func saying(s *Set, name string) said {
	u := s.Unit(name)
	if u == nil {
		return said{}
	}
	states := map[State]string{Loaded: "loaded", Masked: "masked", Missing: "not-found", Bad: "bad-setting", Unreadable: "error"}
	w := said{State: states[u.State], Path: u.Path, Names: append([]string{u.Name}, u.Aliases...)}
	slices.Sort(w.Names[1:])
	if u.State != Loaded {
		w.Names = nil // systemd looks for those of others only when something names them
		return w
	}
	w.DropIns = u.DropIns
	for _, c := range u.Conditions() {
		value := c.Of
		if c.Not {
			value = "!" + value
		}
		if c.Or {
			value = "|" + value
		}
		w.Conditions = append(w.Conditions, c.Setting.Key+": "+value)
	}
	slices.Sort(w.Conditions)
	for _, key := range execKeys() {
		for _, c := range u.commands(key) {
			w.Exec = append(w.Exec, bare(strings.Join(c.args, " ")))
		}
	}
	return w
}

// bare takes out what systemd quotes arguments with when it prints them.
func bare(s string) string {
	return strings.NewReplacer(`"`, "", "'", "", `\`, "", "\t", "t", "\n", "n").Replace(s)
}
