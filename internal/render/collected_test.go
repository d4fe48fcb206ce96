// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// TestLeftOut: what was taken out is counted in words that fit the number.
func TestLeftOut(t *testing.T) {
	for what, want := range map[string][2]string{
		"setting of a secret":          {"1 setting of a secret", "7 settings of a secret"},
		"hash of a password":           {"1 hash of a password", "7 hashes of a password"},
		"password in an address":       {"1 password in an address", "7 passwords in an address"},
		"private key":                  {"1 private key", "7 private keys"},
		"data of a secret":             {"1 data of a secret", "7 data of a secret"},
		"lines that no rule needs":     {"1 line that no rule needs", "7 lines that no rule needs"},
		"key of a Ceph user":           {"1 key of a Ceph user", "7 keys of a Ceph user"},
		"password of an iSCSI address": {"1 password of an iSCSI address", "7 passwords of an iSCSI address"},
	} {
		for i, n := range []int{1, 7} {
			var b strings.Builder
			d := &CollectedDocument{File: "x", Label: "h", LeftOut: []tree.LeftOut{{Name: "/etc/a", What: what, Count: n}}}
			if err := Collected(&b, d, Style{}); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(b.String(), "left out: /etc/a: "+want[i]+"\n") {
				t.Errorf("%d of %q: want %q in\n%s", n, what, want[i], b.String())
			}
		}
	}
}
