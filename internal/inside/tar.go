// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package inside

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/shisa-vm/shisa/internal/guest/files"
)

// Tar writes a file or a directory with all that is in it as a tar archive (POSIX.1-2001), names
// without the leading slash. Holes of some size stay holes, as GNU tar writes them. A file that cannot
// be read to its end is filled up with zeros, since the archive has said its length by then; that is
// in the result. The error is that of ctx, or of writing.
func Tar(ctx context.Context, from *files.Found, fsys files.FS, w io.Writer,
	progress func(bytes, names int64),
) (*Copied, error) {
	t := &archiver{ctx: ctx, out: w, w: tar.NewWriter(w), done: new(Copied), progress: progress}
	if err := files.Walk(ctx, fsys, from.Entry.Ino, from.Path, t.one); err != nil {
		return t.done, err
	}
	return t.done, t.w.Close()
}

type archiver struct {
	ctx      context.Context
	out      io.Writer
	w        *tar.Writer // to out
	done     *Copied
	links    links
	progress func(bytes, names int64)
}

func (t *archiver) lost(p string, err error) {
	t.done.Lost++
	if len(t.done.Problems) < files.MaxProblems {
		t.done.Problems = append(t.done.Problems, p+": "+err.Error())
	}
}

func (t *archiver) unset(p, what string) {
	t.done.Unset++
	if len(t.done.Problems) < files.MaxProblems {
		t.done.Problems = append(t.done.Problems, p+": "+what)
	}
}

// one writes one name.
func (t *archiver) one(f *files.Found) error {
	if f.Err != nil {
		t.lost(f.Path, f.Err)
		return nil
	}
	h, err := t.header(f)
	if err != nil {
		t.lost(f.Path, err)
		return nil
	}
	if h == nil {
		return nil
	}
	if err := t.whole(f, h); err != nil {
		return err
	}
	if t.progress != nil {
		d := t.done
		t.progress(d.Bytes, d.Files+d.Directories+d.Links+d.Nodes)
	}
	return nil
}

// whole writes a name with its content.
func (t *archiver) whole(f *files.Found, h *tar.Header) error {
	if h.Typeflag == tar.TypeReg && h.Size > sparseLeast {
		s, err := t.spans(f)
		if err != nil {
			return err
		}
		if h.Size-s.sum() >= sparseLeast {
			return t.sparse(f, h, s)
		}
	}
	if err := t.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	return t.content(t.w, f, span{0, h.Size})
}

// header describes a name; it is nil for what no archive holds: sockets.
func (t *archiver) header(f *files.Found) (*tar.Header, error) {
	st := f.File.Stat()
	h := &tar.Header{Format: tar.FormatPAX, Name: strings.TrimPrefix(f.Path, "/"),
		Mode: int64(st.Mode &^ files.TypeMask), Uid: int(st.UID), Gid: int(st.GID),
		ModTime: Time(st.Mtime), AccessTime: Time(st.Atime), ChangeTime: Time(st.Ctime)}
	if first, linked := t.links.first[st.Ino]; linked {
		t.done.Links++
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return h, nil
	}
	switch st.Mode & files.TypeMask {
	case files.TypeDir:
		t.done.Directories++
		h.Typeflag, h.Name = tar.TypeDir, strings.TrimPrefix(h.Name+"/", "/")
		if h.Name == "" {
			h.Name = "./"
		}
	case files.TypeRegular:
		t.done.Files++
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case files.TypeLink:
		target, err := ReadLink(f.File)
		if err != nil {
			return nil, err
		}
		t.done.Links++
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case files.TypeChar, files.TypeBlock:
		t.done.Nodes++
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(st.Major), int64(st.Minor)
		if st.Mode&files.TypeMask == files.TypeBlock {
			h.Typeflag = tar.TypeBlock
		}
	case files.TypeFIFO:
		t.done.Nodes++
		h.Typeflag = tar.TypeFifo
	case files.TypeSocket:
		return nil, errors.New("an archive does not hold sockets")
	default:
		return nil, fmt.Errorf("its mode %#o names no type", st.Mode)
	}
	if !t.links.remember(st, h.Name) {
		t.unset(f.Path, errLinks.Error())
	}
	if err := t.xattrs(f, h); err != nil {
		t.lost(f.Path, fmt.Errorf("extended attributes: %w", err)) // the rest of it is in the archive
	}
	return h, nil
}

// xattrs adds the extended attributes, as GNU tar and libarchive name them.
func (t *archiver) xattrs(f *files.Found, h *tar.Header) error {
	return f.File.Xattrs(t.ctx, func(name string, value []byte) error {
		// An empty value would take the record away.
		if len(value) == 0 || strings.ContainsAny(name, "=\x00") {
			t.unset(f.Path, "extended attribute "+name+": an archive holds none without a value, or of such a name")
			return nil
		}
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = string(value)
		return nil
	})
}

// content writes a piece of a file.
func (t *archiver) content(w io.Writer, f *files.Found, p span) error {
	buf := make([]byte, min(blockBytes, max(p.length, 1)))
	failed := false
	for off, end := p.off, p.off+p.length; off < end; {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		part := buf[:min(int64(len(buf)), end-off)]
		n, err := f.File.ReadAt(part, off)
		if n < len(part) {
			clear(part[n:])
			if !failed {
				failed = true
				t.lost(f.Path, fmt.Errorf("at %d, zeros from there on: %w", off+int64(n),
					errors.Join(err, io.ErrUnexpectedEOF)))
			}
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		off += int64(len(part))
		t.done.Bytes += int64(len(part))
		if t.progress != nil {
			t.progress(t.done.Bytes, 0)
		}
	}
	return nil
}
