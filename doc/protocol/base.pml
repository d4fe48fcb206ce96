/* SPDX-License-Identifier: Apache-2.0
 * SPDX-FileCopyrightText: The shisa authors
 *
 * When a base image may be removed: the rules of internal/refs/protocol, and a world in which nodes, controllers, people
 * and power cuts follow one another in any order. One base; what is asked is whether a machine can come to rest on a base
 * that is gone. The same world is in internal/refs/protocol/model_test.go, which explores it without spin.
 *
 *	spin -a base.pml && gcc -O2 -DSAFETY -DNOREDUCE -o pan pan.c && ./pan -E -m1000000    "errors: 0": none is lost
 *	spin -a -DNO_DRAIN base.pml && ...                                            "errors: 1": a story without that rule
 *	spin -t -p -DNO_DRAIN base.pml                                                tells that story
 *
 * run.sh does that for all of them.
 *
 *	-DN=2            nodes, 1 to 3          -DC=1            controllers
 *	-DREACH          asks whether a base can be removed at all: one error is what is wanted
 *	-DDOWN           the last node reports once that it does not need the base, before that is set aside, and has no
 *	                 power from then on; with -DREACH no error is what is wanted
 *
 * Each of these leaves one rule out:
 *
 *	-DDIRECT         no quarantine: what no report needs is unlinked at once
 *	-DIGNORE_DOWN    nodes without power are not waited for
 *	-DNO_DRAIN       a node does not wait for its launches before it looks for uses
 *	-DNO_LOOKUP      a node does not look the directory up anew: its cache may lead to what has another name by now
 *	-DWRONG_ORDER    it looks the directory up first, and lists the quarantine afterwards
 *	-DEPOCHS         it acknowledges the number of the last wish to set the base aside, not what it saw
 *	-DFIXED_NAME     each quarantine has the same name
 *	-DRETIRE_DROPS   what a retired node needed is forgotten
 *	-DSTRANGER       the last node is no member, and nobody notices
 *	-DNOVA           Nova's rule instead: leases of a day, and the age of the file. -DNO_POWER_LOSS: no node fails
 */

#ifndef N
#define N 2
#endif
#ifndef C
#define C 1
#endif
#define IDS 2 /* how often the base may be set aside */

/* Where the base is. */
#define LIVE 0
#define HELD 1
#define CLAIMED 2
#define GONE 3

/* How far a launch is: it looked the base up before the agent's pass looked the directory up anew, or after. */
#define NONE 0
#define EARLY 1
#define LATE 2

/* How far an agent is in its pass: one of listing and looking up is done, both are, the launches were waited for. */
#define IDLE 0
#define FIRST 1
#define SECOND 2
#define DRAINED 3

typedef Node_ {
	bit up;
	bit cached;		/* its cache has the name, from when it was there */
	byte launch;
	bit overlay;		/* a machine rests on the base */
	byte pass;
	byte seen;		/* the id that this pass saw, 0 for none */
	bit reported;		/* its latest report, which is of use, and what that saw */
	byte observed;
	bit uses;
	bit retired;
	bit expired		/* Nova: its lease ran out */
}

Node_ n[N];
byte at = LIVE;
byte id;			/* of the quarantine that it is in, or was in last */
byte used;			/* ids that were given away */
bit pinned;
bit aged;			/* Nova: the file is old enough */

#ifdef STRANGER
#define KNOWN(i) ((i) != N-1)
#else
#define KNOWN(i) true
#endif
#ifdef IGNORE_DOWN
#define MEMBER(i) (KNOWN(i) && n[i].up)
#else
#define MEMBER(i) KNOWN(i)
#endif
#ifdef EPOCHS
#define SAW(i, q) (n[i].observed >= (q))
#else
#define SAW(i, q) (n[i].observed == (q))
#endif

/* A use speaks against it whoever has it; one that is not retired has to have said that it has none, and to have seen the
 * quarantine q, if that is not 0. */
#define AGREES(i, q) (!MEMBER(i) || !(n[i].reported && n[i].uses) && \
	(n[i].retired || n[i].reported && ((q) == 0 || SAW(i, q))))

#if N == 1
#define ALL(q) AGREES(0, q)
#define ANYBODY MEMBER(0)
#define RESTS n[0].overlay
#define COUNTED (n[0].overlay && !n[0].expired)
#define BUSY (n[0].launch != NONE)
#elif N == 2
#define ALL(q) (AGREES(0, q) && AGREES(1, q))
#define ANYBODY (MEMBER(0) || MEMBER(1))
#define RESTS (n[0].overlay || n[1].overlay)
#define COUNTED (n[0].overlay && !n[0].expired || n[1].overlay && !n[1].expired)
#define BUSY (n[0].launch != NONE || n[1].launch != NONE)
#else
#define ALL(q) (AGREES(0, q) && AGREES(1, q) && AGREES(2, q))
#define ANYBODY (MEMBER(0) || MEMBER(1) || MEMBER(2))
#define RESTS (n[0].overlay || n[1].overlay || n[2].overlay)
#define COUNTED (n[0].overlay && !n[0].expired || n[1].overlay && !n[1].expired || n[2].overlay && !n[2].expired)
#define BUSY (n[0].launch != NONE || n[1].launch != NONE || n[2].launch != NONE)
#endif

#define MAY(q) (!pinned && ANYBODY && ALL(q))

