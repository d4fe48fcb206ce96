// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"time"

	"github.com/shisa-vm/shisa/internal/diskio"
)

// KeepEvery is how often a point of memory is kept: a year takes 5 MB.
const KeepEvery = 10 * time.Minute

// Series remembers memory over time in a file, where later runs find it.
type Series struct {
	// Points are those that were kept, the oldest first.
	Points []MemoryPoint

	file string
	kept time.Time // of the last point
}

// RecallSeries reads what was kept in a directory; there may be nothing yet.
func RecallSeries(dir string) (*Series, error) {
	s := &Series{file: filepath.Join(dir, path.Base(SeriesPath)), Points: []MemoryPoint{}}
	f, err := diskio.Open(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return nil, fmt.Errorf("read remembered memory: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, min(f.Size(), maxSeriesBytes)))
	if err != nil {
		return nil, fmt.Errorf("read remembered memory: %w", err)
	}
	points, _ := ParseSeries(text) // lines that are none are as good as points that were not kept
	s.Points = append(s.Points, points...)
	if n := len(points); n > 0 {
		s.kept = points[n-1].Time
	}
	return s, nil
}

// Keep adds a point to the file, if it is time for one.
func (s *Series) Keep(p MemoryPoint) (kept bool, err error) {
	if p.Time.Sub(s.kept) < KeepEvery && !p.Time.Before(s.kept) {
		return false, nil
	}
	line, err := json.Marshal(p)
	if err != nil {
		return false, err
	}
	f, err := diskio.Append(s.file)
	if err != nil {
		return false, fmt.Errorf("keep a point of memory: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return false, fmt.Errorf("keep a point of memory: %w", err)
	}
	s.kept = p.Time
	s.Points = append(s.Points, p)
	return true, nil
}
