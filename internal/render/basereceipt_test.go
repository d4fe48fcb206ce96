// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/vault"
)

// TestBaseReceipt: what was not taken back is never told as if it was.
func TestBaseReceipt(t *testing.T) {
	undone := vault.BaseStep{What: vault.BaseShield, Name: "a", Done: true, Undone: true}
	kept := vault.BaseStep{What: vault.BaseTouch, Name: "a", Done: true, Undone: true, Why: "it keeps its new time"}
	left := vault.BaseStep{What: vault.BaseRestore, Name: "b", Done: true, Why: "it is needed"}
	for _, c := range []struct {
		steps, left []vault.BaseStep
		want        []string
	}{
		{[]vault.BaseStep{undone, kept}, nil, []string{"UNDONE  protect", "a lost its shield", "a (touch): it keeps its new time"}},
		{[]vault.BaseStep{undone, left}, []vault.BaseStep{left}, []string{"UNDONE IN PART", "left: "}},
		{[]vault.BaseStep{kept}, nil, []string{"NOTHING LEFT TO UNDO  protect"}},
		{[]vault.BaseStep{kept, left}, []vault.BaseStep{left}, []string{"NOT UNDONE", "left: "}},
		{[]vault.BaseStep{{What: vault.BaseRestore, Name: "c", ID: "x", Done: true, Undone: true}}, nil, []string{"c is in quarantine again"}},
		{[]vault.BaseStep{left}, []vault.BaseStep{left}, []string{"NOT UNDONE", "left: "}},
	} {
		var b strings.Builder
		r := &vault.BaseReceipt{Act: "protect", Steps: c.steps}
		if err := BaseReceipt(&b, r, c.left, "--accept-risk=needed:", Style{Width: 200}); err != nil {
			t.Fatal(err)
		}
		for _, w := range c.want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("BaseReceipt of %+v =\n%s\nwant %q in it", c.steps, b.String(), w)
			}
		}
		if strings.Contains(b.String(), "time of its last change again") {
			t.Errorf("a time that was kept is told as set back:\n%s", b.String())
		}
	}
}
