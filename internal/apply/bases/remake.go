// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package bases

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/refs/pool"
)

// ErrRemake: what a base held cannot be made again.
var ErrRemake = errors.New("cannot be made again")

// The header of swap space (include/linux/swap.h, union swap_header); the numbers have the byte order of the machine:
//
//	1024  version 1     1028  last page     1032  bad pages     1036  UUID     1052  label
//	4086  "SWAPSPACE2", at the end of the first page
const (
	swapPage    = 4096
	swapVersion = 1024
	swapMagic   = "SWAPSPACE2"
	// maxSwapBytes is what a number of pages of 32 bits can say.
	maxSwapBytes = swapPage << 32
)

// Remake makes a base of Nova again that held nothing of anybody's: swap space, or an empty file system. It is not the
// same, byte for byte: it has another UUID at least. What the images on top of it hold is as it was, and what they do
// not hold is the new one's: whoever uses it must know that.
func Remake(ctx context.Context, name string, o Options) (n *NewFile, err error) {
	r, ok := pool.RemakeOf(name)
	if !ok {
		return nil, fmt.Errorf("%s %w: it is called neither swap_SIZE nor ephemeral_SIZE_KIND, with a kind that is known", name, ErrRemake)
	}
	if r.SizeBytes > maxImageBytes || r.Kind == pool.Swap && r.SizeBytes > maxSwapBytes {
		return nil, fmt.Errorf("%s %w: it would have %d bytes", name, ErrRemake, r.SizeBytes)
	}
	if n, err = Create(ctx, o); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Discard())
			n = nil
		}
	}()
	if err := n.Truncate(r.SizeBytes); err != nil {
		return n, err
	}
	if r.Kind == pool.Swap {
		head, err := swapHead(r.SizeBytes)
		if err != nil {
			return n, err
		}
		if _, err := n.WriteAt(head, 0); err != nil {
			return n, err
		}
		return n, n.End()
	}
	if err := n.End(); err != nil {
		return n, err
	}
	argv := r.Command(n.Path)
	var said bytes.Buffer
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Stdout, c.Stderr = &said, &said
	if err := c.Run(); err != nil {
		return n, fmt.Errorf("%s: %w: %.500s", strings.Join(argv[:len(argv)-1], " "), err, bytes.TrimSpace(said.Bytes()))
	}
	// The program wrote to the name: it has to be the same file still.
	if e, err := diskio.LookEntry(n.Path); err != nil || e.ID != n.id {
		return n, errors.Join(err, fmt.Errorf("%s: %w", n.Path, diskio.ErrChanged))
	}
	return n, nil
}

// swapHead is the first page of swap space.
func swapHead(sizeBytes int64) ([]byte, error) {
	p := make([]byte, swapPage)
	binary.NativeEndian.PutUint32(p[swapVersion:], 1)
	binary.NativeEndian.PutUint32(p[swapVersion+4:], uint32(sizeBytes/swapPage-1))
	uuid := p[swapVersion+12 : swapVersion+28]
	if _, err := rand.Read(uuid); err != nil {
		return nil, err
	}
	uuid[6], uuid[8] = uuid[6]&0x0f|0x40, uuid[8]&0x3f|0x80
	copy(p[swapPage-len(swapMagic):], swapMagic)
	return p, nil
}
