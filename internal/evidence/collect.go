// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"encoding/json"
	"io"
	"maps"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// Collect writes a bundle with all that [Gather] asks a tree for, so that it never has less than the rules
// need. files are those of /shisa that asking the machine gave. Secrets are taken out; what was is told
// by the second result, what could not be read by the first. Logs themselves are not kept, only what the
// rules understand of them.
func Collect(ctx context.Context, t tree.Tree, files map[string][]byte, o Options, version string, w io.Writer) (
	*Evidence, []tree.LeftOut, error,
) {
	own := maps.Clone(files)
	if own == nil {
		own = map[string][]byte{}
	}
	e, err := Gather(ctx, tree.Overlay(t, own), o)
	if err != nil {
		return nil, nil, err
	}
	if _, asked := own["/shisa/machines.json"]; !asked && len(e.Images) > 0 {
		// A file that is read in parts is not in a bundle: of a copy or a disk that is all there will be.
		if own["/shisa/machines.json"], err = json.Marshal(Asked{Images: e.Images}); err != nil {
			return nil, nil, err
		}
	}
	said, err := json.Marshal(SaidIn(e))
	if err != nil {
		return nil, nil, err
	}
	own["/shisa/log.json"] = said
	r := tree.Record(tree.Overlay(t, own))
	if e, err = Gather(ctx, r, o); err != nil {
		return nil, nil, err
	}
	var out []tree.LeftOut
	err = r.WriteBundle(w, tree.Info{Kind: t.Kind(), Made: e.Now, Version: version, Label: e.Label},
		func(name string, text []byte) ([]byte, []tree.LeftOut) {
			text, left := Redact(name, text)
			out = append(out, left...)
			return text, left
		})
	return e, out, err
}
