// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package probe

import (
	"errors"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestLoad holds that the kernel of this machine takes the objects.
func TestLoad(t *testing.T) {
	testenv.NeedRoot(t)
	spec, err := loadRefs()
	if err != nil {
		t.Fatal(err)
	}
	var o refsObjects
	if err := load("refs", spec, &o); err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.Questions.Put(uint32(0), refsQuestion{Kind: 1}); err != nil {
		t.Fatal(err)
	}
	data, err := answers(o.Cpus, o.Questions)
	if err != nil || len(data) != 8 {
		t.Errorf("answers(cpus) = %d bytes, %v, want one offset", len(data), err)
	}
}

// TestRefused holds that without rights there is an error that says so.
func TestRefused(t *testing.T) {
	if testenv.AsUser(t) {
		return
	}
	spec, err := loadRefs()
	if err != nil {
		t.Fatal(err)
	}
	var o refsObjects
	if err := load("refs", spec, &o); !errors.Is(err, ErrRefused) {
		t.Errorf("load without rights = %v, want %v", err, ErrRefused)
	} else {
		t.Log(err)
	}
}
