// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import "strings"

// words cuts a value at blanks, with quotes and escapes as in systemd.syntax(7), "Quoting"
// (extract_first_word() with EXTRACT_UNQUOTE and EXTRACT_CUNESCAPE). It ends where a quote does not.
func words(text string) []string {
	var all []string
	for {
		word, rest, ok := oneWord(text)
		if !ok || word == nil {
			return all
		}
		all = append(all, *word)
		text = rest
	}
}

// oneWord takes the first word off a text: nil at its end. ok is false where a quote does not end.
func oneWord(text string) (word *string, rest string, ok bool) {
	text = strings.TrimLeft(text, blanks)
	if text == "" {
		return nil, "", true
	}
	var b strings.Builder
	quote := byte(0)
	i := 0
loop:
	for ; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && i+1 < len(text):
			n, r := escape(text[i+1:])
			b.WriteString(r)
			i += n
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			b.WriteByte(c)
		case c == '"' || c == '\'':
			quote = c
		case strings.IndexByte(blanks, c) >= 0:
			break loop
		default:
			b.WriteByte(c)
		}
	}
	w := b.String()
	return &w, strings.TrimLeft(text[i:], blanks), quote == 0
}

// escape reads what comes after a backslash (cunescape_one()): how many bytes, and what they stand for. What
// is no escape stays as it is, as systemd does after a warning.
func escape(s string) (n int, stands string) {
	if i := strings.IndexByte(`abfnrtv\"'s`, s[0]); i >= 0 {
		return 1, "\a\b\f\n\r\t\v\\\"' "[i : i+1]
	}
	switch {
	case s[0] == 'x' && len(s) > 2 && hex(s[1]) >= 0 && hex(s[2]) >= 0 && s[1:3] != "00":
		return 3, string([]byte{byte(hex(s[1])<<4 | hex(s[2]))})
	case len(s) > 2 && s[0] <= '3' && octal(s[0]) && octal(s[1]) && octal(s[2]) && s[:3] != "000":
		return 3, string([]byte{(s[0]-'0')<<6 | (s[1]-'0')<<3 | (s[2] - '0')})
	}
	return 1, `\` + s[:1]
}

func octal(c byte) bool { return c >= '0' && c <= '7' }

// command is one command of an ExecStart= or the like.
type command struct {
	// program is its path, or a name that is looked for; args are its arguments, the first being its own
	// name.
	program string
	args    []string
	// mayFail: its failure does not count ("-"); bare: no variables are replaced (":").
	mayFail, bare bool
	from          Setting
}

// commands reads the commands of a setting (systemd.service(5), "Command Lines"; config_parse_exec()). bad
// tells that systemd refuses the unit for it.
func commands(s Setting) (all []command, bad bool) {
	text := s.Value
	for text != "" {
		word, rest, ok := oneWord(text)
		if !ok || word == nil {
			return all, false
		}
		c := command{from: s}
		at, separate := c.prefixes(*word)
		if at == "" || strings.HasSuffix(at, "/") || at[0] != '/' && strings.Contains(at, "/") {
			return all, !c.mayFail
		}
		c.program = at
		if !separate {
			c.args = []string{at}
		}
		if text, ok = c.arguments(rest); !ok {
			return all, !c.mayFail
		}
		if len(c.args) == 0 {
			return all, !c.mayFail
		}
		all = append(all, c)
	}
	return all, false
}

// prefixes takes the characters off the first word that say how a command is run. Each counts once.
func (c *command) prefixes(at string) (rest string, separate bool) {
	rights := ""
	for ; at != ""; at = at[1:] {
		switch {
		case at[0] == '-' && !c.mayFail:
			c.mayFail = true
		case at[0] == '@' && !separate:
			separate = true
		case at[0] == ':' && !c.bare:
			c.bare = true
		case (at[0] == '+' || at[0] == '!') && rights == "", at[0] == '!' && rights == "!":
			rights += at[:1]
		default:
			return at, separate
		}
	}
	return "", separate
}

// arguments reads up to a semicolon that stands alone, and gives what is behind it.
func (c *command) arguments(text string) (rest string, ok bool) {
	for text != "" {
		if alone(text, ";") {
			return strings.TrimLeft(text[1:], blanks), true
		}
		if alone(text, `\;`) {
			c.args = append(c.args, ";")
			text = strings.TrimLeft(text[2:], blanks)
			continue
		}
		word, behind, ok := oneWord(text)
		if !ok {
			return "", false
		}
		if word == nil {
			break
		}
		c.args = append(c.args, *word)
		text = behind
	}
	return "", true
}

// alone tells whether a text begins with a word that is nothing but these characters.
func alone(text, word string) bool {
	rest, has := strings.CutPrefix(text, word)
	return has && (rest == "" || strings.IndexByte(blanks, rest[0]) >= 0)
}

// commands gives those of a setting that count.
func (u *Unit) commands(key string) []command {
	var all []command
	for _, s := range u.All(u.Section(), key) {
		some, _ := commands(s)
		all = append(all, some...)
	}
	return all
}
