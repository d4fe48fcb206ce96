// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import "github.com/shisa-vm/shisa/internal/image/qcow2"

const (
	// defaultL2Cache is how much memory qemu gives to L2 tables; smaller slices are loaded where it
	// does not hold them all.
	defaultL2Cache = 32 << 20
	smallSlice     = 4096
)

// qcow2Options takes the options of the driver out of opts and gives those about encryption. What
// they would change while an image is written is checked and then has no effect here.
func (n *node) qcow2Options(opts *dict, raw rawHeader) (*dict, *fault) {
	encrypt := opts.take("encrypt.")
	vals, err := opts.absorb(qcow2Options)
	if err != nil {
		return nil, err
	}
	if n.q.h != nil {
		if err := n.cacheOptions(vals); err != nil {
			return nil, err
		}
	}
	if vals.bool("lazy-refcounts") && raw.version < 3 {
		return nil, faultf("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility " +
			"level")
	}
	if err := overlapOptions(vals); err != nil {
		return nil, err
	}
	return encrypt, cryptOptions(encrypt, raw.crypt)
}

func cryptOptions(encrypt *dict, crypt qcow2.CryptMethod) *fault {
	format, given := encrypt.text("format")
	name := ""
	switch crypt {
	case qcow2.CryptNone:
		if given {
			return faultf("No encryption in image header, but options specified format '%s'", format)
		}
		return nil
	case qcow2.CryptAES:
		name = "aes"
	case qcow2.CryptLUKS:
		name = "luks"
	default:
		return faultf("Unsupported encryption method %d", int32(crypt))
	}
	if given && format != name {
		return faultf("Header reported '%s' encryption format but options specify '%s'", name, format)
	}
	for key := range encrypt.all() {
		if key != "format" && key != "key-secret" {
			return faultf("Parameter '%s' is unexpected", key)
		}
	}
	return nil
}

func overlapOptions(vals optValues) *fault {
	check, given := vals["overlap-check"]
	template, given2 := vals["overlap-check.template"]
	switch {
	case given && given2 && check != template:
		return faultf("Conflicting values for qcow2 options 'overlap-check' ('%s') and "+
			"'overlap-check.template' ('%s')", check, template)
	case !given:
		check = template
	}
	switch check {
	case "", "none", "constant", "cached", "all":
		return nil
	}
	return faultf("Unsupported value '%s' for qcow2 option 'overlap-check'. Allowed are any of the "+
		"following: none, constant, cached, all", check)
}

// cacheOptions works out how many L2 entries qemu would load at once.
func (n *node) cacheOptions(vals optValues) *fault {
	h := n.q.h
	cluster := uint64(h.ClusterSize())
	disk := (uint64(n.length) + cluster - 1) / cluster * uint64(h.L2EntryBytes())
	maxL2 := (disk + cluster - 1) &^ (cluster - 1)
	_, hasTotal := vals["cache-size"]
	_, hasL2 := vals["l2-cache-size"]
	_, hasRef := vals["refcount-cache-size"]
	_, hasEntry := vals["l2-cache-entry-size"]
	total, ref := vals.size("cache-size"), vals.size("refcount-cache-size")
	limit := uint64(defaultL2Cache)
	if hasL2 {
		limit = vals.size("l2-cache-size")
	}
	l2 := min(maxL2, limit)
	if hasTotal {
		switch {
		case hasL2 && hasRef:
			return faultf("cache-size, l2-cache-size and refcount-cache-size may not be set at the same " +
				"time")
		case hasL2 && limit > total:
			return faultf("l2-cache-size may not exceed cache-size")
		case ref > total:
			return faultf("refcount-cache-size may not exceed cache-size")
		case hasL2:
		case hasRef:
			l2 = total - ref
		case total >= maxL2+4*cluster:
			l2 = maxL2
		default:
			l2 = total - min(total, 4*cluster)
		}
	}
	slice := cluster
	if hasEntry {
		slice = vals.size("l2-cache-entry-size")
	} else if l2 < maxL2 {
		slice = min(cluster, smallSlice)
	}
	if slice < 1<<qcow2.MinClusterBits || slice > cluster || slice&(slice-1) != 0 {
		return faultf("L2 cache entry size must be a power of two between %d and the cluster size (%d)",
			1<<qcow2.MinClusterBits, cluster)
	}
	n.q.sliceEntries = int64(slice) / h.L2EntryBytes()
	return nil
}
