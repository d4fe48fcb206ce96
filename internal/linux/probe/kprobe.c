// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// The kprobe engine: hooks.h by breakpoints.
#define BREAKPOINTS
#include "hooks.h"
