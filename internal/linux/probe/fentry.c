// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
// SPDX-FileCopyrightText: The shisa authors

//go:build ignore

// The fentry engine: hooks.h by trampolines.
#include "hooks.h"
