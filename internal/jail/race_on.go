// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

//go:build race

package jail

// raceDetector: its tables alone are larger than what a child may have.
const raceDetector = true
