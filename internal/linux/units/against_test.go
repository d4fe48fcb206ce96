// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// installable makes a tree of units that can be enabled, and presets.
func (c chance) installable() map[string]string {
	files := vendor()
	for range 4 + c.IntN(10) {
		name := c.of("a.service", "b.service", "t@.service", "u@.service", "a.timer", "c.socket", "x.target", "foo-bar.service")
		var b strings.Builder
		b.WriteString("[Unit]\nDescription=x\n")
		if c.IntN(5) > 0 {
			b.WriteString("[Install]\n")
			for range 1 + c.IntN(2) {
				b.WriteString(c.of("WantedBy", "WantedBy", "RequiredBy") + "=" + c.of("multi-user.target", "timers.target",
					"x.target gone.target", "b.service", "", "t@.service", "%p.target", "bad name") + "\n")
			}
			b.WriteString(c.of("", "", "Also=b.service a.timer\n", "DefaultInstance=one\n", "DefaultInstance=one\n"))
		}
		dir := c.of("etc/systemd/system", "usr/lib/systemd/system", "usr/lib/systemd/system", "run/systemd/system")
		switch c.IntN(10) {
		case 0:
			files[dir+"/"+name] = "->/dev/null"
		case 1:
			files[dir+"/"+name] = ""
		case 2:
			// systemctl refuses a link that is no alias, where the manager takes the next file of that name.
			files[dir+"/"+c.of("a.service", "b.service")] = "->" + "foo-bar.service"
		default:
			files[dir+"/"+name] = b.String()
		}
	}
	for range c.IntN(4) {
		var b strings.Builder
		for range 1 + c.IntN(4) {
			b.WriteString(c.of("enable ", "disable ", "disable ", "# ", "ignore ") + c.of("a.*", "b.service", "*.timer", "*",
				"t@.service x y", "t@*", "[ab]*", "foo?bar.service", "u@.service") + "\n")
		}
		files[c.of("etc", "usr/lib", "run")+"/systemd/system-preset/"+c.of("10-a.preset", "50-b.preset", "90-c.preset", "x.txt")] =
			c.of(b.String(), b.String(), b.String(), "->/dev/null")
	}
	return files
}