#ifdef WRONG_ORDER
#define LOOKED_UP(i) (n[i].pass >= FIRST)
#define LISTS SECOND
#define LOOKS FIRST
#else
#define LOOKED_UP(i) (n[i].pass >= SECOND)
#define LISTS FIRST
#define LOOKS SECOND
#endif

#ifdef NO_DRAIN
#define WAITED(i) true
#else
#define WAITED(i) (n[i].launch != EARLY)
#endif

#ifdef DOWN
#define MAY_HAVE_POWER(i) ((i) != N-1 || !n[i].reported)
#define MAY_REPORT(i) ((i) != N-1 || used == 0 && !n[i].overlay)
#else
#define MAY_HAVE_POWER(i) true
#define MAY_REPORT(i) true
#endif

/* A node: its power, what is launched on it, and its agent. */
proctype Node(byte i)
{
	do
	:: atomic { !n[i].up && !n[i].retired && MAY_HAVE_POWER(i) -> n[i].up = 1; n[i].expired = 0 }
#ifndef NO_POWER_LOSS
	:: atomic { n[i].up ->
		n[i].up = 0; n[i].cached = 0; n[i].launch = NONE; n[i].pass = IDLE; n[i].seen = 0 }
#endif
	/* An entry in a cache leads to a file that was renamed, not to one that was removed. */
	:: atomic { n[i].up && n[i].launch == NONE && !n[i].overlay && (at == LIVE || n[i].cached && at != GONE) ->
		n[i].cached = 1;
		aged = 0;
		n[i].launch = (LOOKED_UP(i) -> LATE : EARLY) }
	:: atomic { n[i].up && n[i].launch != NONE -> n[i].launch = NONE; n[i].overlay = 1 }
	:: atomic { n[i].up && n[i].launch != NONE -> n[i].launch = NONE }
	:: atomic { n[i].up && n[i].overlay -> n[i].overlay = 0 }
	:: atomic { n[i].up && n[i].cached -> n[i].cached = 0 }
#ifdef NOVA
	:: atomic { !n[i].up && !n[i].expired -> n[i].expired = 1 }
	:: atomic { at == LIVE && !COUNTED && aged && n[i].up && n[i].launch == NONE -> at = GONE }
#else
	/* The agent. What is listed in the quarantine counts as seen. */
	:: atomic { n[i].up && n[i].pass == LISTS - 1 ->
		n[i].pass = LISTS;
#ifdef EPOCHS
		n[i].seen = used
#else
		n[i].seen = (at == HELD -> id : 0)
#endif
	}
	:: atomic { n[i].up && n[i].pass == LOOKS - 1 ->
		n[i].pass = LOOKS;
#ifndef NO_LOOKUP
		n[i].cached = (at == LIVE -> 1 : 0);
#endif
		n[i].launch = (n[i].launch == LATE -> EARLY : n[i].launch) }
	:: atomic { n[i].up && n[i].pass == SECOND && WAITED(i) -> n[i].pass = DRAINED }
	:: atomic { n[i].up && n[i].pass == DRAINED && MAY_REPORT(i) ->
		n[i].reported = 1; n[i].observed = n[i].seen; n[i].uses = n[i].overlay;
		n[i].pass = IDLE; n[i].seen = 0;
#ifdef DOWN
		if
		:: i == N-1 -> n[i].up = 0; n[i].cached = 0; n[i].launch = NONE
		:: else
		fi
#endif
	}
#ifndef DOWN
	/* A person says that a node that stays away does not come back. */
	:: atomic { !n[i].up && !n[i].retired && at != GONE ->
		n[i].retired = 1;
#ifdef RETIRE_DROPS
		n[i].reported = 0; n[i].uses = 0
#else
		pinned = (n[i].overlay || n[i].uses -> 1 : pinned)
#endif
	}
#endif
#endif
	od
}

/* A controller: between what it decides and what it does anything may happen. */
proctype Controller()
{
	byte mine;
#ifdef DIRECT
	do
	:: atomic { at == LIVE && MAY(0) -> mine = 1 };
		atomic { true -> at = (at == LIVE -> GONE : at); mine = 0 }
	od
#else
	do
	:: atomic { at == LIVE && used < IDS && MAY(0) ->
		used++;
#ifdef FIXED_NAME
		mine = 1
#else
		mine = used
#endif
		};
		atomic {
			if
			:: at == LIVE -> at = HELD; id = mine
			:: else
			fi;
			mine = 0
		}
	:: atomic { at == HELD && MAY(id) -> mine = id };
		atomic {
			if
			:: at == HELD && id == mine -> at = CLAIMED
			:: else -> mine = 0
			fi
		};
		atomic { true ->
			at = (mine != 0 && at == CLAIMED && id == mine -> GONE : at);
			mine = 0
		}
	od
#endif
}

/* Somebody brings the base back, or, by Nova's rule, it grows old. */
proctype Others()
{
	do
#ifdef NOVA
	:: atomic { at == LIVE && !COUNTED && !aged && !BUSY -> aged = 1 }
#else
	:: atomic { at == HELD || at == CLAIMED -> at = LIVE }
#endif
	od
}

/* What is asked. */
proctype Asked()
{
#ifdef REACH
	atomic { at == GONE -> assert(false) }
#else
	atomic { at == GONE && RESTS -> assert(false) }
#endif
}

init {
	byte i;
	atomic {
		for (i : 0 .. N-1) {
			n[i].up = 1;
			run Node(i)
		}
#ifndef NOVA
		for (i : 1 .. C) {
			run Controller()
		}
#endif
		run Others();
		run Asked();
		i = 0
	}
}
