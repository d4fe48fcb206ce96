// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shisa-vm/shisa/internal/doctor"
	"github.com/shisa-vm/shisa/internal/doctor/watch"
	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/render"
)

const (
	alertRules = "contrib/prometheus/shisa.rules.yaml"
	alertTests = "contrib/prometheus/shisa.rules.test.yaml"
	board      = "contrib/grafana/shisa.json"
)

// served gives the samples that the watch serves, by their names, each with its labels.
func served(t *testing.T) map[string][]string {
	t.Helper()
	now := time.Now()
	s := &watch.Status{Memory: &evidence.Memory{}, Forecast: doctor.MemoryForecast{Ends: true}, Examined: now,
		Report: &doctor.Report{Status: []int{0}, Rules: []doctor.Asked{{Code: "FS01"}},
			Findings: []doctor.Finding{{Code: "FS01", Severity: finding.Danger}}}}
	s.Forecast.End.Best = now
	var page bytes.Buffer
	if err := render.WatchMetrics(&page, s); err != nil {
		t.Fatal(err)
	}
	label := regexp.MustCompile(`(\w+)="`)
	samples := map[string][]string{}
	for line := range strings.Lines(page.String()) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name := line[:strings.IndexAny(line, "{ ")]
		samples[name] = []string{}
		for _, m := range label.FindAllStringSubmatch(line, -1) {
			samples[name] = append(samples[name], m[1])
		}
	}
	return samples
}

var (
	metricName  = regexp.MustCompile(`\bshisa_\w+`)
	selector    = regexp.MustCompile(`\b(shisa_\w+)\{([^}]*)\}`)
	legendLabel = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)
	labelName   = regexp.MustCompile(`(\w+)\s*(=~|!=|!~|=)`)
)

// asks holds an expression against what is served. The labels instance and job are Prometheus's own.
func asks(t *testing.T, where, expr string, samples map[string][]string) {
	t.Helper()
	own := map[string]bool{"instance": true, "job": true}
	for _, name := range metricName.FindAllString(expr, -1) {
		if _, known := samples[name]; !known {
			t.Errorf("%s asks for %s, which is not served", where, name)
		}
	}
	for _, m := range selector.FindAllStringSubmatch(expr, -1) {
		for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
			if !own[l[1]] && !strings.Contains(" "+strings.Join(samples[m[1]], " ")+" ", " "+l[1]+" ") {
				t.Errorf("%s asks for %s by %s, which it does not have", where, m[1], l[1])
			}
		}
	}
}

// TestAlertRules: the rules are such as Prometheus reads, and ask for nothing that is not served.
func TestAlertRules(t *testing.T) {
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	d := yaml.NewDecoder(strings.NewReader(read(t, alertRules)))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	samples, seen := served(t), map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || seen[r.Alert] || r.Expr == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
				t.Errorf("%+v: want a name of its own, an expression, a severity and a summary", r)
			}
			seen[r.Alert] = true
			asks(t, r.Alert, r.Expr, samples)
		}
	}
	for _, name := range []string{"ShisaDanger", "ShisaWarning", "ShisaCannotTell", "ShisaWatchNotRunning", "ShisaMessagesLost",
		"ShisaMemoryUsedUp"} {
		if !seen[name] {
			t.Errorf("there is no rule %s", name)
		}
	}
	// Where Prometheus is installed it has the last word.
	if tool, err := exec.LookPath("promtool"); err == nil {
		for _, what := range [][]string{{"check", "rules", alertRules}, {"test", "rules", alertTests}} {
			if out, err := exec.Command(tool, what...).CombinedOutput(); err != nil {
				t.Errorf("promtool %v: %v\n%s", what, err, out)
			}
		}
	}
	alertsAreTested(t, seen, samples)
}

