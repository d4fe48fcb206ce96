// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package calendar

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"time"
)

// maxComponents is how many items a list has at most, as in systemd.
const maxComponents = 241

// errForm: the text is no event.
var errForm = errors.New("is no calendar event")

// Parse reads a calendar event. The error says that it is none, or is that of z.Load for a zone that
// the event may name.
func Parse(text string, z Zones) (*Spec, error) {
	s := &Spec{summer: -1, zone: z.Local}
	if s.zone == nil {
		s.zone = time.UTC
	}
	rest, err := s.cutZone(text, z)
	if err == nil && rest == "" {
		err = errForm
	}
	if err == nil && !s.shorthand(strings.ToLower(rest)) {
		p := &parser{rest: rest}
		err = p.event(s)
	}
	if err == nil {
		s.normalize()
		err = s.valid()
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", text, err)
	}
	return s, nil
}

// cutZone takes the zone off the end: UTC, a name of the local zone's standard or summer time, or one of
// the database.
func (s *Spec) cutZone(text string, z Zones) (rest string, err error) {
	if rest, ok := cutSuffixFold(text, " UTC"); ok {
		s.utc, s.suffix = true, "UTC"
		return rest, nil
	}
	for i, name := range namesOf(s.zone, z.Now) {
		if rest, ok := cutSuffixFold(text, " "+name); ok && name != "" {
			s.summer, s.suffix = i, name
			return rest, nil
		}
	}
	at := strings.LastIndexByte(text, ' ')
	if at < 0 || !zoneName(text[at+1:]) || z.Load == nil {
		return text, nil
	}
	name := text[at+1:]
	if strings.HasPrefix(name, "right/") {
		return "", fmt.Errorf("%s counts leap seconds, which is not understood", name)
	}
	zone, err := z.Load(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return text, nil
	case err != nil:
		return "", fmt.Errorf("zone %s: %w", name, err)
	}
	s.zone, s.suffix = zone, name
	return text[:at], nil
}

func cutSuffixFold(s, suffix string) (string, bool) {
	at := len(s) - len(suffix)
	if at < 0 || !strings.EqualFold(s[at:], suffix) {
		return s, false
	}
	return s[:at], true
}

// zoneName tells whether a word can be a name of the database.
func zoneName(s string) bool {
	for _, c := range []byte(s) {
		if !isLetter(c) && !isDigit(c) && strings.IndexByte("-_+/", c) < 0 {
			return false
		}
	}
	return s != "" && s[0] != '/' && s[len(s)-1] != '/' && !strings.Contains(s, "//")
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }

// namesOf gives what a zone calls its standard and its summer time, whichever comes next from a time on. A
// zone without summer time has one name for both.
func namesOf(zone *time.Location, now time.Time) (names [2]string) {
	const step, year = 10 * 24 * time.Hour, 366 * 24 * time.Hour // no summer time is shorter, none comes more rarely
	for t := now; t.Sub(now) < year; t = t.Add(step) {
		at := t.In(zone)
		i := 0
		if at.IsDST() {
			i = 1
		}
		if names[i] == "" {
			names[i], _ = at.Zone()
		}
	}
	for i := range names {
		if names[i] == "" {
			names[i] = names[1-i]
		}
	}
	return names
}

// at is a list of single values.
func at(values ...int) (c chain) {
	for _, v := range values {
		c = append(c, component{v, -1, 0})
	}
	return c
}

// shorthand sets an event that has a word of its own.
func (s *Spec) shorthand(word string) bool {
	p := &s.parts
	switch word {
	case "minutely", "hourly", "daily", "weekly", "monthly":
	case "quarterly":
		p[month] = at(1, 4, 7, 10)
	case "annually", "yearly", "anually":
		p[month] = at(1)
	case "biannually", "bi-annually", "semiannually", "semi-annually":
		p[month] = at(1, 7)
	default:
		return false
	}
	p[micro] = at(0)
	if word == "minutely" {
		return true
	}
	p[minute] = at(0)
	if word == "hourly" {
		return true
	}
	p[hour] = at(0)
	switch word {
	case "daily":
	case "weekly":
		s.days = 1
	default:
		p[day] = at(1)
	}
	return true
}

