// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"encoding"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/disk"
	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/doctor/watch"
	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/holders/trace"
	"github.com/shisa-vm/shisa/internal/plan"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/blame"
	"github.com/shisa-vm/shisa/internal/refs/fleet"
	"github.com/shisa-vm/shisa/internal/refs/judge"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/roll"
	"github.com/shisa-vm/shisa/internal/refs/ways"
	"github.com/shisa-vm/shisa/internal/render"
	"github.com/shisa-vm/shisa/internal/umount"
	"github.com/shisa-vm/shisa/internal/vault"
)

// jsonDocuments are all documents that the program prints, by their schema.
func jsonDocuments() map[string]any {
	return map[string]any{
		render.CheckSchema:       check.Report{},
		render.ScanSchema:        render.DemoScanDocument{}, // the scan's, with what the demo adds
		render.DemoSchema:        render.DemoDocument{},
		render.InfoSchema:        disk.Description{},
		render.MapSchema:         render.MapDocument{},
		render.CompareSchema:     render.CompareDocument{},
		plan.Schema:              plan.Plan{},
		vault.ReceiptSchema:      render.ReceiptDocument{},
		plan.TextsSchema:         plan.Texts{},
		vault.TextReceiptSchema:  render.TextReceiptDocument{},
		render.RecoverSchema:     render.RecoverDocument{},
		render.HeaderSchema:      render.HeaderDocument{},
		render.GuestPartsSchema:  render.GuestPartsDocument{},
		render.GuestListSchema:   render.GuestListDocument{},
		render.GuestSpaceSchema:  render.GuestSpaceDocument{},
		render.GuestWhoSchema:    render.GuestWhoDocument{},
		render.GuestCopySchema:   render.GuestCopyDocument{},
		render.GuestMountSchema:  render.GuestMountDocument{},
		render.GuestUmountSchema: render.GuestUmountDocument{},
		render.HoldersSchema:     holders.Report{},
		render.TraceSchema:       render.TraceDocument{},
		render.PollersSchema:     render.PollersDocument{},
		render.EnginesSchema:     render.EnginesDocument{},
		render.UmountSchema:      umount.Result{},
		render.AdviceSchema:      umount.Advice{},
		render.DoctorSchema:      doctor.Report{},
		render.RulesSchema:       render.RulesDocument{},
		render.MemorySchema:      render.MemoryDocument{},
		render.BootsSchema:       doctor.BootsReport{},
		render.TimersSchema:      doctor.TimersReport{},
		render.LintSchema:        doctor.LintReport{},
		render.StallSchema:       render.StallDocument{},
		render.WatchSchema:       watch.Event{},
		render.CollectedSchema:   render.CollectedDocument{},
		render.BaseScanSchema:    refs.Census{},
		render.BasePoolsSchema:   render.BasePoolsDocument{},
		judge.Schema:             judge.Plan{},
		render.BaseDoneSchema:    pool.Done{},
		vault.BaseReceiptSchema:  render.BaseReceiptDocument{},
		render.BaseMissingSchema: ways.Report{},
		render.BaseHistorySchema: blame.History{},
		render.BaseEventSchema:   pool.Happened{},
		render.BaseNodesSchema:   roll.List{},
		render.BaseFleetSchema:   fleet.Report{},
		pool.InventorySchema:     pool.Inventory{},
		"shisa.version/1":        versionDocument{},
		"shisa.error/1":          errorDocument{},
	}
}

