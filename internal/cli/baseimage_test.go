// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"bytes"
	"crypto/sha512"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// imageWorld is a pool whose base is made of the image img-1, and a service that has it.
type imageWorld struct {
	t    *testing.T
	dir  string
	base string
	disk []byte // what the guest sees of the image
	// sent is the content of the image, hash what the service says of it, format its format.
	sent   []byte
	hash   string
	format string
	url    string
}

// sha1OfImg1 is what Nova calls the base of image img-1.
const sha1OfImg1 = "3c9875d4ce035043f843d25f28119ae501bdd661"

func newImageWorld(t *testing.T, format string) *imageWorld {
	testenv.Need(t, "qemu-img")
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &imageWorld{t: t, dir: dir, format: format, base: dir + "/pool/_base/" + sha1OfImg1, disk: make([]byte, 3<<20)}
	r := rand.New(rand.NewPCG(1, 2))
	for i := 1 << 20; i < 2<<20; i++ {
		w.disk[i] = byte(r.Uint32())
	}
	for _, d := range []string{"/pool/_base", "/pool/i"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(w.base, w.disk, 0o644); err != nil {
		t.Fatal(err)
	}
	w.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", w.base, "-F", "raw", dir+"/pool/i/disk")
	w.run("qemu-img", "convert", "-f", "raw", "-O", format, w.base, dir+"/image")
	if w.sent, err = os.ReadFile(dir + "/image"); err != nil {
		t.Fatal(err)
	}
	w.hash = fmt.Sprintf("%x", sha512.Sum512(w.sent))
	s := httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(s.Close)
	w.url = s.URL
	t.Setenv("OS_AUTH_TOKEN", "the-token")
	return w
}

func (w *imageWorld) serve(out http.ResponseWriter, r *http.Request) {
	about := fmt.Sprintf(`{"id":"img-1","name":"debian","status":"active","disk_format":%q,"size":%d,"os_hash_algo":"sha512",
		"os_hash_value":%q}`, w.format, len(w.sent), w.hash)
	switch {
	case r.Header.Get("X-Auth-Token") != "the-token":
		out.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == "/v2/images":
		io.WriteString(out, `{"images":[{"id":"other"},`+about+`]}`)
	case r.URL.Path == "/v2/images/img-1":
		io.WriteString(out, about)
	case r.URL.Path == "/v2/images/img-1/file":
		out.Write(w.sent)
	default:
		http.NotFound(out, r)
	}
}

func (w *imageWorld) run(name string, args ...string) {
	w.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// lose removes the base.
func (w *imageWorld) lose() {
	w.t.Helper()
	if err := os.Remove(w.base); err != nil {
		w.t.Fatal(err)
	}
}

// call runs a command with a state of the test's own, and holds its status.
func (w *imageWorld) call(status int, args ...string) (stdout, stderr string) {
	w.t.Helper()
	got, stdout, stderr := call(args...)
	if got != status {
		w.t.Errorf("%q = %d, want %d\n%s%s", args, got, status, stdout, stderr)
	}
	return stdout, stderr
}

// adopt is the command that brings the base back.
func (w *imageWorld) adopt(status int, more ...string) (stdout, stderr string) {
	w.t.Helper()
	return w.call(status, append([]string{"base", "adopt", "--state", w.dir + "/state", "--glance", w.url, "--for", sha1OfImg1,
		w.dir + "/pool"}, more...)...)
}

// nothingLeft holds that nothing was put in the place of the base, and nothing is left of what was downloaded.
func (w *imageWorld) nothingLeft(there bool) {
	w.t.Helper()
	if _, err := os.Lstat(w.base); (err == nil) != there {
		w.t.Errorf("the base: %v, want it there: %v", err, there)
	}
	left, err := filepath.Glob(w.dir + "/pool/_base/.shisa/.*")
	if err != nil || len(left) > 0 {
		w.t.Errorf("%q is left, %v", left, err)
	}
}

// TestFetch: the image that a base was made of comes back as that base, whatever format the service keeps it in.
func TestFetch(t *testing.T) {
	for _, format := range []string{"raw", "qcow2", "vmdk"} {
		t.Run(format, func(t *testing.T) {
			w := newImageWorld(t, format)
			w.lose()
			out, _ := w.call(finding.StatusFound, "base", "missing", "--glance", w.url, w.dir+"/pool")
			if !strings.Contains(out, "the image that it was made of: img-1") {
				t.Errorf("missing says\n%s", out)
			}
			w.adopt(0)
			got, err := os.ReadFile(w.base)
			if err != nil || !bytes.Equal(got, w.disk) {
				t.Errorf("the base has %d bytes, %v, want those of the guest's disk", len(got), err)
			}
			w.nothingLeft(true)
			_, errs := w.adopt(1)
			if !strings.Contains(errs, "is not missing") {
				t.Errorf("again it says %s", errs)
			}
		})
	}
}

// TestFetchRecorded: what was recorded of a base decides, also about an image that is whole.
func TestFetchRecorded(t *testing.T) {
	w := newImageWorld(t, "qcow2")
	w.call(0, "base", "protect", "--state", w.dir+"/state", w.dir+"/pool")
	w.lose()
	if err := os.RemoveAll(w.dir + "/pool/_base/.shisa/shields"); err != nil {
		t.Fatal(err)
	}
	w.adopt(0)
	w.nothingLeft(true)

	w = newImageWorld(t, "raw")
	w.call(0, "base", "protect", "--state", w.dir+"/state", w.dir+"/pool")
	w.lose()
	w.sent = bytes.Clone(w.sent)
	w.sent[7] ^= 1
	w.hash = fmt.Sprintf("%x", sha512.Sum512(w.sent))
	if _, errs := w.adopt(finding.StatusRefused, "--accept-risk=unproved:"+sha1OfImg1); !strings.Contains(errs, "SHA-256") {
		t.Errorf("an image other than recorded: %s", errs)
	}
	w.nothingLeft(false)
}

// TestFetchRefuses has what must never come into the place of a base.
func TestFetchRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		edit   func(w *imageWorld)
		status int
		says   string
	}{
		{"wrong checksum", func(w *imageWorld) { w.hash = strings.Repeat("0", 128) }, 1, "is not the image"},
		{"no digest", func(w *imageWorld) { w.hash = "" }, finding.StatusRefused, "--accept-risk=unproved:"},
		{"another format", func(w *imageWorld) { w.format = "rbd" }, 1, "cannot be made that base"},
		{"cut off", func(w *imageWorld) {
			w.sent = w.sent[:len(w.sent)/2]
			w.hash = fmt.Sprintf("%x", sha512.Sum512(w.sent))
		}, 1, "past its end"},
		{"names a file of the host", func(w *imageWorld) {
			w.run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", w.dir+"/evil", "3M")
			var err error
			if w.sent, err = os.ReadFile(w.dir + "/evil"); err != nil {
				w.t.Fatal(err)
			}
			w.hash = fmt.Sprintf("%x", sha512.Sum512(w.sent))
		}, 1, "it names other files"},
		{"no token", func(w *imageWorld) { w.t.Setenv("OS_AUTH_TOKEN", "another") }, 1, "openstack token issue"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newImageWorld(t, "qcow2")
			w.lose()
			tc.edit(w)
			if _, errs := w.adopt(tc.status); !strings.Contains(errs, tc.says) || strings.Contains(errs, "the-token") {
				t.Errorf("it says %s, want %q", errs, tc.says)
			}
			w.nothingLeft(false)
		})
	}
	w := newImageWorld(t, "raw")
	w.call(64, "base", "adopt", "--for", sha1OfImg1, w.dir+"/pool")
	w.call(64, "base", "adopt", "--glance", w.url, "--for", sha1OfImg1, w.dir+"/pool", "file")
	if err := os.WriteFile(w.dir+"/token", []byte("the-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("OS_AUTH_TOKEN", "")
	w.lose()
	w.call(1, "base", "missing", "--glance", w.url, "--glance-token-file", w.dir+"/nothing", w.dir+"/pool")
	// A service that does not answer, or not with this token, hides nothing else.
	for _, url := range []string{"http://127.0.0.1:1", w.url} {
		out, _ := w.call(finding.StatusFound, "base", "missing", "--glance", url, w.dir+"/pool")
		if !strings.Contains(out, sha1OfImg1+" is MISSING") || !strings.Contains(out, "not looked at:\n  - "+url+" (images): ") ||
			url == w.url && !strings.Contains(out, "; the token goes into OS_AUTH_TOKEN ") {
			t.Errorf("missing with %s and no token says\n%s", url, out)
		}
	}
	w.adopt(0, "--glance-token-file", w.dir+"/token", "--glance-image", "img-1")
}
