// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/shisa-vm/shisa/internal/refs/config"
)

// jointWorld are directories of instances that lead to bases, and the joint that looks at them.
type jointWorld struct {
	t   *testing.T
	dir string
	j   *joint
}

func newJointWorld(t *testing.T, uuids ...string) *jointWorld {
	w := &jointWorld{t: t, dir: t.TempDir()}
	all := []config.Pool{}
	for i, uuid := range uuids {
		name := w.dir + "/" + string(rune('a'+i))
		w.must(os.Mkdir(name, 0o755))
		all = append(all, config.Pool{Path: name, UUID: uuid})
	}
	w.must(errors.Join(os.Mkdir(w.dir+"/x", 0o755), os.Mkdir(w.dir+"/y", 0o755)))
	w.j = newJoint(all, "")
	return w
}

func (w *jointWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// mount has a directory of instances lead to other bases, "" for nowhere.
func (w *jointWorld) mount(name, to string) {
	w.t.Helper()
	w.must(os.RemoveAll(w.dir + "/" + name))
	if to == "" {
		return
	}
	w.must(errors.Join(os.Mkdir(w.dir+"/"+name, 0o755), os.Symlink("../"+to, w.dir+"/"+name+"/_base")))
}

// leads holds who leads a pool when it begins, and with which.
func (w *jointWorld) leads(i int, want []int) {
	w.t.Helper()
	w.j.look(w.t.Context())
	if with, ok := w.j.lead(i); ok != (want != nil) || ok && !slices.Equal(with, want) {
		w.t.Errorf("lead(%d) = %v, %v, want %v", i, with, ok, want)
	}
}

// still holds whether one that leads goes on as it began.
func (w *jointWorld) still(i int, with []int, want bool) {
	w.t.Helper()
	if err := w.j.still(w.t.Context(), i, with); (err == nil) != want {
		w.t.Errorf("still(%d, %v) = %v, want it still: %v", i, with, err, want)
	}
}

// TestJointLater: what comes to lead to a pool while another one is looked after joins that, and what is mounted somewhere
// else leaves it.
func TestJointLater(t *testing.T) {
	w := newJointWorld(t, "", "", "")
	for _, name := range []string{"a", "c"} {
		w.mount(name, "")
	}
	w.mount("b", "x")
	w.leads(0, []int{0}) // it will fail, and end
	w.j.end(0)
	w.leads(1, []int{1})
	w.leads(2, []int{2})
	w.j.end(2)
	w.still(1, []int{1}, true)

	w.mount("a", "x")
	w.leads(0, nil) // the other one goes on with it
	w.still(1, []int{1}, false)
	w.leads(1, []int{0, 1})
	w.leads(0, nil)
	w.still(1, []int{0, 1}, true)

	w.mount("a", "")
	w.still(1, []int{0, 1}, true) // nobody knows that the images there are gone
	w.mount("a", "y")
	w.still(1, []int{0, 1}, false)
	w.leads(1, []int{1})
	w.leads(0, []int{0})

	// Two that are both looked after come to be one: the first goes on.
	w.mount("b", "y")
	w.still(0, []int{0}, false)
	w.leads(0, []int{0, 1})
	w.still(1, []int{1}, false)
	w.leads(1, nil)

	// Where the one that leads cannot be looked at the other one does.
	w.mount("a", "")
	w.leads(1, []int{0, 1})
}

// TestJointUUID: what was never seen is the pool that the configuration says, until it is seen to be another one.
func TestJointUUID(t *testing.T) {
	const uuid = "0f8c2b1e-7c55-4c7e-9b0a-3f6c8f1c2d3e"
	w := newJointWorld(t, uuid, uuid, "")
	w.mount("a", "")
	w.mount("b", "x")
	w.mount("c", "")
	w.leads(0, nil)
	w.leads(1, []int{0, 1})
	w.mount("a", "y")
	w.still(1, []int{0, 1}, false)
	w.leads(1, []int{1})
	w.leads(0, []int{0})
}