// TestJSONPage holds doc/json.md against the structs: each document and object has a table with
// exactly its fields, in their order, with their types, and each integer has a unit.
func TestJSONPage(t *testing.T) {
	page, err := os.ReadFile("../../doc/json.md")
	if err != nil {
		t.Fatal(err)
	}
	tables := jsonTables(t, string(page))
	d := &describer{enums: map[string][]string{}, seen: map[string]reflect.Type{}}
	for schema, v := range jsonDocuments() {
		d.object(t, schema, reflect.TypeOf(v))
	}
	for name := range tables {
		if _, ok := d.rows[name]; !ok {
			t.Errorf("doc/json.md describes %q, which no document has", name)
		}
	}
	for name, want := range d.rows {
		got, ok := tables[name]
		if !ok {
			t.Errorf("doc/json.md has no table for %q, want\n%s", name, skeleton(want))
			continue
		}
		for i, w := range want {
			if i >= len(got) || got[i].name != w.name || got[i].typ != w.typ {
				t.Errorf("doc/json.md, %s: row %d is not that of the struct, want\n%s", name, i+1, skeleton(want))
				break
			}
			if number := strings.Contains(w.typ, "integer"); number != (got[i].unit != "") {
				t.Errorf("doc/json.md, %s: %s has the unit %q, want one for integers only", name, w.name, got[i].unit)
			}
			if got[i].text == "" {
				t.Errorf("doc/json.md, %s: nothing is said of %s", name, w.name)
			}
		}
		if len(got) > len(want) {
			t.Errorf("doc/json.md, %s: %q is no field", name, got[len(want)].name)
		}
	}
}

// jsonRow is a line of a table: a field.
type jsonRow struct{ name, typ, unit, text string }

func skeleton(rows []jsonRow) string {
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "| `%s` | %s | | |\n", r.name, r.typ)
	}
	return b.String()
}

var (
	jsonHeading = regexp.MustCompile("^### `([^`]+)`")
	jsonField   = regexp.MustCompile("^\\| `([^`]+)` \\| ([^|]+) \\| ([^|]*) ?\\| (.*) ?\\|$")
)

// jsonTables reads the tables below the headings of objects.
func jsonTables(t *testing.T, page string) map[string][]jsonRow {
	t.Helper()
	tables, name := map[string][]jsonRow{}, ""
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if m := jsonHeading.FindStringSubmatch(line); m != nil {
			name = m[1]
			tables[name] = []jsonRow{}
		} else if strings.HasPrefix(line, "#") {
			name = ""
		}
		if m := jsonField.FindStringSubmatch(line); m != nil && name != "" {
			tables[name] = append(tables[name], jsonRow{m[1], strings.TrimSpace(m[2]),
				strings.TrimSpace(m[3]), strings.TrimSpace(m[4])})
		}
	}
	return tables
}

// describer says in the words of the page what structs hold.
type describer struct {
	rows  map[string][]jsonRow
	enums map[string][]string // values of named strings, by package and name
	seen  map[string]reflect.Type
}

// object describes a struct and all that it holds. A document has its schema first.
func (d *describer) object(t *testing.T, name string, typ reflect.Type) {
	t.Helper()
	if old, ok := d.seen[name]; ok {
		if old != typ {
			t.Errorf("%v and %v are both called %q", old, typ, name)
		}
		return
	}
	d.seen[name] = typ
	if d.rows == nil {
		d.rows = map[string][]jsonRow{}
	}
	rows := []jsonRow{}
	if strings.Contains(name, "/") {
		rows = append(rows, jsonRow{name: "schema", typ: "string"})
	}
	rows = append(rows, d.fields(t, typ)...)
	if i := slices.IndexFunc(rows[min(1, len(rows)):], func(r jsonRow) bool { return r.name == "schema" }); i >= 0 {
		rows = slices.Delete(rows, i+1, i+2) // one that is also kept in files has a field for it
	}
	d.rows[name] = rows
}

func (d *describer) fields(t *testing.T, typ reflect.Type) []jsonRow {
	t.Helper()
	rows := []jsonRow{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
			continue
		case f.Anonymous && name == "":
			rows = append(rows, d.fields(t, f.Type)...)
			continue
		case name == "" || name != strings.ToLower(name):
			t.Errorf("%v.%s has the name %q, want snake_case", typ, f.Name, name)
		}
		word := d.word(t, f.Type)
		if opts == "omitempty" {
			word = strings.TrimSuffix(word, " or null") + ", may be absent"
		}
		rows = append(rows, jsonRow{name: name, typ: word})
	}
	return rows
}

