// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package logs

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/klog"
)

// maxDeep is how many directories one below the other are looked into, of logs that were collected.
const maxDeep = 12

// collected finds all files of a directory of logs: the journals, or the others.
func (r *reader) collected(journals bool) []file {
	all := r.gather(nil, "/", maxDeep, journals)
	if len(all) > maxFiles {
		if !journals {
			r.gap("/", "more than %d logs: the others were not looked at", maxFiles)
		}
		all = all[:maxFiles]
	}
	slices.SortStableFunc(all, func(a, b file) int {
		return cmp.Or(strings.Compare(a.series, b.series), -a.mtime.Compare(b.mtime), strings.Compare(a.path, b.path))
	})
	return all
}

// gather finds files in a directory and those in it.
func (r *reader) gather(all []file, dir string, depth int, journals bool) []file {
	for _, e := range r.list(dir) {
		if len(all) > maxFiles {
			return all
		}
		name := path.Join(dir, e.Name)
		journal := strings.HasSuffix(e.Name, ".journal") || strings.HasSuffix(e.Name, ".journal~")
		switch {
		case e.Type.IsDir() && depth > 0:
			all = r.gather(all, name, depth-1, journals)
		case e.Type.IsDir() && !journals:
			r.gap(name, "more than %d directories one below the other: not looked into", maxDeep)
		case e.Type&fs.ModeSymlink != 0 && !journals:
			r.elsewhere(name)
		case !regular(e) || journal != journals:
		case journal:
			all = append(all, file{path: name, size: e.Size, mtime: e.Mtime, series: dir})
		default:
			all = append(all, file{name, e.Size, e.Mtime, anyKind, rotation.ReplaceAllString(name, "")})
		}
	}
	return all
}

// elsewhere tells of a link that leads out of the directory. The target of any other is a name of its own.
func (r *reader) elsewhere(name string) {
	to, err := r.t.Link(r.ctx, name)
	inside := path.Join(strings.TrimPrefix(path.Dir(name), "/"), to)
	switch {
	case err != nil:
		r.missedFile(name, err)
	case path.IsAbs(to), inside == "..", strings.HasPrefix(inside, "../"):
		r.gap(name, "is a link that leads elsewhere: not read")
	}
}

// nodeOf is the machine whose log it is, by the first directory; "" where there is none.
func nodeOf(name string) string {
	node, _, below := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	if !below {
		return ""
	}
	return node
}

// errArchive: it has files of its own.
var errArchive = errors.New("is an archive, or packed in a way that is not read: unpack it")

// noArchive tells of what holds logs that are not read.
func (t *text) noArchive(in io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(in, maxLine)
	head, err := b.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	for _, magic := range []string{"PK\x03\x04", "7z\xbc\xaf\x27\x1c", "\x04\x22\x4d\x18", "\x1f\x9d"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return nil, errArchive
		}
	}
	if len(head) >= 262 && string(head[257:262]) == "ustar" {
		return nil, errArchive
	}
	if section, ok := in.(*io.SectionReader); ok {
		_, err := section.Seek(0, io.SeekStart)
		return section, err
	}
	return b, nil
}

// unwrapped takes a line out of what Docker (json-file) writes around it.
func unwrapped(line string) string {
	if !strings.HasPrefix(line, `{"log":"`) {
		return line
	}
	var v struct {
		Log string `json:"log"`
	}
	if json.Unmarshal([]byte(line), &v) != nil {
		return line
	}
	return strings.TrimRight(v.Log, "\r\n")
}

// anySaid reads what follows the time in a line of a log of any kind: of a syslog daemon, or of OpenStack itself,
// perhaps with what a runtime of containers puts before it:
//
//	INFO nova.virt.libvirt.imagecache [-] text              2012
//	456 INFO nova.virt.libvirt.imagecache [req-1 - -] text
//	stdout F 2026-11-22 09:00:00.123 456 INFO nova.virt.libvirt.imagecache [-] text
func anySaid(rest string, version bool) (said, bool) {
	var s said
	ok := false
	if version {
		s, ok = parse5424(rest)
	} else {
		s, ok = parseSaid(rest)
	}
	if !oslo(rest) {
		return s, ok
	}
	number := strings.Trim(s.host, "0123456789") == ""
	if ok && !version && (number || s.host == "stdout" || s.host == "stderr" || isLevel(s.host)) {
		s.host = ""
	}
	if !strings.HasPrefix(s.program, "nova") || strings.HasPrefix(s.program, "nova.") {
		s.program = "nova"
	}
	s.text = novaText(rest)
	return s, true
}

// oslo tells of a line with a module of Nova behind the level.
func oslo(s string) bool {
	before, _, ok := strings.Cut(s, " nova.")
	if !ok {
		return false
	}
	return isLevel(before[strings.LastIndexByte(before, ' ')+1:])
}

func isLevel(s string) bool {
	switch s {
	case "DEBUG", "INFO", "AUDIT", "WARNING", "WARN", "ERROR", "CRITICAL", "TRACE":
		return true
	}
	return false
}

// untimed tells of a line that is wanted and has no time.
func (t *text) untimed(line string) {
	if t.o.Want == nil || t.damage != "" || t.settled {
		return
	}
	m := Message{Program: "nova", Text: novaText(line)}
	if m.match(t.matcher) && t.o.Want(&m) {
		t.damage = "line " + strconv.Itoa(t.lines) + " tells of it without a time"
	}
}

// want keeps a message that is wanted, unless another log had it.
func (r *reader) want(log string, m Message) {
	if r.o.Collected && m.Host == "" {
		m.Host = nodeOf(m.Path)
	}
	if !r.o.Want(&m) || r.seen.twice(log, r.hostOf(&m), &m) {
		return
	}
	if len(r.log.Messages) >= maxMessages || r.bytes >= maxBytes {
		if r.crowd == nil {
			r.crowd = map[*klog.Form]int{}
			r.gap("", "more than %d messages: the others were left out", len(r.log.Messages))
		}
		return
	}
	m.Count, m.Last = 1, m.Time
	r.bytes += m.bytes()
	r.log.Messages = append(r.log.Messages, m)
}

// wanted gives what was kept, in the order of time.
func (r *reader) wanted() *Log {
	slices.SortStableFunc(r.log.Messages, func(a, b Message) int { return a.Time.Compare(b.Time) })
	r.place()
	return &r.log
}
