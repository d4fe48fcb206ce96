// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package glance

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// What a server may take. The package net/http would do much more than is wanted here, and every start of the program
// would pay for it (doc/decisions/glance.md).
const (
	maxHead      = 64 << 10
	maxRedirects = 3
)

// reply is the answer to one request. The connection is closed with it.
type reply struct {
	status int
	reason string
	header map[string]string // of each name in lower case the first
	body   io.Reader
	close  func() error
}

// get asks for what is at a URL of the endpoint's own server, and follows redirects on that server alone: the token is
// shown to no other.
func (c *Client) get(ctx context.Context, at *url.URL) (*reply, error) {
	for range maxRedirects + 1 {
		r, err := c.ask(ctx, at)
		if err != nil {
			return nil, fmt.Errorf("ask %s: %w", at.Redacted(), err)
		}
		switch r.status {
		case 301, 302, 303, 307, 308:
		default:
			return r, nil
		}
		where := r.header["location"]
		if err := r.close(); err != nil {
			return nil, err
		}
		to, err := at.Parse(where)
		if err != nil || where == "" {
			return nil, fmt.Errorf("ask %s: %w: it leads on to %q", at.Redacted(), ErrServer, where)
		}
		if to.Scheme != c.endpoint.Scheme || to.Host != c.endpoint.Host {
			return nil, fmt.Errorf("ask %s: %w: %s://%s", at.Redacted(), ErrElsewhere, to.Scheme, to.Host)
		}
		at = to
	}
	return nil, fmt.Errorf("ask %s: %w: it leads on and on", at.Redacted(), ErrServer)
}

// ask sends one request and reads the head of the answer.
func (c *Client) ask(ctx context.Context, at *url.URL) (r *reply, err error) {
	conn, err := c.dial(ctx, at)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if err != nil {
			stop()
			conn.Close()
			if ctx.Err() != nil {
				err = ctx.Err()
			}
		}
	}()
	var b strings.Builder
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: shisa\r\nAccept: */*\r\nConnection: close\r\n",
		at.RequestURI(), at.Host)
	if c.token != "" {
		fmt.Fprintf(&b, "X-Auth-Token: %s\r\n", c.token)
	}
	b.WriteString("\r\n")
	if err := conn.SetDeadline(time.Now().Add(c.patience)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(&patient{conn, c.patience}, 64<<10)
	r, err = head(in)
	if err != nil {
		return nil, err
	}
	r.close = func() error {
		stop()
		return conn.Close()
	}
	return r, r.framed(in)
}

// dial connects to the server, with TLS where the URL says https.
func (c *Client) dial(ctx context.Context, at *url.URL) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	port := at.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[at.Scheme]
	}
	address := net.JoinHostPort(at.Hostname(), port)
	if at.Scheme == "http" {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	d := tls.Dialer{Config: &tls.Config{ServerName: at.Hostname(), RootCAs: c.roots, MinVersion: tls.VersionTLS12}}
	return d.DialContext(ctx, "tcp", address)
}

// patient gives each read so long, and not all of them together: images are large.
type patient struct {
	net.Conn
	patience time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.SetReadDeadline(time.Now().Add(p.patience)); err != nil {
		return 0, err
	}
	return p.Conn.Read(b)
}

// head reads the status line and the header (RFC 9112, sections 4 and 5).
func head(in *bufio.Reader) (*reply, error) {
	left := maxHead
	line := func() (string, error) {
		s, err := readLine(in, left)
		left -= len(s)
		return strings.TrimRight(s, "\r\n"), err
	}
	first, err := line()
	if err != nil {
		return nil, err
	}
	version, rest, _ := strings.Cut(first, " ")
	code, why, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if !strings.HasPrefix(version, "HTTP/1.") || err != nil || status < 200 || status > 599 {
		return nil, fmt.Errorf("%w: it answers %.80q", ErrServer, first)
	}
	r := &reply{status: status, reason: why, header: map[string]string{}}
	for {
		l, err := line()
		if err != nil {
			return nil, err
		}
		if l == "" {
			return r, nil
		}
		name, value, ok := strings.Cut(l, ":")
		if !ok {
			return nil, fmt.Errorf("%w: its header has %.80q", ErrServer, l)
		}
		if name = strings.ToLower(name); r.header[name] == "" {
			r.header[name] = strings.TrimSpace(value)
		}
	}
}

// readLine reads a line of no more than limit bytes.
func readLine(in *bufio.Reader, limit int) (string, error) {
	var s []byte
	for {
		part, err := in.ReadSlice('\n')
		s = append(s, part...)
		switch {
		case len(s) > limit:
			return "", fmt.Errorf("%w: its header has more than %d bytes", ErrServer, maxHead)
		case err == nil:
			return string(s), nil
		case errors.Is(err, io.EOF):
			return "", io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", err
		}
	}
}

// framed finds out where the body ends (RFC 9112, section 6.3).
func (r *reply) framed(in *bufio.Reader) error {
	length := r.header["content-length"]
	switch coding := strings.ToLower(r.header["transfer-encoding"]); {
	case coding == "chunked":
		r.body = &chunked{in: in}
	case coding != "":
		return fmt.Errorf("%w: it sends %.40q", ErrServer, coding)
	case length != "":
		n, err := strconv.ParseInt(length, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("%w: its content-length is %.40q", ErrServer, length)
		}
		r.body = &exactly{in: in, left: n}
	default:
		r.body = in // to the end of the connection; who reads knows how much there should be
	}
	return nil
}

// exactly reads so many bytes; fewer are io.ErrUnexpectedEOF.
type exactly struct {
	in   io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.in.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// chunked reads a body in chunks (RFC 9112, section 7.1).
type chunked struct {
	in   *bufio.Reader
	left int64 // of the chunk
	any  bool
	end  bool
}

// maxChunkLine bounds the line before a chunk, with its extensions.
const maxChunkLine = 4096

func (c *chunked) Read(p []byte) (int, error) {
	if c.left == 0 && !c.end {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if c.end {
		return 0, io.EOF
	}
	n, err := c.in.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next reads the line before a chunk, and the end of the one before.
func (c *chunked) next() error {
	if c.any {
		if s, err := readLine(c.in, maxChunkLine); err != nil || strings.TrimRight(s, "\r\n") != "" {
			return errors.Join(fmt.Errorf("%w: a chunk does not end where it says", ErrServer), err)
		}
	}
	s, err := readLine(c.in, maxChunkLine)
	if err != nil {
		return err
	}
	size, _, _ := strings.Cut(strings.TrimRight(s, "\r\n"), ";")
	n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 62)
	if err != nil {
		return fmt.Errorf("%w: the size of a chunk is %.40q", ErrServer, s)
	}
	c.left, c.any, c.end = int64(n), true, n == 0
	return nil
}
