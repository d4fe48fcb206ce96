// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/shisa-vm/shisa/internal/apply/bases"
	"github.com/shisa-vm/shisa/internal/diskio"
	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/refs/glance"
	"github.com/shisa-vm/shisa/internal/refs/pool"
	"github.com/shisa-vm/shisa/internal/refs/ways"
)

// glanceOptions say which image service is asked.
type glanceOptions struct {
	url, image, tokenFile, ca string
}

func (g *glanceOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&g.url, "glance", "", "the image service at `URL` may have the image that a base was made of")
	f.StringVar(&g.image, "glance-image", "", "the image with that `ID`, instead of the one that the base is called by")
	f.StringVar(&g.tokenFile, "glance-token-file", "", "the token is in `FILE`, instead of in the variable OS_AUTH_TOKEN")
	f.StringVar(&g.ca, "glance-ca", "", "believe the certificates in `FILE`, instead of those of this host")
}

// maxSecretBytes bounds what is read of a token, or of certificates.
const maxSecretBytes = 1 << 20

// client makes one for the service.
func (g *glanceOptions) client() (*glance.Client, error) {
	o := glance.Options{Token: os.Getenv("OS_AUTH_TOKEN")}
	if g.tokenFile != "" {
		text, err := readSmall(g.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("--glance-token-file: %w", err)
		}
		o.Token = string(text)
	}
	if g.ca != "" {
		text, err := readSmall(g.ca)
		if err != nil {
			return nil, fmt.Errorf("--glance-ca: %w", err)
		}
		o.Roots = x509.NewCertPool()
		if !o.Roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--glance-ca: %s has no certificates", g.ca)
		}
	}
	return glance.New(g.url, o)
}

// readSmall reads a file that a user names.
func readSmall(path string) ([]byte, error) {
	f, err := diskio.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Size() > maxSecretBytes {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", path, f.Size(), maxSecretBytes)
	}
	return io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
}

// images asks for the one that is named, or for all.
func (g *glanceOptions) images(ctx context.Context, c *glance.Client) (all []glance.Image, err error) {
	if g.image != "" {
		i, err := c.Image(ctx, g.image)
		if err != nil {
			return nil, err
		}
		return []glance.Image{i}, nil
	}
	err = c.Images(ctx, func(i *glance.Image) { all = append(all, *i) })
	return all, err
}

// tokenHint adds what to do about a token that is not taken.
func tokenHint(err error) error {
	if errors.Is(err, glance.ErrToken) {
		return finding.WithHint(err, "the token goes into OS_AUTH_TOKEN (openstack token issue -f value -c id), or into a file: --glance-token-file")
	}
	return err
}

// offer adds what the image service has to the ways back. One that does not answer hides no other way.
func (g *glanceOptions) offer(ctx context.Context, r *ways.Report) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	all, err := g.images(ctx, c)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		text := oneLine{err}.Error()
		if hint := finding.HintOf(tokenHint(err)); hint != "" {
			text += "; " + hint
		}
		r.NotAsked(g.url, text)
	}
	r.Offer(all)
	return nil
}

// of gives the image that a base was made of.
func (g *glanceOptions) of(ctx context.Context, c *glance.Client, name string) (*glance.Image, error) {
	all, err := g.images(ctx, c)
	if err != nil {
		return nil, tokenHint(err)
	}
	for i := range all {
		if g.image != "" || all[i].BaseName() == name {
			return &all[i], nil
		}
	}
	return nil, finding.WithHint(fmt.Errorf("%s: of %s that the token may see none has an id that it would be called by",
		name, finding.Count(int64(len(all)), "image", "images")), "it may be another project's, or deleted; --glance-image names one all the same")
}

// fetch adopts an image of the image service.
func (o *poolOptions) fetch(ctx context.Context, g glanceOptions, a adopting, s *stdio) error {
	r, err := o.ways(ctx, nil, s)
	if err != nil {
		return err
	}
	format, err := r.FormatOf(a.name)
	if err != nil {
		return o.notMissing(err)
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	i, err := g.of(ctx, c, a.name)
	if err != nil {
		return err
	}
	return o.change(ctx, s, finding.StatusRefused, func(ctx context.Context, act bases.Options) (d *pool.Done, err error) {
		n, err := bases.Fetch(ctx, c, i, format, act)
		if err != nil {
			return nil, tokenHint(err)
		}
		defer func() { err = errors.Join(err, n.Discard()) }()
		r, err := o.ways(ctx, []string{n.Path}, s)
		if err != nil {
			return nil, err
		}
		way, err := r.Downloaded(a.name, n.Path, i)
		if err != nil {
			return nil, o.notMissing(err)
		}
		what := "image " + i.ID
		if err := a.refused(way, what); err != nil {
			return nil, err
		}
		way.Why = what + " (" + cmp.Or(i.Name, filepath.Base(n.Path)) + "): " + way.Why
		return a.put(ctx, n.Path, way, act)
	})
}
