// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/lab/vm"
	"github.com/shisa-vm/shisa/internal/testenv"
)

// TestDebian12Server has Debian 12's kernel serve a file system by NFS.
func TestDebian12Server(t *testing.T) {
	testenv.NeedVM(t)
	t.Parallel()
	guest(t, vm.Debian12, []suite{{pkg: "e2e", run: "^TestServer$", env: []string{"SHISA_TEST_ALL=1"},
		must: []string{"TestServer"}, modules: []string{"nfsd", "nfsv4"}}})
}

// TestServer exports a file system by the kernel's NFS server, and has a client hold a file of it. No
// process of this host has it open: that it is the server is said, and nobody is called innocent.
func TestServer(t *testing.T) {
	testenv.NeedGuest(t)
	at := newFilesystem(t, newLoop(t))
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(at, "disk.raw"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := serve(t, at)
	client := t.TempDir()
	mountNFS(t, "/", client)
	f, err := os.OpenFile(filepath.Join(client, "disk.raw"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("client"), 0); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); err != unix.EBUSY {
		t.Fatalf("umount of what a client has open = %v, want %v", err, unix.EBUSY)
	}
	r, status := scanned(t, at)
	if status != 4 || r.Audit.Unexplained == 0 || r.Verdict != holders.Unknown {
		t.Errorf("status %d, %s with %d unexplained, want 4, unknown and some", status, r.Verdict, r.Audit.Unexplained)
	}
	for _, want := range []string{"the NFS server, which exports " + at + ": exportfs -f",
		"the NFS server, which has disk.raw open for the client Linux NFSv4.2 guest (127.0.0.1:"} {
		if !slices.ContainsFunc(r.Audit.Hints, func(h string) bool { return strings.HasPrefix(h, want) }) {
			t.Errorf("the hints are %q, want %q among them", r.Audit.Hints, want)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	run(t, "umount", client)
	stop()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		r, status = scanned(t, at)
		if status == 0 && len(r.Audit.Hints) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the server is gone, and the scan ends with %d: %+v", status, r)
		}
	}
	run(t, "umount", at)
}

// scanned is what the program says of a mount.
func scanned(t *testing.T, at string) (r holders.Report, status int) {
	t.Helper()
	var words strings.Builder
	c := exec.Command("shisa", "holders", "--json", at)
	c.Stderr = &words
	out, _ := c.Output() // its status is looked at
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s %s", err, out, words.String())
	}
	return r, c.ProcessState.ExitCode()
}

// Flags of an export (fs/nfsd/export.h): any port, no check of what lies above a file, a number for the
// file system.
const exportFlags = 0x2 | 0x400 | 0x2000

// serve exports a directory as the root of an NFS 4 server. mountd(8) would answer the kernel's
// questions; here the answers are there before it asks: who 127.0.0.1 is, that what has the number 0 is
// this directory, and how it is exported.
func serve(t *testing.T, dir string) (stop func()) {
	t.Helper()
	const never = 1<<31 - 1
	put(t, "/proc/net/rpc/auth.unix.ip/channel", fmt.Sprintf("nfsd 127.0.0.1 %d guest\n", never))
	put(t, "/proc/net/rpc/nfsd.export/channel",
		fmt.Sprintf("guest %s %d %d 65534 65534 0\n", dir, never, exportFlags))
	put(t, "/proc/net/rpc/nfsd.fh/channel", fmt.Sprintf("guest 1 \\x00000000 %d %s\n", never, dir))
	put(t, "/proc/fs/nfsd/nfsv4leasetime", "10\n")
	put(t, "/proc/fs/nfsd/nfsv4gracetime", "10\n")
	put(t, "/proc/fs/nfsd/versions", "-3 +4 +4.1 +4.2\n") // there is no portmapper
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// Connections of a server that was stopped may still be there.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 2049, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		t.Fatal(err)
	}
	put(t, "/proc/fs/nfsd/portlist", fmt.Sprintf("%d\n", fd))
	put(t, "/proc/fs/nfsd/threads", "2\n")
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		put(t, "/proc/fs/nfsd/threads", "0\n")
		later := fmt.Sprintf("%d\n", time.Now().Add(time.Hour).Unix())
		for _, cache := range []string{"nfsd.export", "nfsd.fh", "auth.unix.ip"} {
			put(t, "/proc/net/rpc/"+cache+"/flush", later) // as exportfs -f does
		}
	}
	t.Cleanup(stop)
	return stop
}

func put(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatalf("write %q: %v", text, err)
	}
}

// mountNFS mounts a directory of what is served, with more options.
func mountNFS(t *testing.T, share, at string, options ...string) {
	t.Helper()
	all := append([]string{"addr=127.0.0.1", "clientaddr=127.0.0.1", "vers=4.2", "proto=tcp", "sec=sys", "hard"},
		options...)
	if err := unix.Mount("127.0.0.1:"+share, at, "nfs4", 0, strings.Join(all, ",")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
}