// parser reads an event from its beginning.
type parser struct{ rest string }

func (p *parser) event(s *Spec) error {
	if err := p.weekdays(s); err != nil {
		return err
	}
	if strings.HasPrefix(p.rest, "@") {
		return p.epoch(s)
	}
	if err := p.date(s); err != nil {
		return err
	}
	return p.time(s)
}

// peek gives the next byte, 0 at the end.
func (p *parser) peek() byte {
	if p.rest == "" {
		return 0
	}
	return p.rest[0]
}

// ends tells whether a part ends here: at the end of the text, or at one of these.
func (p *parser) ends(at string) bool {
	return p.rest == "" || strings.IndexByte(at, p.rest[0]) >= 0
}

func (p *parser) spaces() { p.rest = strings.TrimLeft(p.rest, " ") }

// weekday reads the name of a day, short or long, in any case.
func (p *parser) weekday() (n int, ok bool) {
	for n, long := range [7]string{"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"} {
		for _, name := range []string{long, weekdays[n]} {
			if len(p.rest) >= len(name) && strings.EqualFold(p.rest[:len(name)], name) {
				p.rest = p.rest[len(name):]
				return n, true
			}
		}
	}
	return 0, false
}

// weekdays reads "Mon,Wed..Fri ". "-" is an older sign for "..", and one comma too many is allowed.
func (p *parser) weekdays(s *Spec) error {
	from := -1 // where a range began
	for first := true; ; first = false {
		n, ok := p.weekday()
		if !ok && first {
			return nil
		}
		if !ok || !p.ends("-., ") || from > n {
			return errForm
		}
		s.days |= 1 << n
		for ; from >= 0 && from < n; from++ {
			s.days |= 1 << from
		}
		switch {
		case p.ends(" "):
			p.spaces()
			return nil
		case p.rest[0] == ',':
			from, p.rest = -1, p.rest[1:]
		case from < 0 && p.rest[0] == '-':
			from, p.rest = n, p.rest[1:]
		case from < 0 && strings.HasPrefix(p.rest, ".."):
			from, p.rest = n, p.rest[2:]
		default:
			return errForm
		}
		if p.ends(" ") {
			p.spaces()
			if from >= 0 {
				return errForm
			}
			return nil
		}
	}
}

// epoch reads "@1735689600", seconds since 1970, of which the C library reads what strtoul(3) does:
// spaces and a sign before it.
func (p *parser) epoch(s *Spec) error {
	digits := strings.TrimLeft(p.rest[1:], " \t\n\v\f\r")
	unsigned := strings.TrimPrefix(digits, "+")
	minus := unsigned == digits && strings.HasPrefix(digits, "-")
	if minus {
		unsigned = digits[1:]
	}
	n, err := strconv.ParseUint(unsigned, 10, 64)
	if err != nil {
		return errForm
	}
	if minus {
		n = -n
	}
	seconds := int64(n)
	if seconds < 0 || seconds > maxUnix {
		return fmt.Errorf("%w: it is out of the years %d to %d", errForm, minYear, maxYear)
	}
	t := time.Unix(seconds, 0).UTC()
	s.parts = [partCount]chain{at(t.Year()), at(int(t.Month())), at(t.Day()), at(t.Hour()), at(t.Minute()),
		at(t.Second() * second)}
	// It is a time of the world, whatever zone stands behind it.
	s.utc, p.rest = true, ""
	return nil
}

