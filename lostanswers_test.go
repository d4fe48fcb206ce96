// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/lab"
	"github.com/shisa-vm/shisa/internal/lab/cutfs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/vault"
)

// TestLostAnswers has the program, as it is built for users, do every act about base images on a directory that gives
// a wrong answer to one rename, link or unlink: to each in turn, and with each lie. What the act says that it did is
// done; and after "shisa base recover" no base is lost, no file has two names, what is needed has its own, and the
// audit holds.
func TestLostAnswers(t *testing.T) {
	testenv.NeedRoot(t)
	a := newAnswers(t)
	lies := map[string]cutfs.Lie{
		"done, and said ENOENT":  {Done: true, Errno: unix.ENOENT},
		"done, and said EEXIST":  {Done: true, Errno: unix.EEXIST},
		"done, and said EIO":     {Done: true, Errno: unix.EIO},
		"not done, and said EIO": {Errno: unix.EIO},
		"not done, and said 0":   {},
	}
	every := testenv.Rounds(11, 1, 1)
	tried := 0
	for _, act := range a.acts() {
		t.Run(act.name, func(t *testing.T) {
			a.T = t
			whole := a.play(act, 0, cutfs.Lie{})
			if whole.exit != act.exit || whole.names == 0 {
				t.Fatalf("with true answers: exit status %d after %d changes of names, want %d after some: %s",
					whole.exit, whole.names, act.exit, whole.out)
			}
			done := a.judge(act, whole, "with true answers")
			for i, name := range slices.Sorted(maps.Keys(lies)) {
				for k := 1 + (i+tried)%every; k <= whole.names; k += every {
					p := a.play(act, k, lies[name])
					tried++
					when := fmt.Sprintf("change %d of %d, %s (%s)", k, whole.names, name, strings.Join(p.told, "; "))
					// What was done is told as done, whatever was answered; what was not never ends well, and 1 says that
					// nothing was done.
					got := a.judge(act, p, when)
					if lies[name].Done && (p.exit != whole.exit || got != done) || !lies[name].Done && p.exit == 0 ||
						p.exit == 1 && a.changed(act, p) {
						t.Errorf("%s: it ends with %d and did %s; without a lie %d and %s", when, p.exit, got, whole.exit, done)
					}
				}
			}
		})
	}
	t.Logf("%d acts with a wrong answer", tried)
}

// answers is a pool on a directory that may lie, with the state of the program beside it.
type answers struct {
	*testing.T
	program, mount, config string
	// tree is the directory as it is now.
	tree *cutfs.Tree
	// bases are the numbers of the files by the names that they had at first.
	bases map[string]uint64
	// late is an image on top of the base other.
	late []byte
}

// act is what is tried, from a place where it can be done.
type act struct {
	name string
	argv []string
	exit int
	tree *cutfs.Tree
	// gone is a base that it may remove for good, needs are those that have their names after the recovery.
	gone  string
	needs []string
}

// played is an act that was done.
type played struct {
	exit  int
	out   []byte
	words string
	told  []string
	// names is how many names it changed.
	names int
	tree  *cutfs.Tree
}

func newAnswers(t *testing.T) *answers {
	dir := t.TempDir()
	a := &answers{T: t, program: filepath.Join(dir, "shisa"), mount: filepath.Join(dir, "disk"),
		config: filepath.Join(dir, "base.yaml"), bases: map[string]uint64{}}
	build := exec.Command("go", "build", "-o", a.program, "./cmd/shisa")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	world, late := filepath.Join(dir, "world"), filepath.Join(dir, "late")
	conf := fmt.Sprintf("node: n1\npools:\n  - path: %s/pool\n    quarantine: true\n    purge: true\n", a.mount)
	a.must(errors.Join(os.MkdirAll(filepath.Join(world, "pool/_base"), 0o755), os.Mkdir(a.mount, 0o755),
		os.WriteFile(a.config, []byte(conf), 0o644)))
	names := strings.Fields("alone other used")
	for _, name := range names {
		a.must(os.WriteFile(filepath.Join(world, "pool/_base", name), bytes.Repeat([]byte(name), 1000), 0o644))
	}
	image := lab.Spec{VirtualBytes: 1 << 20, ClusterBits: 12, Backing: "_base/used", BackingFormat: "raw"}
	a.must(lab.Write(filepath.Join(world, "pool/disk"), image))
	image.Backing = "_base/other"
	a.must(lab.Write(late, image))
	var err error
	a.late, err = os.ReadFile(late)
	a.must(err)
	a.tree, err = cutfs.Load(world)
	a.must(err)
	for _, name := range names {
		a.bases[name] = a.tree.Files()["pool/_base/"+name]
	}
	return a
}

