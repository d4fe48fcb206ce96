// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hypervisor

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// libvirt keeps pools and domains as XML (https://libvirt.org/formatstorage.html, formatdomain.html
// and formatsnapshot.html), the configured ones below /etc/libvirt:
//
//	storage/NAME.xml               qemu/NAME.xml
//	storage/autostart/NAME.xml     qemu/autostart/NAME.xml     links to these
//	lxc/NAME.xml, libxl/NAME.xml, ch/NAME.xml                  the same for containers, Xen and Cloud Hypervisor
//
// and what runs, which may be known nowhere else, in a document around it below /run/libvirt:
//
//	storage/NAME.xml               qemu/NAME.xml, lxc/NAME.xml ...
const (
	// maxXMLDepth bounds nesting; a backing chain is nested by one level for each image.
	maxXMLDepth = 2000
	// maxXMLDisks bounds the files that one document names.
	maxXMLDisks = 1 << 16
	// maxNameBytes bounds a name or path.
	maxNameBytes = 4096
)

// pool is a storage pool.
type pool struct {
	kind   string // "dir", "fs", "netfs", "logical", ...
	name   string
	target string // path on this host
}

// Domain is a virtual machine of libvirt.
type Domain struct {
	Name, UUID string
	// State is what it does ("running", "paused", "shutoff"), Reason why ("ioerror"), PID the process
	// that runs it; only a document about what runs tells.
	State, Reason string
	PID           int
	// Created is when the snapshot or checkpoint was made that the document is of, zero for another one or where it
	// does not say.
	Created time.Time
	Disks   []DomainDisk
	// Files are all other absolute paths that it names, whatever for: a kernel and its first file system, tables, firmware,
	// what QEMU is given as it stands. Some are no files, or are not there. Parts are texts in the latter that may be paths, and are
	// none unless something is there.
	Files, Parts []string
}

// DomainDisk is one file of a domain: a disk or what a disk rests on.
type DomainDisk struct {
	Target  string // as the guest calls it, "vda"
	Device  string // "disk", "cdrom", "floppy", "lun"; "nvram" for the firmware's variables
	Backing bool   // named as something that the disk rests on
	// ReadOnly and Shared are as configured.
	ReadOnly, Shared bool
	Path             string // a file or block device of this host
	Pool             string // with Volume, instead of Path
	Volume           string
	Protocol         string // of a disk on the network, with its name in Path
	Format           string // what QEMU takes it for, "" where the document does not say
}

// handler is told of what a document holds, each time with the names of the elements around it,
// the innermost last.
type handler struct {
	start func(path []string, e xml.StartElement) error
	text  func(path []string, s string)
	end   func(path []string) error
}

// nodes reads a document. An error leaves what was told until then.
func nodes(text []byte, h handler) error {
	d := xml.NewDecoder(bytes.NewReader(text))
	var path []string
	for {
		t, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			if len(path) > 0 {
				return fmt.Errorf("the XML ends inside <%s>", path[len(path)-1])
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("is no XML: %w", err)
		}
		switch t := t.(type) {
		case xml.StartElement:
			if len(path) == maxXMLDepth {
				return fmt.Errorf("the XML is nested more than %d deep", maxXMLDepth)
			}
			path = append(path, t.Name.Local)
			if err := h.start(path, t); err != nil {
				return err
			}
		case xml.EndElement:
			if len(path) == 0 || path[len(path)-1] != t.Name.Local {
				return fmt.Errorf("is no XML: </%s> without its beginning", t.Name.Local)
			}
			if err := h.end(path); err != nil {
				return err
			}
			path = path[:len(path)-1]
		case xml.CharData:
			h.text(path, string(t))
		}
	}
}

// grow adds text to a name, as far as names go.
func grow(name *string, s string) {
	if len(*name)+len(s) <= maxNameBytes {
		*name += s
	}
}

// under reports whether the path of an element ends in these names.
func under(path []string, names ...string) bool {
	if len(path) < len(names) {
		return false
	}
	for i, n := range names {
		if path[len(path)-len(names)+i] != n {
			return false
		}
	}
	return true
}

