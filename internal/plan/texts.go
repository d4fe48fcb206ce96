// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// TextsSchema is what the JSON document of a plan for text files begins with.
const TextsSchema = "shisa.text-plan/1"

const (
	// MaxTextBytes bounds one text file: settings of the system are far smaller.
	MaxTextBytes = 1 << 20
	// MaxTexts bounds the files of one plan: all of them stand in its receipt, twice.
	MaxTexts = 64
	// MaxTextName bounds the last part of a path, so that a file beside it can be named after it.
	MaxTextName = 200
	// maxTold bounds the commands that a plan tells of, maxLine each line of words.
	maxTold, maxLine = 64, 4096
)

// Texts is a change of small text files of the system: settings, not data.
type Texts struct {
	Schema string `json:"schema"`
	// Status are the exit statuses that apply to making the plan, the first one first.
	Status []int `json:"status"`
	// ID names the plan and its receipt: 32 hexadecimal digits.
	ID string `json:"id"`
	// SHA256 is the Digest of a plan that was saved, "" before that.
	SHA256  string    `json:"sha256"`
	Created time.Time `json:"created"`
	// Tool is the program and version that made the plan.
	Tool string `json:"tool"`
	// Why says in one sentence what the change is for.
	Why string `json:"why"`
	// Files are put in place in this order, and taken back in the opposite one.
	Files []Text `json:"files"`
	// Live are settings of the running kernel that are made when the files are in place, and taken back
	// before them.
	Live []Live `json:"live,omitempty"`
	// Costs are what the change costs, each in a sentence.
	Costs []string `json:"costs,omitempty"`
	// Then are commands that put the files into force. They are told, and never run.
	Then []Told `json:"then"`
}

// Live is a setting of the running kernel. It is gone when the machine starts again: a file of the plan is
// what makes it stay.
type Live struct {
	// Path is the file of sysfs, without symbolic links, What it is in words.
	Path string `json:"path"`
	What string `json:"what"`
	// Before is the value that is there, Value the one that takes its place.
	Before string `json:"before"`
	Value  string `json:"value"`
}

// Same reports whether the setting is already as it should be.
func (l *Live) Same() bool { return l.Before == l.Value }

// liveSettings are the settings that a plan may change, by the ends of their paths: the timeouts of SCSI disks and
// of the queues of others.
func liveSettings() []string { return []string{"/timeout", "/queue/io_timeout"} }

func (l *Live) validate() error {
	known := slices.ContainsFunc(liveSettings(), func(end string) bool { return strings.HasSuffix(l.Path, end) })
	switch {
	case !line(l.Path) || len(l.Path) > maxPathBytes || !strings.HasPrefix(l.Path, "/sys/devices/") || !known ||
		l.Path != filepath.Clean(l.Path):
		return fmt.Errorf("%.80q is no setting of the kernel that plans change", l.Path)
	case !line(l.What):
		return errors.New("it does not say in a line what it sets")
	}
	for _, v := range []string{l.Before, l.Value} {
		if v == "" || len(v) > 20 || strings.Trim(v, "0123456789") != "" {
			return fmt.Errorf("its value is %.40q, want a number", v)
		}
	}
	return nil
}

// Text is one file and what becomes of it.
type Text struct {
	// Path is absolute and without symbolic links. Directories that are missing are made.
	Path string `json:"path"`
	// Before is what is there; nil where nothing is.
	Before *TextState `json:"before"`
	// Mode is that of the new file; LinkMode of a link, "" where none takes its place.
	Mode Mode `json:"mode"`
	// Content is all that the new file holds, in UTF-8: of a link where it leads to.
	Content string `json:"content"`
	// Link: a symbolic link is put there. Gone: what is there is taken away. Without one of them no
	// symbolic link is touched.
	Link bool `json:"link,omitempty"`
	Gone bool `json:"gone,omitempty"`
}

// LinkMode is the mode of all symbolic links.
const LinkMode = "0777"

// TextState tells a file of one content from any other.
type TextState struct {
	// SHA256 is the digest of its content, of a link that of where it leads to.
	SHA256 string `json:"sha256"`
	Mode   Mode   `json:"mode"`
	Link   bool   `json:"link,omitempty"`
}

// Of reports whether it is the state of what holds content.
func (s *TextState) Of(content []byte) bool {
	is := StateOf(content, s.Mode)
	return is.SHA256 == s.SHA256
}

