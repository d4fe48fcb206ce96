// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package nova

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	one = "11111111-1111-4111-8111-111111111111"
	two = "22222222-2222-4222-8222-222222222222"
	// What sha1sum says of "img-1", "img-2", "img-3" and "".
	sum1 = "3c9875d4ce035043f843d25f28119ae501bdd661"
	sum2 = "38ffb2cd8ebbe1e95b2efca95c5f0dd876b29ad0"
	sum3 = "6dbad0857b67115e65b9c42db0f0b405f542e23f"
	sum0 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
)

const good = `{"schema": "shisa.nova-export/1", "made": "2026-03-01T04:00:00Z", "of": "nova on db1"}
{"uuid": "` + one + `", "host": "nodeA", "image_ref": "img-1", "deleted": 0, "task_state": null}
{"uuid": "` + two + `", "host": null, "image_ref": "", "deleted": 17, "task_state": "rebuilding"}
{"instance": "` + one + `", "image": "img-3"}
{"instance": "` + one + `", "disk": "ephemeral", "size": 1}
{"instance": "` + one + `", "disk": "ephemeral", "size": 2}
{"instance": "` + one + `", "disk": "swap", "size": 512}
{"instances": 2, "images": 1, "disks": 3}
`

func TestReadExport(t *testing.T) {
	e, err := ReadExport(strings.NewReader(good))
	want := &Export{Made: time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC), Of: "nova on db1", Instances: []Instance{
		{UUID: one, Host: "nodeA", Image: "img-1", Images: []string{"img-3"}, EphemeralGiB: []int64{1, 2}, SwapMiB: []int64{512}},
		{UUID: two, Deleted: true, Task: "rebuilding"},
	}}
	if d := cmp.Diff(want, e); d != "" || err != nil {
		t.Errorf("ReadExport (-want +got): %v\n%s", err, d)
	}
}

// TestCreated: when a machine was made may be left out, and is written as databases do.
func TestCreated(t *testing.T) {
	at := time.Date(2026, 2, 1, 10, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		`null`: {}, `""`: {}, `"2026-02-01 10:00:00"`: at, `"2026-02-01 10:00:00.000000"`: at, `"2026-02-01T10:00:00"`: at,
		`"2026-02-01T10:00:00.5"`: at.Add(time.Second / 2), `"2026-02-01T12:00:00+02:00"`: at,
	} {
		e, err := ReadExport(strings.NewReader(strings.Replace(good, `"task_state": null`, `"task_state": null, "created_at": `+text, 1)))
		if err != nil || !e.Instances[0].Created.Equal(want) || e.Instances[0].Created.Location() != time.UTC {
			t.Errorf("created at %s: %v, %v, want %v", text, e.Instances[0].Created, err, want)
		}
	}
	for _, text := range []string{`"yesterday"`, `"0000-00-00 00:00:00"`, `5`, `"9999-12-31T23:59:59-01:00"`} {
		e, err := ReadExport(strings.NewReader(strings.Replace(good, `"task_state": null`, `"task_state": null, "created_at": `+text, 1)))
		if !errors.Is(err, ErrExport) || len(e.Instances) != 0 {
			t.Errorf("created at %s: %+v, %v, want %v", text, e, err, ErrExport)
		}
	}
}

