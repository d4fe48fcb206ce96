// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Package glance asks OpenStack's image service for images, and downloads them (API v2: GET /v2/images,
// /v2/images/ID, /v2/images/ID/file). It changes nothing there, and keeps nothing here.
//
// OpenStack Nova calls the base of an image by the SHA-1 of the image's id, so that a base that is missing tells which
// image it was made of, as long as that is there.
package glance

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/url"
	"strings"
	"time"
)

var (
	// ErrServer: what answers is not the image service, or it does not answer as that should.
	ErrServer = errors.New("the server does not answer as the image service should")
	// ErrElsewhere: the server leads on to another one, which is not shown the token.
	ErrElsewhere = errors.New("the server leads on to another one, which is not asked")
	// ErrToken: the server wants a token, or another one.
	ErrToken = errors.New("the server does not take the token")
	// ErrNoImage: there is no such image, or none that has content.
	ErrNoImage = errors.New("no such image")
	// ErrContent: what was downloaded is not the image: too short, too long, or with another digest.
	ErrContent = errors.New("what the server sent is not the image")
)

const (
	// maxPage bounds a document of the server, maxPages how many are read of a list.
	maxPage  = 16 << 20
	maxPages = 10_000
	// pageImages is how many images are asked for at once.
	pageImages = 500
	// usualPatience is how long a server may be silent.
	usualPatience = 30 * time.Second
	maxToken      = 16 << 10
)

// Client asks one server.
type Client struct {
	endpoint *url.URL
	token    string
	roots    *x509.CertPool
	patience time.Duration
}

// Options of a client. The zero value is usual.
type Options struct {
	// Token is the token of the identity service, "" for none.
	Token string
	// Roots are those whose certificates are believed; nil are the system's.
	Roots *x509.CertPool
	// Patience is how long the server may be silent; 0 is 30 seconds.
	Patience time.Duration
}

// New makes a client for the public URL of an image service, with or without the version at its end. It asks nothing
// yet.
func New(endpoint string, o Options) (*Client, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("%q is no URL of an image service: http://HOST or https://HOST, with a port or path or without",
			u.Redacted())
	}
	u.Path, u.RawPath = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/v2")+"/", ""
	o.Token = strings.TrimSpace(o.Token)
	if len(o.Token) > maxToken || strings.ContainsFunc(o.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the token has characters that no token has")
	}
	c := &Client{endpoint: u, token: o.Token, roots: o.Roots, patience: o.Patience}
	if c.patience == 0 {
		c.patience = usualPatience
	}
	return c, nil
}

// Image is what the service says of an image.
type Image struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	Status     string `json:"status"`
	DiskFormat string `json:"disk_format"`
	// SizeBytes is the length of what is downloaded, 0 if that is not known.
	SizeBytes int64 `json:"size"`
	// Checksum is the MD5 of that, HashValue its digest by HashAlgo; "" where there is none.
	Checksum  string `json:"checksum"`
	HashAlgo  string `json:"os_hash_algo"`
	HashValue string `json:"os_hash_value"`
}

// BaseName is what Nova calls the base of the image.
func (i *Image) BaseName() string {
	sum := sha1.Sum([]byte(i.ID))
	return hex.EncodeToString(sum[:])
}

// Digest names the digest that a download is held against, "" for none, and gives it.
func (i *Image) Digest() (algo, value string) {
	if i.HashValue != "" && digestOf(i.HashAlgo) != nil {
		return i.HashAlgo, strings.ToLower(i.HashValue)
	}
	if i.Checksum != "" {
		return "md5", strings.ToLower(i.Checksum)
	}
	return "", ""
}

func digestOf(algo string) hash.Hash {
	switch algo {
	case "sha512":
		return sha512.New()
	case "sha384":
		return sha512.New384()
	case "sha256":
		return sha256.New()
	case "sha1":
		return sha1.New()
	case "md5":
		return md5.New()
	}
	return nil
}

// at is a URL below the endpoint; the parts are names, not paths.
func (c *Client) at(parts ...string) *url.URL {
	return c.endpoint.JoinPath(append([]string{"v2"}, parts...)...)
}

// Image asks for one image. The error is ErrNoImage where there is none.
func (c *Client) Image(ctx context.Context, id string) (i Image, err error) {
	if err := plain(id); err != nil {
		return i, err
	}
	if err := c.document(ctx, c.at("images", id), &i); err != nil {
		return i, fmt.Errorf("image %s: %w", id, err)
	}
	if i.ID != id {
		return i, fmt.Errorf("image %s: %w: it tells of image %.80q", id, ErrServer, i.ID)
	}
	return i, nil
}

