// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package nova runs the image cache of OpenStack Nova, the one that Debian has, over directories of instances:
// the code that removes base images, with a database of its own. It is for tests.
package nova

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// serve is the program that asks Nova.
//
//go:embed testdata/serve.py
var serve []byte

// python is Debian's, which its packages are for.
const python = "/usr/bin/python3"

// Nova is a running Nova with a database. It is for one goroutine.
type Nova struct {
	cmd     *exec.Cmd
	to      io.WriteCloser
	answers *bufio.Reader
	db      *Database
	words   *bytes.Buffer
}

// Start starts Nova with a database, and makes its tables there. dir is a directory of the caller's.
func Start(ctx context.Context, p Package, db *Database, dir string) (*Nova, error) {
	program := filepath.Join(dir, "serve.py")
	if err := os.WriteFile(program, serve, 0o600); err != nil {
		return nil, err
	}
	env, err := p.env()
	if err != nil {
		return nil, err
	}
	n := &Nova{cmd: exec.CommandContext(ctx, python, program, db.URL), db: db, words: &bytes.Buffer{}}
	n.cmd.Dir = dir
	// The processes that Nova starts itself need its packages as well.
	n.cmd.Env = append(env, "PYTHONPATH="+filepath.Join(p.Root, "usr/lib/python3/dist-packages"))
	n.cmd.Stderr = n.words
	if n.to, err = n.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	n.answers = bufio.NewReader(out)
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	if err := n.Clear(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Close ends Nova. Its error has what it wrote to its standard error.
func (n *Nova) Close() error {
	err := n.to.Close()
	if err2 := n.cmd.Wait(); err2 != nil {
		err = errors.Join(err, fmt.Errorf("%w: %s", err2, bytes.TrimSpace(n.words.Bytes())))
	}
	return err
}

// answer is what serve.py says.
type answer struct {
	Log   []string `json:"log"`
	Name  string   `json:"name"`
	Error string   `json:"error"`
}

// ask sends a request and waits for the answer.
func (n *Nova) ask(request map[string]any) (a answer, err error) {
	text, err := json.Marshal(request)
	if err != nil {
		return a, err
	}
	if _, err = n.to.Write(append(text, '\n')); err != nil {
		return a, fmt.Errorf("ask Nova %s: %w", text, err)
	}
	line, err := n.answers.ReadBytes('\n')
	if err != nil {
		return a, fmt.Errorf("Nova said nothing to %s: %w", text, err)
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, fmt.Errorf("Nova said %q to %s: %w", line, text, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("Nova could not do %s: %s", text, a.Error)
	}
	return a, nil
}

// Database is the one that Nova was started with.
func (n *Nova) Database() *Database { return n.db }

// Clear empties the database and gives every option its own value again.
func (n *Nova) Clear() error {
	_, err := n.ask(map[string]any{"do": "clear"})
	return err
}

// Host is a compute node.
type Host struct {
	Name string
	// Root is its directory of instances.
	Root string
	// Ahead is by how much its clock is wrong.
	Ahead time.Duration
}

// Pass is one run of the task that looks after the image cache, as each host does every 40 minutes. It gives the lines
// that Nova writes into its log.
func (n *Nova) Pass(h Host) ([]string, error) {
	a, err := n.ask(map[string]any{"do": "pass", "root": h.Root, "host": h.Name, "ahead": h.Ahead.Seconds()})
	return a.Log, err
}

// Machine is one that the database has.
type Machine struct {
	UUID  string `json:"uuid"`
	Host  string `json:"host"`
	Image string `json:"image"`
	// State is active, rescued, resized or another of Nova's.
	State string `json:"state"`
	// Kernel and Ramdisk are images that it is started with, Unshelved the one that its disk was put on after it was
	// shelved; "" for none.
	Kernel    string `json:"kernel"`
	Ramdisk   string `json:"ramdisk"`
	Unshelved string `json:"unshelved"`
	// EphemeralGiB and SwapMiB are the disks that its flavor has, whatever Disk says that it was made with.
	EphemeralGiB int64 `json:"ephemeral_gb"`
	SwapMiB      int64 `json:"swap_mb"`
}

// Instance puts a machine into the database.
func (n *Nova) Instance(m Machine) error {
	_, err := n.ask(map[string]any{"do": "instance", "machine": m})
	return err
}

// Execute runs a statement in the database that Nova itself would not.
func (n *Nova) Execute(sql string) error {
	_, err := n.ask(map[string]any{"do": "execute", "sql": sql})
	return err
}

// Archive moves the rows of what was deleted to tables of their own, as "nova-manage db archive_deleted_rows".
func (n *Nova) Archive() error {
	_, err := n.ask(map[string]any{"do": "archive"})
	return err
}

// Delete takes a machine out of the database as Nova does: the row stays, and says so.
func (n *Nova) Delete(uuid string) error {
	_, err := n.ask(map[string]any{"do": "delete", "uuid": uuid})
	return err
}

// Disk gives a machine a disk that is made from nothing: kind is ephemeral, with a size in GiB, or swap, in MiB.
func (n *Nova) Disk(uuid, kind string, size int64) error {
	_, err := n.ask(map[string]any{"do": "disk", "uuid": uuid, "kind": kind, "size": size})
	return err
}

// Ephemeral is what Nova calls the base of an ephemeral disk of that many GiB.
func (n *Nova) Ephemeral(size int64) (string, error) {
	a, err := n.ask(map[string]any{"do": "ephemeral", "size": size})
	return a.Name, err
}

// Format sets default_ephemeral_format on all hosts.
func (n *Nova) Format(name string) error {
	_, err := n.ask(map[string]any{"do": "format", "name": name})
	return err
}