func attr(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// parsePool reads a storage pool, also one inside <poolstate>.
func parsePool(text []byte) (pool, error) {
	var p pool
	found := false
	err := nodes(text, handler{
		start: func(path []string, e xml.StartElement) error {
			if e.Name.Local == "pool" && len(path) <= 2 && !found {
				found, p.kind = true, attr(e, "type")
			}
			return nil
		},
		text: func(path []string, s string) {
			switch {
			case under(path, "pool", "name"):
				grow(&p.name, s)
			case under(path, "pool", "target", "path"):
				grow(&p.target, s)
			}
		},
		end: func([]string) error { return nil },
	})
	if err == nil && !found {
		err = errors.New("holds no storage pool")
	}
	return p, err
}

// ParseDomain reads a domain, also one inside <domstatus>. With an error comes what was understood before
// it.
func ParseDomain(text []byte) (Domain, error) {
	r := domainReader{}
	err := nodes(text, handler{r.start, r.text, r.end})
	if err == nil && r.domains == 0 {
		err = errors.New("holds no domain")
	}
	disks := make(map[string]bool, len(r.Disks))
	for i := range r.Disks {
		disks[r.Disks[i].Path] = true
	}
	for _, names := range []*[]string{&r.Files, &r.Parts} {
		slices.Sort(*names)
		*names = slices.DeleteFunc(slices.Compact(*names), func(name string) bool { return disks[name] })
	}
	r.Parts = slices.DeleteFunc(r.Parts, func(name string) bool {
		_, whole := slices.BinarySearch(r.Files, name)
		return whole
	})
	return r.Domain, err
}

type domainReader struct {
	Domain
	domains int
	disk    DomainDisk // the <disk> that is read
	first   int        // of its files in disks
	nvram   string
	created string
	word    string // the text of the element that is read
	backing string // the format of what a disk rests on
}

func (r *domainReader) start(path []string, e xml.StartElement) error {
	r.word = ""
	for _, a := range e.Attr {
		if err := r.names(path, a.Value); err != nil {
			return err
		}
	}
	switch {
	case e.Name.Local == "domstatus" && r.domains == 0:
		r.State, r.Reason = attr(e, "state"), attr(e, "reason")
		if pid, err := strconv.Atoi(attr(e, "pid")); err == nil && pid > 0 {
			r.PID = pid
		}
	case e.Name.Local == "domain":
		r.domains++
	case e.Name.Local == "disk":
		r.disk, r.first = DomainDisk{Device: attr(e, "device")}, len(r.Disks)
	case under(path, "disk", "readonly"), under(path, "disk", "shareable"):
		r.mark(e.Name.Local)
	case under(path, "disk", "target"):
		r.disk.Target = attr(e, "dev")
	case under(path, "disk", "driver"):
		r.disk.Format = attr(e, "type")
	case under(path, "backingStore", "format"):
		r.backing = attr(e, "type")
	case e.Name.Local == "source" && (within(path, "disk") || under(path, "os", "nvram", "source")):
		if len(r.Disks) >= maxXMLDisks {
			return fmt.Errorf("names more than %d files", maxXMLDisks)
		}
		f := r.disk
		if !within(path, "disk") {
			f = DomainDisk{Device: "nvram"}
		}
		if f, ok := sourceOf(f, e); ok {
			if f.Backing = within(path, "backingStore"); f.Backing {
				f.Format, r.backing = r.backing, ""
			}
			r.Disks = append(r.Disks, f)
		}
	}
	return nil
}

// names notes the paths in a text of a document. What QEMU is given as it stands may hold several.
func (r *domainReader) names(path []string, text string) (err error) {
	if !under(path, "commandline", "arg") {
		return r.note(strings.TrimSpace(text), true)
	}
	namer(func(name string, whole bool) bool {
		err = r.note(name, whole)
		return err == nil
	}).argument(text)
	return err
}

// note takes a name if it is an absolute path.
func (r *domainReader) note(name string, whole bool) error {
	switch {
	case !strings.HasPrefix(name, "/") || len(name) > maxNameBytes:
	case len(r.Files)+len(r.Parts) >= maxXMLDisks:
		return fmt.Errorf("names more than %d files", maxXMLDisks)
	case whole:
		r.Files = append(r.Files, name)
	default:
		r.Parts = append(r.Parts, name)
	}
	return nil
}

// mark sets what is said of a whole disk.
func (r *domainReader) mark(what string) {
	for i := range r.Disks[min(r.first, len(r.Disks)):] {
		d := &r.Disks[r.first+i]
		d.ReadOnly, d.Shared = d.ReadOnly || what == "readonly", d.Shared || what == "shareable"
	}
	r.disk.ReadOnly, r.disk.Shared = r.disk.ReadOnly || what == "readonly", r.disk.Shared || what == "shareable"
}

func (r *domainReader) text(path []string, s string) {
	grow(&r.word, s)
	switch {
	case under(path, "domain", "name") && r.domains == 1:
		grow(&r.Name, s)
	case under(path, "domain", "uuid") && r.domains == 1:
		grow(&r.UUID, s)
	case under(path, "os", "nvram"):
		grow(&r.nvram, s)
	case len(path) == 2 && (path[0] == "domainsnapshot" || path[0] == "domaincheckpoint") && path[1] == "creationTime":
		grow(&r.created, s)
	}
}

func (r *domainReader) end(path []string) error {
	if err := r.names(path, r.word); err != nil {
		return err
	}
	r.word = ""
	switch {
	case under(path, "disk"):
		// The target stands behind the sources, and the driver may.
		for i := range r.Disks[min(r.first, len(r.Disks)):] {
			d := &r.Disks[r.first+i]
			if d.Target = r.disk.Target; !d.Backing {
				d.Format = r.disk.Format
			}
		}
		r.first = len(r.Disks)
	case under(path, "os", "nvram"):
		if path := strings.TrimSpace(r.nvram); path != "" {
			r.Disks = append(r.Disks, DomainDisk{Device: "nvram", Path: path})
		}
		r.nvram = ""
	case len(path) == 2 && path[1] == "creationTime":
		// Seconds since 1970. The year 9999 is the last that our documents can tell.
		if n, err := strconv.ParseInt(strings.TrimSpace(r.created), 10, 64); err == nil && n > 0 && n <= 253402300799 {
			r.Created = time.Unix(n, 0).UTC()
		}
	}
	return nil
}

func within(path []string, name string) bool {
	for _, p := range path {
		if p == name {
			return true
		}
	}
	return false
}

// sourceOf reads <source .../> of a disk; ok is false for an empty drive, for a directory that QEMU makes a disk of, which is no
// image, and what is no disk.
func sourceOf(f DomainDisk, e xml.StartElement) (DomainDisk, bool) {
	for _, name := range []string{"file", "dev"} {
		if f.Path = attr(e, name); f.Path != "" {
			return f, true
		}
	}
	if f.Pool, f.Volume = attr(e, "pool"), attr(e, "volume"); f.Volume != "" {
		return f, true
	}
	f.Protocol, f.Path = attr(e, "protocol"), attr(e, "name")
	return f, f.Protocol != ""
}

// Pools are storage pools of a libvirt by their names: the directories of those that have one, "" for others.
type Pools map[string]string

// Volume gives the path of a volume, "" for one that is no file of this host; known is false where nobody can tell.
func (p Pools) Volume(pool, volume string) (path string, known bool) {
	switch dir, found := p[pool]; {
	case !found:
		return "", false
	case dir == "":
		return "", true
	case filepath.IsLocal(volume):
		return filepath.Join(dir, volume), true
	}
	return "", false
}

// pools adds the pools that are configured below etc, and those that run.
func (f *finder) pools(etc, run, who string) Pools {
	pools := Pools{}
	for _, dir := range []string{etc, run} {
		if dir == "" {
			continue
		}
		for _, file := range f.xmlFiles(filepath.Join(dir, "storage"), "storage pools of "+who) {
			f.pool(file, who, pools)
		}
	}
	return pools
}

// libvirt adds the pools and domains that are configured below etc, and those that run.
func (f *finder) libvirt(etc, run, who string) {
	pools := f.pools(etc, run, who)
	for _, dir := range []string{etc, run} {
		if dir == "" {
			continue
		}
		for _, driver := range []string{"qemu", "lxc", "libxl", "ch"} {
			at := filepath.Join(dir, driver)
			// Most hosts have machines of QEMU alone, and nobody asks for the others' directories there.
			if driver != "qemu" && !Look(f.ctx, f.opts.Timeout, PlaceConfig, f.host(at), "", "").There {
				continue
			}
			for _, file := range f.xmlFiles(at, "domains of "+who) {
				f.domain(file, who, pools)
			}
		}
	}
}

// xmlFiles lists the documents of a directory, and those in its autostart directory that are not
// links to the same names.
func (f *finder) xmlFiles(dir, why string) []string {
	var files []string
	known := map[string]bool{}
	for _, name := range f.list(dir, ".xml", why) {
		known[name] = true
		files = append(files, filepath.Join(dir, name))
	}
	if p := f.place(dir); p == nil || !p.There {
		return nil
	}
	auto := filepath.Join(dir, "autostart")
	for _, name := range f.list(auto, ".xml", "autostarted "+why) {
		if !known[name] {
			files = append(files, filepath.Join(auto, name))
		}
	}
	return files
}

func (f *finder) pool(file, who string, pools Pools) {
	text := f.read(file, "a storage pool of "+who)
	if text == nil {
		return
	}
	p, err := parsePool(text)
	if err != nil {
		f.fail(file, "a storage pool of "+who, err)
		return
	}
	why := fmt.Sprintf("storage pool %q of %s", p.name, who)
	switch p.kind {
	case "dir", "fs", "netfs", "vstorage":
		pools[p.name] = p.target
		f.add(PlaceDirectory, p.target, why, "")
	case "logical":
		pools[p.name] = p.target
		f.volumes(p.target, why)
	default:
		pools[p.name] = ""
		f.remote(p.name, fmt.Sprintf("%s (%s)", why, p.kind), "")
	}
}

// volumes adds the block devices of a volume group: its directory in /dev holds nothing else.
func (f *finder) volumes(dir, why string) {
	if !strings.HasPrefix(filepath.Clean(dir), "/dev/") {
		f.fail(dir, why, errors.New("is not below /dev, as a volume group is"))
		return
	}
	for _, name := range f.list(dir, "", why) {
		f.add(PlaceImage, filepath.Join(dir, name), "a volume of "+why, "")
	}
}

func (f *finder) domain(file, who string, pools Pools) {
	text := f.read(file, "a domain of "+who)
	if text == nil {
		return
	}
	since := f.changed
	d, err := ParseDomain(text)
	if err != nil {
		// What was understood before the error is used all the same.
		f.fail(file, "a domain of "+who, err)
	}
	for _, disk := range d.Disks {
		why := strings.TrimSpace(disk.Device+" "+disk.Target) + fmt.Sprintf(" of machine %q of %s", d.Name, who)
		if disk.Backing {
			why = "what " + why + " rests on"
		}
		switch path, known := pools.Volume(disk.Pool, disk.Volume); {
		case disk.Protocol != "":
			f.remote(disk.Protocol+":"+disk.Path, why, d.Name)
			f.places[len(f.places)-1].Format = disk.Format
		case disk.Volume == "":
			f.image(strings.TrimSpace(disk.Path), why, d.Name, since)
		case path != "":
			f.image(path, why, d.Name, since)
		default:
			f.remote(disk.Pool+"/"+disk.Volume, why, d.Name)
			p := &f.places[len(f.places)-1]
			p.Unknown, p.Format = !known, disk.Format
		}
	}
	if f.opts.Files {
		f.files(&d, fmt.Sprintf("machine %q of %s", d.Name, who), since)
	}
}

// files adds what a machine names beside its disks.
func (f *finder) files(d *Domain, who string, since time.Time) {
	names := d.Files
	for _, name := range d.Parts {
		if Look(f.ctx, f.opts.Timeout, PlaceImage, f.host(name), "", "").There {
			names = append(names, name)
		}
	}
	for _, name := range names {
		n := len(f.places)
		f.image(name, who, d.Name, since)
		if len(f.places) > n {
			f.places[n].Beside = true
		}
	}
}
