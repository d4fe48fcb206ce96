// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// given is the value of a flag that names something: an empty one, as of a variable of a script that
// was not set, would silently mean another thing than was meant.
type given string

// String is pflag.Value.
func (g *given) String() string { return string(*g) }

// Type is pflag.Value.
func (g *given) Type() string { return "string" }

// Set is pflag.Value.
func (g *given) Set(text string) error {
	if text == "" {
		return errors.New("it is empty")
	}
	*g = given(text)
	return nil
}

// repeated is the value of a flag that may be given again. That of pflag takes 4 KiB for each flag as soon as it
// is defined.
type repeated []string

// String is pflag.Value.
func (r *repeated) String() string { return strings.Join(*r, ",") }

// Type is pflag.Value. By its end cobra knows that the flag may be given again.
func (r *repeated) Type() string { return "stringArray" }

// Set is pflag.Value.
func (r *repeated) Set(text string) error {
	*r = append(*r, text)
	return nil
}

// byteSize is the value of a flag that takes a number of bytes: 4096, 64K, 1.5G, 20MiB. The units
// are powers of 1024, as everywhere about disks.
type byteSize int64

// String is pflag.Value.
func (b *byteSize) String() string { return strconv.FormatInt(int64(*b), 10) }

// Type is pflag.Value: what stands for the value in the help.
func (b *byteSize) Type() string { return "SIZE" }

// Set is pflag.Value.
func (b *byteSize) Set(text string) error {
	number := strings.TrimRight(text, "BbIiKkMmGgTtPpEe")
	unit := strings.ToLower(text[len(number):])
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")
	power := 0 // no unit, or a lone B
	if unit != "" {
		power = strings.Index(" kmgtpe", unit)
	}
	if len(unit) > 1 || power < 0 {
		return fmt.Errorf("unknown unit %q, want K, M, G, T, P or E", text[len(number):])
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return errors.New("not a number of bytes such as 4096, 64K or 1.5G")
	}
	n *= math.Pow(1024, float64(power))
	if !(n >= 0 && n < math.MaxInt64) {
		return errors.New("out of range")
	}
	*b = byteSize(n)
	return nil
}
