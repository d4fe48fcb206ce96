// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stall

import (
	"fmt"
	"time"
)

// What the kernel takes where nothing else is set: include/scsi/scsi.h, drivers/scsi/{sd.h,hosts.c,
// scsi_error.c} of Linux 6.1.
const (
	DefaultTimeout   = 30 * time.Second  // SD_TIMEOUT
	DefaultEHTimeout = 10 * time.Second  // SCSI_DEFAULT_EH_TIMEOUT
	DefaultRetries   = 5                 // SD_MAX_RETRIES
	DefaultMedium    = 2                 // SD_MAX_MEDIUM_TIMEOUTS
	flushFactor      = 2                 // SD_FLUSH_TIMEOUT_MULTIPLIER
	writeSame        = 120 * time.Second // SD_WRITE_SAME_TIMEOUT
	settle           = 10 * time.Second  // BUS_RESET_SETTLE_TIME, HOST_RESET_SETTLE_TIME
	maxTimer         = 5 * time.Second   // BLK_MAX_TIMEOUT
	// tests is how many TEST UNIT READY the error handler sends: after the reset of the disk, of the
	// target, of the bus and of the adapter.
	tests = 4
	// handling is what the abort and sending a command again take: the abort is put off by 10 ms.
	handling = 100 * time.Millisecond
	// drift is for what the handler itself takes, and for the granularity of its timers, in parts of its
	// own time.
	drift = 20
)

// ticks are the values of CONFIG_HZ that kernels are built with.
func ticks(known int) []int {
	if known > 0 {
		return []int{known}
	}
	return []int{100, 250, 300, 1000}
}

// late is by how much a timer that is set to d may fire later: timers of the wheel lie in levels of 64 slots,
// each level 8 times as coarse as the one before (kernel/time/timer.c, LVL_START and LVL_GRAN).
func late(d time.Duration, hz int) time.Duration {
	tick := time.Second / time.Duration(hz)
	n, gran := d/tick, time.Duration(1)
	for start := time.Duration(63); n >= start && gran < 1<<24; start *= 8 {
		gran *= 8
	}
	return gran * tick
}

// rough is by how much the block layer puts off the first timer of a request: a second, to the next power of
// two in ticks (block/blk-timeout.c, blk_round_jiffies).
func rough(hz int) time.Duration {
	n := 1
	for n < hz {
		n *= 2
	}
	return time.Duration(n) * time.Second / time.Duration(hz)
}

// expiry is when a request with the timeout d is found to be late: at d at the earliest. The block layer looks
// first after at most 5 s and rough, and then when the request is due.
func expiry(d time.Duration, hz int) (at Span, usual time.Duration) {
	at.Low = d
	var least, most time.Duration
	for _, h := range ticks(hz) {
		first := min(d, maxTimer) + rough(h)
		slack := late(first, h)
		high, mid := first+slack, first+slack/2
		if d > first {
			after := late(d-first, h)
			high, mid = max(high, d+after), d+after/2
		}
		at.High, most = max(at.High, high+handling), max(most, mid)
		if least == 0 || mid < least {
			least = mid
		}
	}
	return at, (least + most) / 2
}

// round gives when the n-th timeout of one command has been dealt with, where the adapter answers at once.
// Its first is an abort beside the others; for each later one the error handler waits until all that is under
// way has timed out too, which can be as long again.
func round(n int64, at Span, usual time.Duration) (Span, time.Duration) {
	return Span{times(n, at.Low), times(2*n-1, at.High)}, times(n, usual)
}

// scsiValues are the values of a SCSI disk, with the usual ones where they are not known.
type scsiValues struct {
	timeout, eh time.Duration
	deadline    time.Duration // 0 is off
	retries     int64         // -1 is endless
	medium      int64
}

func (t *timeline) scsiValues() scsiValues {
	d := &t.Disk
	v := scsiValues{d.Timeout, d.EHTimeout, d.EHDeadline, int64(d.MaxRetries), d.MaxMedium}
	if v.timeout <= 0 {
		v.timeout = DefaultTimeout
		t.assume("timeout: 30 s, as the kernel sets it by itself")
	}
	if v.eh <= 0 {
		v.eh = DefaultEHTimeout
		t.assume("eh_timeout: 10 s, as the kernel sets it by itself")
	}
	if v.deadline < 0 {
		v.deadline = 0
		t.assume("eh_deadline: off, as the kernel sets it by itself")
	}
	if v.retries < -1 {
		v.retries = DefaultRetries
		t.assume("max_retries: 5, as the kernel sets it by itself")
	}
	if v.medium < 0 {
		v.medium = DefaultMedium
		t.assume("max_medium_access_timeouts: 2, as the kernel sets it by itself")
	}
	return v
}

// scsi adds what the SCSI layer does: drivers/scsi/scsi_error.c and sd.c of Linux 6.1.
func (t *timeline) scsi(fails map[Case]Span, usual map[Case]time.Duration) {
	v := t.scsiValues()
	name := t.name()
	one, mid := expiry(v.timeout, t.m.HZ)
	slack := fmt.Sprintf("the block layer sees a timeout of %s after %s to %s", v.timeout, short(one.Low), short(one.High))
	t.add(Event{Kind: "command_timeout", Object: name, At: one, Usual: mid, Harm: Retries,
		Text: "the first timeout: the command is aborted and sent again", Why: slack})
	if v.retries != 0 {
		at, u := round(2, one, mid)
		at.Low = one.Low
		t.add(Event{Kind: "error_handler", Object: name, At: at, Usual: u, Harm: Retries,
			Text: "the error handler stops the whole adapter, with all of its disks, and resets step by step",
			Why: "at the second timeout of a command; at the first where the adapter refuses the abort; later where other " +
				"commands are under way, for all of which it waits"})
	}
	t.medium(v, one, mid, fails, usual)
	t.dead(v, one, mid, fails, usual)
	t.flush(v)
}

