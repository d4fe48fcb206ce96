// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

//go:build race

package xfs

// raceDetector: its tables do not fit into the address space that User Mode Linux has.
const raceDetector = true