// TestReadExportWrong: what is not as it should be is told with its line, and what stands before it is kept.
func TestReadExportWrong(t *testing.T) {
	for _, c := range []struct {
		name, old, new string
		want           string
		instances      int
	}{
		{"nothing", good, "", "line 1: is no whole export of Nova: the line that ends it is missing", 0},
		{"no end", `{"instances": 2, "images": 1, "disks": 3}` + "\n", "", "line 8: is no whole export of Nova: the line that ends it is missing", 2},
		{"cut off", `, "disks": 3}` + "\n", "", "line 8: is no whole export of Nova: it is cut off", 2},
		{"a line lost", `{"instance": "` + one + `", "disk": "swap", "size": 512}` + "\n", "", "tells of 2, 1 and 3, and there are 2, 1 and 2", 2},
		{"more behind it", "3}\n", "3}\n{\"instances\": 2, \"images\": 1, \"disks\": 3}\n", "more stands behind the end", 2},
		{"an empty line", "3}\n", "3}\n\n", "line 9:", 2},
		{"two on a line", "3}\n", "3}{}\n", "more stands behind the }", 2},
		{"later schema", "export/1", "export/2", `its schema is "shisa.nova-export/2"`, 0},
		{"no time", "2026-03-01T", "yesterday ", "line 1:", 0},
		{"no schema", `"schema": "shisa.nova-export/1", `, "", `"schema" is missing`, 0},
		{"unknown key", `"of"`, `"from"`, `"of" is missing`, 0},
		{"one key more", `"deleted": 0`, `"deleted": 0, "host_": ""`, `line 2: is no whole export of Nova: the key "host_" is not known`, 0},
		{"a key twice", `"host": "nodeA"`, `"host": "nodeA", "host": "nodeB"`, `the key "host" stands in it twice`, 0},
		{"a key in other letters", `"host": "nodeA"`, `"Host": "nodeA"`, `"host" is missing`, 0},
		{"a key missing", `, "deleted": 0`, "", `"deleted" is missing`, 0},
		{"deleted in words", `"deleted": 0`, `"deleted": "false"`, `"deleted" is no whole number`, 0},
		{"deleted by half", `"deleted": 0`, `"deleted": 0.5`, `"deleted" is no whole number`, 0},
		{"a host as number", `"host": "nodeA"`, `"host": 5`, `"host" is no text`, 0},
		{"a list", `"host": "nodeA"`, `"host": ["nodeA"]`, `the value of "host" is no text`, 0},
		{"no UUID", `"uuid": "` + one, `"uuid": "../` + one, "is no UUID", 0},
		{"the same twice", two, one, "stands in it twice", 1},
		{"a disk of nobody", `"instance": "` + one, `"instance": "` + strings.Repeat("3", 36), "stands nowhere before it", 2},
		{"an image of nobody", `"` + one + `", "image"`, `"` + strings.Repeat("3", 36) + `", "image"`, "of the image stands nowhere before it", 2},
		{"an image that is none", `"img-3"`, `""`, "the image is none", 2},
		{"an image lost", `"images": 1`, `"images": 2`, "tells of 2, 2 and 3", 2},
		{"no count of images", `"images": 1, `, "", `"images" is missing`, 2},
		{"a disk of another kind", `"swap"`, `"volume"`, `the disk is "volume"`, 2},
		{"a disk of no size", `"size": 512`, `"size": 0`, "the size of the disk is 0", 2},
		{"a huge disk", `"size": 512`, `"size": 99999999999999`, "the size of the disk is 99999999999999", 2},
		{"a number too large", `"size": 512`, `"size": 1e30`, `"size" is no whole number`, 2},
		{"a negative count", `"disks": 3`, `"disks": -3`, `"disks" is no whole number`, 2},
		{"not UTF-8", "nodeA", "node\xff", "it is not UTF-8", 0},
		{"a line in a name", "nodeA", `node\nA`, `"host" is no text`, 0},
		{"a name too long", "nodeA", strings.Repeat("é", 256), `"host" is no text`, 0},
		{"a line too long", "nodeA", strings.Repeat("n", maxLine), "line 2: is no whole export of Nova: it is longer", 0},
		{"a table", `{"uuid": "` + one, `one | ` + one, "line 2: is no whole export of Nova: it does not begin with {", 0},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Fatalf("%s: %q is not there", c.name, c.old)
		}
		e, err := ReadExport(strings.NewReader(text))
		if err == nil || !errors.Is(err, ErrExport) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: ReadExport: %v, want %q", c.name, err, c.want)
		}
		if len(e.Instances) != c.instances {
			t.Errorf("%s: ReadExport = %d instances, want %d", c.name, len(e.Instances), c.instances)
		}
	}
	broken := errors.New("the disk is broken")
	r := iotest.TimeoutReader(strings.NewReader(good))
	if _, err := ReadExport(iotest.OneByteReader(r)); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("ReadExport of what cannot be read: %v, want its error", err)
	}
	if _, err := ReadExport(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("ReadExport of what cannot be read: %v, want its error", err)
	}
}