// medium adds what comes where the disk answers tests: the error handler is content each time, the disk
// counts, and is set offline; or the command has no try left before.
func (t *timeline) medium(v scsiValues, one Span, mid time.Duration, fails map[Case]Span, usual map[Case]time.Duration) {
	name := t.name()
	offlineAt := max(v.medium, 1) + 1 // the first timeout does not count: the handler has not been asked
	tries := v.retries + 1
	switch {
	case v.retries < 0 || offlineAt <= tries:
		at, u := round(offlineAt, one, mid)
		at.Low = times(max(v.medium, 1), one.Low)
		t.add(Event{Kind: "medium_offline", Object: name, Case: Medium, At: at, Usual: u, Harm: Offline,
			Text: fmt.Sprintf("the disk is set offline after timeout %d of one command, and stays so when storage is back",
				offlineAt),
			Why: fmt.Sprintf("max_medium_access_timeouts is %d; %d x %s, one less where the adapter refuses the abort, more "+
				"where commands come one after the other", v.medium, offlineAt, v.timeout)})
		fails[Medium], usual[Medium] = at, u
	default:
		at, u := round(tries, one, mid)
		t.add(Event{Kind: "retries_used", Object: name, Case: Medium, At: at, Usual: u, Harm: Errors,
			Text: "the command has no try left and fails; the disk stays in use, and the next command begins anew",
			Why: fmt.Sprintf("max_retries is %d: %d x %s; max_medium_access_timeouts of %d is not reached", v.retries, tries,
				v.timeout, v.medium)})
		fails[Medium], usual[Medium] = at, u
	}
}

// ladder is how long the error handler takes until it gives a disk up that answers nothing: the reset of the
// disk and of the target, each with a test, that of the bus and of the adapter with a wait and a test. Past
// eh_deadline only the adapter is reset.
func ladder(eh, deadline time.Duration) time.Duration {
	var sum time.Duration
	for _, step := range []time.Duration{eh, eh, settle + eh} {
		if deadline == 0 || sum < deadline {
			sum += step
		}
	}
	return sum + settle + eh
}

func (t *timeline) dead(v scsiValues, one Span, mid time.Duration, fails map[Case]Span, usual map[Case]time.Duration) {
	name := t.name()
	steps := ladder(v.eh, v.deadline)
	if v.retries == 0 {
		t.add(Event{Kind: "retries_used", Object: name, Case: Dead, At: one, Usual: mid, Harm: Errors,
			Text: "the command has no try left and fails; where the adapter refuses the abort, the error handler comes first",
			Why:  "max_retries is 0"})
		fails[Dead], usual[Dead] = Span{one.Low, plus(one.High, steps+steps/drift)}, mid
		return
	}
	begin, u := round(2, one, mid)
	at := Span{one.Low, plus(begin.High, steps+steps/drift)}
	why := fmt.Sprintf("2 x %s, then %d tests of %s and waits of the kernel, %s together", v.timeout, tests, v.eh, steps)
	if v.deadline > 0 {
		why += fmt.Sprintf(", cut short by eh_deadline of %s", v.deadline)
	}
	switch t.Disk.HostDriver {
	case "scsi_debug":
		at.Low = 2*one.Low + steps
	default:
		why += "; less where the adapter refuses aborts and resets at once, more where they take time themselves"
	}
	t.add(Event{Kind: "dead_offline", Object: name, Case: Dead, At: at, Usual: plus(u, steps), Harm: Offline,
		Text: "no reset has helped: the disk is set offline, and stays so when storage is back", Why: why})
	fails[Dead], usual[Dead] = at, plus(u, steps)
}

// flush adds the commands with timeouts of their own.
func (t *timeline) flush(v scsiValues) {
	n, harm, end := max(v.medium, 1)+1, Offline, "the disk is set offline"
	if v.retries >= 0 && v.retries+1 < n {
		n, harm, end = v.retries+1, Errors, "it fails"
	}
	for _, c := range []struct {
		kind, what, why string
		timeout         time.Duration
	}{
		{"flush_fails", "a flush of the disk's cache",
			fmt.Sprintf("a flush has twice the timeout: %d x %s", n, flushFactor*v.timeout), flushFactor * v.timeout},
		{"write_same_fails", "a WRITE SAME (the zeroing of blocks)",
			fmt.Sprintf("its timeout is 120 s whatever is set: %d x 120 s", n), writeSame},
	} {
		one, mid := expiry(c.timeout, t.m.HZ)
		at, u := round(n, one, mid)
		at.Low = times(max(1, n-1), one.Low)
		t.add(Event{Kind: c.kind, Object: t.name(), Case: Medium, At: at, Usual: u, Harm: harm,
			If: c.what + " was the first to wait", Text: c.what + " has timed out: " + end, Why: c.why})
	}
}

// short is a time with as much of it as matters.
func short(d time.Duration) string {
	if d == Never {
		return "never"
	}
	return d.Round(100 * time.Millisecond).String()
}
