// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package watch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What one who asks may take. The package net/http would do much more than is wanted here, and make the
// program a quarter larger.
const (
	maxRequest = 8 << 10
	maxAsking  = 8
	patience   = 5 * time.Second
	// ContentType is that of the page (OpenMetrics 1.0.0, "Overall Structure").
	ContentType = "application/openmetrics-text; version=1.0.0; charset=utf-8"
)

// Loopback tells whether an address with a port can be reached from this machine alone; the error says why
// not. Names are refused: what they lead to may change.
func Loopback(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is no address with a port, such as 127.0.0.1:9477", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q is no port, want 0 to 65535", port)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.IsLoopback() {
		return fmt.Errorf("%q is no address of this machine's own loopback: the numbers tell what is wrong with the "+
			"machine to everybody who can reach them; a server in front of it can ask who they are", host)
	}
	return nil
}

// serve answers requests for /metrics by HTTP/1.1 (RFC 9112), one on each connection, until ctx ends.
func serve(ctx context.Context, l net.Listener, page func(io.Writer) error) {
	var wait sync.WaitGroup
	defer wait.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	places := make(chan struct{}, maxAsking)
	for {
		places <- struct{}{}
		c, err := l.Accept()
		if err != nil {
			<-places
			if ctx.Err() != nil || !sleep(ctx, time.Second) { // as for want of descriptors
				return
			}
			continue
		}
		wait.Go(func() {
			defer func() { <-places }()
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			answer(c, page)
		})
	}
}

// answer answers one request. Who does not take the answer, or goes away, gets none.
func answer(c net.Conn, page func(io.Writer) error) {
	if c.SetDeadline(time.Now().Add(patience)) != nil {
		return
	}
	head, status := request(c)
	var body bytes.Buffer
	if status == 200 {
		if err := page(&body); err != nil {
			status = 500
		}
	}
	kind := ContentType
	if status != 200 {
		kind = "text/plain; charset=utf-8"
		body.Reset()
		body.WriteString(words(status) + "\n")
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n", status,
		words(status), kind, body.Len())
	if status == 405 {
		out.WriteString("Allow: GET, HEAD\r\n")
	}
	out.WriteString("\r\n")
	if !head {
		out.Write(body.Bytes())
	}
	_, _ = c.Write(out.Bytes()) // nobody is left to be told
}

func words(status int) string {
	return map[int]string{200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
		431: "Request Header Fields Too Large", 500: "Internal Server Error"}[status]
}

// request reads the head of a request, and gives the status of its answer; head is true where only the head
// of that is wanted. A body is not read: those that may have one are refused.
func request(from io.Reader) (head bool, status int) {
	buf := make([]byte, 0, maxRequest)
	for !bytes.Contains(buf, []byte("\r\n\r\n")) {
		if len(buf) == cap(buf) {
			return false, 431
		}
		n, err := from.Read(buf[len(buf):cap(buf)])
		if buf = buf[:len(buf)+n]; err != nil && !bytes.Contains(buf, []byte("\r\n\r\n")) {
			return false, 400
		}
	}
	line, _, _ := strings.Cut(string(buf), "\r\n")
	method, rest, ok := strings.Cut(line, " ")
	target, version, two := strings.Cut(rest, " ")
	if !ok || !two || !strings.HasPrefix(version, "HTTP/1.") {
		return false, 400
	}
	head = method == "HEAD"
	name, _, _ := strings.Cut(target, "?")
	switch {
	case method != "GET" && !head:
		return false, 405
	case name != "/metrics":
		return head, 404
	}
	return head, 200
}
