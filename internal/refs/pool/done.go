// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package pool

// Done is what an act did (schema shisa.base-done/1).
type Done struct {
	Bases string `json:"bases"`
	Pool  string `json:"pool"`
	// Shielded got a shield, Touched were touched, Recorded had their content recorded, Restored are there
	// again, Unshielded lost their shield.
	Shielded   []string `json:"shielded"`
	Touched    []string `json:"touched"`
	Recorded   []string `json:"recorded"`
	Restored   []string `json:"restored"`
	Unshielded []string `json:"unshielded"`
	// Left are those for which it was not done, each with the reason.
	Left []Left `json:"left"`
}

// Left is something that was not done.
type Left struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Leave notes something that was not done.
func (d *Done) Leave(name string, err error) { d.Left = append(d.Left, Left{name, err.Error()}) }
