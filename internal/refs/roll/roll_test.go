// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package roll

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/linux"
	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/config"
	"github.com/shisa-vm/shisa/internal/refs/nova"
)

// server is a host whose NFS server exports a directory to some clients.
func server(t *testing.T, export string, clients ...string) *linux.Host {
	t.Helper()
	root := t.TempDir()
	write := func(name, text string) {
		name = filepath.Join(root, "proc/fs/nfsd", name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if export != "" {
		write("exports", "# Version 1.1\n# Path Client(Flags) # IPs\n"+export+"\t10.0.0.0/8(rw,root_squash,sync)\n")
	}
	for i, c := range clients {
		write(filepath.Join("clients", string(rune('1'+i)), "info"),
			"clientid: 0x1\naddress: \"10.0.0.7:700\"\nstatus: confirmed\nname: \""+c+"\"\nminor version: 2\n")
	}
	return linux.Open(root)
}

func TestCall(t *testing.T) {
	bases := filepath.Join(t.TempDir(), "_base")
	if err := os.Mkdir(bases, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := []nova.ComputeNode{{Name: "n1"}, {Name: "n2"}}
	p := &config.Pool{Members: []string{"n2", "n3"}, Others: []string{"backup", "n1"}}
	clients := []string{"Linux NFSv4.2 n4", "Linux NFSv4.1 own/n5", "Linux NFSv4.0 n6/10.0.0.7", "Linux NFSv4.2 backup", "ESXi 8"}
	for _, c := range []struct {
		name    string
		hosts   []nova.ComputeNode
		p       *config.Pool
		host    *linux.Host
		want    string
		unknown int
	}{
		{"nobody tells of any", nil, nil, server(t, ""), "", 0},
		{"Nova", hosts, nil, server(t, ""), "n1 n2", 0},
		{"the configuration", hosts, p, server(t, ""), "n2 n3", 0},
		{"the server of the pool", nil, p, server(t, filepath.Dir(bases), clients...), "ESXi 8 n2 n3 n4 n5 n6", 0},
		{"by another path of the same file system", nil, nil, server(t, t.TempDir(), clients[:1]...), "n4", 0},
		{"the server of another file system", nil, nil, server(t, "/dev", clients...), "", 0},
		{"an export that is gone", nil, nil, server(t, "/no/such", clients...), "", 0},
		{"all is exported", nil, nil, server(t, "/", clients[:1]...), "n4", 0},
	} {
		known, unknown, err := Call(t.Context(), &refs.Census{Bases: bases, Hosts: c.hosts}, c.p, c.host)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, k := range known {
			got = append(got, k.Node)
			if k.From == "" {
				t.Errorf("%s: nobody tells of %s", c.name, k.Node)
			}
		}
		if d := cmp.Diff(c.want, strings.Join(got, " ")); d != "" || len(unknown) != c.unknown {
			t.Errorf("%s: Call (-want +got):\n%s unknown %v, want %d", c.name, d, unknown, c.unknown)
		}
	}
}

// TestCallUnread: whom a server serves and what cannot be read may be anybody.
func TestCallUnread(t *testing.T) {
	bases := t.TempDir()
	h := server(t, bases, "Linux NFSv4.2 n4")
	info := filepath.Join(h.Root(), "proc/fs/nfsd/clients/1/info")
	if err := os.Remove(info); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(info, 0o755); err != nil {
		t.Fatal(err)
	}
	if known, unknown, err := Call(t.Context(), &refs.Census{Bases: bases}, nil, h); err != nil || len(unknown) != 1 {
		t.Errorf("Call = %v, %v, %v, want one source that could not be read", known, unknown, err)
	}
	c := &refs.Census{Bases: bases, Gaps: []finding.Blind{{Object: "/i/compute_nodes", What: refs.NovaHosts, Reason: "is torn"},
		{Object: "/i/disk", What: "header", Reason: "is torn"}}}
	_, unknown, err := Call(t.Context(), c, nil, server(t, ""))
	if err != nil || len(unknown) != 1 || unknown[0].Error() != "/i/compute_nodes: is torn" {
		t.Errorf("Call where Nova's list could not be read = %v, %v, want that told", unknown, err)
	}
}
