// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package journaltest has systemd write journal files of every form, and reads what journalctl says
// of them. It is for tests and the comparison.
package journaltest

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Remote is systemd's program that writes journal files of entries in the export format.
const Remote = "/usr/lib/systemd/systemd-journal-remote"

// Form is how a journal file is written.
type Form struct {
	Name string
	// Compact: offsets of 4 bytes in lists. Keyed: siphash24 instead of Jenkins' hash.
	Compact, Keyed bool
	// Compress is zstd, lz4, xz or "" for none.
	Compress string
}

// Forms are all that systemd has written, in every compression.
func Forms() []Form {
	return []Form{
		{Name: "compact-zstd", Compact: true, Keyed: true, Compress: "zstd"},
		{Name: "regular-zstd", Keyed: true, Compress: "zstd"},
		{Name: "jenkins-xz", Compress: "xz"},
		{Name: "jenkins-lz4", Compress: "lz4"},
		{Name: "compact-lz4", Compact: true, Keyed: true, Compress: "lz4"},
		{Name: "compact-xz", Compact: true, Keyed: true, Compress: "xz"},
		{Name: "compact-plain", Compact: true, Keyed: true},
		{Name: "compact-jenkins", Compact: true, Compress: "zstd"},
	}
}

// flags are those of the header (JOURNAL_FILE_FORMAT.md, "Extensibility").
var flags = map[string]byte{"xz": 1 << 0, "lz4": 1 << 1, "zstd": 1 << 3}

//go:embed testdata/compress.c
var compress []byte

// Make has systemd write a journal file of a stream of entries in the export format.
//
// Up to version 252 systemd compresses as it was built to, and so the call of its compressor is led
// to the other one that it has; that needs gcc.
func Make(ctx context.Context, path string, f Form, stream io.Reader) error {
	cmd := exec.CommandContext(ctx, Remote, "--compress="+fmt.Sprint(f.Compress != ""),
		"--split-mode=none", "--output="+path, "-")
	bit := map[bool]string{false: "0", true: "1"}
	cmd.Env = append(os.Environ(), "SYSTEMD_JOURNAL_COMPACT="+bit[f.Compact],
		"SYSTEMD_JOURNAL_KEYED_HASH="+bit[f.Keyed])
	if f.Compress == "xz" || f.Compress == "lz4" {
		library, err := compressor(ctx, filepath.Dir(path), f.Compress)
		if err != nil {
			return err
		}
		defer os.Remove(library)
		cmd.Env = append(cmd.Env, "LD_PRELOAD="+library)
	}
	cmd.Stdin = stream
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(out))
	}
	return declare(path, f)
}

// compressor builds the library that leads the call to another compressor.
func compressor(ctx context.Context, dir, name string) (string, error) {
	library := filepath.Join(dir, "compress-"+name+".so")
	cmd := exec.CommandContext(ctx, "gcc", "-shared", "-fPIC", "-O", "-DTO=compress_blob_"+name,
		"-x", "c", "-o", library, "-")
	cmd.Stdin = bytes.NewReader(compress)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(out))
	}
	return library, nil
}

// declare sets the flag of the compression in the header, as a systemd does that chose it itself.
func declare(path string, f Form) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	const at = 12 // incompatible_flags
	var b [4]byte
	if _, err := file.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] = b[0]&^(flags["zstd"]|flags["xz"]|flags["lz4"]) | flags[f.Compress]
	_, err = file.WriteAt(b[:1], at)
	return err
}

// Journalctl gives all entries of files in the export format, as journalctl does.
func Journalctl(ctx context.Context, out io.Writer, paths ...string) error {
	args := []string{"--quiet", "--no-pager", "--output=export"}
	for _, p := range paths {
		args = append(args, "--file="+p)
	}
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "journalctl", args...)
	cmd.Stdout, cmd.Stderr = out, &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(errs.Bytes()))
	}
	return nil
}

// put writes one field in the export format: as text where it is text, or else with its length.
func put(b *bytes.Buffer, name string, value []byte) {
	if isText(value) {
		fmt.Fprintf(b, "%s=%s\n", name, value)
		return
	}
	size := binary.LittleEndian.AppendUint64(nil, uint64(len(value)))
	fmt.Fprintf(b, "%s\n%s%s\n", name, size, value)
}

func isText(value []byte) bool {
	return !strings.ContainsFunc(string(value), func(r rune) bool { return r < ' ' || r > '~' })
}
