// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// A record of wtmp (utmp(5), bits/utmp.h of glibc on 64-bit machines with 32-bit times):
//
//	  0  int16  type: 1 a change of the runlevel, 2 a boot
//	  4  int32  process
//	  8  char   line[32], id[4]
//	 44  char   user[32]: "shutdown", "reboot", "runlevel"
//	 76  char   host[256]: the kernel
//	340  int32  seconds, microseconds
//	384         the next one
const (
	loginBytes = 384
	loginUser  = 44
	loginTime  = 340

	loginRunlevel = 1
	loginBoot     = 2

	wtmpPath = "/var/log/wtmp"
	maxWtmp  = 32 << 20
)

// readLogins reads when the machine was started and shut down from wtmp.
func (r *reader) readLogins() {
	b, err := r.t.Read(r.ctx, wtmpPath, maxWtmp)
	if err != nil && !errors.Is(err, tree.ErrTooLarge) {
		r.missed(wtmpPath, err)
		return
	}
	if errors.Is(err, tree.ErrTooLarge) {
		r.gap(wtmpPath, "larger than %d bytes: the newest were not read", maxWtmp)
	}
	r.track.logins = logins(b, r.since)
}

// logins reads the records.
func logins(b []byte, since time.Time) []Boot {
	var out []Boot
	for ; len(b) >= loginBytes; b = b[loginBytes:] {
		at := time.Unix(int64(int32(binary.LittleEndian.Uint32(b[loginTime:]))),
			1000*int64(int32(binary.LittleEndian.Uint32(b[loginTime+4:]))%1_000_000)).UTC()
		user, _, _ := bytes.Cut(b[loginUser:loginUser+32], []byte{0})
		n := len(out)
		switch kind := binary.LittleEndian.Uint16(b); {
		case kind == loginBoot && len(out) < maxBoots:
			out = append(out, Boot{Began: at, Last: at, End: "cut", Path: wtmpPath, Exact: true})
		case n == 0 || at.Before(out[n-1].Last):
		case kind == loginRunlevel && string(user) == "shutdown":
			out[n-1].Last, out[n-1].End = at, "shutdown"
		case out[n-1].End != "shutdown":
			out[n-1].Last = at
		}
	}
	for len(out) > 0 && out[0].Last.Before(since) {
		out = out[1:]
	}
	return out
}
