// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/render"
)

// Set by the linker (-X), which can set variables only; never written by the program.
var (
	version string // for example v0.1.0
	commit  string // the commit that was built, with -dirty if files were changed
)

type versionOptions struct {
	json bool
}

func newVersion(s *stdio) *cobra.Command {
	var o versionOptions
	c := &cobra.Command{
		Use:   "version",
		Short: "the version of this program",
		Long: `version prints the version of shisa, the commit that it was built from, the Go release that built
it, and the kernel that it runs on: what a report about a fault should begin with.`,
		Example: `  shisa version
  shisa version --json`,
		Args:              wantArgs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return runVersion(c.Context(), o, s) },
	}
	jsonFlag(c, &o.json)
	return c
}

// versionDocument, shisa.version/1, is the result of "shisa version --json".
type versionDocument struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Kernel  string `json:"kernel"`
	Static  bool   `json:"static"`
}

func runVersion(_ context.Context, o versionOptions, s *stdio) error {
	doc := versionDocument{
		Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH,
		Kernel: kernelRelease(),
	}
	doc.Version, doc.Commit, doc.Static = buildFacts(debug.ReadBuildInfo())
	if o.json {
		return render.JSON(s.out, "shisa.version/1", doc)
	}
	_, err := fmt.Fprintf(s.out, "shisa %s\ncommit %s\n%s %s/%s\nkernel %s\n",
		doc.Version, doc.Commit, doc.Go, doc.OS, doc.Arch, doc.Kernel)
	return err
}

// buildFacts gives what the linker was told, else what Go wrote into the binary.
func buildFacts(info *debug.BuildInfo, ok bool) (v, rev string, static bool) {
	v, rev = version, commit
	if ok {
		settings := map[string]string{}
		for _, s := range info.Settings {
			settings[s.Key] = s.Value
		}
		dirty := ""
		if settings["vcs.modified"] == "true" {
			dirty = "-dirty"
		}
		v = cmp.Or(v, info.Main.Version)
		if r := settings["vcs.revision"]; r != "" {
			rev = cmp.Or(rev, r+dirty)
		}
		static = settings["CGO_ENABLED"] == "0"
	}
	return cmp.Or(v, "unknown"), cmp.Or(rev, "unknown"), static
}

// kernelRelease is what uname -sr prints.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}
