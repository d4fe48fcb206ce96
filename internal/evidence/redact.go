// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// leftOut stands in place of what was taken out.
const leftOut = "[left-out]"

const secretWord = `[\w\-]*(?:passw(?:or)?d|passphrase|secret|token|api-?key)[\w\-]*`

// secrets are what is taken out of files before they are kept, wherever it stands. The first group is
// kept, the second is the secret.
var secrets = []struct {
	what string
	form *regexp.Regexp
}{
	{"password in an address", regexp.MustCompile(`(://[^/\s:@'"]*:)([^@\s'"]+)@`)},
	{"private key", regexp.MustCompile(`(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----)(.*?)-----END`)},
	{"hash of a password", regexp.MustCompile(`(grub\.pbkdf2\.sha512\.\d+\.)(\S+)`)},
	{"password of a boot menu", regexp.MustCompile(`(?m)^(\s*password\s+\S+\s+)(\S+)`)},
	{"value of a secret", regexp.MustCompile(`(?i)(\bname="[^"]*(?:passw|secret|token|credential)[^"]*"\s+value=")([^"]+)`)},
	{"attribute of a secret", regexp.MustCompile(`(?i)(\b(?:passw[a-z]*|secret|passphrase)\s*=\s*['"])([^'"]+)`)},
	{"setting of a secret", regexp.MustCompile(`(?im)^(\s*[\w.\-]*(?:passw|passphrase|secret|token|api_?key|auth_?key|` +
		`private_?key|transport_url|connection|credential)[\w.\-]*\s*[=:]\s*)(\S.*)$`)},
	{"argument of a secret", regexp.MustCompile(`(?i)((?:^|[\s\x00,])(?:-{0,2}` + secretWord + `=|--?` + secretWord +
		`[\s\x00]+))([^\s\x00,'"]+)`)},
}

// harmless are settings whose names only look as if they had a secret.
var harmless = []string{"token_timeout", "token", "token_retransmit", "token_coefficient", "token_warning", "connections",
	"connection_type"}

// Redact takes the secrets out of a file, and says what they were.
func Redact(name string, text []byte) ([]byte, []tree.LeftOut) {
	count := map[string]int{}
	var out []tree.LeftOut
	if less, n, is := leaseLines(name, text); is && n > 0 {
		text, out = less, append(out, tree.LeftOut{Name: name, What: notKept, Count: n})
	}
	if strings.HasPrefix(name, "/shisa/") && strings.HasSuffix(name, ".json") {
		text = redactJSON(text, count)
	} else {
		text = []byte(redact(name, string(text), count))
	}
	for _, s := range secrets {
		if n := count[s.what]; n > 0 {
			out = append(out, tree.LeftOut{Name: name, What: s.what, Count: n})
		}
	}
	return text, out
}

// redact takes secrets out of a text.
func redact(name, text string, count map[string]int) string {
	for _, s := range secrets {
		text = s.form.ReplaceAllStringFunc(text, func(hit string) string {
			m := s.form.FindStringSubmatch(hit)
			if isHarmless(name, m[1]) || m[2] == leftOut {
				return hit
			}
			count[s.what]++
			return strings.Replace(hit, m[1]+m[2], m[1]+leftOut, 1)
		})
	}
	return text
}

// isHarmless tells whether a setting is one of a cluster's timeouts, or another that holds no secret.
func isHarmless(file, setting string) bool {
	key := strings.ToLower(strings.Trim(setting, " \t=:-,\x00"))
	return strings.HasPrefix(file, "/etc/corosync/") && slices.Contains(harmless, key) ||
		slices.Contains(harmless[1:], key) && strings.HasPrefix(key, "connection")
}

// redactJSON takes secrets out of the texts of a document, so that it stays one.
func redactJSON(text []byte, count map[string]int) []byte {
	var v any
	if json.Unmarshal(text, &v) != nil {
		return []byte("null") // our own documents are none that cannot be read
	}
	b, err := json.Marshal(walk(v, count))
	if err != nil {
		return []byte("null")
	}
	return b
}

func walk(v any, count map[string]int) any {
	switch v := v.(type) {
	case string:
		return redact("", v, count)
	case []any:
		for i := range v {
			v[i] = walk(v[i], count)
		}
	case map[string]any:
		for k := range v {
			v[k] = walk(v[k], count)
		}
	}
	return v
}
