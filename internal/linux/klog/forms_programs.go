// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package klog

// programForms are what programs say, by the group that [Program] gives.
func programForms() []Group {
	return []Group{
		{"systemd", systemdForms()},
		{"systemd-shutdown", []Form{
			form("shutdown.final", note,
				"Syncing filesystems and block devices{text~}", "Sending SIGTERM to remaining processes{~}",
				"Sending SIGKILL to remaining processes{~}", "Unmounting file systems.",
				"All filesystems unmounted.", "Rebooting.", "Powering off.", "Halting system."),
			form("umount.failed", warning, "Failed to unmount {path~}: {reason~}",
				"Could not unmount {path~}: {reason~}"),
			form("umount.blocked", warning, "Unmounting '{path~}' blocked by: {who~}"),
		}},
		{"systemd-journald", []Form{
			form("journal.started", note, "Journal started"),
			form("journal.stopped", note, "Journal stopped"),
			form("journal.unclean", note, "File {path~} corrupted or uncleanly shut down, renaming and replacing."),
			form("clock.back", warning, "Time jumped backwards, rotating."),
			form("log.missed", note, "Missed {count#} kernel messages", "Suppressed {count#} messages from {who~}"),
		}},
		{"systemd-logind", []Form{
			form("shutdown.request", note,
				"System is rebooting.", "System is powering down.", "System is halting.",
				"System is rebooting ({reason~}).", "System is powering down ({reason~}).",
				"The system will reboot now!", "The system will power off now!", "Power key pressed{~}"),
			form("machine.suspended", note, "The system will suspend now!", "Operation 'sleep' finished."),
			form("machine.session", note, "New session {session} of user {user}.",
				"New session '{session}' of user '{user}' with class '{class}' and type '{type}'."),
			form("machine.sessionend", note, "Removed session {session}.",
				"Session {session} logged out. Waiting for processes to exit."),
			form("shutdown.caller", note, callers()...),
		}},
		{"sudo", []Form{
			form("machine.sudo", note, sudoed()...),
		}},
		{"watchdog", []Form{
			form("shutdown.watchdog", warning, "shutting down the system because of error {error~}"),
		}},
		{"clock", []Form{
			form("clock.step", note,
				"System clock was stepped by {seconds} seconds", "time reset {seconds} s",
				"step time server {server} offset {seconds}< sec>"),
			form("clock.wrong", note, "System clock wrong by {seconds} seconds<, {what~}>< ({what~})>"),
			form("clock.jump", note, "Forward time jump detected!", "Backward time jump detected!"),
			form("clock.sync", note,
				"Initial clock synchronization to {time~}.", "Initial synchronization to time server {server~}."),
			form("clock.restored", note,
				"System clock time unset or jumped backwards, restored from recorded timestamp: {time~}",
				"System clock time unset or jumped backwards, restoring from recorded timestamp: {time~}"),
		}},
		{"multipathd", []Form{
			form("mpath.paths", warning, "{map}: remaining active paths: {count#}"),
			form("mpath.marked", warning, "{device}: mark as failed",
				"checker failed path {path} in map {map}", "{map}: {device} - {checker~} checker reports path is down"),
			form("mpath.recovering", danger, "{map}: Entering recovery mode: max_retries={count#}"),
			form("mpath.recovered", note, "{map}: Recovered to normal mode"),
			form("mpath.noqueue", danger, "{map}: Disable queueing"),
			form("mpath.queue", note, "{map}: queue_if_no_path enabled"),
		}},
		{"iscsid", []Form{
			form("iscsi.conn", warning,
				"Kernel reported iSCSI connection {connection} error ({code#} - {~}) state ({state#})"),
			form("iscsi.ok", note,
				"connection{connection} is operational after recovery ({attempts#} attempts)"),
		}},
		{"lvm", []Form{
			form("thin.filling", warning, "<WARNING: >Thin <pool >{pool} data is now {percent}% full.",
				"<WARNING: >Thin pool {pool} metadata is now {percent}% full."),
		}},
		{"umount", []Form{
			form("umount.busy", warning,
				"<umount: >{path~}: target is busy{~}", "<umount: >{path~}: device is busy{~}"),
		}},
		{"nova", novaForms()},
		{"qemu", qemuForms()},
		{"corosync", corosyncForms()},
		{"pacemaker", pacemakerForms()},
		{"fencing", fencingForms()},
	}
}

