// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package linux

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// What Linux 6.1 showed of a client that had a file open.
const (
	clientInfo = `clientid: 0x3ba76bd6b02ea2f
address: "127.0.0.1:879"
status: confirmed
name: "Linux NFSv4.2 gu\x22est"
minor version: 2
`
	clientStates = `- 0x000000012fea026bbd76ba0308000000: { type: open, access: rw, deny: --, superblock: "07:00:12", filename: "/disk.raw", owner: "open id:\x00\x00" }
- 0x000000012fea026bbd76ba0309000000: { type: deleg, access: r, superblock: "fd:1f:18446744073709551615", filename: "vm/a" b.raw" }
- 0x1: { type: layout, superblock: "07:00:zz" }
- 0x1: { type: lock, superblock: "07:00" }
a file of two lines: { type: open, superblock: "07:00:12", filename: "x" }
`
)

func TestServed(t *testing.T) {
	root := t.TempDir()
	h := Open(root)
	if got, err := h.Served(t.Context()); err != nil || got != nil {
		t.Errorf("without a server = %v, %v, want none", got, err)
	}
	client(t, root, "3", clientInfo, clientStates)
	if err := os.Mkdir(filepath.Join(root, nfsdClients, "4"), 0o755); err != nil { // it is leaving
		t.Fatal(err)
	}
	got, err := h.Served(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []Served{
		{`Linux NFSv4.2 gu"est`, "127.0.0.1:879", "open", unix.Mkdev(7, 0), 12, "disk.raw"},
		{`Linux NFSv4.2 gu"est`, "127.0.0.1:879", "deleg", unix.Mkdev(0xfd, 0x1f), 1<<64 - 1, `vm/a" b.raw`},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func client(t testing.TB, root, name, info, states string) {
	t.Helper()
	dir := filepath.Join(root, nfsdClients, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"info": info, "states": states} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzServed(f *testing.F) {
	f.Add(clientInfo, clientStates)
	f.Add("name: \"\\", "- 0x{ type: , superblock: \"::\"")
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, info, states string) {
		client(t, root, "1", info, states)
		got, err := Open(root).Served(t.Context())
		if lines := strings.Count(states, "\n") + 1; err != nil || len(got) > lines || len(got) > maxServed {
			t.Errorf("%d files of %d lines: %v", len(got), lines, err)
		}
	})
}
