// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// maxAnswer bounds the bytes that one run of a program may answer with.
const maxAnswer = 64 << 20

// answers runs an iterator, over the elements of m if that is not nil, and gives all that it wrote.
func answers(p *ebpf.Program, m *ebpf.Map) ([]byte, error) {
	l, err := link.AttachIter(link.IterOptions{Program: p, Map: m})
	if err != nil {
		return nil, fmt.Errorf("attach the iterator %s: %w: %w", p, ErrRefused, err)
	}
	defer l.Close()
	r, err := l.Open()
	if err != nil {
		return nil, fmt.Errorf("open the iterator %s: %w", p, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the iterator %s: %w", p, err)
	}
	if len(data) > maxAnswer {
		return nil, fmt.Errorf("read the iterator %s: more than %d bytes", p, maxAnswer)
	}
	return data, nil
}
