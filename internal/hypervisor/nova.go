// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package hypervisor

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Nova's settings that matter here, with their defaults (nova/conf/paths.py, compute.py,
// imagecache.py and libvirt.py of OpenStack 2024.1).
const (
	novaStatePath = "/var/lib/nova"
	novaInstances = "$state_path/instances"
	novaBase      = "_base"
	// maxExpansions bounds how often a value of the configuration may name another one.
	maxExpansions = 16
)

// settings are the values of a configuration of oslo.config, by "section.key".
type settings map[string]string

// parse adds what a file sets (oslo.config, iniparser.py): sections in brackets, "key = value" or
// "key: value", and lines that begin with a space continue the value before them. Lines that are
// not understood are returned by number.
func (s settings) parse(text string) (bad []int) {
	section, key := "DEFAULT", ""
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, " \t\r")
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
			key = ""
		case line[0] == ' ' || line[0] == '\t':
			if v := s[key] + "\n" + strings.TrimSpace(line); key != "" && len(v) <= maxNameBytes {
				s[key] = v
			}
		case line[0] == '[':
			section, key = strings.Trim(line, "[]"), ""
		default:
			at := strings.IndexAny(line, ":=")
			if at <= 0 {
				bad = append(bad, i+1)
				key = ""
				continue
			}
			key = section + "." + strings.TrimSpace(line[:at])
			s[key] = unquote(strings.TrimSpace(line[at+1:]))
		}
	}
	return bad
}

// unquote takes off one pair of quotes, as oslo.config does.
func unquote(s string) string {
	if len(s) > 1 && s[0] == s[len(s)-1] && (s[0] == '"' || s[0] == '\'') {
		return s[1 : len(s)-1]
	}
	return s
}

// path gives a setting with every $name and ${name} replaced.
func (s settings) path(key, value string) (string, error) {
	if v, ok := s["DEFAULT."+key]; ok {
		value = v
	}
	for range maxExpansions {
		at := strings.IndexByte(value, '$')
		if at < 0 {
			return value, nil
		}
		name := value[at+1:]
		end := strings.IndexFunc(name, func(r rune) bool {
			return r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
		})
		rest := ""
		if strings.HasPrefix(name, "{") {
			if end = strings.IndexByte(name, '}'); end < 0 {
				return "", fmt.Errorf("%s = %q is not understood", key, value)
			}
			name, rest = name[1:end], name[end+1:]
		} else if end >= 0 {
			name, rest = name[:end], name[end:]
		}
		v, ok := s["DEFAULT."+name]
		if !ok {
			v, ok = map[string]string{
				"state_path": novaStatePath, "pybasedir": "/usr/lib/python3/dist-packages",
			}[name]
		}
		if !ok || len(v) > 1<<12 {
			return "", fmt.Errorf("%s names the setting %q, which is not there", key, name)
		}
		value = value[:at] + v + rest
	}
	return "", fmt.Errorf("%s names other settings more than %d deep", key, maxExpansions)
}

// nova adds the instances directory of OpenStack Nova and its cache of base images.
func (f *finder) nova() {
	s := settings{}
	const why = "configuration of OpenStack Nova"
	files := []string{"/etc/nova/nova.conf", "/etc/nova/nova-compute.conf"}
	for _, name := range f.list("/etc/nova/nova.conf.d", ".conf", why) {
		files = append(files, filepath.Join("/etc/nova/nova.conf.d", name))
	}
	// Where kolla keeps what it puts into its containers.
	files = append(files, "/etc/kolla/nova-compute/nova.conf")
	for _, file := range files {
		if bad := s.parse(string(f.read(file, why))); len(bad) > 0 {
			f.fail(file, why, fmt.Errorf("line %d is no setting", bad[0]))
		}
	}
	dir, err := s.path("instances_path", novaInstances)
	if err != nil {
		f.fail("/etc/nova/nova.conf", why, err)
		dir = filepath.Join(novaStatePath, "instances")
	}
	base := novaBase
	if v := s["image_cache.subdirectory_name"]; v != "" {
		base = v
	}
	f.add(PlaceDirectory, dir, "instances of OpenStack Nova", "")
	if filepath.IsLocal(base) {
		f.add(PlaceDirectory, filepath.Join(dir, base), "base images of OpenStack Nova", "")
		if p := f.place(filepath.Join(dir, base)); p != nil {
			p.Bases = true
		}
	} else {
		f.fail("/etc/nova/nova.conf", why, errors.New(
			"subdirectory_name of [image_cache] leads out of the instances directory"))
	}
	if t := s["libvirt.images_type"]; t == "rbd" || t == "lvm" {
		f.remote(t, "disks of OpenStack Nova (images_type of [libvirt])", "")
	}
}
