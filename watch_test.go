// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/doctor/watch"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestWatch runs the watch as a service does: it tells events as lines, serves its numbers, keeps a point of
// memory, and ends with 130 when it is asked to, at whatever it is.
func TestWatch(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			state := filepath.Join(t.TempDir(), "state")
			c := exec.CommandContext(ctx, "/proc/self/exe")
			c.Args = []string{"shisa", "doctor", "watch", "--json", "--state", state, "--every", "1s", "--metrics", "127.0.0.1:0"}
			c.Env = append(os.Environ(), "GORACE="+testenv.NoWait)
			var words bytes.Buffer
			c.Stderr = &words
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			last := ""
			for last != "memory" && lines.Scan() {
				var e struct{ Schema, Kind, Machine string }
				if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Schema != "shisa.doctor-event/1" || e.Machine == "" {
					t.Errorf("told %q, %v", lines.Text(), err)
				}
				last = e.Kind
			}
			if signal == syscall.SIGTERM {
				numbers(ctx, t, "http://"+listens(t, c.Process.Pid)+"/metrics")
			}
			if err := c.Process.Signal(signal); err != nil {
				t.Error(err)
			}
			for lines.Scan() {
				last = lines.Text() // what is told until it ends
			}
			if err := c.Wait(); c.ProcessState.ExitCode() != 130 || words.String() != "shisa: interrupted\n" {
				t.Errorf("ended with %v, %d, and said %q; the last line is %q", err, c.ProcessState.ExitCode(), words.String(), last)
			}
			if text, err := os.ReadFile(filepath.Join(state, "memory.jsonl")); err != nil || bytes.Count(text, []byte("\n")) != 1 {
				t.Errorf("kept %q, %v, want a point of memory", text, err)
			}
		})
	}
}

// listens gives the address on which a process listens. A port that is chosen before it does may be another's
// by then (proc(5), /proc/pid/net/tcp).
func listens(t *testing.T, pid int) string {
	t.Helper()
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		t.Fatal(err)
	}
	const listening = "0A"
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != listening || !hasOpen(pid, "socket:["+f[9]+"]") {
			continue
		}
		_, port, _ := strings.Cut(f[1], ":")
		n, err := strconv.ParseUint(port, 16, 16)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return fmt.Sprintf("127.0.0.1:%d", n)
	}
	t.Fatalf("process %d listens nowhere:\n%s", pid, table)
	return ""
}

// numbers asks for the page of the watch, until it is answered: who takes seconds to say what is wanted is sent
// away.
func numbers(ctx context.Context, t *testing.T, url string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	for err != nil && !errors.Is(err, syscall.ECONNREFUSED) && ctx.Err() == nil {
		t.Log(err)
		res, err = client.Do(req)
	}
	if err != nil {
		t.Error(err)
		return
	}
	defer res.Body.Close()
	var page bytes.Buffer
	if _, err := page.ReadFrom(res.Body); err != nil || res.Header.Get("Content-Type") != watch.ContentType ||
		!bytes.Contains(page.Bytes(), []byte("\nshisa_status ")) || !bytes.HasSuffix(page.Bytes(), []byte("\n# EOF\n")) {
		t.Errorf("GET = %v %v %.500s", res.Status, res.Header, page.String())
	}
}