func (a *answers) must(err error) {
	a.Helper()
	if err != nil {
		a.Fatal(err)
	}
}

// on does something on a directory, and gives it as it is then. A lie is told at change k of a name; 0 is none.
func (a *answers) on(tree *cutfs.Tree, k int, lie cutfs.Lie, fn func() error) *cutfs.FS {
	a.Helper()
	m, err := cutfs.Mount(a.mount, tree)
	if errors.Is(err, cutfs.ErrUnavailable) {
		testenv.Lacks(a, "FUSE: "+err.Error())
	}
	a.must(err)
	if k > 0 {
		m.LieAt(k, lie)
	}
	a.must(errors.Join(m.Do(fn), m.Unmount()))
	return m
}

// does runs the program on the directory as it is now, with true answers.
func (a *answers) does(exit int, argv ...string) []byte {
	a.Helper()
	p := a.play(act{argv: argv, tree: a.tree}, 0, cutfs.Lie{})
	if p.exit != exit {
		a.Fatalf("%q ends with %d, want %d: %s%s", argv, p.exit, exit, p.out, p.words)
	}
	a.tree = p.tree
	return p.out
}

// changes does something else on the directory.
func (a *answers) changes(fn func(pool string) error) {
	a.Helper()
	a.tree = a.on(a.tree, 0, cutfs.Lie{}, func() error { return fn(filepath.Join(a.mount, "pool")) }).Now()
}

// from gives an act that is tried from here on.
func (a *answers) from(name string, exit int, argv ...string) act {
	return act{name: name, argv: argv, exit: exit, tree: a.tree, needs: []string{"used"}}
}

// play does an act where it is tried from.
func (a *answers) play(t act, k int, lie cutfs.Lie) (p played) {
	a.Helper()
	argv := slices.Clone(t.argv)
	for i := range argv {
		argv[i] = strings.NewReplacer("POOL", filepath.Join(a.mount, "pool"), "CONF", a.config).Replace(argv[i])
	}
	m := a.on(t.tree, k, lie, func() error {
		c := exec.Command(a.program, argv...)
		c.Env = append(os.Environ(), "SHISA_STATE="+filepath.Join(a.mount, "state"))
		// With the thread that has the disk ends the program too.
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		var words bytes.Buffer
		c.Stderr = &words
		out, err := c.Output()
		p.out, p.words, p.exit = out, words.String(), c.ProcessState.ExitCode()
		if errors.As(err, new(*exec.ExitError)) {
			err = nil
		}
		return err
	})
	p.names, p.told, p.tree = m.Names(), m.Told(), m.Now()
	return p
}

