// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/check"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/files"
)

// TestHurtFiles looks for the guest's files in the text and on the page about an image.
func TestHurtFiles(t *testing.T) {
	img := lostImage("/pool/vm.qcow2")
	add := func(path string, use files.Use) {
		img.Hurt = append(img.Hurt, finding.Owner{Use: string(use), Part: "2", Kind: "ext4", Inode: 7,
			Paths: []string{path}, Bytes: 4096, Codes: []string{"QC11"}, Ranges: []finding.Range{{Length: 4096}}})
	}
	for i := range maxOfAKind + 1 {
		add(fmt.Sprintf("/srv/file%d", i), files.UseData)
	}
	add("/worst/\x1b[2J<script>alert(1)</script>", files.UseData)
	img.HurtNote = "more may be hurt"
	r := reportOf(img)
	var text, html bytes.Buffer
	if err := Check(&text, r, Style{All: true, Width: 80}); err != nil {
		t.Fatal(err)
	}
	if err := CheckHTML(&html, r, PageInfo{}); err != nil {
		t.Fatal(err)
	}
	for what, out := range map[string]string{"text": text.String(), "page": html.String()} {
		for _, want := range []string{"/srv/file0", "/srv/file" + fmt.Sprint(maxOfAKind), "/worst/", "ore may be hurt"} {
			if !strings.Contains(out, want) {
				t.Errorf("the %s lacks %q", what, want)
			}
		}
		if strings.Contains(out, "\x1b") || what == "page" && strings.Contains(out, "<script>alert") {
			t.Errorf("the %s holds what a guest wrote as it is", what)
		}
	}
	for _, line := range strings.Split(text.String(), "\n") {
		if len([]rune(line)) > 80 && strings.Contains(line, "/srv/") {
			t.Errorf("%q is wider than the terminal", line)
		}
	}
	none := reportOf([]check.Image{lostImage("/pool/vm.qcow2")}...)
	html.Reset()
	if err := CheckHTML(&html, none, PageInfo{}); err != nil || strings.Contains(html.String(), "In the guest") {
		t.Errorf("a page without files: %v, and it speaks of files", err)
	}
}