// Told is a command line for people, and what it does.
type Told struct {
	Command string `json:"command"`
	Why     string `json:"why"`
}

// Mode are the permissions of a file, in four octal digits, as "0644".
type Mode string

// ModeOf gives the permissions in m.
func ModeOf(m fs.FileMode) Mode { return Mode(fmt.Sprintf("%04o", m.Perm())) }

// Perm gives the permissions, 0 for what is no mode.
func (m Mode) Perm() fs.FileMode {
	n, err := strconv.ParseUint(string(m), 8, 9)
	if err != nil || ModeOf(fs.FileMode(n)) != m {
		return 0
	}
	return fs.FileMode(n)
}

// StateOf is the state of a file that holds content.
func StateOf(content []byte, mode Mode) TextState {
	sum := sha256.Sum256(content)
	return TextState{SHA256: hex.EncodeToString(sum[:]), Mode: mode}
}

// LinkState is the state of a symbolic link.
func LinkState(to string) TextState {
	s := StateOf([]byte(to), LinkMode)
	s.Link = true
	return s
}

// After is the state of the file when it was put in place, nil where it was taken away.
func (t *Text) After() *TextState {
	s := StateOf([]byte(t.Content), t.Mode)
	switch {
	case t.Gone:
		return nil
	case t.Link:
		s = LinkState(t.Content)
	}
	return &s
}

// Links reports whether a symbolic link may be where the file is, or will be: of others it is not known
// what they are for.
func (t *Text) Links() bool { return t.Link || t.Gone || t.Before != nil && t.Before.Link }

// Same reports whether the file is already as it should be.
func (t *Text) Same() bool {
	after := t.After()
	return t.Before == nil && after == nil || t.Before != nil && after != nil && *t.Before == *after
}

// Empty reports whether the plan changes nothing.
func (p *Texts) Empty() bool {
	for i := range p.Files {
		if !p.Files[i].Same() {
			return false
		}
	}
	for i := range p.Live {
		if !p.Live[i].Same() {
			return false
		}
	}
	return true
}

