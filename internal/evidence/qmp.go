// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package evidence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

const (
	// qmpTimeout bounds all that is said to one QEMU.
	qmpTimeout = time.Second
	// maxQMPBytes bounds an answer; that about a hundred disks has some hundred KiB.
	maxQMPBytes = 4 << 20
	// maxQMPEvents bounds the events that come before an answer.
	maxQMPEvents = 1000
)

// monitorOf finds the socket of QEMU's monitor in its command line (qemu(1), -qmp, -mon and -chardev), ""
// if there is none that can be used; why says so. That of libvirt has one user, which is libvirt.
func monitorOf(args []string) (socket, why string) {
	chardevs := map[string]string{}
	modes := map[string]bool{}
	for i := 0; i+1 < len(args); i++ {
		flag, value := strings.TrimPrefix(args[i], "-"), args[i+1]
		switch strings.TrimPrefix(flag, "-") {
		case "qmp", "qmp-pretty":
			if rest, ok := strings.CutPrefix(value, "unix:"); ok {
				name, _, _ := strings.Cut(rest, ",")
				socket = name
			}
		case "chardev":
			if kind, _, _ := strings.Cut(value, ","); kind == "socket" {
				chardevs[optionOf(value, "id")] = optionOf(value, "path")
			}
		case "mon":
			modes[optionOf(value, "chardev")] = optionOf(value, "mode") == "control"
		}
	}
	for id, control := range modes {
		if control && socket == "" {
			socket = chardevs[id]
		}
	}
	switch {
	case socket == "":
		return "", "it has no monitor on a socket"
	case strings.HasPrefix(socket, "/var/lib/libvirt/") || strings.HasPrefix(socket, "/run/libvirt/"):
		return "", "its monitor belongs to libvirt"
	}
	return socket, ""
}

// optionOf gives a value out of "a=b,c=d".
func optionOf(list, key string) string {
	for _, o := range strings.Split(list, ",") {
		if name, value, _ := strings.Cut(o, "="); name == key {
			return value
		}
	}
	return ""
}

// askQMP asks a QEMU how it stands (docs/interop/qmp-spec.rst of QEMU). It changes nothing, and takes the
// monitor for a moment.
func askQMP(ctx context.Context, socket string) (*QMP, error) {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	until, _ := ctx.Deadline()
	if err := c.SetDeadline(until); err != nil {
		return nil, err
	}
	q := &qmpConn{json.NewDecoder(io.LimitReader(c, maxQMPBytes)), c}
	var hello struct {
		QMP *json.RawMessage `json:"QMP"`
	}
	if err := q.Decode(&hello); errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errors.New("does not answer: it takes one client, and somebody else may be using it")
	} else if err != nil {
		return nil, err
	} else if hello.QMP == nil {
		return nil, errors.New("is no monitor of QEMU")
	}
	if err := q.ask("qmp_capabilities", nil); err != nil {
		return nil, err
	}
	var status struct{ Status string }
	if err := q.ask("query-status", &status); err != nil {
		return nil, err
	}
	var blocks []struct {
		Device   string
		QDev     string `json:"qdev"`
		IOStatus string `json:"io-status"`
	}
	if err := q.ask("query-block", &blocks); err != nil {
		return nil, err
	}
	out := &QMP{Status: status.Status, Stopped: map[string]string{}}
	for _, b := range blocks {
		if name := b.Device + b.QDev; b.IOStatus != "" && b.IOStatus != "ok" {
			out.Stopped[name] = b.IOStatus
		}
	}
	return out, nil
}

type qmpConn struct {
	*json.Decoder
	w io.Writer
}

// ask says one command and reads its answer, past the events that come in between.
func (q *qmpConn) ask(command string, to any) error {
	if _, err := fmt.Fprintf(q.w, "{\"execute\":%q}\n", command); err != nil {
		return err
	}
	for range maxQMPEvents {
		var answer struct {
			Return *json.RawMessage `json:"return"`
			Error  *struct{ Desc string }
		}
		switch err := q.Decode(&answer); {
		case err != nil:
			return err
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", command, answer.Error.Desc)
		case answer.Return != nil && to == nil:
			return nil
		case answer.Return != nil:
			return json.Unmarshal(*answer.Return, to)
		}
	}
	return fmt.Errorf("%s: no answer among %d events", command, maxQMPEvents)
}
