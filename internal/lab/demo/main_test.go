// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package demo

import (
	"fmt"
	"os"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestMain stands for the program that watches, too.
func TestMain(m *testing.M) {
	if os.Args[0] == "shisa" {
		watchBadly(os.Args[1])
	}
	testenv.Main(m)
}

// watchBadly is a program that says what a test wants of it.
func watchBadly(how string) {
	switch how {
	case "refuses":
		fmt.Fprintln(os.Stderr, "shisa: no engine works here")
		os.Exit(1)
	case "leaves":
		fmt.Fprintln(os.Stderr, "shisa: watching by nothing")
		os.Exit(0)
	case "names":
		fmt.Fprintln(os.Stderr, "shisa: watching by nothing")
		fmt.Println("somebody")
	case "silent":
		fmt.Fprintln(os.Stderr, "shisa: watching by nothing")
	}
	select {} // until it is told to end
}
