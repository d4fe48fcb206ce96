// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package klog

// blockForms are those of the block layer and of drivers below it that are not SCSI or NVMe.
func blockForms() []Form {
	const how = "< op {opcode}:({op}) flags {flags} phys_seg {segments#} prio class {prio#}>"
	return []Form{
		form("blk.io", warning,
			"blk_update_request: {kind~} error, dev {device}, sector {sector#}"+how,
			"print_req_error: {kind~} error, dev {device}, sector {sector#}"+how,
			"end_request: {kind~} error, dev {device}, sector {sector#}",
			"{kind*} error, dev {device}, sector {sector#}"+how),
		form("blk.capacity", note, "{device}: detected capacity change from {from#} to {to#}"),
		form("nbd.down", danger,
			"block {device}: Connection timed out<{text~}>", "block {device}: shutting down sockets",
			"block {device}: Receive control failed (result {errno#})",
			"block {device}: Dead connection, failed to find a fallback"),
		form("nvme.nopath", danger,
			"block {device}: no usable path - requeuing I/O",
			"block {device}: no available path - failing I/O"),
		form("loop.io", warning, "loop: {op} error at byte offset {offset#}, length {length#}."),
		form("rbd.io", warning, "rbd: {device}: {op} {text~} result {errno#}", "rbd: {device}: result {errno#}< {text~}>"),
		form("ceph.session", warning,
			"libceph: {node} {address} session lost, hunting for new mon",
			"libceph: {node} {address} socket closed (con state {state})",
			"libceph: {node} down"),
		form("ceph.note", note, "libceph: {text~}"),
		form("virtio.note", note, "virtio_blk {address}: {text~}"),
	}
}

// scsiForms are those of drivers/scsi, drivers/message and drivers/ata.
func scsiForms() []Form {
	return []Form{
		form("scsi.result", warning,
			"sd {address}: [{device}]{~} Result: hostbyte={hostbyte} driverbyte={driverbyte}"+
				"< cmd_age={seconds#}s>"),
		form("scsi.sense", warning,
			"sd {address}: [{device}]{~} Sense Key : {key~} [{when~}]<{~}>",
			"sd {address}: [{device}]{~} Add. Sense: {sense~}"),
		form("scsi.cdb", note, "sd {address}: [{device}]{~} CDB: {text~}"),
		form("scsi.offline", danger,
			"sd {address}:< [{device}]> Device offlined - not ready after error recovery",
			"scsi {address}: Device offlined - not ready after error recovery",
			"sd {address}:< [{device}]> rejecting I/O to offline device",
			"scsi {address}: rejecting I/O to offline device",
			"sd {address}:< [{device}]> rejecting I/O to dead device",
			"scsi {address}: rejecting I/O to dead device",
			"sd {address}:< [{device}]> device offline or changed"),
		form("scsi.waited", danger, "sd {address}: [{device}]{~} timing out command, waited {seconds#}s",
			"sd {address}: timing out command, waited {seconds#}s"),
		form("scsi.abort", warning,
			"sd {address}: [{device}]{~} task abort on host {host#}, {~}",
			"sd {address}: [{device}]{~} attempting task abort!{~}",
			"sd {address}: attempting task abort!{~}",
			"{driver}: {host}: attempting {what~}! (sc={~})"),
		form("scsi.reset", warning,
			"sd {address}:< [{device}]> Power-on or device reset occurred",
			"scsi host{host#}: {text~} reset{~}"),
		form("storvsc.error", warning, "hv_storvsc {address}: tag#{tag#} cmd {opcode} status: {text~}"),
		form("iscsi.conn", warning, "connection{connection}: detected conn error ({code#})"),
		form("iscsi.ping", warning, "connection{connection}: ping timeout of {seconds#} secs expired, {text~}"),
		form("iscsi.lost", danger, "session{session#}: session recovery timed out after {seconds#} secs"),
		form("fc.lost", danger, "rport-{port}: blocked FC remote port time out: {text~}"),
		form("fc.link", warning,
			"lpfc {address}: {port}:1305 Link Down Event {text~}",
			"qla2xxx [{address}]-{code}:{host#}: LOOP DOWN detected{text~}"),
		form("ata.error", warning,
			"ata{port}: exception {text~}", "ata{port}: failed command: {command~}",
			"ata{port}: COMRESET failed (errno={errno#})", "ata{port}: SRST failed (errno={errno#})",
			"ata{port}: disabled"),
		form("ata.reset", warning,
			"ata{port}: hard resetting link", "ata{port}: soft resetting link",
			"ata{port}: link is slow to respond, please be patient (ready={ready#})"),
		form("ata.note", note, "ata{port}: {text~}"),
		form("scsi.note", note, "sd {address}: [{device}] {text~}", "sd {address}: {text~}",
			"scsi host{host#}: {text~}", "scsi {address}: {text~}"),
	}
}