// systemdForms are those of the first process.
func systemdForms() []Form {
	return []Form{
		form("unit.reached", note, "Reached target {unit~}."),
		form("unit.started", note, "Started {unit~}.", "Finished {unit~}.", "Mounted {unit~}."),
		form("unit.starting", note, "Starting {unit~}...", "Mounting {unit~}..."),
		form("unit.stopping", note, "Stopping {unit~}...", "Unmounting {unit~}..."),
		form("unit.stopped", note, "Stopped target {unit~}.", "Stopped {unit~}.", "Unmounted {unit~}.",
			"{unit}: Deactivated successfully.", "{unit}: Succeeded."),
		form("umount.failed", warning, "Failed unmounting {path~}."),
		form("umount.timeout", warning, "{unit}: Unmounting timed out. Terminating."),
		form("umount.exit", note,
			"{unit}: Mount process exited, code={code}, status={status}",
			"{unit}: Mount process exited, code={code} status={status}"),
		form("umount.busy", warning, "umount: {path~}: target is busy{~}", "umount: {path~}: device is busy{~}"),
		form("unit.failed", warning,
			"{unit}: Failed with result '{result~}'.", "Failed to start {unit~}.", "Failed to mount {unit~}.",
			"Dependency failed for {unit~}.",
			"{unit}: Main process exited, code={code}, status={status}", "Timed out starting {unit~}."),
		form("shutdown.begun", note, "Shutting down.", "Rebooting.", "Powering off."),
		form("shutdown.forced", warning, "Forcibly rebooting{text~}", "Rebooting: {text~}", "Rebooting immediately{text~}"),
		form("shutdown.caller", note, callers()...),
		form("machine.watchdog", note, "Using hardware watchdog '{name~}', version {version~}",
			"Watchdog running with a <hardware >timeout of {time~}."),
		form("boot.finished", note, "Startup finished in {text~}"),
		form("clock.changed", note, "Time has been changed"),
		form("clock.advanced", note, "System time before build time, advancing clock."),
		form("timer.future", warning,
			"{unit}: Not using persistent file timestamp {time~} as it is in the future."),
		form("machine.suspended", note, "Reached target Sleep."),
	}
}

// callers are the wordings with which systemd since 256 and logind since 257 tell who asked the machine to go
// down; of reloads they tell in the same way.
func callers() (patterns []string) {
	for _, action := range []string{"Reboot", "Poweroff", "Halt", "Kexec", "Soft reboot",
		"reboot", "poweroff", "halt", "kexec", "soft-reboot"} {
		patterns = append(patterns, action+" requested from client PID {pid#}< ('{comm~}')>< (unit {unit})>...")
	}
	return patterns
}

// sudoed are the lines of sudo about commands that take a machine down.
func sudoed() (patterns []string) {
	for _, command := range []string{"/sbin/reboot", "/usr/sbin/reboot", "/sbin/shutdown", "/usr/sbin/shutdown",
		"/sbin/poweroff", "/usr/sbin/poweroff", "/sbin/halt", "/usr/sbin/halt", "/usr/bin/systemctl", "/bin/systemctl",
		"/sbin/init", "/usr/sbin/init"} {
		patterns = append(patterns, "{user} : {~}COMMAND="+command+"{arguments~}")
	}
	return patterns
}

// novaForms are those of nova.virt.libvirt.imagecache from 2012 to 2026; the wording of what is removed
// changed in 2015.1 and in 2020.
func novaForms() []Form {
	const what = "ase<, swap or ephemeral>< or swap> file"
	return []Form{
		form("nova.removed", danger, "Removing b"+what+": {path~}"),
		form("nova.young", note, "B"+what+" too young to remove: {path~}"),
		form("nova.removable", note, "Removable base files: {paths~}"),
		form("nova.removefail", warning, "Failed to remove {path~}, error was {reason~}"),
		form("nova.absent", danger,
			"image {image} at ({path~}): warning -- an absent base file is in use! instances: {instances~}"),
		form("nova.unknown", warning, "Unknown base file: {path~}"),
		form("nova.inuse", note, "image {image} at ({path~}): {text~}"),
	}
}

// qemuForms are those of QEMU, in the log that libvirt keeps of each machine, and of libvirt.
func qemuForms() []Form {
	return []Form{
		form("qemu.ioerror", danger,
			"block I/O error in device '{device}': {reason~} ({errno#})",
			"block io error in device '{device}': {reason~} ({errno#})"),
		form("qemu.lock", warning,
			`{~}Failed to get "{lock~}" lock{~}`, `{~}Failed to get shared "{lock~}" lock{~}`,
			"Is another process using the image [{path~}]?"),
		form("qemu.signal", note, "{program}: terminating on signal {signal#}< from pid {pid#} ({by~})>",
			"{program}: terminating on signal {signal#} from pid {pid#}"),
		form("qemu.start", note, "starting up libvirt version: {text~}"),
		form("qemu.stop", note, "shutting down<, reason={reason}>"),
		form("libvirt.storage", danger,
			"{~}Cannot access storage file '{path~}'{~}: {reason~}",
			"{~}Cannot access backing file '{path~}' of storage file '{overlay~}'{~}: {reason~}",
			"{~}cannot open file '{path~}': {reason~}"),
		form("libvirt.monitor", warning, "{~}Unable to read from monitor: {reason~}",
			"{~}End of file from qemu monitor"),
	}
}