// date reads "2026-*-1,15 ", "12-24 " or "12~1 ", or nothing if a time of the day comes first.
func (p *parser) date(s *Spec) error {
	if p.rest == "" {
		return nil
	}
	before := p.rest
	first, err := p.chain(false)
	if err != nil {
		return err
	}
	if p.ends(":") {
		p.rest = before
		return nil
	}
	chains := []chain{first}
	for len(chains) < 3 && !s.fromEnd {
		if c := p.peek(); c != '-' && c != '~' {
			return errForm
		}
		s.fromEnd = p.rest[0] == '~'
		p.rest = p.rest[1:]
		next, err := p.chain(false)
		if err != nil {
			return err
		}
		chains = append(chains, next)
		if p.ends(" ") {
			break
		}
	}
	if !p.ends(" ") {
		return errForm
	}
	p.spaces()
	if len(chains) == 3 {
		s.parts[year], chains = chains[0], chains[1:]
	}
	s.parts[month], s.parts[day] = chains[0], chains[1]
	return nil
}

// time reads "3:30" or "03:30:00.5"; nothing is midnight.
func (p *parser) time(s *Spec) error {
	if p.rest == "" {
		s.parts[hour], s.parts[minute], s.parts[micro] = at(0), at(0), at(0)
		return nil
	}
	for part := hour; part <= micro; part++ {
		c, err := p.chain(part == micro)
		if err != nil {
			return err
		}
		s.parts[part] = c
		switch {
		case p.rest == "" && part == minute:
			s.parts[micro] = at(0)
			return nil
		case p.rest == "" && part == micro:
			return nil
		case p.peek() != ':' || part == micro:
			return errForm
		}
		p.rest = p.rest[1:]
	}
	return errForm
}

// chain reads a list, or "*".
func (p *parser) chain(seconds bool) (chain, error) {
	if p.peek() == '*' {
		p.rest = p.rest[1:]
		if seconds {
			return chain{{0, -1, second}}, nil
		}
		return nil, nil
	}
	var all chain
	for len(all) < maxComponents {
		c, err := p.component(seconds)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
		if p.peek() != ',' {
			return all, nil
		}
		p.rest = p.rest[1:]
	}
	return nil, fmt.Errorf("%w: a list has more than %d items", errForm, maxComponents)
}

// component reads "1", "1..5", "1/2" or "1..5/2".
func (p *parser) component(seconds bool) (c component, err error) {
	c.stop = -1
	if c.start, err = p.number(seconds); err != nil {
		return c, err
	}
	if strings.HasPrefix(p.rest, "..") {
		p.rest = p.rest[2:]
		if c.stop, err = p.number(seconds); err != nil {
			return c, err
		}
		c.repeat = 1
		if seconds {
			c.repeat = second
		}
	}
	if p.peek() == '/' {
		p.rest = p.rest[1:]
		if c.repeat, err = p.number(seconds); err != nil {
			return c, err
		}
		if c.repeat == 0 {
			return c, errForm
		}
	} else if c.start > math.MaxInt32-c.repeat || seconds && c.stop >= 0 && c.start+c.repeat > c.stop {
		return c, errForm // systemd wants a repetition where a range of seconds is shorter than one
	}
	if !p.ends(" ,-~:") {
		return c, errForm
	}
	return c, nil
}

// number reads digits; seconds may have a fraction, of which six digits count, rounded by the seventh.
func (p *parser) number(seconds bool) (int, error) {
	digits := p.digits()
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil {
		return 0, errForm
	}
	if !seconds {
		return int(n), nil
	}
	n *= second
	if strings.HasPrefix(p.rest, ".") && !strings.HasPrefix(p.rest, "..") {
		p.rest = p.rest[1:]
		fraction := p.digits()
		if fraction == "" {
			return 0, errForm
		}
		for i := range 6 {
			n += int64(digitAt(fraction, i)) * int64(math.Pow10(5-i))
		}
		if digitAt(fraction, 6) >= 5 {
			n++
		}
	}
	if n > math.MaxInt32 {
		return 0, errForm
	}
	return int(n), nil
}

// digits takes the digits that come next.
func (p *parser) digits() string {
	n := 0
	for n < len(p.rest) && isDigit(p.rest[n]) {
		n++
	}
	digits := p.rest[:n]
	p.rest = p.rest[n:]
	return digits
}

func digitAt(s string, i int) byte {
	if i < len(s) {
		return s[i] - '0'
	}
	return 0
}
