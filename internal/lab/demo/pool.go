// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package demo

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/shisa-vm/shisa/internal/lab"
)

// Pool is a directory of instances as OpenStack Nova has it, with one base image that two machines rest on.
type Pool struct {
	// Dir is the pool, Base the name of its base image.
	Dir, Base string
}

// baseName is what Nova calls a base: a digest of where its image came from.
const baseName = "7d87e4ab2bbe4fa3f4ec8b2cf3f0ec5fbd8f3d0b"

// NewPool makes a pool in dir, which must not exist yet.
func NewPool(dir string) (*Pool, error) {
	p := &Pool{dir, baseName}
	for _, d := range []string{dir, filepath.Join(dir, "_base")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	// Of a raw base every byte is the guest's.
	if err := os.WriteFile(p.path(), bytesOfGuest(), 0o644); err != nil {
		return nil, err
	}
	for i := range 2 {
		machine := filepath.Join(dir, fmt.Sprintf("%08d-1111-4111-8111-111111111111", i+1))
		if err := os.Mkdir(machine, 0o755); err != nil {
			return nil, err
		}
		err := lab.Write(filepath.Join(machine, "disk"), lab.Spec{VirtualBytes: 64 << 20, Fill: .01, Data: true,
			Seed: uint64(i + 1), Backing: "../_base/" + baseName, BackingFormat: "raw"})
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

// bytesOfGuest are 1 MiB that begin like a disk.
func bytesOfGuest() []byte {
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

func (p *Pool) path() string { return filepath.Join(p.Dir, "_base", p.Base) }

// File says which file the base is now; its name may lead to none.
func (p *Pool) File() (os.FileInfo, error) { return os.Stat(p.path()) }

// Clean removes the base, as Nova's cleaner does when no node that it hears of needs it.
func (p *Pool) Clean() error { return os.Remove(p.path()) }
