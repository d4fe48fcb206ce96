// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package shisa_test

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shisa-vm/shisa/internal/lab"
)

// wreck breaks an image in the way of one of the lab's faults: "wreck a.qcow2 l1-entry-wiped". The
// text of what the fault did to the guest's disk is not needed: scripts say what they see.
func wreck(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: wreck FILE FAULT [SEED]")
	}
	seed := uint64(1)
	if len(args) == 3 {
		var err error
		seed, err = strconv.ParseUint(args[2], 0, 64)
		ts.Check(err)
	}
	for _, f := range lab.Faults() {
		if f.Name == args[1] {
			_, err := f.Apply(ts.MkAbs(args[0]), seed)
			ts.Check(err)
			return
		}
	}
	ts.Fatalf("wreck knows no %q", args[1])
}

// holders are the programs that scripts have hold images, until they let go.
var holders sync.Map // from *testscript.TestScript to func()

// hold has qemu-io open an image as a machine does, until "letgo" or the end of the script. $HOLDER
// is its process then: "hold a.qcow2", or "hold -r a.qcow2" to read only.
func hold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: hold [-r] FILE")
	}
	argv := append(args[:len(args)-1:len(args)-1], ts.MkAbs(args[len(args)-1]))
	c := exec.Command("qemu-io", argv...)
	in, err := c.StdinPipe()
	ts.Check(err)
	out, err := c.StdoutPipe()
	ts.Check(err)
	c.Stderr = os.Stderr
	ts.Check(c.Start())
	end := sync.OnceFunc(func() {
		in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = c.Wait() // what it says of its end is of no interest
	})
	holders.Store(ts, end)
	ts.Defer(end)
	_, err = io.WriteString(in, "length\n")
	ts.Check(err)
	for s := bufio.NewScanner(out); s.Scan(); {
		if strings.Contains(s.Text(), "iB") {
			ts.Setenv("HOLDER", strconv.Itoa(c.Process.Pid))
			return
		}
	}
	ts.Fatalf("qemu-io %v did not open the image", argv)
}

// letgo ends the program of the last hold.
func letgo(ts *testscript.TestScript, neg bool, args []string) {
	end, ok := holders.Load(ts)
	if neg || len(args) != 0 || !ok {
		ts.Fatalf("usage: hold FILE, then letgo")
	}
	end.(func())()
}

// unfinish takes the last state out of an undo file, and sets back the receipt in a state
// directory, as if the power had failed before either was written (doc/formats/undo.md, states).
func unfinish(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: unfinish UNDOFILE STATEDIR")
	}
	const sector = 512
	path := ts.MkAbs(args[0])
	data, err := os.ReadFile(path)
	ts.Check(err)
	at := len(data)/sector*sector - sector
	for ; at > 0 && !bytes.HasPrefix(data[at:], []byte("SHISASTA")); at -= sector {
	}
	if at <= 0 {
		ts.Fatalf("%s has no state", args[0])
	}
	clear(data[at : at+sector])
	ts.Check(os.WriteFile(path, data, 0o600))
	receipts, err := filepath.Glob(ts.MkAbs(args[1]) + "/undo/*.json")
	ts.Check(err)
	for _, r := range receipts {
		text, err := os.ReadFile(r)
		ts.Check(err)
		if bytes.Contains(text, []byte(`"`+path+`"`)) {
			text = bytes.Replace(text, []byte(`"state": "committed"`), []byte(`"state": "prepared"`), 1)
			ts.Check(os.WriteFile(r, text, 0o600))
		}
	}
}

// receiptOf sets $RECEIPT to the newest receipt in a state directory: "receipt state".
func receiptOf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: receipt STATEDIR")
	}
	dir := ts.MkAbs(args[0]) + "/undo"
	list, err := os.ReadDir(dir)
	ts.Check(err)
	newest, id := int64(0), ""
	for _, e := range list {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		st, err := e.Info()
		ts.Check(err)
		if at := st.ModTime().UnixNano(); at > newest {
			newest, id = at, name
		}
	}
	if id == "" {
		ts.Fatalf("there is no receipt in %s", dir)
	}
	ts.Setenv("RECEIPT", id)
}
