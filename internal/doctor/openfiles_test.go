// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/evidence"
	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	mounts "github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestHurtFileThatIsOpen holds that a file whose content was lost is named while somebody has it open, as one and the
// same finding as when nobody has; and that what was found is kept where logs are not read again.
func TestHurtFileThatIsOpen(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "mkfs.ext4", "mkfs.xfs")
	for _, name := range []string{"ext4-data-eio", "xfs-writeback-eio"} {
		t.Run(name, func(t *testing.T) {
			w, err := faultfs.Make(t.Context(), name, t.TempDir())
			if errors.Is(err, faultfs.ErrUnavailable) {
				testenv.Lacks(t, err.Error())
			} else if err != nil {
				t.Fatal(err)
			}
			asker := &mounts.Asker{}
			defer func() {
				if err := w.Close(); err != nil {
					t.Error(err)
				}
				reaped(t, asker)
			}()
			ids := map[string]bool{}
			find := func(e *evidence.Evidence) *Finding {
				t.Helper()
				r := ruleFS04()
				all := r.judge(e)
				i := slices.IndexFunc(all, func(r Result) bool {
					return r.Finding != nil && r.Object.Name == fmt.Sprintf("%s:inode %d", w.Hurt.Name, w.Inode)
				})
				if i < 0 {
					t.Fatalf("inode %d is not told: %+v", w.Inode, all)
				}
				ids[all[i].Finding.ID] = true
				return all[i].Finding
			}
			f := find(liveEvidence(t, asker, false))
			if strings.Contains(f.Summary, w.File) || !strings.Contains(fmt.Sprint(f.Remedies), "-inum") {
				t.Errorf("while nobody has it open: %s %+v", f.Summary, f.Remedies)
			}
			file, err := os.Open(w.File)
			if err != nil {
				t.Fatal(err)
			}
			e := liveEvidence(t, asker, false)
			if err := file.Close(); err != nil {
				t.Fatal(err)
			}
			f = find(e)
			if !strings.Contains(f.Summary, w.File) || !strings.Contains(fmt.Sprint(f.Evidence), fmt.Sprintf("[%d] has it open", os.Getpid())) {
				t.Errorf("while it is open: %s %+v", f.Summary, f.Evidence)
			}
			if said := evidence.SaidIn(e); len(said.Hurt) != 1 || said.Hurt[0].Path != w.File {
				t.Errorf("kept is %+v, want %s", said.Hurt, w.File)
			}
			if len(ids) != 1 {
				t.Errorf("it is %d findings, want one", len(ids))
			}
		})
	}
}
