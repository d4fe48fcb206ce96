// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package mount

import (
	"container/list"
	"sync"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// cache keeps what was used last of something that each inode has, up to a number of bytes.
type cache[V any] struct {
	limit int64

	mu    sync.Mutex
	used  int64
	kept  map[files.Ino]*list.Element
	order list.List // the one used last is at the front
}

type cached[V any] struct {
	ino   files.Ino
	value V
	bytes int64
}

func (c *cache[V]) get(ino files.Ino) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.kept[ino]
	if e == nil {
		var none V
		return none, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached[V]).value, true
}

// put keeps v, in place of what is kept of this inode, and drops what was not used for longest.
func (c *cache[V]) put(ino files.Ino, v V, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil {
		c.kept = make(map[files.Ino]*list.Element)
	}
	c.remove(c.kept[ino])
	c.kept[ino] = c.order.PushFront(&cached[V]{ino, v, bytes})
	c.used += bytes
	for c.used > c.limit && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
}

func (c *cache[V]) drop(ino files.Ino) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(c.kept[ino])
}

func (c *cache[V]) remove(e *list.Element) {
	if e == nil {
		return
	}
	v := c.order.Remove(e).(*cached[V])
	c.used -= v.bytes
	delete(c.kept, v.ino)
}
