// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab/nova"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// novaPass is how often a host of Nova looks after its bases (manager_interval).
const novaPass = 40 * time.Minute

// TestNova has Debian's own Nova look after pools of instances in which something is wrong that happens: a node is
// down, a clock is ahead, a host was renamed. In each it removes a base that is needed. With "shisa base
// protect", by a timer or watching, the base is there at the end, and the machine's disk can be read.
//
// Hours pass by moving the times of the files back, and those in Nova's list of hosts; everybody goes by the
// machine's clock.
func TestNova(t *testing.T) {
	testenv.NeedNova(t)
	testenv.NeedRoot(t)
	testenv.Need(t, "qemu-img", "qemu-io", "apt-get", "dpkg-deb", "/usr/bin/python3")
	p, err := nova.Unpack(t.Context())
	if errors.Is(err, nova.ErrUnavailable) {
		testenv.Lacks(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	n, err := nova.Start(t.Context(), p, nova.SQLite(t.TempDir()), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	shisa := filepath.Join(t.TempDir(), "shisa")
	run(t, "go", "build", "-o", shisa, module+"/cmd/shisa")
	t.Logf("python3-nova %s", p.Version)
	for _, w := range novaWorlds {
		t.Run(w.name, func(t *testing.T) {
			new := func(t *testing.T) *novaPool { return newNovaPool(t, n, w, shisa) }
			t.Run("alone", func(t *testing.T) { new(t).alone() })
			t.Run("protect", func(t *testing.T) { new(t).protected() })
			t.Run("watch", func(t *testing.T) { new(t).watched() })
		})
	}
	t.Run("restored", func(t *testing.T) { newNovaPool(t, n, novaWorlds[0], shisa).restored() })
	t.Run("future", func(t *testing.T) { newNovaPool(t, n, novaWorlds[1], shisa).future() })
	t.Run("export", func(t *testing.T) { newNovaPool(t, n, novaWorlds[2], shisa).exported() })
	t.Run("databases", func(t *testing.T) { novaDatabases(t, p) })
}

// novaPool is a world under way: directories of instances with hosts that share them.
type novaPool struct {
	*testing.T
	nova  *nova.Nova
	shisa string
	world novaWorld
	dir   string
	// hosts are those that are up, in the order of their passes.
	hosts []nova.Host
	// base is the path of the base that is needed, inode that of its file, disk what rests on it.
	base  string
	inode uint64
	disk  string
	// passed is how much time has passed, removed how often the base was gone after a pass.
	passed  time.Duration
	removed int
	// state is where receipts go.
	state string
}

func newNovaPool(t *testing.T, n *nova.Nova, w novaWorld, shisa string) *novaPool {
	if err := n.Clear(); err != nil {
		t.Fatal(err)
	}
	p := &novaPool{T: t, nova: n, world: w, dir: testenv.DiskDir(t), shisa: shisa}
	p.state = filepath.Join(p.dir, "state")
	w.make(p)
	p.opens()
	return p
}

// root is a directory of instances, made where it is not there.
func (p *novaPool) root(name string) string {
	root := filepath.Join(p.dir, name)
	p.must(os.MkdirAll(filepath.Join(root, "_base"), 0o755))
	return root
}

func (p *novaPool) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// newBase makes a base whose bytes are 0x5a, and a disk of a machine that rests on it.
func (p *novaPool) newBase(root, base, disk string) {
	p.base, p.disk = filepath.Join(root, "_base", base), filepath.Join(root, disk)
	p.must(os.WriteFile(p.base, bytes.Repeat([]byte{0x5a}, 1<<20), 0o644))
	var st unix.Stat_t
	p.must(unix.Stat(p.base, &st))
	p.inode = st.Ino
	p.overlay(p.base, p.disk)
}

// overlay makes a disk that rests on a base.
func (p *novaPool) overlay(base, disk string) {
	p.must(os.MkdirAll(filepath.Dir(disk), 0o755))
	run(p.T, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk, "16M")
}

// pass has every host that is up look after its bases, as Nova does.
func (p *novaPool) pass() {
	p.Helper()
	for _, h := range p.hosts {
		p.passOf(h)
	}
}

func (p *novaPool) passOf(h nova.Host) {
	p.Helper()
	log, err := p.nova.Pass(h)
	p.must(err)
	for _, line := range log {
		if line == "INFO Removing base, swap or ephemeral file: "+p.base {
			p.removed++
		}
	}
}

// wait lets time pass.
func (p *novaPool) wait(d time.Duration) {
	p.Helper()
	p.passed += d
	aged := map[uint64]bool{}
	p.must(filepath.WalkDir(p.dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.Name() == "compute_nodes":
			return p.ageHosts(path, d)
		case filepath.Base(filepath.Dir(path)) != "_base" && filepath.Base(filepath.Dir(path)) != "shields" || e.IsDir():
			return nil
		}
		// A file with two names has one time.
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || aged[st.Ino] {
			return err
		}
		aged[st.Ino] = true
		at := time.Unix(st.Mtim.Unix()).Add(-d)
		return os.Chtimes(path, at, at)
	}))
}

// ageHosts moves the times in Nova's list of hosts, which may be torn.
func (p *novaPool) ageHosts(path string, d time.Duration) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	hosts := map[string]float64{}
	if json.Unmarshal(text, &hosts) != nil {
		return nil // it is what the world is about
	}
	for h := range hosts {
		hosts[h] -= d.Seconds()
	}
	if text, err = json.Marshal(hosts); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path+".new", text, 0o644), os.Rename(path+".new", path))
}

