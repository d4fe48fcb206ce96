// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func document(w io.Writer, _ string, doc any) error { return json.NewEncoder(w).Encode(doc) }

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestMoment(t *testing.T) {
	h := holders.Host{Linux: linux.Open(""), Self: os.Getpid()}
	root, err := holders.Resolve(t.Context(), h, "/")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "kept")
	k := &Keeper{Host: h, Dir: dir, JSON: document}
	at := time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)
	f := Failure{At: at, Mount: root.MountID, Path: "/", Schema: "x/1", Document: map[string]int{"first": 1}}
	first, err := k.Moment(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	f.Document = map[string]int{"second": 2}
	got, err := k.Complete(f, map[string][]byte{"stacks.txt": []byte("x")})
	if want := filepath.Join(dir, "20260301T040000.000Z"); err != nil || got != want || first != want {
		t.Fatalf("Complete = %s, %v, want %s", got, err, want)
	}
	all := names(t, got)
	for _, want := range []string{"moment.json", "failure.json", "holders.json", "mounts.txt", "kernel.txt", "stacks.txt"} {
		if !slices.Contains(all, want) {
			t.Errorf("%s is not kept: %q", want, all)
		}
	}
	if text, err := os.ReadFile(filepath.Join(got, "mounts.txt")); err != nil || !strings.Contains(string(text), " / / ") {
		t.Errorf("mounts.txt = %q, %v", text, err)
	}
	if again, err := k.Complete(f, nil); again != "" || err != nil {
		t.Errorf("Complete of one that is complete = %q, %v", again, err)
	}
	// Another one of the same moment; nothing that was kept is touched.
	if _, err := k.Moment(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if all := names(t, dir); len(all) != 2 || all[1] != all[0]+"-1" {
		t.Errorf("kept %q, want two", all)
	}
}

func TestNowhere(t *testing.T) {
	k := &Keeper{Host: holders.Host{Linux: linux.Open("")}, Dir: "/proc/self/none/x", JSON: document}
	if _, err := k.Moment(t.Context(), Failure{Path: "/x"}); err == nil {
		t.Error("Moment below a directory that cannot be made = nil")
	}
}
