// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"io"

	"github.com/shisa-vm/shisa/internal/refs"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/roll"
	"github.com/shisa-vm/shisa/internal/refs/ways"
)

// BasePoolsSchema is the schema of a BasePoolsDocument in JSON.
const BasePoolsSchema = "shisa.base-pools/1"

// BasePoolsDocument is what was found in each pool that the configuration names, or done to it.
type BasePoolsDocument struct {
	Status []int `json:"status"`
	// Pools are in the order of the configuration.
	Pools []BasePool `json:"pools"`
}

// BasePool is what was found in a pool, or done to it: one of the fields after Status is there.
type BasePool struct {
	// Path is the pool as the user or the configuration names it.
	Path    string         `json:"path"`
	Status  []int          `json:"status"`
	Scan    *refs.Census   `json:"scan,omitempty"`
	Missing *ways.Report   `json:"missing,omitempty"`
	Done    *pool.Done     `json:"done,omitempty"`
	Nodes   *roll.List     `json:"nodes,omitempty"`
	Error   *BasePoolError `json:"error,omitempty"`
}

// BasePoolError is why nothing could be found in a pool, or done to it.
type BasePoolError struct {
	Text string `json:"text"`
	Hint string `json:"hint"`
}

// Told gives what was done the status of the pool.
func (p *BasePool) Told() *BasePool {
	if p.Done != nil {
		p.Done.Status = p.Status
	}
	return p
}

// Text writes what was found or done for people. Of an error there is nothing: that is told elsewhere.
func (p *BasePool) Text(w io.Writer, s Style) error {
	switch {
	case p.Scan != nil:
		return BaseScan(w, p.Scan, s)
	case p.Missing != nil:
		return BaseMissing(w, p.Missing, p.Path, s)
	case p.Done != nil:
		return BaseDone(w, p.Done, s)
	case p.Nodes != nil:
		return BaseNodes(w, p.Nodes, s)
	}
	return nil
}

// JSON writes it as the document of one pool.
func (p *BasePool) JSON(w io.Writer) error {
	switch p.Told(); {
	case p.Scan != nil:
		return JSON(w, BaseScanSchema, p.Scan)
	case p.Missing != nil:
		return JSON(w, BaseMissingSchema, p.Missing)
	case p.Done != nil:
		return JSON(w, BaseDoneSchema, p.Done)
	}
	return JSON(w, BaseNodesSchema, p.Nodes)
}
