// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package diskio

import (
	"encoding/binary"
	"testing"
)

// answerOf is an answer of device mapper with targets.
func answerOf(targets ...[2]string) []byte {
	b := make([]byte, dmHeaderBytes)
	binary.NativeEndian.PutUint32(b[16:], dmHeaderBytes)
	binary.NativeEndian.PutUint32(b[20:], uint32(len(targets)))
	for _, x := range targets {
		head := make([]byte, dmTargetBytes)
		copy(head[24:], x[0])
		text := append([]byte(x[1]), make([]byte, 8-len(x[1])%8)...)
		binary.NativeEndian.PutUint32(head[20:], uint32(len(b)-dmHeaderBytes+len(head)+len(text)))
		b = append(append(b, head...), text...)
	}
	return b
}

func TestMultipathIn(t *testing.T) {
	got, err := multipathIn(answerOf([2]string{"linear", "8:0 0"}, [2]string{"multipath", "0 0 1 1 x "}))
	if err != nil || got != "0 0 1 1 x" {
		t.Errorf("multipathIn = %q, %v", got, err)
	}
	if _, err := multipathIn(answerOf([2]string{"linear", "8:0 0"})); err == nil {
		t.Error("a device without such a target is no error")
	}
	whole := answerOf([2]string{"linear", "8:0 0"}, [2]string{"multipath", "0 0"})
	for cut := range len(whole) { // no panic, and nothing is made up
		if got, err := multipathIn(whole[:cut]); err == nil && got != "0 0" {
			t.Errorf("cut at %d: %q", cut, got)
		}
	}
}

func FuzzMapper(f *testing.F) {
	f.Add(answerOf([2]string{"multipath", "0 0"}))
	f.Fuzz(func(_ *testing.T, answer []byte) {
		_, _ = multipathIn(answer) // no panic
	})
}
