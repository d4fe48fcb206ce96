// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package stall

import (
	"fmt"
	"strconv"
	"time"
)

// What drivers other than SCSI's take where nothing is set.
const (
	nvmeAdmin   = 60 * time.Second // drivers/nvme/host/core.c, admin_timeout
	nvmeRetries = 5                // nvme_max_retries
	// nvmeReady is the longest that a controller may say it takes to become ready: CAP.TO is 8 bits of
	// 500 ms (NVM Express base specification, "Controller Capabilities").
	nvmeReady = 127500 * time.Millisecond

	iscsiReplacement = 120 * time.Second // iscsid.conf, node.session.timeo.replacement_timeout
	iscsiNoop        = 5 * time.Second   // noop_out_interval, noop_out_timeout
	// iscsiManage are abort_timeout, lu_reset_timeout and tgt_reset_timeout of iscsid.conf together.
	iscsiManage = (15 + 30 + 30) * time.Second

	mpathPolling = 5 * time.Second // multipath.conf, polling_interval
	// ataResets are the tries of libata to reset a link: 10, 10, 35 and 5 s (drivers/ata/libata-eh.c,
	// ata_eh_reset_timeouts), each after which the disk is asked for up to 30 s what it is.
	ataResets = (10 + 10 + 35 + 5 + 3*30) * time.Second
)

// nvme adds what drivers/nvme/host/pci.c does (nvme_timeout, Linux 6.1).
func (t *timeline) nvme(fails map[Case]Span) {
	name, d := t.name(), t.Disk.Timeout
	if d <= 0 {
		d = DefaultTimeout
		t.assume("nvme_core.io_timeout: 30 s, as the driver sets it by itself")
	}
	retries := int64(t.Disk.MaxRetries)
	if retries < 0 {
		retries = nvmeRetries
		t.assume("nvme_core.max_retries: 5, as the driver sets it by itself")
	}
	admin := t.Disk.AdminTimeout
	if admin <= 0 {
		admin = nvmeAdmin
	}
	one, mid := expiry(d, t.m.HZ)
	t.add(Event{Kind: "command_timeout", Object: name, At: one, Usual: mid, Harm: Retries,
		Text: "the first timeout: the controller is asked to abort the request", Why: fmt.Sprintf("io_timeout is %s", d)})
	two := Span{2 * one.Low, 2 * one.High}
	t.add(Event{Kind: "controller_reset", Object: name, At: two, Usual: 2 * mid, Harm: Retries,
		Text: "the controller is reset, and its requests are sent again",
		Why:  "at the second timeout of the request, or at once where the controller says that it has failed"})
	all := Span{times(2*(retries+1), one.Low), plus(times(2*(retries+1), one.High), times(retries+1, nvmeReady))}
	t.add(Event{Kind: "retries_used", Object: name, Case: Medium, At: all, Harm: Errors,
		Text: "the request has no try left and fails; the disk stays in use",
		Why:  fmt.Sprintf("each of %d tries takes two timeouts, and a reset of up to %s", retries+1, nvmeReady)})
	dead := Span{two.Low, plus(two.High, 2*nvmeReady, 2*admin)}
	t.add(Event{Kind: "controller_lost", Object: name, Case: Dead, At: dead, Harm: Offline,
		Text: "the reset does not help: the controller is given up, and the disk is removed",
		Why:  fmt.Sprintf("2 x %s, then its disabling and its first commands time out, up to 2 x (%s + %s)", d, nvmeReady, admin)})
	fails[Medium], fails[Dead] = all, dead
}

// ata adds what libata does (drivers/ata/libata-eh.c). It was not measured.
func (t *timeline) ata(fails map[Case]Span) {
	v := t.scsiValues()
	one, mid := expiry(v.timeout, t.m.HZ)
	t.add(Event{Kind: "command_timeout", Object: t.name(), At: one, Usual: mid, Harm: Retries,
		Text: "the first timeout: the link of the disk is reset", Why: "libata has no abort of a single command"})
	tries := max(v.retries, 0) + 1
	all := Span{times(tries, one.Low), plus(times(2*tries, one.High), times(tries, ataResets))}
	t.add(Event{Kind: "retries_used", Object: t.name(), Case: Medium, At: all, Harm: Errors,
		Text: "the command has no try left and fails", Why: fmt.Sprintf("%d tries with a reset after each", tries)})
	dead := Span{one.Low, plus(2*one.High, 3*ataResets)}
	t.add(Event{Kind: "dead_offline", Object: t.name(), Case: Dead, At: dead, Harm: Offline,
		Text: "no reset has helped: the disk is disabled until the machine is started again or the bus is scanned",
		Why:  "resets of 10, 10, 35 and 5 s, and up to 30 s for its identification after each; up to three such rounds"})
	fails[Medium], fails[Dead] = all, dead
}

