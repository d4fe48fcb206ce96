// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

//go:build !race

package xfs

// raceDetector: this program was built without it.
const raceDetector = false
