// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package qemuimg speaks as qemu-img 7.2 does: the sub-commands check, compare, info and map with
// its options, its text on standard output and standard error, its JSON to the order of the keys,
// and its exit codes, so that scripts made for qemu-img run unchanged. Files are opened for reading
// only, and no lock is taken: what check -r changes, a Repairer does that the caller gives.
//
// It follows qemu's block layer closely: options, nodes with children, the order in which things
// are opened, and block status piece by piece, because all of that can be seen from outside. The
// tests hold it against the qemu-img of the machine, byte for byte.
//
// # Differences
//
// These are on purpose, and each is pinned by a test:
//
//   - The sub-commands that write (amend, bitmap, commit, convert, create, dd, rebase, resize,
//     snapshot), bench and measure are refused by name with exit code 1.
//   - check -r frees nothing that is not proved to be worthless, punches no holes, drops no snapshots,
//     and mends what it can beyond qemu-img; doc/formats/qcow2.md lists each difference. What is its
//     own it says on standard error, on lines that begin with "shisa: ". Where qemu-img gives a check
//     up, nothing is changed. Nobody may read the image meanwhile.
//   - --help and --version name this program; the first line of --version still begins with
//     "qemu-img version 7.2".
//   - Lock bytes are asked for, never taken: nobody is kept from starting because of us.
//     Without check -r the option read-only=off has no effect.
//   - Formats other than raw, qcow2 and luks, and protocols other than local files, are refused by
//     name: exit code 63 from check, as for formats that qemu-img cannot check, otherwise that of an
//     image that cannot be opened. info knows vdi, vpc, vhdx, qed and vmdk in one file too; where the
//     header of one of these is not plainly right, or a vmdk has its data in other files, it is refused
//     in the same way.
//   - Nothing is decrypted. A passphrase is not tried, so a wrong one is not noticed, and a secret
//     in a file is not read. compare ends at encrypted data as at an unreadable sector, with exit
//     code 4. Objects other than secrets are refused.
//   - A backing file that leads back into its own chain, and a chain of 1000 images or more, is
//     refused at once; qemu-img goes on until its open files or its memory are used up.
//   - FIFOs and character devices are never opened. qemu-img waits at a FIFO for ever.
//   - An image that another program writes to (-U) is read again until it is known which errors stay;
//     qemu-img reports what is only on its way. Leaks are not counted then, since what was
//     allocated a moment ago looks like one.
//   - Images of more than 2^31 clusters are checked; qemu-img refuses them ("File too large").
//   - Where qemu-img crashes (an image with an encryption method but no encryption header, under
//     info), there is a message and exit code 1.
//   - A result that cannot be written to standard output is an error, unless its reader went away.
//   - JSON text beyond the format: after a lexical error qemu goes on and may name another one.
package qemuimg
