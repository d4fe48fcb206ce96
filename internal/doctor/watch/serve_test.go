// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestLoopback(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:9477": true, "127.8.8.8:0": true, "[::1]:9477": true, "[::ffff:127.0.0.1]:1": true,
		"0.0.0.0:9477": false, ":9477": false, "[::]:9477": false, "192.0.2.1:9477": false, "localhost:9477": false,
		"127.0.0.1": false, "127.0.0.1:": false, "127.0.0.1:http": false, "127.0.0.1:65536": false, "": false, "[::1%lo]:1": true,
	} {
		if err := Loopback(address); (err == nil) != ok {
			t.Errorf("Loopback(%q) = %v, want ok = %v", address, err, ok)
		}
	}
}

// serving serves a page, and gives its address.
func serving(t *testing.T, page func(io.Writer) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		serve(ctx, l, page)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return l.Addr().String()
}

// TestServe holds the answers against a client that knows HTTP.
func TestServe(t *testing.T) {
	fails := false
	address := serving(t, func(w io.Writer) error {
		if fails {
			return errors.New("no page")
		}
		_, err := io.WriteString(w, "x 1\n# EOF\n")
		return err
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, c := range []struct {
		method, target string
		status         int
		body           string
	}{
		{"GET", "/metrics", 200, "x 1\n# EOF\n"}, {"GET", "/metrics?name=x", 200, "x 1\n# EOF\n"}, {"HEAD", "/metrics", 200, ""},
		{"GET", "/", 404, "Not Found\n"}, {"POST", "/metrics", 405, "Method Not Allowed\n"},
		{"GET", "/" + strings.Repeat("x", maxRequest), 431, "Request Header Fields Too Large\n"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+address+c.target, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		kind := res.Header.Get("Content-Type")
		if res.StatusCode != c.status || string(body) != c.body || (kind == ContentType) != (c.status == 200) {
			t.Errorf("%s %.20s = %d %q %q, want %d %q", c.method, c.target, res.StatusCode, kind, body, c.status, c.body)
		}
		if (res.Header.Get("Allow") != "") != (c.status == 405) {
			t.Errorf("%s %.20s: Allow %q", c.method, c.target, res.Header.Get("Allow"))
		}
	}
	fails = true
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 500 ")) {
		t.Errorf("a page that fails: %q, %v", got, err)
	}
}

// TestServeEnds: clients that ask nothing do not keep the watch from ending, and not more are taken than
// there are places for.
func TestServeEnds(t *testing.T) {
	address := serving(t, func(io.Writer) error { return nil })
	for range 2 * maxAsking {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() }) // before the server ends, and so after it began to answer some
	}
}

func FuzzRequest(f *testing.F) {
	for _, seed := range []string{"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD /metrics?x HTTP/1.0\r\n\r\n", "GET  HTTP/1.1\r\n\r\n",
		"POST /metrics HTTP/1.1\r\n\r\n", "\r\n\r\n", "GET /metrics", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		head, status := request(bytes.NewReader(in))
		if words(status) == "" || head && !bytes.HasPrefix(in, []byte("HEAD ")) {
			t.Errorf("request(%q) = %v, %d", in, head, status)
		}
		if status == 200 && !bytes.Contains(in, []byte("/metrics")) {
			t.Errorf("request(%q) has a page", in)
		}
	})
}