// Digest is the SHA-256 of all that the plan says, in hexadecimal, whatever the layout of its document.
func (p *Texts) Digest() (string, error) {
	q := *p
	q.SHA256 = ""
	raw, err := json.Marshal(&q)
	if err != nil {
		return "", fmt.Errorf("digest of the plan: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}

// Seal makes the plan one that can be saved: what is changed in it from now on will show.
func (p *Texts) Seal() error {
	p.tidy()
	sum, err := p.Digest()
	p.SHA256 = sum
	return err
}

// tidy gives the plan the form that it has when its document is read back.
func (p *Texts) tidy() {
	p.Created = p.Created.UTC().Truncate(time.Second)
	if p.Status == nil {
		p.Status = []int{}
	}
	if p.Then == nil {
		p.Then = []Told{}
	}
}

// ReadTexts reads the document of a plan for text files. The errors are ErrNotPlan, ErrNewer and
// ErrEdited.
func ReadTexts(r io.Reader) (*Texts, error) {
	raw, name, err := readHead(r)
	if err != nil {
		return nil, err
	}
	return decodeTexts(raw, name)
}

// ReadAny reads the document of a plan of either kind; the other one is nil. The errors are those of
// Read and ReadTexts.
func ReadAny(r io.Reader) (*Plan, *Texts, error) {
	raw, head, err := readHead(r)
	switch {
	case err != nil:
		return nil, nil, err
	case strings.HasPrefix(head, "shisa.text-plan/"):
		t, err := decodeTexts(raw, head)
		return nil, t, err
	}
	p, err := decodePlan(raw, head)
	return p, nil, err
}

func decodeTexts(raw []byte, head string) (*Texts, error) {
	if err := knows(head, TextsSchema); err != nil {
		return nil, err
	}
	p := new(Texts)
	if err := decodeStrict(raw, p); err != nil {
		return nil, err
	}
	p.tidy()
	sum, err := p.Digest()
	if err != nil {
		return nil, err
	}
	if sum != p.SHA256 {
		return nil, fmt.Errorf("%w: its SHA-256 is %s, and it says %.64q", ErrEdited, sum, p.SHA256)
	}
	return p, p.Validate()
}

// Validate checks the rules that carrying out a plan relies on. Its error is ErrNotPlan.
func (p *Texts) Validate() error {
	if id, err := hex.DecodeString(p.ID); err != nil || len(id) != 16 || p.ID != strings.ToLower(p.ID) {
		return fmt.Errorf("%w: its name is %.40q, want 32 hexadecimal digits", ErrNotPlan, p.ID)
	}
	if len(p.Files) == 0 || len(p.Files) > MaxTexts || len(p.Then) > maxTold {
		return fmt.Errorf("%w: it has %d files and %d commands, at least 1 and at most %d of the first",
			ErrNotPlan, len(p.Files), len(p.Then), MaxTexts)
	}
	if !line(p.Why) {
		return fmt.Errorf("%w: it does not say in a line what it is for", ErrNotPlan)
	}
	for _, t := range p.Then {
		if !line(t.Command) || !line(t.Why) {
			return fmt.Errorf("%w: the command %.80q is no line", ErrNotPlan, t.Command)
		}
	}
	if len(p.Live) > MaxTexts || len(p.Costs) > maxTold {
		return fmt.Errorf("%w: it has %d settings and %d costs, at most %d and %d", ErrNotPlan, len(p.Live), len(p.Costs),
			MaxTexts, maxTold)
	}
	for _, c := range p.Costs {
		if !line(c) {
			return fmt.Errorf("%w: the cost %.80q is no line", ErrNotPlan, c)
		}
	}
	for i := range p.Live {
		if err := p.Live[i].validate(); err != nil {
			return fmt.Errorf("%w: setting %d: %w", ErrNotPlan, i, err)
		}
		for j := range i {
			if p.Live[i].Path == p.Live[j].Path {
				return fmt.Errorf("%w: it sets %.80q twice", ErrNotPlan, p.Live[i].Path)
			}
		}
	}
	for i := range p.Files {
		if err := p.Files[i].validate(); err != nil {
			return fmt.Errorf("%w: file %d: %w", ErrNotPlan, i, err)
		}
		for j := range p.Files {
			a, b := p.Files[i].Path, p.Files[j].Path
			if i != j && (a == b || strings.HasPrefix(b, a+"/")) {
				return fmt.Errorf("%w: %.80q is the place of another of its files", ErrNotPlan, a)
			}
		}
	}
	return nil
}

// line reports whether s is one line of words.
func line(s string) bool {
	return s != "" && len(s) <= maxLine && utf8.ValidString(s) && !strings.ContainsAny(s, "\n\r\x00")
}

func (t *Text) validate() error {
	switch {
	case !line(t.Path) || len(t.Path) > maxPathBytes || !strings.HasPrefix(t.Path, "/") ||
		t.Path != filepath.Clean(t.Path) || t.Path == "/" || len(filepath.Base(t.Path)) > MaxTextName:
		return fmt.Errorf("its path %.80q is not one that is written to", t.Path)
	case t.Link && t.Gone:
		return errors.New("it is put there and taken away at once")
	case t.Gone && (t.Mode != "" || t.Content != ""):
		return errors.New("it is taken away, and holds something afterwards")
	case t.Link && (t.Mode != LinkMode || !line(t.Content) || len(t.Content) >= maxPathBytes):
		return fmt.Errorf("it is a symbolic link with the mode %.20q that leads to %.80q", t.Mode, t.Content)
	case !t.Link && !t.Gone && (t.Mode.Perm()&^0o755 != 0 || t.Mode.Perm()&0o400 == 0):
		// What others may write is no setting of the administrator any more.
		return fmt.Errorf("its mode is %.20q, want at most 0755", t.Mode)
	case len(t.Content) > MaxTextBytes:
		return fmt.Errorf("%d bytes, at most %d", len(t.Content), MaxTextBytes)
	case !utf8.ValidString(t.Content) || strings.ContainsRune(t.Content, 0):
		return errors.New("it is no text in UTF-8")
	case t.Before == nil:
		return nil
	case t.Before.Link && (t.Before.Mode != LinkMode || !t.Link && !t.Gone):
		return fmt.Errorf("a symbolic link with the mode %.20q is replaced by a file", t.Before.Mode)
	case ModeOf(t.Before.Mode.Perm()) != t.Before.Mode:
		return fmt.Errorf("its mode was %.20q", t.Before.Mode)
	}
	if sum, err := hex.DecodeString(t.Before.SHA256); err != nil || len(sum) != sha256.Size {
		return fmt.Errorf("its digest was %.80q", t.Before.SHA256)
	}
	return nil
}
