// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import (
	"context"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/image"
)

// maxChain bounds the images of one backing chain. Each holds a file open; qemu itself ends at the
// limit of open files.
const maxChain = 1000

// openFlags are what the children of an image inherit beside its options.
type openFlags struct {
	noIO      bool // nothing will be read but metadata (info)
	check     bool // the image gets checked: a broken snapshot table is no reason to refuse it
	noBacking bool // leave the backing file alone
	protocol  bool // a driver for files is wanted, not a format
	noCache   bool // past the page cache
	write     bool // the image is to be changed (check -r)
}

// graph opens the nodes of one image.
type graph struct {
	ctx context.Context
	s   *session
	// chain are the files of the images that are open or being opened, the image itself first.
	chain []diskio.ID
	depth int
	// coarse: the caller puts pieces that are alike together, so it does not matter where one ends.
	coarse bool
}

// role is what a node is to its parent.
type role uint8

const (
	roleRoot role = iota
	roleFile
	roleBacking
	roleData
)

// openRequest is what is known of an image before it is opened. name is nil where the options say
// all.
type openRequest struct {
	name      *string
	options   *dict
	flags     openFlags
	parent    *node
	role      role
	parseName bool // protocol prefixes and json: in the name have a meaning
}

// commonOptions are understood by every driver.
var commonOptions = map[string]optKind{
	"node-name": optText, "driver": optText, "detect-zeroes": optText, "discard": optText,
	"cache.direct": optBool, "cache.no-flush": optBool, "read-only": optBool,
	"auto-read-only": optBool, "force-share": optBool,
}

// openRoot opens an image with what it rests on, as blk_new_open does.
func (g *graph) openRoot(req openRequest) (*node, *fault) {
	n, err := g.open(req)
	if err != nil {
		return nil, err
	}
	if !req.flags.noIO {
		if err := n.checkReaders(); err != nil {
			n.close()
			return nil, err
		}
	}
	if req.flags.write {
		if err := n.checkWriters(); err != nil {
			n.close()
			return nil, err
		}
	}
	return n, nil
}