// there tells whether the base has its name, and is the file that it was.
func (p *novaPool) there() bool {
	p.Helper()
	var st unix.Stat_t
	err := unix.Stat(p.base, &st)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.Fatal(err)
	}
	return err == nil && st.Ino == p.inode
}

// opens reads the machine's disk by QEMU, and fails unless all is there.
func (p *novaPool) opens() {
	p.Helper()
	run(p.T, "qemu-img", "info", "--backing-chain", p.disk)
	if out := run(p.T, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x5a 0 1M", p.disk); strings.Contains(out, "Pattern") {
		p.Errorf("the disk does not hold what its base held: %s", out)
	}
}

// alone has Nova remove the base: without that the world proves nothing.
func (p *novaPool) alone() {
	for p.passed < p.world.lost+novaPass && p.there() {
		p.wait(novaPass)
		p.pass()
	}
	if p.there() || p.removed != 1 || p.passed < p.world.lost-novaPass {
		p.Fatalf("after %v the base is there: %v, removed %d times; want Nova to remove it once after %v, give or take a pass",
			p.passed, p.there(), p.removed, p.world.lost)
	}
	if out, err := exec.Command("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 1M", p.disk).CombinedOutput(); err == nil {
		p.Errorf("the disk can be read without its base: %s", out)
	}
	p.Logf("%s: removed after %.1f h", p.world.what, p.passed.Hours())
}

// protected has "shisa base protect" run by a timer, always after Nova's pass: whatever is to be harmed is
// harmed before.
func (p *novaPool) protected() {
	p.protect()
	for p.passed < p.world.until() {
		p.wait(p.world.timer())
		p.pass()
		p.protect()
		if !p.there() {
			p.Fatalf("after %v the base is gone, and protect did not bring it back", p.passed)
		}
	}
	p.opens()
	p.Logf("%s: after %.0f h there, removed %d times on the way", p.world.what, p.passed.Hours(), p.removed)
	if (p.removed > 0) != p.world.ahead {
		p.Errorf("Nova removed the base %d times", p.removed)
	}
}

// protect runs "shisa base protect".
func (p *novaPool) protect() {
	p.Helper()
	p.says("protect", "--state", p.state, filepath.Dir(p.base))
}

// says gives what a command about base images prints. Its status may tell that a base was missing, which is what
// Nova does, or that something of this machine could not be looked at, which is none of Nova's.
func (p *novaPool) says(args ...string) string {
	p.Helper()
	c := exec.Command(p.shisa, append([]string{"base"}, args...)...)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && (exit.ExitCode() == 3 || exit.ExitCode() == 4)) {
		p.Fatalf("%v: %v\n%s", c.Args, err, out)
	}
	return string(out)
}

