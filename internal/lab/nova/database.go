// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nova

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// databaseName is what the database of a server is called, and the user of PostgreSQL.
const databaseName = "nova_cell1"

// starting is how long a server may take until it answers.
const starting = 5 * time.Minute

// Database is one that Nova can have. A server listens on a socket in a directory of the caller's, and nowhere else.
type Database struct {
	// URL is the name by which Nova finds it.
	URL string
	// Client is the command line that asks it, and prints one value a line.
	Client []string
	env    []string
	// server is nil where there is none, attr how it is started, and stop what ends it.
	server *exec.Cmd
	attr   *syscall.SysProcAttr
	stop   syscall.Signal
	words  *bytes.Buffer
}

// SQLite is a file in dir.
func SQLite(dir string) *Database {
	file := filepath.Join(dir, "nova.sqlite")
	return &Database{URL: "sqlite:///" + file, Client: []string{python, "-c", askSQLite, file}, env: os.Environ()}
}

// askSQLite prints the first column of what each statement gives.
const askSQLite = `import sqlite3, sys
db = sqlite3.connect("file:%s?mode=ro" % sys.argv[1], uri=True)
db.execute("BEGIN")
for statement in sys.stdin.read().split(";"):
    for row in db.execute(statement):
        print(row[0])
`

// MariaDB is a server of its own. The error is ErrUnavailable where apt does not have it.
func MariaDB(ctx context.Context, dir string) (*Database, error) {
	p, err := get(ctx, "mariadb-server-core", "mariadb-client-core")
	if err != nil {
		return nil, err
	}
	d := &Database{words: &bytes.Buffer{}, stop: syscall.SIGTERM, attr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
	if d.env, err = p.env(); err != nil {
		return nil, err
	}
	data, socket := filepath.Join(dir, "mysql"), filepath.Join(dir, "my.sock")
	usr := p.usr("sbin/mariadbd")
	d.URL = "mysql+pymysql://root@localhost/" + databaseName + "?charset=utf8&unix_socket=" + socket
	d.Client = []string{filepath.Join(usr, "bin/mariadb"), "--no-defaults", "--socket=" + socket}
	args := []string{"--no-defaults", "--user=root", "--basedir=" + usr, "--datadir=" + data}
	if err := d.run(ctx, d.attr, "", append([]string{filepath.Join(usr, "bin/mariadb-install-db")}, args...)); err != nil {
		return nil, err
	}
	args = append([]string{filepath.Join(usr, "sbin/mariadbd")}, args...)
	args = append(args, "--socket="+socket, "--skip-networking", "--pid-file="+filepath.Join(dir, "my.pid"),
		"--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0")
	err = d.start(ctx, args, "CREATE DATABASE "+databaseName+" CHARACTER SET utf8;")
	// As in the document: the character set of the client is otherwise that of the terminal.
	d.Client = append(d.Client, "--default-character-set=utf8mb4", "-N", "-r", databaseName)
	return d, err
}

// PostgreSQL is a server of its own. The error is ErrUnavailable where apt does not have it.
func PostgreSQL(ctx context.Context, dir string) (*Database, error) {
	p, err := get(ctx, "postgresql")
	if err != nil {
		return nil, err
	}
	d := &Database{words: &bytes.Buffer{}, stop: syscall.SIGINT, attr: noRoot()}
	if d.env, err = p.env(); err != nil {
		return nil, err
	}
	d.env = append(d.env, "PGCLIENTENCODING=UTF8", "PGOPTIONS=")
	var bin string
	for _, root := range []string{p.Root, "/"} {
		all, err := filepath.Glob(filepath.Join(root, "usr/lib/postgresql/*/bin/postgres"))
		if err == nil && len(all) > 0 && bin == "" {
			bin = filepath.Dir(all[0])
		}
	}
	if bin == "" {
		return nil, fmt.Errorf("%w: postgresql has no server", ErrUnavailable)
	}
	data := filepath.Join(dir, "pg")
	d.URL = "postgresql+psycopg2://nova@/" + databaseName + "?host=" + dir
	d.Client = []string{filepath.Join(bin, "psql"), "-X", "-h", dir, "-U", "nova", "-d", "postgres"}
	if err := d.run(ctx, d.attr, "", []string{filepath.Join(bin, "initdb"), "-D", data, "-U", "nova", "-A", "trust",
		"--no-sync", "-E", "UTF8", "--locale=C"}); err != nil {
		return nil, err
	}
	err = d.start(ctx, []string{filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=",
		"-c", "fsync=off", "-c", "timezone=America/Caracas"}, "CREATE DATABASE "+databaseName)
	d.Client = append(d.Client[:len(d.Client)-1], databaseName, "-Atq", "-v", "ON_ERROR_STOP=1")
	return d, err
}

// usr is the directory usr that has a file: of what was unpacked, or of the machine.
func (p Package) usr(file string) string {
	usr := filepath.Join(p.Root, "usr")
	if _, err := os.Stat(filepath.Join(usr, file)); err != nil {
		return "/usr"
	}
	return usr
}

// env is the environment for programs of the package.
func (p Package) env() ([]string, error) {
	libs, err := filepath.Glob(filepath.Join(p.Root, "usr/lib/*-linux-gnu"))
	if err != nil || len(libs) > 1 {
		return nil, fmt.Errorf("%s has libraries for %d machines: %w", p.Root, len(libs), err)
	}
	if len(libs) == 0 {
		return os.Environ(), nil
	}
	return append(os.Environ(), "LD_LIBRARY_PATH="+libs[0]), nil
}

// noRoot has a program believe that it is no root, which PostgreSQL refuses to be; its files are this user's all the
// same.
func noRoot() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		attr.Cloneflags = syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 1000, HostID: 0, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 1000, HostID: 0, Size: 1}}
	}
	return attr
}

// start starts the server, and has it do its first statement as soon as it answers.
func (d *Database) start(ctx context.Context, args []string, first string) error {
	d.server = exec.Command(args[0], args[1:]...)
	d.server.Env, d.server.Stdout = append(d.env, "TZ=America/Caracas"), d.words
	d.server.Stderr, d.server.SysProcAttr = d.words, d.attr
	if err := d.server.Start(); err != nil {
		return err
	}
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err := d.run(ctx, nil, first, d.Client)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Since(begun) > starting {
			return errors.Join(err, d.Close())
		}
	}
}

func (d *Database) run(ctx context.Context, attr *syscall.SysProcAttr, in string, args []string) error {
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Env, c.Stdin, c.SysProcAttr = d.env, strings.NewReader(in), attr
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", args[0], err, bytes.TrimSpace(out))
	}
	return nil
}

// Ask has statements answered as its own client does: one value a line.
func (d *Database) Ask(ctx context.Context, sql string) ([]byte, error) {
	c := exec.CommandContext(ctx, d.Client[0], d.Client[1:]...)
	// A terminal's character set and zone are none of the database's.
	c.Env, c.Stdin = append(d.env, "LC_ALL=C", "TZ=Pacific/Auckland"), strings.NewReader(sql)
	var words bytes.Buffer
	c.Stderr = &words
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", d.Client[0], err, bytes.TrimSpace(words.Bytes()))
	}
	return out, nil
}

// Close ends the server.
func (d *Database) Close() error {
	if d.server == nil {
		return nil
	}
	err := d.server.Process.Signal(d.stop)
	if err2 := d.server.Wait(); err2 != nil {
		err = errors.Join(err, fmt.Errorf("%w: %s", err2, bytes.TrimSpace(d.words.Bytes())))
	}
	return err
}