// open opens one node and all below it, in the order of qemu's bdrv_open_inherit: which of several
// faults is reported follows from the order.
func (g *graph) open(req openRequest) (*node, *fault) {
	if err := g.ctx.Err(); err != nil {
		return nil, faultf("interrupted")
	}
	opts := req.options
	if req.parseName && req.name != nil && strings.HasPrefix(*req.name, "json:") {
		given, err := parseJSONName(*req.name)
		if err != nil {
			return nil, err
		}
		opts.join(given)
		req.name = nil
	}
	if req.parent != nil {
		inherit(&req)
	}
	if err := g.fillOptions(&req); err != nil {
		return nil, err
	}
	n := &node{g: g, options: opts, noIO: req.flags.noIO}
	if n.writable = req.flags.write && !opts.on("read-only"); n.writable && opts.on("force-share") {
		return nil, faultf("force-share=on can only be used with read-only images")
	}
	opts = opts.clone()
	driver, _ := opts.text("driver")
	g.dropBacking(n, opts, &req.flags)

	n.driver = driver
	var err *fault
	if !req.flags.protocol {
		err = g.probeFile(n, opts, req)
	}
	if err == nil {
		err = g.enterChain(n, req.role)
	}
	if err == nil {
		err = g.openNode(n, opts, req)
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// probeFile opens the file of a format's node, and tells the format by its content where nobody named
// it.
func (g *graph) probeFile(n *node, opts *dict, req openRequest) (err *fault) {
	n.file, err = g.openChild(childRequest{parent: n, options: opts, key: "file", name: req.name,
		role: roleFile, parseName: true, flags: req.flags})
	switch {
	case err != nil || n.driver != "":
		return err
	case n.file == nil:
		return faultf("Must specify either driver or file")
	}
	if n.driver, err = probe(n.file, req.name); err != nil {
		return err
	}
	n.probed = true
	n.options.put("driver", n.driver)
	opts.put("driver", n.driver)
	return nil
}

// enterChain notes the file of an image, and refuses one that is in its own backing chain. qemu goes
// round until no more files can be opened.
func (g *graph) enterChain(n *node, r role) *fault {
	if r != roleRoot && r != roleBacking || n.file == nil || n.file.f == nil {
		return nil
	}
	id := n.file.f.Stat().ID
	if slices.Contains(g.chain, id) {
		return faultf("'%s' leads back into its own backing chain", n.file.exact)
	}
	g.chain = append(g.chain, id)
	return nil
}

// openNode opens n, whose driver is known, its backing file, and then looks for options that nobody
// wanted.
func (g *graph) openNode(n *node, opts *dict, req openRequest) *fault {
	common, err := opts.absorb(commonOptions)
	if err != nil {
		return err
	}
	n.direct = common.bool("cache.direct")
	n.forceShare = common.bool("force-share")
	var described foreignReader
	if !req.flags.protocol && !slices.Contains([]string{drvRaw, drvQcow2, drvLUKS}, n.driver) {
		// info asks for nothing but the header.
		if described = foreignFormat(n.driver); described == nil || !req.flags.noIO {
			return unsupportedFormat(n.driver)
		}
	}
	if n.file != nil {
		n.file.refreshName()
		n.filename = n.file.filename
	}
	switch n.driver {
	case drvVDI, drvVPC, drvVHDX, drvQED, drvVMDK:
		err = g.openForeign(n, opts, described)
	case drvRaw:
		err = g.openRaw(n, opts)
	case drvQcow2:
		err = g.openQcow2(n, opts, req.flags)
	case drvLUKS:
		err = g.openLUKS(n, opts)
	default:
		err = g.openFile(n, opts)
	}
	if err != nil {
		return err
	}
	if !req.flags.noBacking && !req.flags.protocol {
		if err := g.openBacking(n, opts, req.flags); err != nil {
			return err
		}
	}
	for key := range n.options.clone().all() {
		for _, child := range []string{"file", "data-file", "backing"} {
			if key == child || strings.HasPrefix(key, child+".") {
				n.options.del(key)
			}
		}
	}
	for key := range opts.all() {
		if req.flags.protocol {
			return faultf("Block protocol '%s' doesn't support the option '%s'", n.driver, key)
		}
		return faultf("Block format '%s' does not support the option '%s'", n.driver, key)
	}
	return nil
}

// unsupportedFormat refuses a format that qemu can read and this program cannot.
func unsupportedFormat(driver string) *fault {
	f := faultf("format '%s' cannot be read by this program, which knows qcow2 and raw", driver)
	f.format = driver
	return f
}

func parseJSONName(name string) (*dict, *fault) {
	v, err := parseJSON(strings.TrimPrefix(name, "json:"))
	if err != nil {
		return nil, err.within("Could not parse the JSON options: ")
	}
	d, ok := v.(*dict)
	if !ok {
		return nil, faultf("Invalid JSON object given")
	}
	return d.flatten(), nil
}

// inherit takes over the options and flags of the parent that its children share.
func inherit(req *openRequest) {
	for _, key := range []string{"cache.direct", "cache.no-flush", "force-share"} {
		if v, ok := req.parent.options.get(key); ok {
			req.options.putDefault(key, v)
		}
	}
	if readOnly, ok := req.parent.options.get("read-only"); ok && req.role != roleBacking {
		req.options.putDefault("read-only", readOnly)
	}
	req.options.putDefault("read-only", "on")
	req.options.putDefault("auto-read-only", "off")
	req.flags.write = req.flags.write && req.role != roleBacking
	req.options.putDefault("discard", "unmap")
	req.flags.noBacking = false
	req.flags.protocol = req.role != roleBacking
	if req.role == roleFile {
		req.flags.noIO = false
	}
}

// fillOptions finds the driver for a file, and puts what flags and name say into the options.
func (g *graph) fillOptions(req *openRequest) *fault {
	opts := req.options
	driver, given := opts.text("driver")
	if given {
		if !slices.Contains(formats, driver) && !slices.Contains(protocols, driver) {
			return faultf("Unknown driver '%s'", driver)
		}
		req.flags.protocol = slices.Contains(protocols, driver)
		if req.flags.protocol && !isProtocol(driver) {
			return unsupportedProtocol(driver)
		}
	}
	opts.putDefault("cache.direct", req.flags.noCache)
	opts.putDefault("cache.no-flush", false)
	opts.putDefault("read-only", !req.flags.write)
	opts.putDefault("auto-read-only", false)
	if !req.flags.protocol {
		return nil
	}
	parse := false
	if req.name != nil {
		if opts.has("filename") {
			return faultf("Can't specify 'file' and 'filename' options at the same time")
		}
		opts.put("filename", *req.name)
		parse = req.parseName
	}
	name, ok := opts.text("filename")
	if !given {
		if !ok {
			return faultf("Must specify either driver or file")
		}
		var err *fault
		if driver, err = findProtocol(name, parse); err != nil {
			return err
		}
		opts.put("driver", driver)
	}
	if parse {
		if rest, ok := strings.CutPrefix(name, driver+":"); ok {
			if hasScheme(rest) {
				rest = "./" + rest
			}
			opts.put("filename", rest)
		}
	}
	return nil
}

// findProtocol tells by a file's name how to get at it.
func findProtocol(name string, parse bool) (string, *fault) {
	if st, err := diskio.Look(name); err == nil && st.Block {
		return drvDevice, nil
	}
	if !parse || !hasScheme(name) {
		return drvFile, nil
	}
	scheme, _, _ := strings.Cut(name, ":")
	switch {
	case isProtocol(scheme):
		return scheme, nil
	case slices.Contains(schemes, scheme):
		return "", unsupportedProtocol(scheme)
	}
	return "", faultf("Unknown protocol '%s'", scheme)
}

func unsupportedProtocol(name string) *fault {
	return faultf("protocol '%s' is not supported by this program, which reads local files only", name)
}

// dropBacking looks whether the options say that there shall be no backing file.
func (g *graph) dropBacking(n *node, opts *dict, flags *openFlags) {
	v, ok := opts.get("backing")
	if !ok || v != nil && v != "" {
		return
	}
	if v != nil {
		g.s.warn(`Use of "backing": "" is deprecated; use "backing": null instead`)
	}
	flags.noBacking = true
	opts.del("backing")
	n.options.del("backing")
}

// childRequest asks for the child of parent that options describe under key.
type childRequest struct {
	parent    *node
	options   *dict
	key       string
	name      *string
	role      role
	parseName bool
	flags     openFlags
}

// openChild opens a child; it is nil where neither a name nor an option speaks of one.
func (g *graph) openChild(c childRequest) (*node, *fault) {
	sub := c.options.take(c.key + ".")
	reference, isRef := c.options.text(c.key)
	if c.name == nil && !isRef && len(sub.entries) == 0 {
		return nil, nil
	}
	c.options.del(c.key)
	if isRef {
		return nil, noNode(reference, c.name != nil || len(sub.entries) > 0)
	}
	return g.open(openRequest{name: c.name, options: sub, flags: c.flags, parent: c.parent,
		role: c.role, parseName: c.parseName})
}

// noNode: options may name a node that exists already, which none does in this program.
func noNode(name string, more bool) *fault {
	if more {
		return faultf("Cannot reference an existing block device with additional options or a new " +
			"filename")
	}
	return faultf("Cannot find device='%s' nor node-name='%s'", name, name)
}

// openBacking opens the backing file that the options or the header of n name.
func (g *graph) openBacking(n *node, opts *dict, flags openFlags) *fault {
	sub := opts.take("backing.")
	reference, isRef := opts.text("backing")
	if n.backingFile == "" && len(sub.entries) == 0 && !isRef {
		return nil
	}
	var name *string
	implicit := false
	if !isRef && !sub.has("file.filename") {
		implicit = len(sub.entries) == 0 && n.autoBacking == n.backingFile
		full, err := n.fullBacking()
		if err != nil {
			return err
		}
		if full != "" {
			name = &full
		}
	}
	if n.driver != drvQcow2 {
		return faultf("Driver doesn't support backing files")
	}
	if isRef {
		return noNode(reference, len(sub.entries) > 0).within("Could not open backing file: ")
	}
	if n.backingFormat != "" {
		sub.putDefault("driver", n.backingFormat)
	}
	if g.depth++; g.depth >= maxChain {
		return faultf("Could not open backing file: the chain has more than %d images", maxChain)
	}
	backing, err := g.open(openRequest{name: name, options: sub, flags: flags, parent: n,
		role: roleBacking, parseName: true})
	if err != nil {
		err.format = "" // that of the image itself is another one
		return err.within("Could not open backing file: ")
	}
	if implicit {
		backing.refreshName()
		n.autoBacking = backing.filename
	}
	n.backing = backing
	opts.del("backing")
	return nil
}

// probe tells the format of a file by its first sector.
func probe(file *node, name *string) (string, *fault) {
	if file.length == 0 {
		return drvRaw, nil
	}
	text := file.filename
	if name != nil {
		text = *name
	}
	r, size := file.bytes()
	format, err := image.Probe(r, size, text)
	if err != nil {
		return "", errnoFault(err, "Could not read image for determining its format")
	}
	return string(format), nil
}
