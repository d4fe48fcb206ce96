// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stack

// DWARF for the Arm 64-bit Architecture (AADWARF64), "DWARF register names".
var host = arch{sp: 31, fp: 29, ra: 30, mask: 1<<52 - 1, machine: 183}
