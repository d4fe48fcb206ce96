// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package testenv

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
)

// Read is how many bytes this process reads while fn runs, from whatever it has open. Nothing else
// may read meanwhile, so a test that calls it is not run in parallel to others.
func Read(t testing.TB, fn func()) int64 {
	t.Helper()
	before, err := readSoFar()
	if err != nil {
		Lacks(t, fmt.Sprintf("the kernel's count of what is read (%v)", err))
	}
	fn()
	after, err := readSoFar()
	if err != nil {
		t.Fatal(err)
	}
	return after - before
}

// readSoFar is the rchar of proc(5), /proc/pid/io: what system calls gave, from the cache too.
func readSoFar() (int64, error) {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0, err
	}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if n, ok := bytes.CutPrefix(s.Bytes(), []byte("rchar: ")); ok {
			return strconv.ParseInt(string(n), 10, 64)
		}
	}
	return 0, errors.New("/proc/self/io has no rchar")
}
