// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package glance

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const token = "gAAAA-token_of.the=test"

// service is an image service with one image, and whatever a test wants of it beside.
func service(t *testing.T, start func(http.Handler) *httptest.Server, more map[string]http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch h := more[r.URL.Path]; {
		case r.Header.Get("X-Auth-Token") != token:
			http.Error(w, "no", http.StatusUnauthorized)
		case r.Method != http.MethodGet:
			http.Error(w, "no", http.StatusMethodNotAllowed)
		case h != nil:
			h(w, r)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func client(t *testing.T, url string, o Options) *Client {
	t.Helper()
	o.Token, o.Patience = token, 10*time.Minute // no measure of time
	c, err := New(url, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var content = bytes.Repeat([]byte("the content of an image\n"), 100_000)

func image() Image {
	return Image{ID: "img-1", SizeBytes: int64(len(content)), HashAlgo: "sha512", HashValue: fmt.Sprintf("%x", sha512.Sum512(content)),
		Checksum: fmt.Sprintf("%x", md5.Sum(content))}
}

func TestImage(t *testing.T) {
	s := service(t, httptest.NewServer, map[string]http.HandlerFunc{
		"/image/v2/images/img-1": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"id":"img-1","name":"debian","status":"active","disk_format":"raw","size":7,"checksum":null,
				"os_hash_algo":"sha512","os_hash_value":"AB","visibility":"public"}`)
		},
		"/image/v2/images/other": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"id":"img-1"}`) },
		"/image/v2/images/large": func(w http.ResponseWriter, r *http.Request) {
			for range 20 {
				w.Write(bytes.Repeat([]byte(" "), 1<<20))
			}
		},
		"/image/v2/images/html":  func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") },
		"/image/v2/images/empty": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"/image/v2/images/ill":   func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusBadGateway) },
		"/image/v2/images/forth": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/image/v2/images/img-1x", http.StatusFound)
		},
		"/image/v2/images/round": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/image/v2/images/round", http.StatusMovedPermanently)
		},
		"/image/v2/images/img-1x": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"id":"forth"}`) },
	})
	for _, end := range []string{"/image", "/image/", "/image/v2", "/image/v2/"} {
		i, err := client(t, s.URL+end, Options{}).Image(t.Context(), "img-1")
		if algo, value := i.Digest(); err != nil || i.Name != "debian" || i.SizeBytes != 7 || algo != "sha512" || value != "ab" {
			t.Errorf("Image at %s = %+v, %v", end, i, err)
		}
	}
	c := client(t, s.URL+"/image", Options{})
	for id, want := range map[string]error{"nothing": ErrNoImage, "other": ErrServer, "large": ErrServer, "html": ErrServer,
		"empty": ErrNoImage, "ill": ErrServer, "forth": nil, "round": ErrServer} {
		if _, err := c.Image(t.Context(), id); !errors.Is(err, want) {
			t.Errorf("Image(%s) = %v, want %v", id, err, want)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "a?b", "a\r\nHost: x", strings.Repeat("x", 256)} {
		if _, err := c.Image(t.Context(), id); err == nil {
			t.Errorf("Image(%q) succeeds", id)
		}
	}
	c.token = "other"
	if _, err := c.Image(t.Context(), "img-1"); !errors.Is(err, ErrToken) || strings.Contains(err.Error(), "other") {
		t.Errorf("Image with another token = %v, want %v, without the token in it", err, ErrToken)
	}
}

// TestElsewhere: the token is shown to no other server, whichever way one leads there.
func TestElsewhere(t *testing.T) {
	asked := false
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	t.Cleanup(thief.Close)
	s := service(t, httptest.NewServer, map[string]http.HandlerFunc{
		"/v2/images/a": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, thief.URL, http.StatusFound) },
		"/v2/images/b": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, strings.Replace(thief.URL, "http:", "", 1), http.StatusTemporaryRedirect)
		},
		"/v2/images": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("marker") != "" {
				io.WriteString(w, `{"images":[]}`)
				return
			}
			fmt.Fprintf(w, `{"images":[{"id":"x"}],"next":"%s/v2/images?marker=x"}`, thief.URL)
		},
	})
	c := client(t, s.URL, Options{})
	for _, id := range []string{"a", "b"} {
		if _, err := c.Image(t.Context(), id); !errors.Is(err, ErrElsewhere) {
			t.Errorf("Image(%s) = %v, want %v", id, err, ErrElsewhere)
		}
	}
	if err := c.Images(t.Context(), func(*Image) {}); err != nil {
		t.Error(err)
	}
	if asked {
		t.Error("another server was asked")
	}
}

func TestImages(t *testing.T) {
	s := service(t, httptest.NewServer, map[string]http.HandlerFunc{"/v2/images": func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("marker") {
		case "":
			io.WriteString(w, `{"images":[{"id":"a"},{"id":"b"}],"next":"/v2/images?limit=500&marker=b"}`)
		case "b":
			io.WriteString(w, `{"images":[{"id":"c"}]}`)
		}
	}})
	got := ""
	if err := client(t, s.URL, Options{}).Images(t.Context(), func(i *Image) { got += i.ID }); err != nil || got != "abc" {
		t.Errorf("Images = %q, %v, want all of both pages", got, err)
	}
	// sha1sum of img-1, as Nova calls its base.
	if i := image(); i.BaseName() != "3c9875d4ce035043f843d25f28119ae501bdd661" {
		t.Errorf("BaseName = %s", i.BaseName())
	}
}

func TestDownload(t *testing.T) {
	send := func(text []byte, chunks bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if !chunks {
				w.Header().Set("Content-Length", fmt.Sprint(len(text)))
			}
			w.Write(text[:len(text)/2])
			w.(http.Flusher).Flush()
			w.Write(text[len(text)/2:])
		}
	}
	flipped := bytes.Clone(content)
	flipped[1234567] ^= 1
	for _, tc := range []struct {
		name  string
		serve http.HandlerFunc
		edit  func(*Image)
		limit int64
		want  error
	}{
		{"whole", send(content, false), nil, 0, nil},
		{"in chunks", send(content, true), nil, 0, nil},
		{"no digest but MD5", send(content, false), func(i *Image) { i.HashValue = "" }, 0, nil},
		{"a digest that is not known", send(content, false), func(i *Image) { i.HashAlgo = "blake9" }, 0, nil},
		{"of a length that is not known", send(content, true), func(i *Image) { i.SizeBytes = 0 }, 0, nil},
		{"wrong checksum", send(flipped, false), nil, 0, ErrContent},
		{"wrong MD5", send(flipped, false), func(i *Image) { i.HashValue = "" }, 0, ErrContent},
		{"shorter than it says", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Write(content[:len(content)/2])
			panic(http.ErrAbortHandler)
		}, nil, 0, ErrContent},
		{"short", send(content[:1000], true), nil, 0, ErrContent},
		{"chunks that end", func(w http.ResponseWriter, r *http.Request) {
			w.Write(content[:1000])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, func(i *Image) { i.SizeBytes, i.HashValue, i.Checksum = 0, "", "" }, 0, ErrContent},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(content); err != nil {
					return
				}
			}
		}, nil, 0, ErrContent},
		{"endless, of a length that is not known", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(content); err != nil {
					return
				}
			}
		}, func(i *Image) { i.SizeBytes = 0 }, 8 << 20, ErrContent},
		{"larger than may be", send(content, false), nil, 1000, ErrContent},
		{"nothing", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }, nil, 0, ErrNoImage},
		{"no token", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) }, nil, 0, ErrToken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := service(t, httptest.NewServer, map[string]http.HandlerFunc{"/v2/images/img-1/file": tc.serve})
			i := image()
			if tc.edit != nil {
				tc.edit(&i)
			}
			limit := tc.limit
			if limit == 0 {
				limit = 1 << 30
			}
			var got bytes.Buffer
			err := client(t, s.URL, Options{}).Download(t.Context(), &i, limit, &got, nil)
			if !errors.Is(err, tc.want) || err == nil && !bytes.Equal(got.Bytes(), content) {
				t.Errorf("Download = %v with %d bytes, want %v", err, got.Len(), tc.want)
			}
			if int64(got.Len()) > limit {
				t.Errorf("%d bytes were written, %d are the limit", got.Len(), limit)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	s := service(t, httptest.NewTLSServer, map[string]http.HandlerFunc{
		"/v2/images/img-1/file": func(w http.ResponseWriter, r *http.Request) { w.Write(content) }})
	i := image()
	roots := x509.NewCertPool()
	if err := client(t, s.URL, Options{Roots: roots}).Download(t.Context(), &i, 1<<30, io.Discard, nil); err == nil {
		t.Error("a certificate that nobody knows is believed")
	}
	roots.AddCert(s.Certificate())
	if err := client(t, s.URL, Options{Roots: roots}).Download(t.Context(), &i, 1<<30, io.Discard, nil); err != nil {
		t.Error(err)
	}
}

// TestRaw has answers that no well-behaved server gives.
func TestRaw(t *testing.T) {
	for _, tc := range []struct{ name, says string }{
		{"another protocol", "SSH-2.0-x\r\n\r\n"},
		{"no status", "HTTP/1.1 x\r\n\r\n"},
		{"interim", "HTTP/1.1 100 Continue\r\n\r\n"},
		{"no end of the head", "HTTP/1.1 200 OK\r\nA: b\r\n"},
		{"head without end", "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 20_000)},
		{"line without end", "HTTP/1.1 200 OK\r\n" + strings.Repeat("a", 100_000)},
		{"no name", "HTTP/1.1 200 OK\r\nabc\r\n\r\n"},
		{"negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}"},
		{"odd coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}"},
		{"chunk of no size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"},
		{"chunk that goes on", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n"},
		{"huge chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}"},
		{"nothing", ""},
		{"silence", "-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				conn.Read(make([]byte, 4096))
				if tc.says == "-" {
					conn.Read(make([]byte, 1)) // until the other side gives up
					return
				}
				io.WriteString(conn, tc.says)
			}()
			c, err := New("http://"+l.Addr().String(), Options{Patience: 200 * time.Millisecond})
			if err == nil {
				_, err = c.Image(t.Context(), "img-1")
			}
			if err == nil {
				t.Error("Image succeeds")
			}
			l.Close()
			<-done
		})
	}
}

func TestStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := service(t, httptest.NewServer, map[string]http.HandlerFunc{"/v2/images/img-1/file": func(w http.ResponseWriter, r *http.Request) {
		w.Write(content[:1000])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
	}})
	i := image()
	if err := client(t, s.URL, Options{}).Download(ctx, &i, 1<<30, io.Discard, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Download = %v, want that it was ended", err)
	}
}

func TestNew(t *testing.T) {
	for _, u := range []string{"", "glance:9292", "ftp://x", "http://", "http://user:secret@x", "http://x?y", "https://%zz"} {
		if _, err := New(u, Options{}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("New(%q) = %v", u, err)
		}
	}
	for _, tok := range []string{"a b", "a\r\nX: y", strings.Repeat("x", maxToken+1)} {
		if _, err := New("http://x", Options{Token: tok}); err == nil {
			t.Errorf("New with token %.20q succeeds", tok)
		}
	}
	if _, err := New("http://x", Options{Token: " a\n"}); err != nil {
		t.Error(err)
	}
}
