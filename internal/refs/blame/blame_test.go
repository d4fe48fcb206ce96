// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package blame

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

const name = "89f7a3aad7b5b4aa9b3f4a0f41dc4d3f3b3c1f11"

// world is a pool with the logs of its nodes.
type world struct {
	t           *testing.T
	bases, logs string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t, filepath.Join(t.TempDir(), "_base"), t.TempDir()}
	if err := os.MkdirAll(pool.Path(w.bases, pool.Audit), 0o755); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) path() string { return filepath.Join(w.bases, name) }

// write writes a log with the time of its last change, packed where it is called .gz.
func (w *world) write(file, text string, mtime time.Time) {
	w.t.Helper()
	path := filepath.Join(w.logs, file)
	b := []byte(text)
	if strings.HasSuffix(file, ".gz") {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(b); err != nil || z.Close() != nil {
			w.t.Fatal(err)
		}
		b = packed.Bytes()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Chtimes(path, mtime, mtime); err != nil {
		w.t.Fatal(err)
	}
}

// audit writes the audit of a node.
func (w *world) audit(node string, all ...pool.Entry) {
	w.t.Helper()
	var text []byte
	prev := ""
	for _, e := range all {
		e.Node, e.Name = node, name
		line, sum, err := e.Line(prev)
		if err != nil {
			w.t.Fatal(err)
		}
		text, prev = append(text, line...), sum
	}
	if err := os.WriteFile(pool.Path(w.bases, pool.Audit, node+".jsonl"), text, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) find() *History {
	w.t.Helper()
	d, err := tree.OpenDirectory(w.t.Context(), w.logs)
	if err != nil {
		w.t.Fatal(err)
	}
	defer d.Close()
	h, err := Find(w.t.Context(), Options{Bases: w.bases, Name: name, Node: "here", Logs: d, LogDir: w.logs,
		Collected: true, Now: at(22, 12)})
	if err != nil {
		w.t.Fatal(err)
	}
	h.Accuse()
	return h
}

func at(day, hour int) time.Time { return time.Date(2026, 11, day, hour, 0, 0, 0, time.UTC) }

// told are the events in short.
func (w *world) told(h *History) string {
	var b strings.Builder
	for _, e := range h.Events {
		exact := ""
		if !e.Exact {
			exact = "~"
		}
		file, _ := filepath.Rel(w.logs, e.File)
		fmt.Fprintf(&b, "%s%s %s %s %s:%d\n", exact, e.Time.Format(time.DateTime), e.Node, e.Act, file, e.Line)
	}
	return b.String()
}

// TestWordings holds that each wording of Nova is found in each kind of log, plain and packed, with machine, time and
// line.
func TestWordings(t *testing.T) {
	w := newWorld(t)
	p := w.path()
	w.write("node1/nova-compute.log.3.gz", "2012-11-02 09:00:00 DEBUG nova.manager [-] x\n"+
		"2012-11-02 10:00:00 INFO nova.virt.libvirt.imagecache [-] Removing base file: "+p+"\n", at(2, 11))
	w.write("node2/odd name", "2016-11-03 10:00:00.123 4711 INFO nova.virt.libvirt.imagecache [req-1 - - - - -] "+
		"Removing base or swap file: "+p+"\n", at(3, 11))
	w.write("central/2026.gz", "Nov  4 10:00:00 node3 nova-compute[12]: 2026-11-04 10:00:00.001 12 INFO "+
		"nova.virt.libvirt.imagecache [None req-2 - - - - - -] Removing base, swap or ephemeral file: "+p+"\n"+
		"<30>1 2026-11-05T10:00:00+02:00 node4 nova-compute 12 - - Removing base, swap or ephemeral file: "+p+"\n"+
		"Nov  6 10:00:00 node5 nova-compute: Removing base, swap or ephemeral file: /elsewhere/other\n", at(6, 11))
	w.write("node6/cri", "2026-11-07T10:00:00.5Z stdout F 2026-11-07 10:00:00.400 7 INFO nova.virt.libvirt.imagecache "+
		"[None req-3] Removing base, swap or ephemeral file: "+p+"\n", at(7, 11))
	w.write("node7/docker-json.log", `{"log":"2026-11-08 10:00:00.400 7 INFO nova.virt.libvirt.imagecache `+
		`[None req-3] Removing base, swap or ephemeral file: `+p+`\n","stream":"stderr","time":"x"}`+"\n", at(8, 11))
	h := w.find()
	want := `~2012-11-02 10:00:00 node1 removed node1/nova-compute.log.3.gz:2
~2016-11-03 10:00:00 node2 removed node2/odd name:1
~2026-11-04 10:00:00 node3 removed central/2026.gz:1
2026-11-05 08:00:00 node4 removed central/2026.gz:2
2026-11-07 10:00:00 node6 removed node6/cri:1
~2026-11-08 10:00:00 node7 removed node7/docker-json.log:1
`
	if got := w.told(h); got != want {
		t.Errorf("events:\n%swant\n%s", got, want)
	}
	if v := h.Blame; v.By == nil || v.By.Node != "node7" || v.Sure != Possible || !slices.Equal(h.Status, []int{3}) {
		t.Errorf("blame is %+v, status %v, gaps %v", v, h.Status, h.Gaps)
	}
}

// line is what Nova writes on a node at a time with a zone.
func line(node string, t time.Time, text string) string {
	return t.Format(time.RFC3339) + " " + node + " nova-compute[7]: " + text + "\n"
}

// TestVerdict holds how sure it is who did it.
func TestVerdict(t *testing.T) {
	const removing = "Removing base, swap or ephemeral file: "
	for _, c := range []struct {
		what   string
		make   func(w *world)
		sure   Sure
		node   string
		status []int
	}{
		{"nothing", func(w *world) { w.write("a", line("n1", at(1, 1), "x"), at(1, 1)) }, Nobody, "", []int{4}},
		{"no logs", func(*world) {}, Nobody, "", []int{4}},
		{"its path", func(w *world) { w.write("a", line("n1", at(1, 1), removing+w.path()), at(1, 1)) }, Likely, "n1", []int{3}},
		{"in its place", func(w *world) {
			w.write("a", line("n1", at(1, 1), removing+w.path()), at(1, 1))
			if err := os.WriteFile(w.path(), nil, 0o644); err != nil {
				w.t.Fatal(err)
			}
		}, Likely, "n1", []int{0}},
		{"another path", func(w *world) { w.write("a", line("n1", at(1, 1), removing+"/x/"+name), at(1, 1)) },
			Possible, "n1", []int{3}},
		{"it failed", func(w *world) {
			w.write("a", line("n1", at(1, 1), removing+w.path())+line("n2", at(2, 1), removing+w.path())+
				line("n2", at(2, 1), "Failed to remove "+w.path()+", error was [Errno 30] Read-only file system"), at(2, 1))
		}, Likely, "n1", []int{3}},
		{"two at once", func(w *world) {
			w.write("a", line("n1", at(1, 1), removing+w.path())+line("n2", at(1, 1), removing+w.path()), at(1, 1))
		}, Possible, "n2", []int{3}},
		{"there again", func(w *world) {
			w.write("a", line("n1", at(1, 1), removing+w.path()), at(1, 1))
			w.audit("n3", pool.Entry{Time: at(2, 1), Act: "restore"})
		}, Nobody, "", []int{4}},
		{"the kernel told", func(w *world) {
			w.write("a", line("n1.example.org", at(2, 1), removing+w.path()), at(2, 1))
			w.audit("n1", pool.Entry{Time: at(1, 1), Act: "shield", Why: "protect"},
				pool.Entry{Time: at(2, 1).Add(time.Second), Act: "removed", Why: "process 7: nova-compute"})
		}, Certain, "n1", []int{3}},
		{"restored before it was noted", func(w *world) {
			w.write("a", line("n1", at(1, 1), "x"), at(1, 1))
			w.audit("n1", pool.Entry{Time: at(2, 1), Act: "restore"},
				pool.Entry{Time: at(2, 1).Add(time.Second), Act: "removed", Why: "process 7: rm"})
		}, Nobody, "", []int{4}},
		{"set aside", func(w *world) {
			w.write("a", line("n1", at(1, 1), removing+w.path()), at(1, 1))
			w.audit("n3", pool.Entry{Time: at(2, 1), Act: "restore"}, pool.Entry{Time: at(3, 1), Act: "quarantine", Why: "plan x"},
				pool.Entry{Time: at(4, 1), Act: "purge", Why: "plan y"})
		}, Certain, "n3", []int{3}},
		{"an adoption taken back", func(w *world) {
			w.write("a", line("n1", at(1, 1), "x"), at(1, 1))
			w.audit("n3", pool.Entry{Time: at(2, 1), Act: "adopt"}, pool.Entry{Time: at(3, 1), Act: "undo", Why: "undo of x"})
		}, Certain, "n3", []int{3}},
		{"set aside and back", func(w *world) {
			w.write("a", line("n1", at(1, 1), "x"), at(1, 1))
			w.audit("n3", pool.Entry{Time: at(2, 1), Act: "quarantine"}, pool.Entry{Time: at(3, 1), Act: "restore"})
		}, Nobody, "", []int{4}},
		{"an archive", func(w *world) {
			w.write("a", line("n1", at(1, 1), removing+w.path()), at(1, 1))
			w.write("b.zip", "PK\x03\x04 more", at(1, 1))
		}, Likely, "n1", []int{3, 4}},
		{"links", func(w *world) {
			w.write("a/x", line("n1", at(1, 1), removing+w.path()), at(1, 1))
			for link, to := range map[string]string{"b": "a", "c": "a/x", "a/d": "../../out", "e": "/out"} {
				if err := os.Symlink(to, filepath.Join(w.logs, link)); err != nil {
					w.t.Fatal(err)
				}
			}
			if h := w.find(); len(h.Gaps) != 2 || len(h.Events) != 1 {
				w.t.Errorf("links: %v %v", h.Gaps, h.Events)
			}
		}, Likely, "n1", []int{3, 4}},
		{"without a time", func(w *world) { w.write("a", removing+w.path()+"\n", at(1, 1)) }, Nobody, "", []int{4}},
	} {
		w := newWorld(t)
		c.make(w)
		h := w.find()
		node := ""
		if h.Blame.By != nil {
			node = h.Blame.By.Node
		}
		if h.Blame.Sure != c.sure || node != c.node || !slices.Equal(h.Status, c.status) {
			t.Errorf("%s: %s %q %v, want %s %q %v\n%+v\n%v", c.what, h.Blame.Sure, node, h.Status, c.sure, c.node, c.status,
				h.Blame, h.Gaps)
		}
	}
}

// TestPurged holds that who asks for a base that was set aside and then removed for good is told of both.
func TestPurged(t *testing.T) {
	w := newWorld(t)
	w.audit("n3", pool.Entry{Time: at(3, 1), Act: "quarantine", Why: "plan x"}, pool.Entry{Time: at(4, 1), Act: "purge", Why: "plan y"})
	h := w.find()
	if h.Blame.By == nil || h.Blame.By.Act != "quarantine" ||
		!strings.HasSuffix(h.Blame.Why, "; a file of that name was removed for good at 2026-11-04 01:00:00 UTC on n3: plan y") {
		t.Errorf("Find = %+v, want that it was removed for good", h.Blame)
	}
	w.audit("n3", pool.Entry{Time: at(2, 1), Act: "purge", Why: "plan y"}, pool.Entry{Time: at(3, 1), Act: "quarantine", Why: "plan x"})
	if h := w.find(); h.Blame.By == nil || strings.Contains(h.Blame.Why, "for good") {
		t.Errorf("Find = %+v, want nothing of an earlier file", h.Blame)
	}
}

// TestBroken holds that an audit that was changed is told, and its beginning too.
func TestBroken(t *testing.T) {
	w := newWorld(t)
	w.write("a", line("n1", at(1, 1), "x"), at(1, 1))
	w.audit("n1", pool.Entry{Time: at(1, 1), Act: "shield", Why: "protect"}, pool.Entry{Time: at(2, 1), Act: "removed", Why: "rm"})
	if h := w.find(); h.Blame.Sure != Certain || len(h.Gaps) != 0 {
		t.Fatalf("%+v", h)
	}
	file := pool.Path(w.bases, pool.Audit, "n1.jsonl")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string][]byte{"changed": bytes.Replace(b, []byte(`"why":"rm"`), []byte(`"why":"mv"`), 1),
		"cut": b[:len(b)-5]} {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		h := w.find()
		if len(h.Gaps) != 1 || len(h.Events) != 1 || h.Blame.By != nil || !slices.Equal(h.Status, []int{4}) {
			t.Errorf("%s: %+v", what, h)
		}
	}
}

// FuzzLogs reads logs of any bytes: no panic, and nobody is blamed by a line that does not name the base.
func FuzzLogs(f *testing.F) {
	f.Add([]byte("2026-11-22T09:00:00Z h nova-compute: Removing base file: /b/" + name + "\n"))
	f.Add([]byte(`{"log":"2026-11-22 09:00:00 1 INFO nova.x [-] Removing base file: /b/x\n"}`))
	f.Add([]byte("\x1f\x8b\x08\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWorld(t)
		w.write("n/log", string(b), at(1, 1))
		if h := w.find(); h.Blame.By != nil && filepath.Base(h.Blame.By.Path) != name {
			t.Errorf("%+v", h.Blame)
		}
	})
}

// TestThisHost holds that without collected logs those of this host are read, where Nova keeps its own and where a
// syslog daemon does, that two lines of one removal are told together, and that other machines' logs are missed.
func TestThisHost(t *testing.T) {
	w := newWorld(t)
	const text = "Removing base, swap or ephemeral file: "
	w.write("var/log/syslog.1.gz", line("here", at(1, 1), text+w.path()), at(1, 1))
	w.write("var/log/kolla/nova/nova-compute.log", "2026-11-01 01:00:00.500 7 INFO nova.virt.libvirt.imagecache [-] "+
		text+w.path()+"\n2026-10-01 01:00:00.500 7 INFO nova.virt.libvirt.imagecache [-] "+text+w.path()+"\n", at(1, 1))
	w.write("srv/elsewhere", line("here", at(3, 1), text+w.path()), at(3, 1))
	find := func(name string) *History {
		d, err := tree.OpenDirectory(t.Context(), w.logs)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		h, err := Find(t.Context(), Options{Bases: w.bases, Name: name, Node: "here", Logs: d, Now: at(22, 12)})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := find(name)
	if v := h.Blame; v.By == nil || v.By.Node != "here" || !v.By.Time.Truncate(time.Second).Equal(at(1, 1)) || v.Sure != Likely ||
		len(v.Also) != 1 || len(h.Events) != 3 {
		t.Errorf("%+v\n%+v", v, h.Events)
	}
	if v := find("another").Blame; v.By != nil || !strings.Contains(v.Why, "other machines were not read") {
		t.Errorf("%+v", v)
	}
}