// iscsi adds what libiscsi does (drivers/scsi/libiscsi.c, iscsi_eh_cmd_timed_out; scsi_transport_iscsi.c): a
// session whose pings are not answered is lost, and its requests wait for replacement_timeout.
func (t *timeline) iscsi(fails map[Case]Span, usual map[Case]time.Duration) {
	i := ISCSI{-1, -1, -1}
	if t.Disk.ISCSI != nil {
		i = *t.Disk.ISCSI
	}
	for _, v := range []struct {
		value *time.Duration
		name  string
		usual time.Duration
	}{{&i.Replacement, "replacement_timeout", iscsiReplacement}, {&i.NoopInterval, "noop_out_interval", iscsiNoop},
		{&i.NoopTimeout, "noop_out_timeout", iscsiNoop}} {
		if *v.value < 0 {
			*v.value = v.usual
			t.assume(fmt.Sprintf("%s: %s, as iscsid.conf has it when it is installed", v.name, v.usual))
		}
	}
	name, v := t.name(), t.scsiValues()
	one, mid := expiry(v.timeout, t.m.HZ)
	lost := Span{i.NoopTimeout, i.NoopInterval + i.NoopTimeout + time.Second}
	why := fmt.Sprintf("a ping each %s, which may take %s", i.NoopInterval, i.NoopTimeout)
	if i.NoopInterval == 0 || i.NoopTimeout == 0 {
		lost = Span{one.Low, plus(2*one.High, iscsiManage)}
		why = "pings are off: the timeouts of commands and of their abort have to pass first"
	}
	t.add(Event{Kind: "session_lost", Object: name, Case: Dead, At: lost, Harm: Retries,
		Text: "the session is taken for lost, and tried to be made anew; requests wait", Why: why})
	gone := Span{lost.Low + i.Replacement, lost.High + i.Replacement + time.Second}
	t.add(Event{Kind: "replacement_timeout", Object: name, Case: Dead, At: gone, Usual: lost.High + i.Replacement, Harm: Errors,
		Text: "all requests of the session fail; a session that comes back later serves new ones",
		Why:  fmt.Sprintf("replacement_timeout is %s", i.Replacement)})
	fails[Dead], usual[Dead] = gone, lost.High+i.Replacement
	t.add(Event{Kind: "command_timeout", Object: name, Case: Medium, At: one, Usual: mid, Harm: Retries,
		Text: "pings are answered, the command is not: it is aborted and sent again", Why: fmt.Sprintf("timeout is %s", v.timeout)})
	t.medium(v, one, mid, fails, usual)
	m := fails[Medium]
	m.High = plus(m.High, times(max(v.retries, v.medium)+1, iscsiManage)) // each management command has its own timeout
	fails[Medium] = m
	t.Events[len(t.Events)-1].At = m
}

// multipath turns failures of paths into what the device above does.
func (t *timeline) multipath(fails map[Case]Span, usual map[Case]time.Duration) {
	p := t.Disk.Multipath
	polling := p.Polling
	if polling <= 0 {
		polling = mpathPolling
	}
	e := Event{Kind: "multipath", Object: t.Disk.Name, Harm: Waits}
	for _, c := range Cases() {
		at := fails[c]
		looks, err := strconv.Atoi(p.NoPathRetry)
		switch {
		case p.NoPathRetry == "queue":
			e.Text = "no path is left: requests are kept for ever, and no file system above gets an error"
			e.Why = "no_path_retry is queue"
			fails[c] = Span{Never, Never}
		case p.NoPathRetry == "fail" || p.NoPathRetry == "0":
			e.Text, e.Why, e.Harm = "no path is left: requests fail at once", "no_path_retry is fail", Errors
		case err == nil && looks > 0:
			wait := times(int64(min(looks, mostTries)), polling)
			e.Text = fmt.Sprintf("no path is left: requests are kept for %d looks, and fail then", looks)
			e.Why, e.Harm = fmt.Sprintf("no_path_retry is %d, polling_interval %s", looks, polling), Errors
			at = Span{plus(at.Low, wait-min(polling, wait)), plus(at.High, wait, polling)}
			fails[c], usual[c] = at, plus(usual[c], wait)
		default:
			e.Text = "no path is left: requests fail at once, or are kept for ever"
			e.Why, e.Harm = "no_path_retry is not set: the tables of multipath for this storage decide", Errors
			fails[c] = Span{at.Low, Never}
			at = fails[c]
		}
		e.Case, e.At = c, at
		t.add(e)
	}
}

// nfs adds what a client of NFS does (net/sunrpc/clnt.c and xprt.c, xprt_calc_majortimeo; nfs(5)).
func (t *timeline) nfs(n NFS) {
	if n.Timeo <= 0 {
		n.Timeo = 60 * time.Second
		t.assume("timeo: 600 (60 s), as the client sets it for TCP")
	}
	if n.Retrans <= 0 {
		n.Retrans = 2
		t.assume("retrans: 2, as the client sets it")
	}
	major := n.Timeo
	if n.UDP {
		major <<= min(n.Retrans, 8) // the longest is ten minutes anyhow; each wait is twice the one before
	} else {
		major += time.Duration(n.Retrans) * n.Timeo // each is longer by timeo
	}
	major = min(major, 600*time.Second+n.Timeo)
	at := Span{major, major + n.Timeo}
	name := t.Disk.Name
	why := fmt.Sprintf("timeo %s and retrans %d make a major timeout of %s", n.Timeo, n.Retrans, major)
	switch {
	case !n.Soft:
		t.add(Event{Kind: "nfs_warns", Object: name, At: at, Usual: major, Harm: Warns,
			Text: "the client says that the server does not respond, and goes on trying for ever", Why: why + "; the mount is hard"})
	case n.Version >= 4:
		at.High = Never
		t.add(Event{Kind: "nfs_fails", Object: name, At: at, Harm: Errors,
			Text: "requests fail, but only if the connection is broken: a server that takes packets and answers nothing is " +
				"waited for for ever", Why: why + "; the mount is soft, of version 4"})
	default:
		t.add(Event{Kind: "nfs_fails", Object: name, At: at, Usual: major, Harm: Errors,
			Text: "requests fail, and what was being written may be lost", Why: why + "; the mount is soft"})
	}
}