// plain refuses ids that would be a path.
func plain(id string) error {
	if id == "" || len(id) > 255 || strings.Trim(id, ".") == "" || strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '_' || r == '.')
	}) {
		return fmt.Errorf("%.80q is no id of an image", id)
	}
	return nil
}

// Images asks for all images that the token may see, and tells fn of each.
func (c *Client) Images(ctx context.Context, fn func(*Image)) error {
	at := c.at("images")
	at.RawQuery = fmt.Sprintf("limit=%d", pageImages)
	for range maxPages {
		var page struct {
			Images []Image `json:"images"`
			Next   string  `json:"next"`
		}
		if err := c.document(ctx, at, &page); err != nil {
			return fmt.Errorf("list of images: %w", err)
		}
		for i := range page.Images {
			fn(&page.Images[i])
		}
		if page.Next == "" || len(page.Images) == 0 {
			return nil
		}
		// It is a path from the top of the service, which need not be that of the server.
		next, err := url.Parse(page.Next)
		if err != nil || next.RawQuery == "" {
			return fmt.Errorf("list of images: %w: the next page is %.80q", ErrServer, page.Next)
		}
		at = c.at("images")
		at.RawQuery = next.RawQuery
	}
	return fmt.Errorf("list of images: %w: it has more than %d pages", ErrServer, maxPages)
}

// document asks for a document in JSON.
func (c *Client) document(ctx context.Context, at *url.URL, v any) (err error) {
	r, err := c.get(ctx, at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.fine(); err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(r.body, maxPage+1))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("%w: %w", ErrServer, err)
	case len(text) > maxPage:
		return fmt.Errorf("%w: a document of more than %d bytes", ErrServer, maxPage)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("%w: %w", ErrServer, err)
	}
	return nil
}

// fine gives the error that a status stands for.
func (r *reply) fine() error {
	said := fmt.Sprintf("status %d %.80q", r.status, r.reason)
	switch r.status {
	case 200:
		return nil
	case 401, 403:
		return fmt.Errorf("%w: %s", ErrToken, said)
	case 404, 410:
		return fmt.Errorf("%w: %s", ErrNoImage, said)
	case 204:
		return fmt.Errorf("%w: it has no content yet", ErrNoImage)
	}
	return fmt.Errorf("%w: %s", ErrServer, said)
}

// Download writes the content of an image to w, no more than limit bytes, and holds it against the length and the
// digest that the service says it has: ErrContent. What w has got then is worth nothing. progress may be nil.
func (c *Client) Download(ctx context.Context, i *Image, limit int64, w io.Writer, progress func(done, total int64)) (err error) {
	if err := plain(i.ID); err != nil {
		return err
	}
	if i.SizeBytes > limit {
		return fmt.Errorf("image %s: %w: it has %d bytes, and %d are the limit", i.ID, ErrContent, i.SizeBytes, limit)
	}
	if i.SizeBytes > 0 {
		limit = i.SizeBytes
	}
	r, err := c.get(ctx, c.at("images", i.ID, "file"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.fine(); err != nil {
		return fmt.Errorf("image %s: %w", i.ID, err)
	}
	algo, want := i.Digest()
	sum := digestOf(algo)
	done, err := copyAll(w, sum, r.body, limit, func(n int64) {
		if progress != nil {
			progress(n, i.SizeBytes)
		}
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("image %s: after %d bytes: %w", i.ID, done, err)
	case i.SizeBytes > 0 && done != i.SizeBytes:
		return fmt.Errorf("image %s: %w: %d bytes, want %d", i.ID, ErrContent, done, i.SizeBytes)
	case sum != nil && hex.EncodeToString(sum.Sum(nil)) != want:
		return fmt.Errorf("image %s: %w: its %s is %x, want %s", i.ID, ErrContent, algo, sum.Sum(nil), want)
	}
	return nil
}

// copyAll copies a body of limit bytes at most.
func copyAll(w io.Writer, sum hash.Hash, body io.Reader, limit int64, progress func(int64)) (done int64, err error) {
	buf := make([]byte, 1<<20)
	for {
		n, err := body.Read(buf)
		if int64(n) > limit-done {
			return done, fmt.Errorf("%w: it has more than %d bytes", ErrContent, limit)
		}
		if sum != nil {
			sum.Write(buf[:n])
		}
		if _, werr := w.Write(buf[:n]); werr != nil {
			return done, werr
		}
		done += int64(n)
		progress(done)
		if errors.Is(err, io.EOF) {
			return done, nil
		}
		if err != nil {
			return done, fmt.Errorf("%w: %w", ErrContent, err)
		}
	}
}
