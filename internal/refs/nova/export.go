// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nova

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// ExportSchema is the schema of an export, in its first line (doc/formats/nova-export.md).
const ExportSchema = "shisa.nova-export/1"

const (
	// MaxExportBytes bounds an export: a million instances take about 200 MiB.
	MaxExportBytes = 512 << 20
	// maxLine bounds a line: names in Nova's database have 255 characters at most.
	maxLine = 16 << 10
	// maxInstances bounds what is kept, and maxParts how many further images and disks that are made from nothing those
	// have.
	maxInstances = 1 << 20
	maxParts     = 1 << 22
	// maxSize bounds the size of a disk, in MiB or GiB.
	maxSize = 1 << 40
)

// ErrExport: an export is cut off, or is none, for errors.Is. It comes with the line.
var ErrExport = errors.New("is no whole export of Nova")

// Export is what Nova's database said at one time.
type Export struct {
	// Made is when, by the clock of the machine that asked; Of says which database.
	Made time.Time
	Of   string
	// Instances are in the order of the export, deleted ones too.
	Instances []Instance
}

// Instance is a machine as the database knows it.
type Instance struct {
	// UUID is in lower case.
	UUID string
	// Host is where it is, "" for nowhere; Image what it was made of, "" for a volume.
	Host, Image string
	Deleted     bool
	// Task is what Nova is doing with it, "" for nothing.
	Task string
	// Created is when it was made, zero where the export does not say.
	Created time.Time
	// Images are others that it needs: those of its kernel and first file system, and the one that its disk was put on.
	Images []string
	// EphemeralGiB and SwapMiB are the sizes of its disks that were made from nothing.
	EphemeralGiB, SwapMiB []int64
}

// ReadExport reads an export. What stands before the first line that is wrong comes with ErrExport: it is true
// all the same, and more may have stood behind it. Other errors are those of r.
func ReadExport(r io.Reader) (*Export, error) {
	return readExport(r, maxInstances, maxParts)
}

func readExport(r io.Reader, maxInstances, maxParts int) (*Export, error) {
	x := &reading{e: &Export{}, at: map[string]int{}, maxInstances: maxInstances, maxParts: maxParts}
	s := bufio.NewScanner(io.LimitReader(r, MaxExportBytes+1))
	s.Buffer(make([]byte, 0, 4096), maxLine)
	n, size := 0, 0
	for s.Scan() {
		n++
		size += len(s.Bytes()) + 1
		err := x.line(s.Bytes(), n == 1)
		if size > MaxExportBytes {
			err = fmt.Errorf("it has more than %d bytes", MaxExportBytes)
		}
		if err != nil && s.Err() != nil {
			break // what could not be read is why the line ends there
		}
		if err != nil {
			return x.e, fmt.Errorf("line %d: %w: %w", n, ErrExport, err)
		}
	}
	switch err := s.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return x.e, fmt.Errorf("line %d: %w: it is longer than %d bytes", n+1, ErrExport, maxLine)
	case err != nil:
		return x.e, err
	case !x.ended:
		return x.e, fmt.Errorf("line %d: %w: the line that ends it is missing", n+1, ErrExport)
	}
	return x.e, nil
}

// reading is an export that is being read.
type reading struct {
	e *Export
	// at finds instances by their UUID.
	at            map[string]int
	images, disks int
	ended         bool

	maxInstances, maxParts int
}

// line reads a line: a first one, instances, their images and disks, and one that ends it, told by their keys.
func (x *reading) line(text []byte, first bool) error {
	f, err := parseFields(text)
	switch {
	case err != nil:
		return err
	case first:
		return x.first(f)
	case x.ended:
		return errors.New("more stands behind the end")
	case f.has("uuid"):
		return x.instance(f)
	case f.has("image"):
		return x.image(f)
	case f.has("disk"):
		return x.disk(f)
	}
	return x.end(f)
}

func (x *reading) first(f *fields) error {
	schema, of, at := f.text("schema"), f.text("of"), f.text("made")
	made, err := time.Parse(time.RFC3339, at)
	switch wrong := f.done(); {
	case schema != ExportSchema && schema != "":
		return fmt.Errorf("its schema is %q, want %q", schema, ExportSchema)
	case wrong != nil:
		return wrong
	case err != nil:
		return fmt.Errorf("it was made %q: %w", at, err)
	}
	x.e.Made, x.e.Of = made.UTC(), of
	return nil
}

func (x *reading) instance(f *fields) error {
	i := Instance{UUID: strings.ToLower(f.text("uuid")), Host: f.orNull("host"), Image: f.orNull("image_ref"),
		Deleted: f.number("deleted") != 0, Task: f.orNull("task_state")}
	created := ""
	if f.has("created_at") {
		created = f.orNull("created_at")
	}
	var when error
	i.Created, when = databaseTime(created)
	switch err := f.done(); {
	case err != nil:
		return err
	case when != nil:
		return fmt.Errorf("it was created at %q: %w", created, when)
	case !isUUID(i.UUID):
		return fmt.Errorf("%q is no UUID", i.UUID)
	case len(x.e.Instances) == x.maxInstances:
		return fmt.Errorf("it has more than %d instances", x.maxInstances)
	}
	if _, ok := x.at[i.UUID]; ok {
		return fmt.Errorf("instance %s stands in it twice", i.UUID)
	}
	x.at[i.UUID] = len(x.e.Instances)
	x.e.Instances = append(x.e.Instances, i)
	return nil
}

