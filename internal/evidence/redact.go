// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/shisa-vm/shisa/internal/linux/tree"
)

// leftOut stands in place of what was taken out.
const leftOut = "[left-out]"

// secretWord is a name of something secret, as of an argument, a variable or a key.
const secretWord = `(?:[\w.\-]*(?:passw(?:or)?d|passphrase|secret|token|api[_\-]?key|access_?key)[\w.\-]*|` +
	`(?:[\w.\-]*[_.\-])?(?:pass|pwd))`

// argument is what comes before the value of an argument or a variable.
const argument = `(?:^|[\s\x00,=:;?&'"])(?:-{0,2}` + secretWord + `=|--?` + secretWord + `[\s\x00]+)`

// secret is something that is taken out of files before they are kept, wherever it stands. The first group of its
// form is kept, the second is the secret.
type secret struct {
	what string
	form *regexp.Regexp
}

// secrets are all of them. They are made when they are needed: every start of the program would pay for them.
var secrets = sync.OnceValue(func() []secret {
	return []secret{
		// To the last @: a password may have one, and a list of servers has a password for each.
		{"password in an address", regexp.MustCompile(`(://[^/\s:@'"]*:)([^\s'"\x00]+)@`)},
		// qemu-block-drivers(7), iSCSI; dracut.cmdline(7), netroot=; the keys of RBD.
		{"password of an iSCSI address", regexp.MustCompile(`(\biscsi://[^/\s@'"%]*%)([^\s'"\x00]+)@`)},
		{"password of an iSCSI root", regexp.MustCompile(`(\biscsi:[^/\s:@'"]+:)([^\s'"\x00]+)@`)},
		{"key of a Ceph user", regexp.MustCompile(`(\brbd:[^\s\x00'"]*?:key=)([^:\s\x00,'"]+)`)},
		{"private key", regexp.MustCompile(`(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----)(.*?)-----END`)},
		{"hash of a password", regexp.MustCompile(`(grub\.pbkdf2\.sha512\.\d+\.)(\S+)`)},
		{"password of a boot menu", regexp.MustCompile(`(?m)^(\s*password\s+\S+\s+)(\S+)`)},
		{"credential of the command line", regexp.MustCompile(`(\bsystemd\.set_credential(?:_binary)?=[^:\s]*:)(\S+)`)},
		{"data of a secret", regexp.MustCompile(`(\bsecret[\w\-]*,[^\s\x00]*?\bdata=)([^,\s\x00]+)`)},
		{"data of a secret", regexp.MustCompile(`("qom-type"\s*:\s*"secret"[^}]*?"data"\s*:\s*")([^"]+)`)},
		{"key of a secret", regexp.MustCompile(`(?i)("` + secretWord + `"\s*:\s*")([^"]+)`)},
		{"value of a secret", regexp.MustCompile(`(?i)(\bname=["'][^"']*(?:passw|secret|token|credential)[^"']*["']` +
			`\s+value=["'])([^"']+)`)},
		{"value of a secret", regexp.MustCompile(`(?i)(\bvalue=["'])([^"']+)["'](?:\s+\w+=["'][^"'<>]*["'])*?` +
			`\s+name=["'][^"']*(?:passw|secret|token|credential)`)},
		{"attribute of a secret", regexp.MustCompile(`(?i)(\b(?:passw[a-z]*|secret|passphrase)\s*=\s*['"])([^'"]+)`)},
		{"setting of a secret", regexp.MustCompile(`(?im)^(\s*[\w.\-]*(?:passw|passphrase|secret|token|api_?key|auth_?key|` +
			`private_?key|transport_url|connection|credential)[\w.\-]*\s*[=:]\s*)(\S.*)$`)},
		{"argument of a secret", regexp.MustCompile(`(?i)(` + argument + `")([^"\n]+)`)},
		{"argument of a secret", regexp.MustCompile(`(?i)(` + argument + `')([^'\n]+)`)},
		{"argument of a secret", regexp.MustCompile(`(?i)(` + argument + `)([^\s\x00,'"]+)`)},
		{"argument of a secret", regexp.MustCompile(`([\s\x00](?:-u|--user)[\s=\x00]+['"]?[^\s:'"\x00]+:)([^\s'"\x00]+)`)},
		{"argument of a secret", regexp.MustCompile(`(\b(?:mysql|mariadb|sshpass)[\w\-]*[\s\x00](?:[^\n]*?[\s\x00])?-p)` +
			`([^\s'"\x00]+)`)},
		{"header of a secret", regexp.MustCompile(`(?i)(\bauthorization:\s*(?:bearer|basic|token)\s+)([^\s'"\x00]+)`)},
	}
})

// harmless are settings whose names only look as if they had a secret.
var harmless = []string{"token_timeout", "token", "token_retransmit", "token_coefficient", "token_warning", "connections",
	"connection_type"}

// names are settings of units that name credentials, and hold none (systemd.exec(5), systemd.unit(5)).
var names = []string{"passcredentials", "loadcredential", "loadcredentialencrypted", "importcredential",
	"conditioncredential", "assertcredential"}

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
	for _, s := range secrets() {
		if n := count[s.what]; n > 0 {
			out = append(out, tree.LeftOut{Name: name, What: s.what, Count: n})
			delete(count, s.what) // several forms have one word
		}
	}
	return text, out
}

// redact takes secrets out of a text.
func redact(name, text string, count map[string]int) string {
	for _, s := range secrets() {
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
	key := strings.ToLower(strings.Trim(setting, " \t\n=:;?&'\"-,\x00"))
	return strings.HasPrefix(file, "/etc/corosync/") && slices.Contains(harmless, key) ||
		slices.Contains(harmless[1:], key) && strings.HasPrefix(key, "connection") || slices.Contains(names, key)
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
