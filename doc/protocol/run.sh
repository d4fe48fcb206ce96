#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The shisa authors
#
# Runs the model of doc/protocol/base.pml under spin: with all rules no base that is in use is lost, and without any one of
# them there is a story in which one is. "run.sh long" has two controllers too, which takes a GiB and a minute.
set -euo pipefail
model=$(cd "$(dirname "$0")" && pwd)/base.pml
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
failed=0

# ask ERRORS WHAT FLAG...: a search of all states ends with so many errors.
ask() {
	local want=$1 what=$2 out errors states
	shift 2
	rm -f pan*
	out=$(spin -a "$@" "$model" && gcc -O2 -w -DSAFETY -DNOREDUCE -DCOLLAPSE -o pan pan.c) ||
		{ printf '%s\nrun.sh: %s was not built\n' "$out" "$what" >&2; exit 1; }
	# It ends with 0 whatever it finds; what it did not search it says.
	out=$(./pan -E -m10000000 2>&1)
	errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' <<<"$out")
	states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' <<<"$out")
	if grep -q 'truncated\|out of memory\|Search not completed' <<<"$out" && [ "$errors" != 1 ]; then
		printf '%s\nrun.sh: %s was not searched to its end\n' "$out" "$what" >&2
		failed=1
	elif [ "$errors" != "$want" ]; then
		printf '%s\nrun.sh: %s: %s errors, want %s\n' "$out" "$what" "$errors" "$want" >&2
		failed=1
	else
		printf '%-58s %s, %s states\n' "$what" "$([ "$want" = 0 ] && echo 'never' || echo 'there is a story')" "$states"
	fi
}

echo 'a base is lost that is in use:'
ask 0 '  one node' -DN=1
ask 0 '  two nodes' -DN=2
[ "${1-}" != long ] || ask 0 '  two nodes, two controllers' -DN=2 -DC=2
echo 'a base is lost that is in use, without a rule:'
ask 1 '  without a quarantine' -DDIRECT
ask 1 '  without waiting for nodes that are down' -DIGNORE_DOWN
ask 1 '  without waiting for launches under way' -DNO_DRAIN
ask 1 '  without looking the directory up anew' -DNO_LOOKUP
ask 1 '  looking up first, listing afterwards' -DWRONG_ORDER
ask 1 '  acknowledging a number instead of what was seen' -DEPOCHS -DC=2
ask 1 '  with one name for all quarantines' -DFIXED_NAME
ask 1 '  forgetting what a retired node needed' -DRETIRE_DROPS
ask 1 '  with a node that is no member' -DSTRANGER
echo "a base is lost that is in use, by Nova's rule:"
ask 1 '  with nodes that fail' -DNOVA
ask 0 '  with nodes that never do' -DNOVA -DNO_POWER_LOSS
echo 'a base is removed:'
ask 1 '  that nobody needs' -DREACH
ask 0 '  while a node is down that has not seen it set aside' -DREACH -DDOWN
exit "$failed"