// corosyncForms carry the part that speaks in brackets, which logs to files have.
func corosyncForms() []Form {
	f := []Form{
		form("corosync.token", danger,
			"A processor failed, forming new configuration{text~}",
			"Token has not been received in {ms#} ms<{text~}>"),
		form("corosync.members", note, "A new membership ({ring}) was formed. Members{text~}",
			"A processor joined or left the membership and a new membership{text~}"),
		form("quorum.lost", danger,
			"This node is within the non-primary component and will NOT provide any services."),
		form("quorum.got", note, "This node is within the primary component and will provide service."),
		form("corosync.paused", danger,
			"Corosync main process was not scheduled{~} for {ms} ms {~}",
			"Process pause detected for {ms#} ms, flushing membership messages."),
		form("corosync.link", warning, "link: host: {node#} link: {link#} is down",
			"host: {node#} has no active links"),
	}
	for i := range f {
		for j, p := range f[i].Patterns {
			f[i].Patterns[j] = "<[{part~}] >" + p
		}
	}
	return f
}

// pacemakerForms are those of pacemaker 1.1 to 3.
func pacemakerForms() []Form {
	return []Form{
		form("fence.done", note,
			"Operation '{action~}' targeting {node} by {by} for {client~}: OK<{text~}>",
			"Operation {action} of {node} by {by} for {client~}: OK<{text~}>"),
		form("fence.failed", danger,
			"Operation '{action~}' targeting {node} by {by} for {client~}: {reason~}",
			"Operation {action} of {node} by {by} for {client~}: {reason~}",
			"Too many failures ({count#}) to fence {node}, giving up"),
		form("fence.needed", danger,
			"Requesting fencing ({action}) targeting node {node}< {text~}>",
			"Requesting fencing ({action}) of node {node}< {text~}>",
			"Scheduling node {node} for fencing<{text~}>",
			"Cluster node {node} will be fenced: {reason~}", "Node {node} will be fenced because {reason~}",
			"Node {node} will be fenced {reason~}"),
		form("fence.self", danger, "We were allegedly just fenced by {by} for {client~}!"),
		form("node.state", note, "Node {node} state is now {state}< {text~}>"),
		form("quorum.lost", danger, "Quorum lost<{text~}>"),
		form("quorum.got", note, "Quorum acquired<{text~}>"),
	}
}

// fencingForms are those of dlm_controld, which begin with seconds since the boot, of fenced and sanlock.
func fencingForms() []Form {
	return []Form{
		form("dlm.fencing", danger,
			"<{at#} >fence request {node#} pid {pid#} {text~}", "<{at#} >fence wait {node#} {text~}",
			"<{at#} >fence work wait for {what~}", "<{at#} >{lockspace} wait for fencing",
			"<{at#} >{lockspace} wait for quorum"),
		form("dlm.fenced", note,
			"<{at#} >fence status {node#} receive 0 from {from#} walltime {text~}",
			"<{at#} >fence result {node#} pid {pid#} result 0 {text~}"),
		form("fence.failed", danger,
			"<{at#} >fence result {node#} pid {pid#} result {result#} {text~}",
			"<{at#} >fence status {node#} receive {result#} from {from#} walltime {text~}",
			"fence {node} failed<{text~}>"),
		form("fence.needed", danger, "fencing node {node}< {text~}>"),
		form("fence.done", note, "fence {node} success"),
		form("sanlock.renewal", danger, "{text~} renewal error {reason~}", "{text~} check_our_lease failed {count#}"),
	}
}

// anyForms are what any program may say, by the text of an error of the C library.
func anyForms() []Form {
	return []Form{
		form("errno.enospc", warning, "{before~}No space left on device{after~}"),
		form("errno.erofs", warning, "{before~}Read-only file system{after~}"),
		form("errno.eio", warning, "{before~}Input/output error{after~}"),
		form("errno.estale", warning, "{before~}Stale file handle{after~}", "{before~}Stale NFS file handle{after~}"),
		form("errno.edquot", warning, "{before~}Disk quota exceeded{after~}"),
	}
}
