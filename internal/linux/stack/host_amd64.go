// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stack

// System V Application Binary Interface, AMD64, "DWARF Register Number Mapping".
var host = arch{sp: 7, fp: 6, ra: 16, mask: 1<<57 - 1, machine: 62}
