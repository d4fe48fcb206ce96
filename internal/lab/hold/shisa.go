// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// Unexplained is said of an answer that names nobody, and says that somebody is there.
const Unexplained = "unexplained"

// Shisa is `shisa holders` of a program, whose document is judged in all that it says.
func Shisa(program string) Looker {
	return Looker{"shisa", func(ctx context.Context, d *Disk, h *Hold) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		about := d.Mount
		if h.Kind.Effect == Hides {
			about = d.Device
		}
		out, err := exec.CommandContext(ctx, program, "holders", "--json", about).Output()
		status := 0
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
			status, err = exit.ExitCode(), nil
		}
		var doc document
		if err == nil {
			err = json.Unmarshal(out, &doc)
		}
		if err != nil {
			return "", fmt.Errorf("ask %s about %s: %w", program, about, err)
		}
		return doc.worth(h, status), nil
	}}
}

// document is what is used of the document of `shisa holders`, as doc/json.md has it.
type document struct {
	Status  []int  `json:"status"`
	Verdict string `json:"verdict"`
	Audit   struct {
		Read bool `json:"read"`
	} `json:"audit"`
	Mounts []struct {
		Asked       bool  `json:"asked"`
		Follows     bool  `json:"follows"`
		Unexplained int64 `json:"unexplained"`
	} `json:"mounts"`
	Holders []struct {
		Kind    string `json:"kind"`
		Process struct {
			PID int `json:"pid"`
			TID int `json:"tid"`
		} `json:"process"`
		Path      string `json:"path"`
		Namespace uint64 `json:"mount_namespace"`
		Blocks    string `json:"blocks"`
		FD        int    `json:"fd"`
		AlsoFDs   []int  `json:"also_fds"`
	} `json:"holders"`
}

// answer is the document in the words of Judge.
func (d document) answer() Answer {
	a := Answer{Audited: d.Audit.Read, Free: d.Verdict == "free"}
	for _, m := range d.Mounts {
		if m.Asked || m.Follows {
			a.Unexplained += m.Unexplained
		}
	}
	for _, o := range d.Holders {
		s := Seen{Word: o.Kind, PID: o.Process.PID, TID: o.Process.TID, Path: o.Path,
			Namespace: o.Namespace, Blocks: o.Blocks, FDs: o.AlsoFDs}
		if o.FD >= 0 {
			s.FDs = append(s.FDs, o.FD)
		}
		a.Holders = append(a.Holders, s)
	}
	return a
}

// worth says what an answer is worth that came with an exit status.
func (d document) worth(h *Hold, status int) string {
	const found, cannotTell = 3, 4 // doc/exit-status.md
	a := d.answer()
	wrong := h.Judge(a)
	named := slices.ContainsFunc(a.Holders, h.is)
	want := 0
	switch {
	case h.Kind.Effect == Blocks && len(a.Holders) > 0, h.Kind.Effect == Hides:
		want = found
	case h.Kind.Effect == Blocks:
		want = cannotTell
	}
	if len(d.Status) == 0 || d.Status[0] != status || status != want {
		wrong = append(wrong, fmt.Sprintf("ends with %d and says %d, want %d", status, d.Status, want))
	}
	// What counts as unexplained is a reference to the mount, which only those who block have.
	told := named || h.Kind.Effect == Harmless || h.Kind.Effect == Blocks && a.Unexplained != 0
	switch {
	case !told || a.Free && h.Kind.Effect != Harmless:
		return Missed + ": " + strings.Join(wrong, "; ")
	case len(wrong) > 0:
		return Wrong + ": " + strings.Join(wrong, "; ")
	case h.Kind.Effect == Harmless:
		return Silent
	case named:
		return Named
	}
	return Unexplained
}
