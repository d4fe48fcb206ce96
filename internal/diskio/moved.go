// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"

	"golang.org/x/sys/unix"
)

// maxMoves is for how many names that were gone before they were opened a directory is searched; for more it is read
// again.
const maxMoves = 64

// moved looks for a file whose name was gone when it was to be opened: it may have another one in its directory by now, and
// that may stand where the directory was read already. It is false where the worker was given up.
func (w *sweeper) moved(dir int, dirPath, name string) bool {
	p := &w.pass
	p.forget(w.key([]byte(name)))
	if p.moves++; p.moves > maxMoves {
		p.lost = true
		return w.live(func() {})
	}
	found, several, err := w.findInode(dir, dirPath, w.ino, name)
	switch {
	case err != nil:
		return w.blind(dirPath, err)
	case several: // some file systems of programs tell one number for all
		p.lost = true
		return w.live(func() {})
	case found == "":
		return w.live(func() {}) // it was removed since the directory was read
	}
	if p.moved == nil {
		p.moved = map[uint64]bool{}
	}
	p.moved[w.key([]byte(found))] = true
	return w.file(dir, dirPath, found)
}

// findInode gives another name of a regular file by its inode, "" for none, and whether there are several. It reads the
// directory by a descriptor of its own.
func (w *sweeper) findInode(at int, dirPath string, ino uint64, not string) (found string, several bool, err error) {
	w.looking(dirPath, "")
	fd, err := unix.Openat(at, ".", dirFlags, 0)
	if errors.Is(err, unix.ENOENT) {
		return "", false, nil // the directory was removed with all that was in it
	}
	if err != nil {
		return "", false, err
	}
	defer unix.Close(fd)
	names := make([]byte, dirBytes)
	for {
		n, err := unix.ReadDirent(fd, names)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || n == 0:
			return found, several, err
		}
		for b := names[:n]; len(b) > 0; {
			if len(b) <= direntName {
				return "", false, errDirent
			}
			k := int(binary.NativeEndian.Uint16(b[direntLen:]))
			if k <= direntName || k > len(b) {
				return "", false, errDirent
			}
			name, _, _ := bytes.Cut(b[direntName:k], []byte{0})
			kind := b[direntType]
			if binary.NativeEndian.Uint64(b) == ino && (kind == unix.DT_REG || kind == unix.DT_UNKNOWN) && string(name) != not {
				found, several = string(name), found != ""
			}
			b = b[k:]
		}
	}
}

// maxPasses is how often a directory is read that changes meanwhile.
const maxPasses = 8

// errChanging: names that come and go while a directory is read may have been told neither by the old name nor by the new.
var errChanging = fmt.Errorf("its names changed each of the %d times that it was read", maxPasses)

// errChanged: too many names were gone when their files were to be opened.
var errChanged = errors.New("its names changed while its files were looked at")

// pass is one reading of a directory from its beginning to its end. One call of the kernel tells names that were there at
// one time; of a directory that takes several, a name that changes from behind the place of the reading to before it is
// in none of them.
type pass struct {
	// changed is when the directory was changed last when it was begun, in nanoseconds; calls is how many told names.
	changed int64
	calls   int
	count   int
	// told are the keys of what is no directory; again, in a further pass, finds them. moved are those of files that were
	// found by another name, which may be met as well.
	told         []uint64
	again, moved map[uint64]bool
	// moves is how many names were gone before they were opened; lost: of some the file was not looked for.
	moves int
	lost  bool
}

func (p *pass) begin(changed int64) { *p = pass{changed: changed, told: p.told[:0]} }

// forget is for what was gone before it could be told: it may come back under that name.
func (p *pass) forget(key uint64) {
	delete(p.moved, key)
	delete(p.again, key)
	if n := len(p.told); n > 0 && p.told[n-1] == key {
		p.told = p.told[:n-1]
	}
}

// key tells names with their inodes apart, of which a directory may have a hundred thousand.
func (w *sweeper) key(name []byte) uint64 {
	const spread = 0x9e3779b97f4a7c15 // the golden ratio: neighbours come to lie far apart
	return maphash.Bytes(w.r.hash, name) ^ w.ino*spread
}

// reread tells whether an open directory that was read to its end is to be read once more, and then begins with that.
func (w *sweeper) reread(dir int) (bool, error) {
	p := &w.pass
	if p.calls <= 1 && !p.lost {
		return false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return false, err
	}
	if p.changed == st.Ctim.Nano() && !p.lost {
		return false, nil
	}
	if p.count++; p.count == maxPasses {
		return false, errChanging
	}
	if _, err := unix.Seek(dir, 0, unix.SEEK_SET); err != nil {
		return false, err
	}
	if p.again == nil {
		p.again = make(map[uint64]bool, len(p.told))
		for _, key := range p.told {
			p.again[key] = true
		}
	}
	p.changed, p.calls, p.moves, p.lost = st.Ctim.Nano(), 0, 0, false
	w.kept.bad = true // it is not known by which of its names
	return true, nil
}

// met tells whether an entry was met in an earlier pass through its directory, which is on the device dev.
func (w *sweeper) met(dev uint64, name []byte, kind byte) bool {
	p := &w.pass
	if kind == unix.DT_DIR {
		return p.again != nil && w.r.was(ID{dev, w.ino})
	}
	key := w.key(name)
	switch {
	case p.moved[key], p.again[key]:
		return true
	case p.again == nil:
		p.told = append(p.told, key)
	default:
		p.again[key] = true
	}
	return false
}

// was tells whether a directory was visited.
func (r *sweep) was(id ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.number(id); known >= 0 {
		return r.visited[known]
	}
	return r.seen[id]
}
