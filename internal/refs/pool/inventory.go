// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// InventorySchema is the schema of an Inventory.
const InventorySchema = "shisa.base-node/1"

// Inventory is what a node says to those that do not share its directory: its report, and the bases that it has.
type Inventory struct {
	Schema string     `json:"schema"`
	Report NodeReport `json:"report"`
	// Bases is the directory of the bases on the node.
	Bases string `json:"bases"`
	// All are its bases, those that lie in quarantine and those that are missing too.
	All []Stock `json:"all"`
	// Nodes are all that use the pool of the node, with those that were retired, and that have said nothing since,
	// apart.
	Nodes []string `json:"nodes"`
	Away  []string `json:"away"`
	// Pinned are the names of bases that somebody wants kept.
	Pinned []string `json:"pinned"`
	// SHA256 is the digest of the document without it.
	SHA256 string `json:"sha256"`
}

// Stock is a base that a node has, or should have.
type Stock struct {
	Name string `json:"name"`
	// ID is that of its quarantine, "" for one that was not set aside.
	ID string `json:"id"`
	// State is as in refs.Base, Path where it is.
	State     string `json:"state"`
	Path      string `json:"path"`
	Inode     uint64 `json:"inode"`
	SizeBytes int64  `json:"size_bytes"`
	Format    string `json:"format"`
	// SHA256 is what was recorded of its content, "" if nothing was; of a missing base it is that of the files that had its
	// name, "" if they do not agree.
	SHA256 string `json:"sha256"`
	// Shield is its second name, "" for none.
	Shield string `json:"shield"`
}

// NodeReport is the report in an inventory.
type NodeReport Report

// Said is the report of the node.
func (i *Inventory) Said() *Report { return (*Report)(&i.Report) }

// sum is the digest of an inventory.
func (i Inventory) sum() (string, error) {
	i.SHA256 = ""
	text, err := json.Marshal(i)
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:]), err
}

// Seal gives the inventory and its report their digests.
func (i *Inventory) Seal() (err error) {
	if err := i.Said().Seal(); err != nil {
		return err
	}
	i.SHA256, err = i.sum()
	return err
}

// Text is the document as it is written, with its digests.
func (i *Inventory) Text() ([]byte, error) {
	if err := i.Seal(); err != nil {
		return nil, err
	}
	return documentText(i)
}

// ParseInventory reads an inventory. The error is ErrPool with the line.
func ParseInventory(name string, text []byte) (i Inventory, err error) {
	if err := strict(text, &i, name); err != nil {
		return i, err
	}
	sum, err := i.sum()
	switch {
	case err != nil:
	case i.Schema != InventorySchema:
		err = fmt.Errorf("its schema is %q, want %q", i.Schema, InventorySchema)
	case i.SHA256 != sum:
		err = errors.New("it does not have its digest")
	default:
		err = i.Said().valid()
	}
	for _, k := range i.All {
		if err == nil && (!IsName(k.Name) || k.SHA256 != "" && !isDigest(k.SHA256) || k.ID != "" && !IsID(k.ID)) {
			err = fmt.Errorf("its base is %q with digest %q and id %q", k.Name, k.SHA256, k.ID)
		}
	}
	if err != nil {
		return i, fmt.Errorf("%s %w: %w", name, ErrPool, err)
	}
	return i, nil
}
