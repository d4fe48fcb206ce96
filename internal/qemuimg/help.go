// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

// imitated is the version of qemu-img whose behaviour this is. Scripts read it from the first line
// of --version.
const imitated = "7.2.22"

func (s *session) version() string {
	version := s.env.Version
	if version == "" {
		version = "unknown version"
	}
	return "qemu-img version " + imitated + " (shisa " + version + ", which has check, compare, info and map)\n" +
		"Copyright (c) the shisa authors\n"
}

func (s *session) help() int {
	s.printf("%s%s", s.version(), `usage: qemu-img [standard options] command [command options]
QEMU disk image utility, as far as it looks at images and repairs them

    '-h', '--help'       display this help and exit
    '-V', '--version'    output version information and exit
    '-T', '--trace'      accepted, there is nothing to trace

Command syntax:
  check [--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache] [-U] filename
  compare [--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2
  info [--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename
  map [--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] filename

Command parameters:
  'filename'   an image: a file name, json:{...}, or with --image-opts key=value,...
  'objectdef'  secret,id=ID,data=... or secret,id=ID,file=...; it is noted and nothing is decrypted
  'fmt'        the format of the image; without it the format is told by the content
  'ofmt'       human or json
  'src_cache'  none and directsync read past the page cache; writeback, writethrough and unsafe do not
  '-r'         repair leaks that are proved to be worthless, or all that can be repaired without loss;
               the old bytes are kept: "shisa undo" takes the repair back
  '-U'         look at the image although another program writes to it
  '-p'         show progress
  '-q'         print nothing but errors
  '-s'         compare sizes and allocation too

Supported formats: file host_device luks qcow2 raw
`)
	return codeOK
}