// wanting lists the links that start units, as "FROM.wants TO".
func wanting(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "etc/systemd/system"), func(at string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if from := filepath.Base(filepath.Dir(at)); !e.IsDir() && subdirectory(from) && filepath.Ext(from) != ".d" {
			all = append(all, from+" "+e.Name())
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// TestPresetsAsSystemd holds what the first boot would enable of random trees against systemctl preset-all, which does
// the same.
func TestPresetsAsSystemd(t *testing.T) {
	testenv.Need(t, "systemctl")
	version, err := exec.Command("systemctl", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	library := "usr/lib/systemd/libsystemd-shared-" + strings.Fields(string(version))[1] + ".so"
	links := 0
	for seed := range testenv.Rounds(30, 600, 6000) {
		dir := t.TempDir()
		c := chance{rand.New(rand.NewPCG(11, uint64(seed)))}
		files := c.installable()
		files[library] = "x"
		written(t, dir, files)
		var got []string
		for _, e := range loaded(t, dir).FirstStarts {
			got = append(got, e.From+".wants "+e.To)
		}
		slices.Sort(got)
		out, err := exec.Command("systemctl", "--root="+dir, "preset-all", "--preset-mode=enable-only").CombinedOutput()
		if err != nil && !strings.Contains(string(out), "Created symlink") && !strings.Contains(string(out), "masked") {
			t.Logf("seed %d: %v: %s", seed, err, out)
		}
		want := wanting(t, dir)
		for i := range want {
			want[i] = strings.Replace(want[i], ".requires ", ".wants ", 1)
		}
		slices.Sort(want)
		want, got = slices.Compact(want), slices.Compact(got)
		links += len(want)
		if d := cmp.Diff(want, got); d != "" && err == nil {
			t.Fatalf("seed %d (-systemd +shisa)\n%s\n%s\n%s", seed, d, out, listed(files))
		}
	}
	if t.Logf("%d links", links); links < 20 {
		t.Error("the trees are too poor to say anything")
	}
}

// TestConditionsAsSystemd holds answers to conditions of this machine against those of systemd-analyze.
func TestConditionsAsSystemd(t *testing.T) {
	testenv.Need(t, "systemd-analyze")
	live, err := tree.OpenLive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	l := newLoader(live)
	l.identity(t.Context())
	dir := t.TempDir()
	written(t, dir, map[string]string{"full": "x", "empty": "", "dir/": "", "filled/x": "", "link": "->nowhere", "to": "->full",
		"todir": "->filled"})
	told := 0
	for _, kind := range []string{"PathExists", "PathExistsGlob", "PathIsDirectory", "PathIsSymbolicLink", "DirectoryNotEmpty",
		"FileNotEmpty", "FirstBoot", "KernelCommandLine", "User", "Group", "Host", "Architecture", "Virtualization"} {
		of := []string{"yes", "no", "root", "quiet", "ro", "@system", "1000", "x86-64", "arm64", "native", "s390x", "container", "wsl",
			"private-users", "nobody-has-this-name", "[a-z]*", l.MachineID, "0123456789abcdef0123456789abcdef"}
		if asksPath(kind) {
			of = nil
			for _, name := range []string{"full", "empty", "dir", "filled", "link", "to", "todir", "gone", "f*", "g*", "todir/x"} {
				of = append(of, filepath.Join(dir, name))
			}
		}
		for _, v := range of {
			for _, sign := range []string{"", "!"} {
				text := "Condition" + kind + "=" + sign + v
				err := exec.Command("systemd-analyze", "condition", text).Run()
				u := &Unit{Settings: []Setting{{"Unit", "Condition" + kind, sign + v, Source{}}}}
				c := u.Conditions()
				if len(c) != 1 {
					t.Fatalf("%s makes %+v", text, c)
				}
				got := l.truth(t.Context(), &c[0])
				if got != Maybe {
					told++
				}
				if got != Maybe && (got == Yes) != (err == nil) {
					t.Errorf("%s: %s, systemd says %v", text, got, err)
				}
			}
		}
	}
	if told < 100 {
		t.Errorf("%d were told, the rest is not known", told)
	}
}

// TestConditionsOfADisk: what a dead disk tells of conditions, and what it does not.
func TestConditionsOfADisk(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	elf := func(class, order, machine byte) string {
		return "\x7fELF" + string([]byte{class, order}) + "\x01" + strings.Repeat("\x00", 11) + string([]byte{machine, 0}) + "rest"
	}
	files := memory{"/etc/machine-id": id + "\n", "/etc/hostname": "# ours\nweb-3.example\n", "/usr/lib/systemd/systemd": elf(2, 1, 62),
		"/proc/cmdline": "quiet"}
	with := func(name, text string) memory {
		m := maps.Clone(files)
		m[name] = text
		return m
	}
	for _, c := range []struct {
		m        memory
		kind, of string
		want     Truth
	}{
		{files, "Virtualization", "container", No}, {files, "Virtualization", "docker", No},
		{files, "Virtualization", "vm", Maybe}, {files, "Virtualization", "yes", Maybe},
		{files, "KernelCommandLine", "quiet", Maybe}, {files, "Memory", ">1G", Maybe},
		{files, "Architecture", "x86-64", Yes}, {files, "Architecture", "arm64", No}, {files, "Architecture", "native", Yes},
		{with("/usr/lib/systemd/systemd", elf(1, 1, 3)), "Architecture", "x86", Maybe},
		{with("/usr/lib/systemd/systemd", elf(2, 2, 62)), "Architecture", "x86-64", Maybe},
		{with("/usr/lib/systemd/systemd", "#!/bin/sh"), "Architecture", "x86-64", Maybe},
		{files, "Host", id, Yes}, {files, "Host", "0" + id[:31], No}, {files, "Host", "web-*", Yes},
		{files, "Host", "WEB-3.example", Yes}, {files, "Host", "db-*", No}, {files, "Host", "[", Maybe},
		{with("/etc/hostname", "localhost\n"), "Host", "db", Maybe}, {with("/etc/machine-id", "uninitialized\n"), "Host", id, Maybe},
		{files, "Group", "root", Yes}, {files, "Group", "@system", Maybe}, {files, "User", "@system", Yes},
	} {
		l := newLoader(c.m)
		l.identity(t.Context())
		if got := l.asked(t.Context(), &Condition{Kind: c.kind, Of: c.of}); got != c.want {
			t.Errorf("Condition%s=%s: %s, want %s", c.kind, c.of, got, c.want)
		}
		l.Flat = true
		if got := l.asked(t.Context(), &Condition{Kind: c.kind, Of: c.of}); got != Maybe {
			t.Errorf("Condition%s=%s of plain files: %s, want %s", c.kind, c.of, got, Maybe)
		}
	}
}

// script makes a script at random: it tests, makes and removes files, and may come to a line "reboot".
func (c chance) script(depth int) string {
	file := func() string { return "@" + c.of("/a", "/b", "/c", "/d/e") }
	test := func() string {
		return c.of("[ -e "+file()+" ]", "test -f "+file(), "! [ -e "+file()+" ]", "true", "false", "[ ! -e "+file()+" ]",
			"[ x = "+c.of("x", "y")+" ]", "[ -n \"$V\" ]", "[ -e "+file()+" -o -e "+file()+" ]", "[ -e "+file()+" ] && [ -e "+file()+" ]",
			"[ \"$V\" != a ]", "[ -z \"$V\" ] || false", "{ true; false; }", "(exit 0)")
	}
	var b strings.Builder
	for range 1 + c.IntN(3) {
		switch k := c.IntN(17); {
		case k == 14:
			b.WriteString(c.of("set -e\n", "set -eu; set +u\n", "set +e\n", "set -o errexit\n"))
		case k == 15:
			b.WriteString(c.of("gone\n", "gone || true\n", "gone && true\n", "! gone\n", "(gone; reboot)\n", "true | gone\n", "gone | true\n",
				"(set -e; gone; reboot) || touch "+file()+"\n", "g() { gone; reboot; }\ng\n", "g() { gone; }\ng || reboot\n"))
		case k == 16:
			b.WriteString(test() + "\n")
		case k == 13:
			f := file()
			b.WriteString(c.of("[ -e "+f+" ] || { touch "+f+"; reboot; }\n", "test -f "+f+" && exit\n: > "+f+"\nreboot\n",
				"if [ -e "+f+" ]; then\nrm "+f+"\nreboot\nfi\n", "[ -e "+f+" ] && reboot\ntouch "+f+"\n"))
		case k == 0:
			b.WriteString("touch " + file() + "\n")
		case k == 1:
			b.WriteString("rm -f " + file() + "\n")
		case k == 2:
			b.WriteString(": > " + file() + "\n")
		case k == 3:
			b.WriteString("V=" + c.of("a", "''", "b") + "\n")
		case k < 6:
			b.WriteString(test() + c.of(" && ", " || ") + c.of("reboot", "exit", "touch "+file(), "{ touch "+file()+"; reboot; }") + "\n")
		case k < 9 && depth > 0:
			b.WriteString("if " + test() + "; then\n" + c.script(depth-1) + c.of("", "else\n"+c.script(depth-1),
				"elif "+test()+"; then\n"+c.script(depth-1)+"else\n"+c.script(depth-1)) + "fi\n")
		case k == 9 && depth > 0:
			b.WriteString("f() {\n" + c.script(0) + "}\n" + c.of("f\n", "f && reboot\n", ""))
		case k == 10 && depth > 0:
			b.WriteString("for i in 1 2; do\n" + c.script(0) + "done\n")
		case k == 11:
			b.WriteString(c.of("# reboot\n", "echo reboot >/dev/null\n", "exit 0\n", "cat >/dev/null <<X\nreboot\nX\n"))
		default:
			b.WriteString(c.of("reboot\n", "sleep 0; reboot\n", "exec reboot\n", "(reboot)\n", "$NOTHING reboot\n"))
		}
	}
	return b.String()
}

// TestScriptsAsShell holds what random scripts are said to do against what sh does with them, again and again: what is sure
// happens, what is not said does not, and what disarms itself does not happen twice.
func TestScriptsAsShell(t *testing.T) {
	testenv.Need(t, "sh", "touch")
	counts := map[string]int{}
	for seed := range testenv.Rounds(200, 3000, 30000) {
		c := chance{rand.New(rand.NewPCG(13, uint64(seed)))}
		text := c.script(2)
		if strings.Contains(text, "set -") {
			text = "V=\n" + text // what is not known is taken for a success there
		}
		dir := t.TempDir()
		start := map[string]string{"d/x": ""}
		for _, name := range []string{"a", "b", "c", "d/e"} {
			if c.IntN(2) == 0 {
				start[name] = ""
			}
		}
		m := memory{"/lib": "->usr/lib", "/bin": "->usr/bin", "/etc/systemd/system/default.target": "[Unit]\n",
			"/opt/x":                        "#!/bin/sh\n" + strings.ReplaceAll(text, "@/", "/"),
			"/etc/systemd/system/x.service": "[Service]\nType=oneshot\nExecStart=/opt/x\n"}
		for _, name := range []string{"sh", "touch", "rm", "reboot", "sleep", "echo", "cat", "true"} {
			m["/usr/bin/"+name] = "\x7fELF"
		}
		for name := range start {
			m["/"+name] = ""
		}
		s, err := Load(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		written(t, dir, start)
		written(t, dir, map[string]string{"bin/reboot": "#!/bin/sh\necho >> " + dir + "/log\nkill -9 0\n",
			"x": strings.ReplaceAll(text, "@/", dir+"/")})
		var real []bool
		words := ""
		for range 6 {
			if err := os.WriteFile(dir+"/log", nil, 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("sh", dir+"/x")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what restarts the machine ends all of it
			cmd.Env = []string{"PATH=" + dir + "/bin:/usr/bin:/bin"}
			out, _ := cmd.CombinedOutput() // how it ends says nothing
			words += string(out)
			log, err := os.ReadFile(dir + "/log")
			if err != nil {
				t.Fatal(err)
			}
			if real = append(real, len(log) > 0); len(real) > 1 && len(log) == 0 {
				break
			}
		}
		last := real[len(real)-1]
		said := verdict(s.Acts("x.service"))
		counts[fmt.Sprint(said, real[:2])]++
		wrong := said == "never" && (real[0] || real[1]) || said == "later" && (real[0] || !real[1]) ||
			said == "always" && !(real[0] && last) || said == "once" && (!real[0] || last)
		if wrong {
			t.Fatalf("seed %d: it is said %q, sh did %v\n%s\n%s\nwith %v", seed, said, real, words, text, slices.Sorted(maps.Keys(start)))
		}
	}
	t.Log(counts)
	if counts["always[true true]"] < 20 || counts["never[false false]"] < 20 || counts["once[true false]"] == 0 ||
		counts["later[false true]"] == 0 {
		t.Errorf("the scripts are too poor to say anything: %v", counts)
	}
}

// verdict sums up acts.
func verdict(acts []Act) string {
	said := "never"
	for i := range acts {
		switch a := &acts[i]; {
		case a.Later && a.Doubt == "":
			return "later"
		case a.Certain():
			return "always"
		case a.Doubt != "":
			said = "perhaps"
		case said != "perhaps":
			said = "once"
		}
	}
	return said
}