// acts are what is tried: all that changes names in a pool.
func (a *answers) acts() (all []act) {
	a.Helper()
	plan := func(name string, args ...string) string {
		path := filepath.Join(filepath.Dir(a.mount), name)
		a.does(0, append(strings.Fields("base plan --config CONF POOL --out "+path), args...)...)
		return path
	}
	f := strings.Fields
	all = append(all, a.from("protect", 0, f("base protect --json --config CONF POOL")...))
	a.does(0, f("base protect --config CONF POOL")...)
	a.does(0, f("base agent --once --config CONF POOL")...)
	a.changes(atOnce)
	a.does(0, f("base plan --config CONF POOL")...)
	a.does(0, f("base agent --once --config CONF POOL")...)
	aside := plan("aside.json", "--only", "alone", "--only", "other")
	all = append(all, a.from("pin", 0, f("base pin --json --config CONF POOL other --reason x")...),
		a.from("agent", 0, f("base agent --once --json --config CONF POOL")...),
		a.from("unprotect", 0, f("base unprotect --records --json --config CONF POOL")...),
		a.from("quarantine", 0, f("base quarantine --json --config CONF POOL --plan "+aside)...))
	protected := a.tree
	a.changes(func(dir string) error { return os.Remove(filepath.Join(dir, "_base/used")) })
	all = append(all, a.from("restore from the shield", 0, f("base restore --json --config CONF POOL used")...),
		a.from("protect what is gone", 0, f("base protect --json --config CONF POOL")...))
	for i := range all[len(all)-2:] {
		all[len(all)-1-i].needs = nil // what cannot be linked stays gone, and is told
	}
	a.does(0, f("base restore --config CONF POOL used")...)
	all = append(all, a.from("undo of a restore from the shield", 0, f("undo --json --accept-risk=needed:POOL/_base/used POOL")...))
	all[len(all)-1].needs = nil // it is gone again, or there still
	a.tree = protected
	a.does(0, f("base node join --config CONF POOL n2")...)
	all = append(all, a.from("join", 0, f("base node join --json --config CONF POOL n3")...),
		a.from("retire", 0, f("base node retire --json --config CONF POOL n2 --reason x --accept-risk=silent:n2")...))
	a.does(0, f("base node retire --config CONF POOL n2 --reason x --accept-risk=silent:n2")...)
	all = append(all, a.from("undo of retire", 0, f("undo --json POOL")...))
	a.tree = protected
	a.changes(func(dir string) error {
		return errors.Join(os.Remove(filepath.Join(dir, "_base/alone")), os.Remove(filepath.Join(dir, "_base/other")))
	})
	kept := plan("kept.json", "--only", "alone", "--only", "other")
	all = append(all, a.from("quarantine of what only shields keep", 0, f("base quarantine --json --config CONF POOL --plan "+kept)...))
	a.does(0, f("base quarantine --config CONF POOL --plan "+kept)...)
	all = append(all, a.from("undo of that", 0, f("undo --json POOL")...))
	a.tree = protected
	a.does(0, f("base quarantine --config CONF POOL --plan "+aside)...)
	held := a.tree
	a.does(0, f("base restore --config CONF POOL alone")...)
	all = append(all, a.from("undo of a restore from quarantine", 0, f("undo --json POOL")...))
	a.tree = held
	all = append(all, a.from("restore", 0, f("base restore --json --config CONF POOL alone")...),
		a.from("undo", 0, f("undo --json POOL")...))
	aside2 := a.tree
	a.changes(a.cutOff)
	all = append(all, a.from("recover", 0, f("base recover --json --config CONF POOL")...))
	all[len(all)-1].needs = []string{"used", "other"}
	a.tree = aside2
	a.does(0, f("base agent --once --config CONF POOL")...)
	a.changes(drained)
	purge := plan("purge.json", "--only", "alone")
	var p struct{ SHA256 string }
	text, err := os.ReadFile(purge)
	a.must(errors.Join(err, json.Unmarshal(text, &p)))
	all = append(all, a.from("purge", 0,
		f("base purge --json --config CONF POOL --plan "+purge+" --approve "+p.SHA256)...))
	all[len(all)-1].gone = "alone"
	return all
}

