// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sort"
	"strings"
	"sync"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

const (
	// nodeBytes is about what a reader keeps for an open inode.
	nodeBytes = 640
	// maxAttrBytes is what the attributes of one inode may take: the names as many as listxattr(2)
	// can give, and values of twice the longest.
	maxAttrBytes = 4 * files.MaxXattrBytes
	// maxAttrNameBytes is the longest name of an attribute that Linux takes, XATTR_NAME_MAX.
	maxAttrNameBytes = 255
	// maxSpans is how many parts of a file with holes are kept to find data and holes.
	maxSpans = 64 << 10
)

// node is an inode with what was asked about it.
type node struct {
	ino  files.Ino
	file files.File

	mu    sync.Mutex
	attrs []xattr
	read  bool // attrs are all there are
	// spans are the parts with data between from and to, in ascending order and not touching.
	spans    []span
	from, to int64
}

type xattr struct {
	name  string
	value []byte
}

type span struct{ begin, end int64 }

// xattrs gives the extended attributes. With an error they are those that could be read. kept is
// told how many bytes the node takes when they are kept.
func (n *node) xattrs(kept func(bytes int64)) ([]xattr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.read {
		return n.attrs, nil
	}
	var attrs []xattr
	bytes := int64(nodeBytes)
	err := n.file.Xattrs(context.Background(), func(name string, value []byte) error {
		if name == "" || len(name) > maxAttrNameBytes || strings.Contains(name, "\x00") {
			return fmt.Errorf("an attribute is called %.300q", name)
		}
		bytes += int64(len(name) + len(value))
		if bytes > maxAttrBytes {
			return errors.New("they are longer than Linux can give")
		}
		attrs = append(attrs, xattr{name, append([]byte(nil), value...)})
		return nil
	})
	if err == nil {
		n.attrs, n.read = attrs, true
		kept(bytes)
	}
	return attrs, err
}

// data gives the first part with data that ends behind off; math.MaxInt64 is the begin and end where
// there is none.
func (n *node) data(off int64) (begin, end int64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if off < n.from || off >= n.to {
		if err := n.learn(off); err != nil {
			return 0, 0, err
		}
	}
	i := sort.Search(len(n.spans), func(i int) bool { return n.spans[i].end > off })
	if i < len(n.spans) {
		return n.spans[i].begin, n.spans[i].end, nil
	}
	return math.MaxInt64, math.MaxInt64, nil
}

// learn reads the parts with data that end behind off, as many as are kept.
func (n *node) learn(off int64) error {
	var spans []span
	to := int64(math.MaxInt64)
	err := n.file.Extents(context.Background(), func(e files.Extent) error {
		end := e.Offset + e.Length
		if e.Unwritten || end <= off || e.Length <= 0 {
			return nil
		}
		if last := len(spans) - 1; last >= 0 && e.Offset <= spans[last].end {
			spans[last].end = max(spans[last].end, end)
			return nil
		}
		if len(spans) == maxSpans {
			// The last one may go on: nothing is known from its begin on.
			to = spans[maxSpans-1].begin
			return errEnough
		}
		spans = append(spans, span{e.Offset, end})
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	n.spans, n.from, n.to = spans, off, to
	return nil
}
