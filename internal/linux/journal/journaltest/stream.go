// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package journaltest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"
)

// Boots are the boots of a stream, each a 32-digit number.
var Boots = [...]string{
	"11111111111111111111111111111111", "22222222222222222222222222222222",
	"33333333333333333333333333333333",
}

// Start is when a stream begins, in microseconds since 1970.
const Start = 1_700_000_000_000_000

// Stream is a row of entries: three boots, kernel messages and those of services, and every so
// often what is seldom: binary values, values of many lines, empty ones, the same name many times,
// values that are compressed, and one of 1 MiB.
type Stream struct {
	N int
	// SetBack is by how much the clock is set back in the middle.
	SetBack time.Duration
	// Only says which entries are written, nil for all.
	Only func(i int) bool
}

// Write writes the stream in the export format.
func (s Stream) Write(w io.Writer) error {
	rnd := rand.New(rand.NewPCG(5, 11))
	realtime, monotonic, boot := int64(Start), int64(0), 0
	var b bytes.Buffer
	for i := range s.N {
		step := 1 + rnd.Int64N(20_000)
		realtime, monotonic = realtime+step, monotonic+step
		if now := i * len(Boots) / s.N; now != boot {
			boot, monotonic = now, 1_000_000
		}
		if i == s.N/2 {
			realtime -= s.SetBack.Microseconds()
		}
		b.Reset()
		fmt.Fprintf(&b, "__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n", realtime, monotonic)
		put(&b, "_BOOT_ID", []byte(Boots[boot]))
		put(&b, "_HOSTNAME", []byte("vm-17"))
		put(&b, "_MACHINE_ID", []byte("0123456789abcdef0123456789abcdef"))
		put(&b, "PRIORITY", fmt.Append(nil, rnd.IntN(8)))
		if i%3 == 0 {
			kernel(&b, rnd, monotonic)
		} else {
			service(&b, rnd, i)
		}
		seldom(&b, rnd, i)
		b.WriteByte('\n')
		if s.Only != nil && !s.Only(i) {
			continue
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

func kernel(b *bytes.Buffer, rnd *rand.Rand, monotonic int64) {
	put(b, "_TRANSPORT", []byte("kernel"))
	put(b, "SYSLOG_FACILITY", []byte("0"))
	put(b, "SYSLOG_IDENTIFIER", []byte("kernel"))
	put(b, "_SOURCE_MONOTONIC_TIMESTAMP", fmt.Append(nil, monotonic-100))
	disk := fmt.Sprintf("vd%c", 'a'+rnd.IntN(4))
	put(b, "_KERNEL_DEVICE", []byte("b253:"+disk[2:]))
	put(b, "MESSAGE", fmt.Appendf(nil, "I/O error, dev %s, sector %d op 0x1:(WRITE) flags 0x800", disk,
		rnd.Uint32()))
}

func service(b *bytes.Buffer, rnd *rand.Rand, i int) {
	unit := fmt.Sprintf("unit-%d.service", rnd.IntN(40))
	put(b, "_TRANSPORT", []byte([]string{"journal", "syslog", "stdout"}[i%3]))
	put(b, "_SYSTEMD_UNIT", []byte(unit))
	put(b, "_SYSTEMD_CGROUP", []byte("/system.slice/"+unit))
	put(b, "_SYSTEMD_SLICE", []byte("system.slice"))
	put(b, "_COMM", []byte(strings.TrimSuffix(unit, ".service")))
	put(b, "_CMDLINE", []byte("/usr/sbin/"+unit+" --config=/etc/x.conf"))
	put(b, "_PID", fmt.Append(nil, 300+rnd.IntN(500)))
	put(b, "_UID", []byte("0"))
	put(b, "_GID", []byte("0"))
	put(b, "SYSLOG_IDENTIFIER", []byte(unit[:6]))
	put(b, "_CAP_EFFECTIVE", []byte("1ffffffffff"))
	put(b, "MESSAGE", fmt.Appendf(nil, "request %d took %d ms", i, rnd.IntN(5000)))
}

// seldom adds what few entries have.
func seldom(b *bytes.Buffer, rnd *rand.Rand, i int) {
	bytesOf := func(n int) []byte {
		v := make([]byte, n)
		for k := range v {
			v[k] = byte(rnd.Uint32())
		}
		return v
	}
	switch {
	case i == 1234:
		put(b, "LARGE", []byte(strings.Repeat(fmt.Sprintf("line %d of a core\n", i), 1<<20/20)))
	case i%97 == 0:
		put(b, "BINARY", bytesOf(1+rnd.IntN(300)))
	case i%89 == 0:
		put(b, "STACK", []byte("#0 main\n#1 start\n\n#2 \x00 end\n"))
	case i%83 == 0:
		put(b, "EMPTY", nil)
	case i%79 == 0:
		for k := range 5 {
			put(b, "SAME", fmt.Append(nil, "value ", k, " of ", i%5))
		}
	case i%73 == 0:
		put(b, "TRACE", []byte(strings.Repeat(fmt.Sprintf("frame %d at 0x%x\n", i, rnd.Uint64()),
			20+rnd.IntN(60))))
	case i%401 == 0:
		put(b, "NOISE", bytesOf(9000+rnd.IntN(9000)))
	case i%67 == 0: // written twice: the file keeps one, and counts both in the entry's hash
		put(b, "TWICE", []byte("the same"))
		put(b, "TWICE", []byte("the same"))
	}
}
