// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func images(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "fifo" {
			names = append(names, e.Name())
		}
	}
	return append(names, "sub/over.qcow2")
}

func TestZoo(t *testing.T) {
	inZoo(t)
	for _, name := range images(t) {
		t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
			loops := slices.Contains([]string{"self.qcow2", "self2.qcow2", "a.qcow2", "b.qcow2"}, name)
			for _, args := range [][]string{
				{"info"}, {"info", "--output=json"}, {"info", "--backing-chain"}, {"info", "--backing-chain", "--output=json"},
				{"info", "-f", "raw"},
				{"check"}, {"check", "--output=json"}, {"check", "-q", "-U", "-f", "qcow2"},
				{"map"}, {"map", "--output=json"}, {"map", "-f", "raw", "-U"},
			} {
				if loops && args[0] != "info" && !slices.Contains(args, "raw") {
					continue // qemu-img opens the circle until its memory is used up
				}
				same(t, append(args, name)...)
			}
		})
	}
}