// alertsAreTested holds that for each alert there is a machine for which it is silent, and one for which it is not.
func alertsAreTested(t *testing.T, alerts map[string]bool, samples map[string][]string) {
	t.Helper()
	var file struct {
		Rules    []string `yaml:"rule_files"`
		Interval string   `yaml:"evaluation_interval"`
		Tests    []struct {
			Name, Interval string
			Series         []struct{ Series, Values string } `yaml:"input_series"`
			Alerts         []struct {
				At     string `yaml:"eval_time"`
				Name   string `yaml:"alertname"`
				Expect []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	d := yaml.NewDecoder(strings.NewReader(read(t, alertTests)))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	silent, told := map[string]bool{}, map[string]bool{}
	for _, c := range file.Tests {
		for _, s := range c.Series {
			asks(t, c.Name, s.Series, samples)
		}
		for _, a := range c.Alerts {
			if !alerts[a.Name] {
				t.Errorf("%s: there is no alert %s", c.Name, a.Name)
			}
			silent[a.Name], told[a.Name] = silent[a.Name] || len(a.Expect) == 0, told[a.Name] || len(a.Expect) > 0
		}
	}
	for name := range alerts {
		if !silent[name] || !told[name] {
			t.Errorf("%s is not tested both ways", name)
		}
	}
}

// TestBoard: the board is JSON, its panels do not overlap, and ask for nothing that is not served.
func TestBoard(t *testing.T) {
	var file struct {
		Title         string
		SchemaVersion int
		Templating    struct{ List []struct{ Query string } }
		Panels        []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct {
				RefID, Expr, LegendFormat string
				Datasource                struct{ Type, UID string }
			}
		}
	}
	if err := json.Unmarshal([]byte(read(t, board)), &file); err != nil {
		t.Fatal(err)
	}
	if file.Title == "" || file.SchemaVersion == 0 || len(file.Panels) == 0 {
		t.Errorf("%s is no board: %+v", board, file)
	}
	samples, asked := served(t), ""
	for _, v := range file.Templating.List {
		asks(t, "a variable", v.Query, samples)
	}
	at, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range file.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %+v: want a number of its own, a title, a question, and its place within 24 columns", p)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := at[[2]int{x, y}]; other != "" {
					t.Fatalf("%q lies on %q", p.Title, other)
				}
				at[[2]int{x, y}] = p.Title
			}
		}
		if !slices.Contains([]string{"stat", "table", "timeseries"}, p.Type) {
			t.Errorf("%q is a %q", p.Title, p.Type)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if q.RefID == "" || refs[q.RefID] || q.Datasource.Type != "prometheus" || q.Datasource.UID != "${source}" {
				t.Errorf("%q: %+v: want a letter of its own, and the source that was chosen", p.Title, q)
			}
			refs[q.RefID] = true
			labels := []string{"instance"}
			for _, name := range metricName.FindAllString(q.Expr, -1) {
				labels = append(labels, samples[name]...)
			}
			for _, m := range legendLabel.FindAllStringSubmatch(q.LegendFormat, -1) {
				if !slices.Contains(labels, m[1]) {
					t.Errorf("%q is labelled by %s, which its numbers do not have", p.Title, m[1])
				}
			}
			asks(t, p.Title, q.Expr, samples)
			asked += q.Expr + "\n"
		}
	}
	// What is served is shown, or told of by an alert.
	asked += read(t, alertRules)
	for name := range samples {
		if !regexp.MustCompile(`\b`+name+`\b`).MatchString(asked) && name != "shisa_status" {
			t.Errorf("%s is served, and nothing in contrib asks for it", name)
		}
	}
	page := read(t, "doc/watch.md")
	for name := range samples {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("doc/watch.md does not tell of %s", name)
		}
	}
}

// TestUnit: no unit gives the program a mount namespace of its own, in which it would keep mounts.
func TestUnit(t *testing.T) {
	// systemd.exec(5) says of each of these that it sets one up.
	apart := regexp.MustCompile(`^(Protect(System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc)|ProcSubset|Private\w+|` +
		`(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)Paths|Bind\w+|TemporaryFileSystem|RootDirectory|RootImage|MountAPIVFS|DynamicUser)=`)
	for name, start := range map[string]string{
		"shisa-watch.service": " doctor watch --json --metrics 127.0.0.1:9477\n",
		"shisa-base@.service": " base agent --json %f\n",
	} {
		text, err := os.ReadFile("contrib/systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if apart.MatchString(line) {
				t.Errorf("%s: %q sets up a mount namespace", name, strings.TrimSpace(line))
			}
		}
		if !strings.Contains(string(text), start) {
			t.Errorf("%s does not start%q", name, start)
		}
	}
}

// TestNovaExports: the statements for PostgreSQL are those for the others, but for what it calls by another name.
func TestNovaExports(t *testing.T) {
	var texts [2]string
	for i, name := range []string{"contrib/nova-export.sql", "contrib/nova-export-postgresql.sql"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		texts[i] = string(text)
		// SQLite is asked by a program that knows no comments.
		for line := range strings.Lines(texts[i]) {
			if strings.HasPrefix(line, "--") && strings.Contains(line, ";") {
				t.Errorf("%s: a semicolon in %q ends a statement", name, line)
			}
		}
	}
	want := strings.NewReplacer("MariaDB, MySQL, SQLite", "PostgreSQL", "JSON_OBJECT", "json_build_object",
		`CAST(JSON_EXTRACT(e.flavor, '$.cur."nova_object.data".swap') AS SIGNED)`,
		"(e.flavor::json #>> '{cur,nova_object.data,swap}')::bigint").Replace(texts[0])
	if texts[1] != want {
		t.Errorf("contrib/nova-export-postgresql.sql differs, want\n%s", want)
	}
}
