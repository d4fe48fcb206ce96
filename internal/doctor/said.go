// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package doctor

import (
	"strconv"

	"github.com/shisa-vm/shisa/internal/evidence"
)

// said makes a message a fact.
func said(ev *evidence.Event) Fact {
	from := ev.From
	from.Time = ev.Time
	f := Fact{Source: from, Value: ev.Text}
	if ev.Count > 1 {
		f.Text = "said " + strconv.FormatInt(ev.Count, 10) + " times, at last " +
			ev.Last.UTC().Format("2006-01-02 15:04:05")
	}
	return f
}
