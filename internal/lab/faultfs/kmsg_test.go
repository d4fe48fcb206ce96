// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package faultfs

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/shisa-vm/shisa/internal/testenv"
)

func TestParseMessage(t *testing.T) {
	m, ok := parseMessage([]byte("3,1234,5678901,-;Aborting journal on device loop0-8.\n" +
		" SUBSYSTEM=block\n"))
	want := Message{Seq: 1234, Since: 5678901 * time.Microsecond, Level: 3,
		Text: "Aborting journal on device loop0-8."}
	if !ok || m != want {
		t.Errorf("parseMessage() = %+v, %t, want %+v", m, ok, want)
	}
	m, ok = parseMessage([]byte("30,1,2,-,caller=T1;a;b"))
	if !ok || m.Level != 6 || m.Text != "a;b" {
		t.Errorf("parseMessage() = %+v, %t, want level 6 and a;b", m, ok)
	}
	for _, text := range []string{"", ";", "1,2,3;x", "a,2,3,-;x", "1,-2,3,-;x", "1,2,3,-"} {
		if m, ok := parseMessage([]byte(text)); ok {
			t.Errorf("parseMessage(%q) = %+v, want none", text, m)
		}
	}
}

func TestHasWord(t *testing.T) {
	for text, want := range map[string]bool{
		"XFS (loop1): x": true, "on device loop1-8.": true, "loop1: y": true, "loop1": true,
		"loop12, loop1, z": true, "loop12": false, "aloop1": false, "": false, "loop": false,
	} {
		if got := hasWord(text, "loop1"); got != want {
			t.Errorf("hasWord(%q, loop1) = %t, want %t", text, got, want)
		}
	}
	if hasWord("x", "") {
		t.Error("the empty word is in a text")
	}
}

// TestLog holds that what is written after a moment is read, and by its words.
func TestLog(t *testing.T) {
	testenv.NeedRoot(t)
	mine := fmt.Sprintf("faultfs%dtest", os.Getpid())
	write := func(text string) {
		t.Helper()
		must(t, os.WriteFile("/dev/kmsg", []byte("<7>"+mine+" "+text+"\n"), 0o200))
	}
	write("before")
	log, err := OpenLog()
	available(t, err)
	defer log.Close()
	for i := range 2 {
		write(fmt.Sprint("after ", i))
		write("another")
		all, lost, err := log.Read(mine)
		if err != nil || lost || len(all) != 2 || all[0].Text != fmt.Sprint(mine, " after ", i) {
			t.Errorf("Read(%s) = %+v, %t, %v, want after %d and another", mine, all, lost, err, i)
		}
	}
	if all, _, err := log.Read("no" + mine); len(all) > 0 || err != nil {
		t.Errorf("Read() of what nobody wrote = %+v, %v", all, err)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte("3,1234,5678901,-;text\n KEY=value"))
	f.Add([]byte("6,1,2,c,x;"))
	f.Fuzz(func(t *testing.T, record []byte) {
		m, ok := parseMessage(record)
		if ok && (m.Level > 7 || m.Seq < 0 || len(m.Text) > len(record)) {
			t.Errorf("parseMessage(%q) = %+v", record, m)
		}
	})
}
