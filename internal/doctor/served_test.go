// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/lab/faultfs"
	mounts "github.com/shisa-vm/shisa/internal/linux/ask"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestServerKeepsAnAnswerBack holds that who waits for one file of a FUSE mount which answers all else is no fault:
// servers of files that tell of events are so.
func TestServerKeepsAnAnswerBack(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	at, store := filepath.Join(dir, "mnt"), filepath.Join(dir, "store")
	if err := errors.Join(os.Mkdir(at, 0o755), os.WriteFile(store, make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	fs, err := faultfs.Mount(at, faultfs.Stored{Name: "data", Store: store})
	if errors.Is(err, faultfs.ErrUnavailable) {
		testenv.Lacks(t, err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	asker := &mounts.Asker{}
	defer func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
		reaped(t, asker)
	}()
	fault, err := fs.Set("data", "read hang")
	if err != nil {
		t.Fatal(err)
	}
	u, err := faultfs.Use('S', nil, "cat", filepath.Join(at, "data"))
	if u != nil {
		defer func() { // it ends when the server does
			if err := errors.Join(fs.Clear(""), u.End()); err != nil {
				t.Error(err)
			}
		}()
	}
	if err = errors.Join(err, fault.Waiting()); err != nil {
		t.Fatal(err)
	}
	r := rulePR01()
	all := r.judge(liveEvidence(t, asker, false))
	i := slices.IndexFunc(all, func(r Result) bool { return strings.HasSuffix(r.Object.Name, fmt.Sprintf("[%d]", u.PID)) })
	if i < 0 || all[i].Finding == nil || all[i].Finding.Kind != "server-waits" {
		t.Errorf("PR01 says %+v, want server-waits of %d", all, u.PID)
	}
}