// word describes the type of a field.
func (d *describer) word(t *testing.T, typ reflect.Type) string {
	t.Helper()
	if typ.Kind() == reflect.Slice && typ.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		return "string"
	}
	switch typ.Kind() {
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint8,
		reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "integer"
	case reflect.Float64:
		return "number"
	case reflect.String:
		if values := d.values(t, typ); len(values) > 0 {
			return "one of " + strings.Join(values, ", ")
		}
		return "string"
	case reflect.Slice:
		return "list of " + d.word(t, typ.Elem())
	case reflect.Pointer:
		return d.word(t, typ.Elem()) + " or null"
	case reflect.Struct:
		if typ == reflect.TypeFor[time.Time]() {
			return "time"
		}
		switch typ { // a document of its own, without its schema
		case reflect.TypeFor[doctor.Report]():
			return "[shisa.doctor/1](#shisadoctor1)"
		case reflect.TypeFor[refs.Census]():
			return "[shisa.base-scan/1](#shisabase-scan1)"
		case reflect.TypeFor[ways.Report]():
			return "[shisa.base-missing/1](#shisabase-missing1)"
		case reflect.TypeFor[pool.Done]():
			return "[shisa.base-done/1](#shisabase-done1)"
		case reflect.TypeFor[roll.List]():
			return "[shisa.base-nodes/1](#shisabase-nodes1)"
		}
		name := objectName(typ.Name())
		switch typ { // where another package has the name too
		case reflect.TypeFor[holders.Holder]():
			name = "mount_holder"
		case reflect.TypeFor[ways.Way]():
			name = "way_back"
		case reflect.TypeFor[trace.Mount]():
			name = "traced_mount"
		case reflect.TypeFor[trace.Umount]():
			name = "failed_umount"
		}
		if strings.HasSuffix(typ.PkgPath(), "/doctor") {
			name = "doctor_" + name // it has findings, causes and objects of its own
		}
		d.object(t, name, typ)
		return fmt.Sprintf("[%s](#%s)", name, name)
	}
	t.Errorf("%v has no word in doc/json.md", typ)
	return typ.String()
}

// objectName turns the name of a struct into that of its table: LinkInfo is link_info, LUKSSlot
// luks_slot.
func objectName(s string) string {
	var b strings.Builder
	upper := func(i int) bool { return i < len(s) && s[i] >= 'A' && s[i] <= 'Z' }
	for i := range len(s) {
		if i > 0 && upper(i) && (!upper(i-1) || i+1 < len(s) && !upper(i+1)) {
			b.WriteByte('_')
		}
		b.WriteByte(s[i])
	}
	return strings.ToLower(b.String())
}

// values lists the constants of a named string in the order of the source.
func (d *describer) values(t *testing.T, typ reflect.Type) []string {
	t.Helper()
	dir, inside := strings.CutPrefix(typ.PkgPath(), "github.com/shisa-vm/shisa/")
	if !inside {
		return nil
	}
	if _, ok := d.enums[typ.PkgPath()]; !ok {
		d.enums[typ.PkgPath()] = []string{} // its source is read once
		d.constants(t, filepath.Join("../..", dir), typ.PkgPath())
	}
	return d.enums[typ.PkgPath()+"."+typ.Name()]
}

// constants reads the typed string constants of a package from its source.
func (d *describer) constants(t *testing.T, dir, pkg string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.DeleteFunc(files, func(p string) bool { return strings.HasSuffix(p, "_test.go") }) {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				name, ok := v.Type.(*ast.Ident)
				if !ok || len(v.Values) != 1 {
					continue
				}
				lit, ok := v.Values[0].(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					continue
				}
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				key := pkg + "." + name.Name
				d.enums[key] = append(d.enums[key], fmt.Sprintf("`%s`", text))
			}
		}
	}
}
