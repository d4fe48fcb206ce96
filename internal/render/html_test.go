// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package render

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/scan"
	"time"

	"github.com/shisa-vm/shisa/internal/check"
)

func info() PageInfo {
	return PageInfo{Host: "rescue-1", Version: "v0.1.0", When: time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)}
}

func TestScanHTML(t *testing.T) {
	for name, r := range scanReports() {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := ScanHTML(&b, r, info()); err != nil {
				t.Fatal(err)
			}
			golden(t, "scan-"+name+".html", b.String())
			harmlessPage(t, b.String())
			save(t, b.String())
		})
	}
	if err := ScanHTML(fullDisk{}, hostScan(), info()); !errors.Is(err, errFull) {
		t.Errorf("ScanHTML on a full disk = %v, want %v", err, errFull)
	}
}

// TestBaseImagesHTML: the page lists the directories of base images, whatever they are called.
func TestBaseImagesHTML(t *testing.T) {
	r := hostScan()
	r.Pools = []scan.PoolStand{{Bases: "/a/<script>\x1b[2J/_base", Count: 7, Needed: 5, Unprotected: 2, Missing: 1}}
	var b strings.Builder
	if err := ScanHTML(&b, r, info()); err != nil {
		t.Fatal(err)
	}
	harmlessPage(t, b.String())
	if want := `<td class="n">7</td><td class="n">5</td><td class="n">3</td><td class="n">1</td>`; !strings.Contains(b.String(), want) {
		t.Errorf("the page has no %s", want)
	}
}

func TestCheckHTML(t *testing.T) {
	for name, r := range checkReports() {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := CheckHTML(&b, r, info()); err != nil {
				t.Fatal(err)
			}
			if name == "pool" || name == "hostile" {
				golden(t, "check-"+name+".html", b.String())
			}
			harmlessPage(t, b.String())
			save(t, b.String())
		})
	}
}

// save keeps the page where SHISA_PAGES says, to be looked at in a browser.
func save(t *testing.T, page string) {
	if dir := os.Getenv("SHISA_PAGES"); dir != "" {
		name := strings.ReplaceAll(t.Name(), "/", "-") + ".html"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(page), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// harmlessPage fails if the page is not well formed, or if anything in it could run or be loaded.
func harmlessPage(t *testing.T, page string) {
	t.Helper()
	if !strings.HasPrefix(page, "<!DOCTYPE html>\n<html") {
		t.Errorf("the page begins %.40q", page)
	}
	ids, links := map[string]bool{}, []string{}
	d := xml.NewDecoder(strings.NewReader(page))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page is not well formed: %v", err)
		}
		switch e := tok.(type) {
		case xml.StartElement:
			if strings.Contains(" script img iframe object embed link base form input ", " "+e.Name.Local+" ") {
				t.Errorf("the page has an element %s", e.Name.Local)
			}
			for _, a := range e.Attr {
				switch {
				case strings.HasPrefix(a.Name.Local, "on"), a.Name.Local == "src", a.Name.Local == "style":
					t.Errorf("the page has an attribute %s=%q", a.Name.Local, a.Value)
				case a.Name.Local == "href":
					links = append(links, a.Value)
				case a.Name.Local == "id":
					if ids[a.Value] {
						t.Errorf("the page has two elements %q", a.Value)
					}
					ids[a.Value] = true
				}
			}
		case xml.CharData:
			if s := strings.ReplaceAll(string(e), "\n", ""); !seen(s) {
				t.Errorf("the page has text that cannot be seen: %q", s)
			}
		}
	}
	for _, l := range links {
		if !strings.HasPrefix(l, "#") || !ids[l[1:]] {
			t.Errorf("the page links to %q, which it does not hold", l)
		}
	}
}

// A page of thousands of images is drawn with few boxes, and those that are hurt are among them.
func TestHTMLManyImages(t *testing.T) {
	var b strings.Builder
	r := crowdScan()
	if err := ScanHTML(&b, r, info()); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	harmlessPage(t, page)
	save(t, page)
	if n := strings.Count(page, `class="node `); n > 2*maxBoxes || n < 20 {
		t.Errorf("the picture of %d images has %d boxes, want 20 to %d", len(r.Images), n, 2*maxBoxes)
	}
	picture := page[strings.Index(page, `<svg class="tree"`):]
	picture = picture[:strings.Index(picture, "</svg>")]
	for _, want := range []string{"vm-x.qcow2", "1500 clean images", "MISSING", "894 more images",
		"49 clean layers", "chain-049.qcow2", "2700 clean images"} {
		if !strings.Contains(picture, want) {
			t.Errorf("the picture does not show %q", want)
		}
	}
}

func TestForestIsBounded(t *testing.T) {
	wide := []check.Image{}
	for i := range 40 {
		base := lostImage("/p/b" + string(rune('A'+i)))
		wide = append(wide, base)
		for j := range 40 {
			mid := lostImage(base.Path + string(rune('A'+j)))
			mid.Backing = &check.Backing{Path: base.Path, State: check.BackingChecked}
			leaf := lostImage(mid.Path + "x")
			leaf.Backing = &check.Backing{Path: mid.Path, State: check.BackingChecked}
			wide = append(wide, mid, leaf)
		}
	}
	r := scanOf(wide...)
	boxes, images := 0, 0
	var count func(ns []*node)
	count = func(ns []*node) {
		for _, n := range ns {
			boxes++
			images += n.images
			for _, k := range n.kids {
				images -= k.images
			}
			count(n.kids)
		}
	}
	count(forestOf(worstFirst(r.Images), r.Edges))
	if boxes > 2*maxBoxes {
		t.Errorf("forest of %d images = %d boxes, want %d at most", len(wide), boxes, 2*maxBoxes)
	}
}