// atOnce has the pool allow everything, without waiting.
func atOnce(dir string) error {
	file := filepath.Join(dir, "_base/.shisa/pool.json")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	p, err := pool.ParsePolicy(text)
	if err != nil {
		return err
	}
	p.MinAge, p.MinQuarantine, p.MaxFraction, p.AllowPurge = 0, 0, 1, true
	if text, err = p.Text(); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// cutOff makes a pool in which a quarantine and a purge came to no end, and an image on top of what was to be removed.
func (a *answers) cutOff(dir string) error {
	all, err := filepath.Glob(filepath.Join(dir, "_base/.shisa/q/*"))
	for _, path := range all {
		held := filepath.Base(path)
		id, name, _ := pool.ParseHeldName(held)
		i := pool.Intent{Schema: pool.IntentSchema, ID: id, Act: pool.ActQuarantine, Name: name, Inode: a.bases[name],
			From: name, To: pool.Quarantine + "/" + held, Node: "n1", Time: time.Now().UTC()}
		if name == "other" {
			i.Act, i.From, i.To = pool.ActPurge, i.To, ""
			claims := filepath.Join(dir, "_base/.shisa/purge")
			err = errors.Join(err, os.MkdirAll(claims, 0o755), os.Rename(path, filepath.Join(claims, held)))
		}
		text, e := i.Text()
		intent := filepath.Join(dir, "_base/.shisa/journal", pool.IntentName(id, i.Act))
		err = errors.Join(err, e, os.WriteFile(intent, text, 0o600))
	}
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "late"), a.late, 0o644))
}