// TestReadExportBounds: more than is kept is told.
func TestReadExportBounds(t *testing.T) {
	for _, c := range []struct {
		instances, parts int
		want             string
	}{{2, 4, ""}, {1, 4, "more than 1 instances"}, {2, 3, "more than 3 images and disks"}} {
		e, err := readExport(strings.NewReader(good), c.instances, c.parts)
		ok := err == nil
		if ok != (c.want == "") || !ok && (!errors.Is(err, ErrExport) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("ReadExport with room for %d and %d: %v, want %q", c.instances, c.parts, err, c.want)
		}
		if len(e.Instances) > c.instances {
			t.Errorf("ReadExport with room for %d = %d instances", c.instances, len(e.Instances))
		}
	}
}

// TestUsers: each base is for the instances whose image, or size of disk, its name tells of.
func TestUsers(t *testing.T) {
	e, err := ReadExport(strings.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	e.Instances = append(e.Instances, Instance{UUID: two, Image: "img-2", EphemeralGiB: []int64{2, 2}})
	u := e.Users()
	for _, c := range []struct{ base, want string }{
		{sum1, one},
		{sum1 + "_10737418240", one},
		{sum1 + "_sm", one},
		{sum2, two},
		{sum3, one},
		{sum3 + "_sm", one},
		{sum0, ""},
		{sum1 + ".part", ""},
		{"ephemeral_1_40d1d2c", one},
		{"ephemeral_2_default", one + " " + two},
		{"ephemeral_0_2_None", one + " " + two},
		{"ephemeral_20_default", ""},
		{"ephemeral_1", one},
		{"ephemeral", ""},
		{"swap_512", one},
		{"swap_512_x", ""},
		{"swap", ""},
		{"", ""},
	} {
		var got []string
		for _, i := range u.Of(c.base) {
			got = append(got, i.UUID)
		}
		if image := e.Instances[0].ImageOf(c.base); (image == "img-3") != strings.HasPrefix(c.base, sum3) {
			t.Errorf("ImageOf(%q) = %s", c.base, image)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("Of(%q) = %v, want %q", c.base, got, c.want)
		}
	}
}

// FuzzExport: no text makes an export that cannot be, one that is cut off before its last line is never whole, and the
// bases of an instance are found by the names that it gives them.
func FuzzExport(f *testing.F) {
	f.Add(good, 100)
	f.Add(strings.Replace(good, "nodeA", "../a/b", 1), 0)
	f.Add(strings.Replace(good, "3}", "3e0}", 1), 7)
	f.Add("{}\n{}\n", 1)
	f.Fuzz(func(t *testing.T, text string, cut int) {
		e, err := ReadExport(strings.NewReader(text))
		u := e.Users()
		for i := range e.Instances {
			n := &e.Instances[i]
			if !isUUID(n.UUID) || strings.ContainsAny(n.Host+n.Image+n.Task, "\n\x00") {
				t.Fatalf("ReadExport(%q) has %+v", text, n)
			}
			for _, size := range n.SwapMiB {
				found := slices.Contains(u.Of("swap_"+strconv.FormatInt(size, 10)), n)
				if size <= 0 || found == n.Deleted {
					t.Fatalf("ReadExport(%q): swap of %d MiB of %+v is found: %v", text, size, n, found)
				}
			}
		}
		text = strings.TrimRight(text, " \t\r\n")
		if err != nil || len(text) == 0 {
			return
		}
		text = text[:(cut%len(text)+len(text))%len(text)]
		if _, err := ReadExport(strings.NewReader(text)); !errors.Is(err, ErrExport) {
			t.Errorf("ReadExport(%q), which is cut off: %v, want ErrExport", text, err)
		}
	})
}
