// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package e2e has tests of the whole program in other kernels than that of the machine. There is nothing
// in it but tests: "make test-vm" runs them, and doc/lab.md says how.
package e2e