// drained has the node have waited for its launches.
func drained(dir string) error {
	file := filepath.Join(dir, "_base/.shisa/nodes", pool.NodeFile("n1"))
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	r, err := pool.ParseReport(pool.NodeFile("n1"), text)
	if err != nil {
		return err
	}
	for _, d := range r.Draining {
		r.Observed = append(r.Observed, d.Observed...)
	}
	r.Draining = []pool.Draining{}
	if text, err = r.Text(); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// judge tells what must never be after an act, and after the recovery from it. It gives what the act said that it did.
func (a *answers) judge(t act, p played, when string) (done string) {
	a.Helper()
	done = a.said(p, when)
	a.settled(p.tree, t, when)
	r := a.play(act{argv: strings.Fields("base recover --json --config CONF POOL"), tree: p.tree}, 0, cutfs.Lie{})
	when += ", and recovered"
	if r.exit != 0 {
		a.Errorf("%s: it ends with %d: %s%s", when, r.exit, r.out, r.words)
	}
	a.said(r, when)
	names := a.settled(r.tree, t, when)
	for base, ino := range a.bases {
		if len(names[ino]) > 1 || slices.Contains(t.needs, base) && !slices.Equal(names[ino], []string{pools + base}) {
			a.Errorf("%s: %s has the names %q", when, base, names[ino])
		}
	}
	for path := range r.tree.Files() {
		if strings.HasPrefix(path, pools+".shisa/journal/") || strings.HasPrefix(path, pools+".shisa/purge/") {
			a.Errorf("%s: %s is there", when, path)
		}
	}
	if open := openReceipts(r.tree); len(open) > 0 {
		// It ends with 6 where it tells that an undo has to go on.
		r = a.play(act{argv: []string{"recover", "--json"}, tree: r.tree}, 0, cutfs.Lie{})
		for path, state := range openReceipts(r.tree) {
			if state != vault.Undoing || r.exit != 6 {
				a.Errorf("%s, and recovered again (%d): receipt %s is %s: %s", when, r.exit, path, state, r.words)
			}
		}
	}
	return done
}

// openReceipts are receipts of acts that came to no end.
func openReceipts(tree *cutfs.Tree) map[string]vault.State {
	open := map[string]vault.State{}
	for path := range tree.Files() {
		var r vault.BaseReceipt
		if !strings.HasPrefix(path, "state/bases/") || !strings.HasSuffix(path, ".json") {
			continue
		}
		if err := json.NewDecoder(io.NewSectionReader(treeFile{tree, path}, 0, 1<<20)).Decode(&r); err != nil || r.State.Unfinished() {
			open[path] = r.State
		}
	}
	return open
}

// pools is where the bases are on the directory.
const pools = "pool/_base/"

// settled tells of bases that are lost, and of audits that do not hold. It gives the names of each file that are no
// shields.
func (a *answers) settled(tree *cutfs.Tree, t act, when string) map[uint64][]string {
	a.Helper()
	names, all := map[uint64][]string{}, map[uint64]bool{}
	for path, ino := range tree.Files() {
		all[ino] = true
		if !strings.HasPrefix(path, pools+".shisa/shields/") {
			names[ino] = append(names[ino], path)
		}
		if strings.HasPrefix(path, pools+".shisa/audit/") {
			if _, cut, err := pool.ReadAudit(io.NewSectionReader(treeFile{tree, path}, 0, 1<<20)); err != nil || cut {
				a.Errorf("%s: %s: %v, cut off: %v", when, path, err, cut)
			}
		}
	}
	for base, ino := range a.bases {
		if !all[ino] && base != t.gone {
			a.Errorf("%s: LOST: %s", when, base)
		}
	}
	return names
}

// treeFile is a file of a tree.
type treeFile struct {
	tree *cutfs.Tree
	path string
}

func (f treeFile) ReadAt(p []byte, off int64) (int, error) { return f.tree.ReadAt(f.path, p, off) }

// changed tells whether an act that failed changed the name of a base.
func (a *answers) changed(t act, p played) bool {
	before, after := t.tree.Files(), p.tree.Files()
	for base, ino := range a.bases {
		moved := (before[pools+base] == ino) != (after[pools+base] == ino)
		if moved || len(namesOf(before, ino)) > 0 && len(namesOf(after, ino)) == 0 {
			return true
		}
	}
	return false
}

func namesOf(files map[string]uint64, ino uint64) (names []string) {
	for path, i := range files {
		if i == ino {
			names = append(names, path)
		}
	}
	return names
}

// said holds what an act says against what is there. It gives how much that is.
func (a *answers) said(p played, when string) (done string) {
	a.Helper()
	var d struct {
		Schema string
		Status []int
		pool.Done
		Steps []vault.BaseStep
	}
	decoder := json.NewDecoder(bytes.NewReader(p.out))
	if err := decoder.Decode(&d); err != nil || decoder.More() {
		a.Errorf("%s: exit status %d and no document, %v: %s%s", when, p.exit, err, p.out, p.words)
		return ""
	}
	if len(d.Status) > 0 && d.Status[0] != p.exit || !slices.Contains([]int{0, 1, 3, 4, 5, 6}, p.exit) {
		a.Errorf("%s: exit status %d, and the document has %v", when, p.exit, d.Status)
	}
	files, shields := p.tree.Files(), map[uint64]bool{}
	for path, ino := range files {
		shields[ino] = shields[ino] || strings.HasPrefix(path, pools+".shisa/shields/")
	}
	wrong := func(what, name string) {
		a.Errorf("%s: it says that %s was %s, and that is not so: %s", when, name, what, p.out)
	}
	for _, name := range d.Shielded {
		if !shields[a.bases[name]] {
			wrong("shielded", name)
		}
	}
	for _, name := range d.Restored {
		if files[pools+name] != a.bases[name] {
			wrong("restored", name)
		}
	}
	for _, held := range d.Quarantined {
		_, name, _ := pool.ParseHeldName(held)
		ino := a.bases[name]
		if slices.Contains(d.Restored, name) {
			continue // and it is back, since who set it aside could not look again
		}
		if files[pools+".shisa/q/"+held] != ino || files[pools+name] == ino {
			wrong("set aside", name)
		}
	}
	for _, held := range d.Purged {
		_, name, _ := pool.ParseHeldName(held)
		for path, ino := range files {
			if ino == a.bases[name] {
				wrong("removed for good", name+" ("+path+")")
			}
		}
	}
	for _, name := range d.Unshielded {
		if shields[a.bases[name]] {
			wrong("unshielded", name)
		}
	}
	for _, id := range d.Pinned {
		if files[pools+".shisa/pins/"+pool.PinName(id)] == 0 {
			wrong("pinned", id)
		}
	}
	return fmt.Sprint(len(d.Shielded), " shielded, ", len(d.Restored), " restored, ", len(d.Quarantined), " set aside, ",
		len(d.Purged), " removed, ", len(d.Unshielded), " unshielded, ", len(d.Pinned), " pinned, ",
		len(d.Recovered), " recovered, ", len(d.Forgotten), " forgotten")
}