// databaseTime reads a time as databases give it in JSON; Nova keeps them in UTC. "" is the zero time.
func databaseTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.DateTime, "2006-01-02T15:04:05", time.RFC3339} {
		if t, err := time.Parse(layout, text); err == nil && t.Year() > 0 && t.UTC().Year() < 10_000 { // no document tells more
			return t.UTC(), nil
		}
	}
	return time.Time{}, errors.New("is no time such as 2006-01-02 15:04:05")
}

// part finds the instance that a line is a part of.
func (x *reading) part(f *fields, what string) (*Instance, error) {
	of := strings.ToLower(f.text("instance"))
	if err := f.done(); err != nil {
		return nil, err
	}
	at, ok := x.at[of]
	switch {
	case !ok:
		return nil, fmt.Errorf("instance %q of the %s stands nowhere before it", of, what)
	case x.images+x.disks == x.maxParts:
		return nil, fmt.Errorf("it has more than %d images and disks", x.maxParts)
	}
	return &x.e.Instances[at], nil
}

func (x *reading) image(f *fields) error {
	image := f.text("image")
	i, err := x.part(f, "image")
	switch {
	case err != nil:
		return err
	case image == "":
		return errors.New("the image is none")
	}
	x.images++
	i.Images = append(i.Images, image)
	return nil
}

func (x *reading) disk(f *fields) error {
	kind, size := f.text("disk"), f.number("size")
	i, err := x.part(f, "disk")
	switch {
	case err != nil:
		return err
	case size < 1 || size > maxSize:
		return fmt.Errorf("the size of the disk is %d", size)
	}
	x.disks++
	switch kind {
	case "ephemeral":
		i.EphemeralGiB = append(i.EphemeralGiB, size)
	case "swap":
		i.SwapMiB = append(i.SwapMiB, size)
	default:
		return fmt.Errorf("the disk is %q, want ephemeral or swap", kind)
	}
	return nil
}

func (x *reading) end(f *fields) error {
	instances, images, disks := f.number("instances"), f.number("images"), f.number("disks")
	if err := f.done(); err != nil {
		return err
	}
	if instances != int64(len(x.e.Instances)) || images != int64(x.images) || disks != int64(x.disks) {
		return fmt.Errorf("of instances, images and disks the end tells of %d, %d and %d, and there are %d, %d and %d",
			instances, images, disks, len(x.e.Instances), x.images, x.disks)
	}
	x.ended = true
	return nil
}

// fields are those of one line. The first that is not as it should be is its err.
type fields struct {
	all map[string]any
	err error
}

// parseFields reads a line: an object with no other within it, and no key twice.
func parseFields(text []byte) (*fields, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it does not begin with {")
	}
	f := &fields{all: map[string]any{}}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, torn(err)
		}
		key, _ := t.(string)
		if _, twice := f.all[key]; twice {
			return nil, fmt.Errorf("the key %q stands in it twice", key)
		}
		if t, err = d.Token(); err != nil {
			return nil, torn(err)
		}
		if _, nested := t.(json.Delim); nested {
			return nil, fmt.Errorf("the value of %q is no text and no number", key)
		}
		f.all[key] = t
	}
	if _, err := d.Token(); err != nil {
		return nil, torn(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more stands behind the }")
	}
	return f, nil
}

func (f *fields) has(key string) bool { _, ok := f.all[key]; return ok }

// take gives the value of a key, and takes it away.
func (f *fields) take(key string) any {
	v, ok := f.all[key]
	if !ok && f.err == nil {
		f.err = fmt.Errorf("%q is missing", key)
	}
	delete(f.all, key)
	return v
}

// text is a value of at most 255 characters, none of which is a control character.
func (f *fields) text(key string) string {
	s, ok := f.take(key).(string)
	if f.err == nil && (!ok || utf8.RuneCountInString(s) > maxName || strings.ContainsFunc(s, unicode.IsControl)) {
		f.err = fmt.Errorf("%q is no text, or none of at most %d characters", key, maxName)
	}
	return s
}

// orNull is text, "" for null.
func (f *fields) orNull(key string) string {
	if v, ok := f.all[key]; ok && v == nil {
		delete(f.all, key)
		return ""
	}
	return f.text(key)
}

func (f *fields) number(key string) int64 {
	text, ok := f.take(key).(json.Number)
	n, err := strconv.ParseInt(string(text), 10, 64)
	if f.err == nil && (!ok || err != nil || n < 0) {
		f.err = fmt.Errorf("%q is no whole number", key)
	}
	return n
}

// done tells what was wrong, a key that nobody took too.
func (f *fields) done() error {
	if f.err != nil {
		return f.err
	}
	for _, key := range slices.Sorted(maps.Keys(f.all)) {
		return fmt.Errorf("the key %q is not known", key)
	}
	return nil
}

// isUUID tells whether s is a UUID in lower case.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range s {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !strings.ContainsRune("0123456789abcdef", c) {
			return false
		}
	}
	return true
}
