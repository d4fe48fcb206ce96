// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/lab/nspawn"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// fetchURL has this program print a page and end: it is what looks at the page in a guest.
const fetchURL = "SHISA_FETCH"

// fetch prints a page when it shows that the machine was examined.
func fetch(url string) error {
	const count = "\nshisa_watch_examinations_total "
	for end := time.Now().Add(10 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		page, err := get(url)
		if err == nil && strings.Contains(page, count) && !strings.Contains(page, count+"0\n") {
			_, err = fmt.Print(page)
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: %w: %s", url, err, page)
		}
	}
}

func get(url string) (string, error) {
	r, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	page, err := io.ReadAll(r.Body)
	return string(page), err
}

// looks asks for the page, for how systemd runs the watch, and stops it; and the agent when that has told what
// is wanted of it. The guest has a shell, and hardly more.
const looks = `[Unit]
After=shisa-watch.service
[Service]
Type=oneshot
TimeoutStopSec=infinity
Environment=SHISA_FETCH=http://127.0.0.1:9477/metrics
ExecStart=/bin/sh -c '/usr/local/bin/look >/var/lib/page 2>/var/lib/error'
ExecStopPost=/bin/sh -c '{ systemctl show shisa-watch.service; cat /proc/$(systemctl show -P MainPID shisa-watch.service)/status; } >/var/lib/during'
ExecStopPost=/bin/sh -c 'systemctl stop shisa-watch.service; systemctl show shisa-watch.service >/var/lib/after'
ExecStopPost=/bin/sh -c 'journalctl --no-pager -u shisa-watch.service >/var/lib/said'
ExecStopPost=/bin/sh -c 'until case "$(journalctl --no-pager -o cat -u shisa-base@srv-pool.service)" in *recorded,*reported*|*reported*recorded,*) ;; *) false ;; esac || ! systemctl -q is-active shisa-base@srv-pool.service; do sleep 0.1; done'
ExecStopPost=/bin/sh -c 'systemctl show shisa-base@srv-pool.service >/var/lib/agent; systemctl stop shisa-base@srv-pool.service'
ExecStopPost=/bin/sh -c 'systemctl show shisa-base@srv-pool.service >/var/lib/stopped'
ExecStopPost=/bin/sh -c 'journalctl --no-pager -o cat -u shisa-base@srv-pool.service >/var/lib/told'
ExecStopPost=/bin/systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
`

// pools is what the agent is told of the pool that it is started for.
const pools = `pools:
  - path: /srv/pool
    protect: true
    watch: true
`

// TestUnit has systemd run the units that are shipped: they start with all that keeps them in, the watch serves its
// page, the agent reports and protects, and both end in order.
func TestUnit(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "systemd-nspawn", "systemctl", "journalctl", "dbus-daemon", "go")
	root, err := nspawn.NewRoot(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	shisa := built(t, module+"/cmd/shisa", false)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	policy := pool.NewPolicy("0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e", time.Unix(1e9, 0))
	begun, err := policy.Text()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]nspawn.File{"/etc/systemd/system/looks.service": {Text: looks}, "/etc/shisa/base.yaml": {Text: pools},
		"/srv/pool/_base/base": {Text: "a base"}, "/srv/pool/_base/.shisa/pool.json": {Text: string(begun)}}
	for name, from := range map[string]string{"/usr/local/bin/shisa": shisa, "/usr/local/bin/look": self,
		"/etc/systemd/system/shisa-watch.service": "../contrib/systemd/shisa-watch.service",
		"/etc/systemd/system/shisa-base@.service": "../contrib/systemd/shisa-base@.service"} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = nspawn.File{Text: string(text), Mode: 0o755}
	}
	o, err := root.Boot(t.Context(), nspawn.World{Files: files, Enable: []string{"shisa-watch.service",
		"shisa-base@srv-pool.service", "looks.service"}},
		nspawn.Limits{Boots: 1, Hold: 20 * time.Minute, Wall: 25 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	read := func(name string) string {
		text, err := os.ReadFile(o.Path("/var/lib/" + name))
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	page, during, after, said := read("page"), read("during"), read("after"), read("said")
	t.Logf("%v of CPU time; %s", o.CPU, read("error"))
	if !strings.HasSuffix(page, "# EOF\n") || !strings.Contains(page, "shisa_watch_failed 0\n") {
		t.Errorf("its page is\n%s", page)
	}
	for _, want := range []string{"ActiveState=active", "NRestarts=0", "MemoryMax=268435456", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(during, "\n"+want+"\n") {
			t.Errorf("while it runs there is no %q", want)
		}
	}
	if m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(during); m == nil {
		t.Error("its memory is not known")
	} else if kib, err := strconv.Atoi(m[1]); err != nil || kib > 64<<10 {
		t.Errorf("it took %s KiB, want at most 64 MiB", m[1])
	}
	for _, want := range []string{"ActiveState=inactive", "Result=success", "ExecMainStatus=130"} {
		if !strings.Contains(after, want+"\n") {
			t.Errorf("when it was stopped there is no %q", want)
		}
	}
	agent, stopped, told := read("agent"), read("stopped"), read("told")
	for _, want := range []string{"ActiveState=active", "NRestarts=0", "MemoryMax=1073741824"} {
		if !strings.Contains(agent, want+"\n") {
			t.Errorf("while the agent runs there is no %q", want)
		}
	}
	for _, want := range []string{"ActiveState=inactive", "Result=success", "ExecMainStatus=130"} {
		if !strings.Contains(stopped, want+"\n") {
			t.Errorf("when the agent was stopped there is no %q", want)
		}
	}
	if !strings.Contains(told, `"what": "reported"`) || !strings.Contains(told, `1 shielded, 0 touched, 1 recorded, 0 left`) &&
		!strings.Contains(told, `1 shielded, 1 touched, 1 recorded, 0 left`) {
		t.Errorf("the agent told\n%s", told)
	}
	// What the guest changed of its root lies in a layer of its own.
	state, err := pool.Read(t.Context(), o.Path("/srv/pool/_base"), time.Minute)
	if err != nil || len(state.Reports) != 1 || len(state.Members) != 1 {
		t.Errorf("the pool is %+v, %v, want a report of one member", state, err)
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("%s\n%s\n%s\n%s", during, said, agent, o.Boots[0].Console)
	}
}
