// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/lab/nova"
	export "github.com/shisa-vm/shisa/internal/refs/nova"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// The files with which an export is made, and which clients they are for.
const (
	exportSQL         = "../contrib/nova-export.sql"
	exportSQLPostgres = "../contrib/nova-export-postgresql.sql"
)

// novaExport makes an export as doc/formats/nova-export.md says.
func novaExport(t *testing.T, db *nova.Database, before, file string) []byte {
	t.Helper()
	sql, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out, err := db.Ask(t.Context(), before+string(sql))
	if err != nil {
		t.Fatal(err)
	}
	head := `{"schema": "shisa.nova-export/1", "made": "` + time.Now().UTC().Format(time.RFC3339) + `", "of": "nova"}` + "\n"
	return append([]byte(head), out...)
}

// exported makes an export of Nova's database, and has shisa find the machines in it. What Nova itself counts as used
// beside the image of a machine, its kernel, the export has too.
func (p *novaPool) exported() {
	p.must(p.nova.Instance(nova.Machine{UUID: machineB, Host: "nodeB", Image: "img-2", State: "active", Kernel: "img-gone"}))
	p.must(p.nova.Disk(machineB, "ephemeral", 7))
	p.must(p.nova.Delete(machineB))
	p.must(p.nova.Instance(nova.Machine{UUID: machineC, Host: "nodeC", Image: "img-1", State: "active", Kernel: "img-kernel",
		Ramdisk: "img-ramdisk", Unshelved: "img-before"}))
	pool := filepath.Dir(p.base)
	needs := map[string]string{
		imageBase("img-1"): machineA, filepath.Base(p.base): machineA, imageBase("img-2"): "", "ephemeral_7_default": "",
		imageBase("img-kernel"): machineC, imageBase("img-ramdisk"): machineC, imageBase("img-gone"): "",
	}
	for _, image := range []string{"img-2", "img-kernel", "img-ramdisk", "img-gone"} {
		p.must(os.WriteFile(filepath.Join(pool, imageBase(image)), nil, 0o644))
	}
	for range 40 { // hours, with a pass in each: whatever Nova does not count as used is gone
		p.wait(time.Hour)
		p.pass()
	}
	for name, machine := range needs {
		if _, err := os.Stat(filepath.Join(pool, name)); len(name) == 40 && (err == nil) != (machine != "") {
			p.Errorf("Nova has base %s: %v, want %v", name, err == nil, machine != "")
		}
	}
	needs[imageBase("img-before")] = machineC // Nova does not know of it
	file := filepath.Join(p.dir, "export")
	p.must(os.WriteFile(file, novaExport(p.T, p.nova.Database(), "", exportSQL), 0o644))
	for name, machine := range needs {
		p.must(os.WriteFile(filepath.Join(pool, name), nil, 0o644))
		said := p.says("why", "--nova", file, pool, name)
		if got := strings.Contains(said, "Nova has a machine of it ("+file+"), machine "+machine+", node nodeC"); got != (machine != "") {
			p.Errorf("why %s: that Nova has a machine of it is told: %v, want %q\n%s", name, got, machine, said)
		}
		if strings.Contains(said, "export of Nova's database") {
			p.Errorf("why %s: of the export not all is read:\n%s", name, said)
		}
	}
}

// novaDatabases makes an export of the same machines from each database that Nova can have, with Nova's own tables.
func novaDatabases(t *testing.T, p nova.Package) {
	for _, c := range []struct {
		name, before, file string
		start              func(ctx context.Context, dir string) (*nova.Database, error)
	}{
		{"sqlite", "", exportSQL, func(_ context.Context, dir string) (*nova.Database, error) { return nova.SQLite(dir), nil }},
		{"mariadb", "START TRANSACTION WITH CONSISTENT SNAPSHOT;\n", exportSQL, nova.MariaDB},
		{"postgresql", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n", exportSQLPostgres, nova.PostgreSQL},
	} {
		t.Run(c.name, func(t *testing.T) {
			db, err := c.start(t.Context(), t.TempDir())
			if errors.Is(err, nova.ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			}()
			n, err := nova.Start(t.Context(), p, db, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := n.Close(); err != nil {
					t.Error(err)
				}
			}()
			want := novaMachines(t, n)
			// Nova 26 cannot do this on PostgreSQL: its tables for what was deleted have other types.
			if err := n.Archive(); err != nil && (c.name != "postgresql" || !strings.Contains(err.Error(), "DatatypeMismatch")) {
				t.Fatal(err)
			}
			text := novaExport(t, db, c.before, c.file)
			e, err := export.ReadExport(bytes.NewReader(text))
			if err != nil {
				t.Fatalf("ReadExport: %v\n%s", err, text)
			}
			slices.SortFunc(e.Instances, func(a, b export.Instance) int { return strings.Compare(a.UUID, b.UUID) })
			for i := range e.Instances {
				m := &e.Instances[i]
				// In UTC, wherever the server and its client believe to be.
				if age := time.Since(m.Created); age < 0 || age > 10*time.Minute {
					t.Errorf("%s was made at %v, which is not now", m.UUID, m.Created)
				}
				m.Created = time.Time{}
				slices.Sort(m.Images)
				slices.Sort(m.EphemeralGiB)
				slices.Sort(m.SwapMiB)
			}
			if d := cmp.Diff(want, e.Instances); d != "" {
				t.Errorf("the export of %s (-want +got):\n%s\n%s", c.name, d, text)
			}
		})
	}
}

// novaMachines makes machines whose rows are odd, and gives what an export has to say of them.
func novaMachines(t *testing.T, n *nova.Nova) []export.Instance {
	t.Helper()
	const machineD = "44444444-4444-4444-8444-444444444444"
	host := "no\"de'\\n\\ \u00e9;"
	for _, m := range []nova.Machine{
		{UUID: machineA, Host: host, Image: "img-1", State: "active", Kernel: "img-k", Ramdisk: "img-r", EphemeralGiB: 3, SwapMiB: 1024},
		{UUID: machineB, State: "building"},
		{UUID: machineC, Host: "nodeC", Image: "img-3", State: "active", Kernel: "img-k", SwapMiB: 64},
		{UUID: machineD, Host: "nodeD", Image: "img-4", State: "soft-delete", Unshelved: "img-before"},
	} {
		if err := n.Instance(m); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(n.Disk(machineA, "ephemeral", 1), n.Disk(machineA, "ephemeral", 2), n.Disk(machineA, "swap", 512),
		n.Disk(machineA, "swap", 0), n.Disk(machineC, "ephemeral", 9), n.Delete(machineC),
		// What no Nova of today writes: rows of an old one.
		n.Execute("UPDATE instances SET deleted = NULL WHERE uuid = '"+machineD+"'"),
		n.Execute("UPDATE instance_extra SET flavor = NULL WHERE instance_uuid = '"+machineB+"'"))
	if err != nil {
		t.Fatal(err)
	}
	return []export.Instance{
		{UUID: machineA, Host: host, Image: "img-1", Images: []string{"img-k", "img-r"}, EphemeralGiB: []int64{1, 2, 3},
			SwapMiB: []int64{512, 1024}},
		{UUID: machineB},
		{UUID: machineD, Host: "nodeD", Image: "img-4", Images: []string{"img-before"}},
	}
}