// watched has "shisa base protect --watch" see what Nova removes.
func (p *novaPool) watched() {
	c := exec.Command(p.shisa, "base", "protect", "--watch", "--json", "--state", p.state, filepath.Dir(p.base))
	var words bytes.Buffer
	c.Stderr = &words
	out, err := c.StdoutPipe()
	p.must(err)
	p.must(c.Start())
	events := novaEvents(out)
	defer func() {
		p.must(c.Process.Signal(unix.SIGTERM))
		for range events {
		}
		var exit *exec.ExitError
		if err := c.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 130 {
			p.Errorf("the watch ended with %v, want status 130\n%s", err, &words)
		}
	}()
	if e := <-events; e.What != "passed" {
		p.Fatalf("the watch begins with %+v\n%s", e, &words)
	}
	back := 0
	for p.passed < p.world.until() {
		p.wait(p.world.timer())
		p.pass()
		// What Nova removed last is told, and there again before it is.
		for end := time.Now().Add(patience); back < p.removed; {
			select {
			case e := <-events:
				switch e.What {
				case "restored":
					back++
				case "not_restored", "":
					p.Fatalf("the watch says %+v\n%s", e, &words)
				}
			case <-time.After(time.Until(end)):
				p.Fatalf("after %v the base was removed %d times, and restored %d times", p.passed, p.removed, back)
			}
		}
		if !p.there() {
			p.Fatalf("after %v the base is gone, and was not brought back", p.passed)
		}
	}
	// How often depends on when the watch looks again by itself, which is by the machine's clock.
	if p.removed == 0 {
		p.Errorf("in %v Nova did not remove the base once", p.passed)
	}
	p.opens()
	p.Logf("%s: after %.0f h there, removed and restored %d times", p.world.what, p.passed.Hours(), p.removed)
}

// novaEvent is something that a watch tells.
type novaEvent struct{ What, Name, Why string }

// novaEvents are the events of a watch; the last has no kind and says why there are no more.
func novaEvents(r io.Reader) <-chan novaEvent {
	all := make(chan novaEvent)
	go func() {
		defer close(all)
		lines := bufio.NewReader(r)
		for {
			var e novaEvent
			line, err := lines.ReadBytes('\n')
			if err == nil {
				err = json.Unmarshal(line, &e)
			}
			if err != nil {
				all <- novaEvent{Why: err.Error()}
				return
			}
			all <- e
		}
	}()
	return all
}

// restored is about the time of a base that is brought back: with its old one it is gone at Nova's next pass, and as
// shisa restores it it stays.
func (p *novaPool) restored() {
	p.protect()
	p.alone()
	shields, err := filepath.Glob(filepath.Join(filepath.Dir(p.base), ".shisa/shields/*."+filepath.Base(p.base)))
	if err != nil || len(shields) != 1 {
		p.Fatalf("the base has shields %q (%v), want one", shields, err)
	}
	p.must(os.Link(shields[0], p.base))
	p.pass()
	if p.there() {
		p.Error("a base that was brought back with its old time is there after Nova's next pass: nothing is proved")
	}
	run(p.T, p.shisa, "base", "restore", "--state", p.state, filepath.Dir(p.base), filepath.Base(p.base))
	for range 5 {
		p.pass()
		if !p.there() {
			p.Fatal("a base that shisa restored is gone after Nova's next pass")
		}
		p.wait(4 * time.Hour)
	}
	p.opens()
}

// future is about a host whose clock is ahead: a base with a time as far ahead stays at its pass, but not once the host
// of the machine has looked after it.
func (p *novaPool) future() {
	owner, ahead := p.hosts[0], p.hosts[1]
	to := time.Now().Add(ahead.Ahead + time.Hour)
	p.must(os.Chtimes(p.base, to, to))
	p.passOf(ahead)
	if !p.there() {
		p.Fatal("a base with a time that is ahead is gone at the pass of the host that is ahead")
	}
	if said := p.says("scan", filepath.Dir(p.base)); !strings.Contains(said, ahead.Name+" has another time: ") {
		p.Errorf("scan does not tell of the clock that is ahead:\n%s", said)
	}
	p.passOf(owner)
	p.passOf(ahead)
	if p.there() {
		p.Error("the base is there after the host of the machine touched it, and the one that is ahead passed: doc/base.md is wrong")
	}
}
