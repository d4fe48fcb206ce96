// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"bytes"
	"context"
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shisa-vm/shisa/internal/doctor/stories"
)

// story writes a bundle MACHINE.shisa of every machine of a story: "story full-server".
func story(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: story NAME")
	}
	all, err := stories.All()
	ts.Check(err)
	for _, s := range all {
		if s.Name != args[0] {
			continue
		}
		for _, m := range s.Machines {
			var b bytes.Buffer
			ts.Check(m.Bundle(context.Background(), &b))
			ts.Check(os.WriteFile(ts.MkAbs(m.Name+".shisa"), b.Bytes(), 0o600))
		}
		return
	}
	ts.Fatalf("no story is called %s", args[0])
}