// nvmeForms are those of drivers/nvme.
func nvmeForms() []Form {
	return []Form{
		form("nvme.timeout", warning,
			"nvme {controller}: I/O {tag#}< ({op~})> QID {queue#} timeout, {action~}",
			"nvme {controller}: I/O tag {tag#} ({id}) opcode {opcode} ({op~}) QID {queue#} timeout, {action~}",
			"nvme {controller}: I/O tag {tag#} ({id}) QID {queue#} timeout, {action~}",
			"nvme {controller}: Timeout I/O {tag#} QID {queue#}",
			"nvme {controller}: Aborting I/O {tag#} QID {queue#}"),
		form("nvme.down", danger,
			"nvme {controller}: controller is down; will reset: CSTS={csts}, {text~}",
			"nvme {controller}: Removing after probe failure<{text~}>",
			"nvme {controller}: Disabling device after reset failure: {errno#}",
			"nvme {controller}: Device not ready; aborting {text~}"),
		form("nvme.keepalive", warning, "nvme {controller}: keep-alive failed<: {errno#}>"),
		form("nvme.reset", warning, "nvme {controller}: resetting controller<{text~}>",
			"nvme {controller}: frozen state error detected, reset controller"),
		form("nvme.io", warning, "{device}: {op~}({opcode}) @ LBA {lba#}, {blocks#} blocks, {text~}"),
		form("nvme.note", note, "nvme {controller}: {text~}"),
	}
}

// dmForms are those of drivers/md: device mapper and md.
func dmForms() []Form {
	const md = "md/raid<{level#}>:{device}: "
	return []Form{
		form("mpath.failing", warning, "device-mapper: multipath:< {map}:> Failing path {path}."),
		form("mpath.back", note, "device-mapper: multipath:< {map}:> Reinstating path {path}."),
		form("mpath.dropped", danger,
			"device-mapper: multipath: queue_if_no_path timeout on {map}, failing queued IO"),
		form("thin.low", warning,
			"device-mapper: thin: {pool}: reached low water mark for {what} device: sending event."),
		form("thin.full", danger,
			"device-mapper: thin: {pool}: no free {what} space available.",
			"device-mapper: thin: {pool}: switching pool to out-of-data-space{text~} mode"),
		form("thin.mode", danger, "device-mapper: thin: {pool}: switching pool to {mode~} mode"),
		form("thin.metadata", danger,
			"device-mapper: thin: {pool}: metadata operation '{op~}' failed: error = {errno#}"),
		form("snapshot.invalid", danger, "device-mapper: snapshots: Invalidating snapshot: {text~}"),
		form("dm.note", note, "device-mapper: {text~}"),
		form("md.fail", danger,
			md+"Disk failure on {member}, disabling device.<{~}Operation continuing on {count#} devices.>"),
		form("md.degraded", warning, md+"Operation continuing on {count#} devices.",
			md+"cannot start dirty degraded array.", "md: kicking non-fresh {member} from array!"),
		form("md.broken", lost, md+"Cannot continue operation ({text~}"),
		form("md.lost", lost, md+"{member}: unrecoverable I/O read error for block {block#}"),
		form("md.resched", warning, md+"{member}: rescheduling sector {sector#}"),
		form("md.active", note,
			md+"active with {active#} out of {wanted#} {what}",
			md+"raid level {raid#} active with {active#} out of {wanted#} devices, algorithm {algorithm#}"),
		form("md.sync", note, "md: {action} of RAID array {device}", "md: {device}: {action~} done.",
			"md: {device}: {action~} interrupted."),
		form("md.note", note, md+"{text~}", "md: {text~}"),
	}
}
