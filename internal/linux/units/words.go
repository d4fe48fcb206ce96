// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package units

import "strings"

// words cuts a value at blanks, with quotes and escapes as in systemd.syntax(7), "Quoting"
// (extract_first_word() with EXTRACT_UNQUOTE and EXTRACT_CUNESCAPE). What does not end is taken to the end.
func words(text string) []string {
	var all []string
	for {
		text = strings.TrimLeft(text, blanks)
		if text == "" {
			return all
		}
		var word string
		word, text, _ = oneWord(text)
		all = append(all, word)
	}
}

// oneWord takes the first word off a text. quoted tells that some of it was in quotes.
func oneWord(text string) (word, rest string, quoted bool) {
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(text); i++ {
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
			quote, quoted = c, true
		case strings.IndexByte(blanks, c) >= 0:
			return b.String(), text[i:], quoted
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", quoted
}

// escape reads what comes after a backslash (cunescape_one()): how many bytes, and what they stand for. What
// is no escape stays as it is, as systemd does with EXTRACT_CUNESCAPE_RELAX in command lines.
func escape(s string) (n int, stands string) {
	if i := strings.IndexByte(`abfnrtv\"'s`, s[0]); i >= 0 {
		return 1, "\a\b\f\n\r\t\v\\\"' "[i : i+1]
	}
	switch {
	case s[0] == 'x' && len(s) > 2 && hex(s[1]) >= 0 && hex(s[2]) >= 0:
		return 3, string([]byte{byte(hex(s[1])<<4 | hex(s[2]))})
	case len(s) > 2 && octal(s[0]) && octal(s[1]) && octal(s[2]):
		return 3, string([]byte{(s[0]-'0')<<6 | (s[1]-'0')<<3 | (s[2] - '0')})
	}
	return 1, `\` + s[:1]
}

func octal(c byte) bool { return c >= '0' && c <= '7' }
