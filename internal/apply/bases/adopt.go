// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/vault"
)

// Proof says by what it was proved that a file is the base that is missing.
type Proof struct {
	// Why is in words, for the audit.
	Why string
	// SHA256 is the digest of what was proved, in hexadecimal, "" where it is the inode: a copy is held against it.
	SHA256 string
}

// Adopt puts the file id where a base is missing: a copy of it, or the file itself where it lies beside the bases already (a
// NewFile, or what a client of NFS renamed instead of removing it). Who calls it has proved that it is that base. A
// copy has its name only when it is whole: until then it is a NewFile too. It has the owner and the permissions that the other
// bases have.
//
// The errors are diskio.ErrChanged: the name is another file's by now, or holds something else; and ErrThere, since an
// existing name is never written over. After an error the name is not there, or the receipt tells of it.
func Adopt(ctx context.Context, candidate string, id diskio.ID, name string, p Proof, o Options) (d *pool.Done, err error) {
	k := newKeeper(o).as("adopt")
	if strings.ContainsRune(name, '/') || name == "" || name == "." || name == ".." {
		return nil, fmt.Errorf("%q is no name in a directory", name)
	}
	s, err := pool.Read(ctx, k.Bases, k.Timeout)
	if err != nil {
		return nil, err
	}
	defer func() { err = k.finish(ctx, d, err) }()
	if err := k.begin(ctx, s); err != nil {
		return nil, err
	}
	d = newDone(k.Bases, s)
	to := filepath.Join(k.Bases, name)
	switch _, err := diskio.LookEntry(to); {
	case err == nil, errors.Is(err, diskio.ErrSpecial):
		return nil, fmt.Errorf("%s %w", to, ErrThere)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	from := candidate
	if !beside(k.Bases, candidate) {
		n, err := k.copied(ctx, s, id, candidate, name, p.SHA256, d)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, n.Discard()) }()
		from, id = n.Path, n.id
	}
	if k.own(from) {
		if err := k.likeOthers(ctx, id, from, name, d); err != nil {
			return nil, err
		}
	}
	adopt := stepAt(vault.BaseAdopt, name, to, id.Ino)
	if err := k.will(adopt); err != nil {
		return nil, err
	}
	if err := k.step(ctx, "adopt "+name); err != nil {
		return d, err
	}
	err = k.nameNew(id, from, to)
	k.did(adopt, err)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s %w", to, ErrThere)
	}
	if err != nil {
		return nil, err
	}
	d.Restored = append(d.Restored, name)
	return d, k.note(ctx, "adopt", name, adopt.Inode, candidate, p.Why)
}

// beside tells whether a file lies where it can be a base: a new one of ours, or what a client of NFS called .nfsXXXX
// when somebody removed it, until the last program closes it.
func beside(bases, path string) bool {
	dir, name := filepath.Dir(path), filepath.Base(path)
	return dir == pool.Path(bases) && pool.IsPartial(name) || dir == bases && pool.IsSilly(name)
}

// nameNew gives a file that lies beside the bases the name of one, and before that the time of now: a cleaner removes at
// once what looks old.
func (k *keeper) nameNew(id diskio.ID, from, to string) error {
	if err := k.Links.Touch(id, from, time.Time{}); err != nil {
		return err
	}
	if !k.own(from) {
		return k.Links.Link(id, from, to) // the other name is the client's, which takes it away
	}
	_, err := k.move(id, from, to)
	return err
}

// copied copies the file id, and holds what was copied against a digest, if there is one.
func (k *keeper) copied(
	ctx context.Context, s *pool.State, id diskio.ID, from, name, digest string, d *pool.Done,
) (n *NewFile, err error) {
	same := func() error {
		st, err := diskio.Look(from)
		if err == nil && st.ID != id {
			err = fmt.Errorf("%s: %w", from, diskio.ErrChanged)
		}
		return err
	}
	if n, err = k.newFile(ctx, s, d); err != nil {
		return nil, err
	}
	if err := errors.Join(same(), k.step(ctx, "copy "+name)); err != nil {
		return nil, err
	}
	progress := func(done, total int64) {
		if k.Progress != nil {
			k.Progress(name, done, total)
		}
	}
	c, err := diskio.CopyNew(ctx, k.Disk, from, n.Path, progress)
	if err != nil {
		return nil, err
	}
	n.f = c.File
	made, err := c.File.Identity()
	if err != nil {
		return nil, errors.Join(err, n.f.Close(), k.Disk.Remove(n.Path))
	}
	n.id = made.ID
	if err = same(); err == nil && digest != "" {
		sum := sha256.New()
		err = k.copyTo(ctx, sum, n.f, n.Path, c.SizeBytes)
		if got := hex.EncodeToString(sum.Sum(nil)); err == nil && got != digest {
			err = fmt.Errorf("%s: %w: its SHA-256 was %s when it was looked at, and is %s", from, diskio.ErrChanged, digest, got)
		}
	}
	if err == nil {
		err = n.End()
	}
	if err != nil {
		return nil, errors.Join(err, n.Discard())
	}
	return n, nil
}
