// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package qemuimg

import "strings"

// addObject takes the argument of --object. Objects serve to decrypt and to talk to servers, neither
// of which is done here; secrets are noted, so that an option that names one which was not given is
// refused, and everything else is refused.
func (s *session) addObject(text string) *fault {
	d, err := parseObject(text)
	if err != nil {
		return err
	}
	typ, ok := d.text("qom-type")
	if !ok {
		return faultf("Parameter 'qom-type' is missing")
	}
	id, ok := d.text("id")
	switch {
	case typ != "secret":
		return faultf("objects of type '%s' are not supported by this program", typ)
	case !ok:
		return faultf("Parameter 'id' is missing")
	}
	for key := range d.all() {
		switch key {
		case "qom-type", "id", "data", "file", "format", "keyid", "iv", "loaded":
		default:
			return faultf("Parameter '%s' is unexpected", key)
		}
	}
	switch {
	case d.has("data") && d.has("file"):
		return faultf("'file' and 'data' are mutually exclusive")
	case !d.has("data") && !d.has("file"):
		return faultf("Either 'file' or 'data' must be provided")
	case !wellFormedID(id):
		f := faultf("Parameter 'id' expects an identifier")
		f.hint = idHint
		return f
	case s.secrets[id]:
		return faultf("attempt to add duplicate property '%s' to object (type 'container')", id)
	}
	s.secrets[id] = true
	return nil
}

// parseObject reads TYPE,key=value,... or a JSON object.
func parseObject(text string) (*dict, *fault) {
	if strings.HasPrefix(text, "{") {
		v, err := parseJSON(text)
		if err != nil {
			return nil, err
		}
		if d, ok := v.(*dict); ok {
			return d, nil
		}
		return &dict{}, nil
	}
	d := &dict{}
	implied := "qom-type"
	for text != "" {
		n := strings.IndexAny(text, "=,")
		if n < 0 {
			n = len(text)
		}
		key := text[:n]
		switch {
		case n < len(text) && text[n] == '=':
			var val string
			val, text = cutValue(text[n+1:])
			d.put(key, val)
		case implied != "":
			d.put(implied, key)
			text = strings.TrimPrefix(text[n:], ",")
		case key == "":
			return nil, faultf("Invalid parameter ''")
		default:
			return nil, faultf("Expected '=' after parameter '%s'", key)
		}
		implied = ""
	}
	return d, nil
}
