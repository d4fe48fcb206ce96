// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestPromtool has Prometheus's own tool read the alerts that are shipped, and try them on numbers. Its package is
// unpacked and not installed: that would start a server.
func TestPromtool(t *testing.T) {
	testenv.NeedVM(t)
	testenv.Need(t, "apt-get", "dpkg-deb")
	dir := t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		c := exec.CommandContext(t.Context(), name, args...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, out)
		}
	}
	run("apt-get", "download", "-q", "prometheus")
	packages, err := filepath.Glob(filepath.Join(dir, "prometheus_*.deb"))
	if err != nil || len(packages) != 1 {
		t.Fatalf("%d packages: %v", len(packages), err)
	}
	run("dpkg-deb", "-x", packages[0], "unpacked")
	rules, err := filepath.Abs("../contrib/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	promtool := filepath.Join(dir, "unpacked/usr/bin/promtool")
	run(promtool, "check", "rules", filepath.Join(rules, "shisa.rules.yaml"))
	run(promtool, "test", "rules", filepath.Join(rules, "shisa.rules.test.yaml"))
}
