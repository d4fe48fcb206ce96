// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shisa-vm/shisa/internal/testenv"
)

// oddPath has all that the syntax of a unit file gives a meaning to.
const oddPath = `/mnt/a b%n"c"'d\n;#$HOME\`

// bootScript starts systemd in a container whose root is this machine's, with a layer in memory over it. It
// runs in a mount namespace of its own, which takes everything along.
const bootScript = `set -eu
mount -t tmpfs none /run
mkdir /run/systemd
mount -t tmpfs none "$WORK/layer"
mkdir "$WORK/layer/upper" "$WORK/layer/work"
mount -t overlay none -o lowerdir=/,upperdir="$WORK/layer/upper",workdir="$WORK/layer/work" "$WORK/root"
cp -r "$WORK/add/." "$WORK/root/"
exec systemd-nspawn -D "$WORK/root" --register=no --keep-unit --private-network --console=read-only \
	--machine=shisa-test --bind="$WORK/out":/out --bind="$LOOP":/dev/shisa-test -b systemd.unit=judge.target </dev/null
`

// agentScript looks at the mount again and again, and holds a file of it from one look to the next.
const agentScript = `while :; do
	if [ -e "$WHERE/file" ]; then
		exec 3<"$WHERE/file"
		echo seen
	else
		echo nothing
	fi
	sleep 0.02
done >"/out/agent-$1"
`

// judgeScript mounts beside each agent, after that started and before; unmounts when that has looked; and has
// the test ask whether the device is free.
const judgeScript = `lines() { cat "/out/agent-$1" 2>/dev/null | wc -l; }
looked() {
	n=$(lines $1)
	until [ $(lines $1) -ge $((n + 2)) ]; do
		systemctl is-active --quiet "$1.service" || { echo failed >/out/error; return; }
		sleep 0.02
	done
}
run() {
	[ "$2" = late ] || mount -t ext4 /dev/shisa-test "$WHERE" || echo failed >/out/error
	systemctl start "$1.service"
	looked $1
	[ "$2" = early ] || mount -t ext4 /dev/shisa-test "$WHERE" || echo failed >/out/error
	looked $1
	for try in 1 2 3 4 5; do
		umount "$WHERE" && echo unmounted >"/out/$1-$2.umount" && break
		sleep 0.03
	done
	echo >"/out/$1-$2.ask"
	while [ ! -e "/out/$1-$2.answer" ]; do sleep 0.02; done
	systemctl stop "$1.service"
	mv "/out/agent-$1" "/out/$1-$2.seen"
	umount "$WHERE"
}
for when in late early; do
	for agent in plain private dropin; do run $agent $when; done
done
`

// judged is what became of one agent.
type judged struct{ unmounted, free, saw bool }

// Real systemd keeps a unit with the drop-in from seeing a mount that was made later, or was there before
// it, and the host's umount frees the device at once; without it, and with PrivateMounts=yes alone, the
// agent keeps the mount busy.
func TestDropinWithSystemd(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "systemd-nspawn", "unshare", "mkfs.ext4", "losetup", "mount")
	work := t.TempDir()
	loop := loopOf(t, work)
	add := func(path, content string) {
		t.Helper()
		path = filepath.Join(work, "add", path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"layer", "root", "out", filepath.Join("add", oddPath)} {
		if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	where := "WHERE='" + strings.ReplaceAll(oddPath, "'", `'\''`) + "'\n"
	add("agent.sh", where+agentScript)
	add("judge.sh", where+judgeScript)
	const units = "etc/systemd/system/"
	for _, name := range []string{"plain", "private", "dropin"} {
		add(units+name+".service", "[Service]\nExecStart=/bin/sh /agent.sh "+name+"\n")
	}
	add(units+"private.service.d/10.conf", "[Service]\nPrivateMounts=yes\n")
	made, err := Dropin("dropin.service", oddPath)
	if err != nil {
		t.Fatal(err)
	}
	add(made.Path, made.Content)
	add(units+"judge.target", "[Unit]\nRequires=judge.service\n")
	add(units+"judge.service", "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=-/bin/sh -x /judge.sh\n"+
		"StandardOutput=file:/out/log\nStandardError=file:/out/log\nExecStopPost=/bin/systemctl --no-block exit 0\n")

	got := boot(t, work, loop)
	for _, when := range []string{"late", "early"} {
		for agent, want := range map[string]judged{
			"plain-" + when: {false, false, true}, "private-" + when: {false, false, true},
			"dropin-" + when: {true, true, false},
		} {
			if got[agent] != want {
				t.Errorf("%s: %+v, want %+v", agent, got[agent], want)
			}
		}
	}
	if t.Failed() {
		log, err := os.ReadFile(filepath.Join(work, "out/log"))
		t.Logf("%s, %v", log, err)
	}
}

// loopOf makes a loop device of a new file system that holds one file.
func loopOf(t *testing.T, work string) string {
	t.Helper()
	image, seed := filepath.Join(work, "image"), filepath.Join(work, "seed")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 16<<20), os.Mkdir(seed, 0o755),
		os.WriteFile(filepath.Join(seed, "file"), []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-d", seed, image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	out, err := exec.Command("losetup", "-f", "--show", image).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", loop).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	return loop
}

// boot runs the container to its end, answers its questions, and gives what became of each agent.
func boot(t *testing.T, work, loop string) map[string]judged {
	t.Helper()
	defer cleanGroups(t, groups(t))
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "sh", "-c", bootScript)
	cmd.Env = append(os.Environ(), "WORK="+work, "LOOP="+loop)
	// Nobody may be left of it, however it ends.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	all := map[string]judged{}
	for {
		select {
		case err := <-done:
			if err != nil || len(all) != 6 {
				t.Fatalf("the container ended with %v after %d agents: %s", err, len(all), log.Bytes())
			}
			return all
		case <-time.After(10 * time.Millisecond):
		}
		for _, when := range []string{"late", "early"} {
			for _, agent := range []string{"plain", "private", "dropin"} {
				answer(t, filepath.Join(work, "out"), agent, when, loop, all)
			}
		}
	}
}

// answer tells the container whether the device is free, once for each agent.
func answer(t *testing.T, out, agent, when, loop string, all map[string]judged) {
	name := agent + "-" + when
	if _, known := all[name]; known {
		return
	}
	if _, err := os.Stat(filepath.Join(out, name+".ask")); err != nil {
		return
	}
	var j judged
	_, err := os.Stat(filepath.Join(out, name+".umount"))
	j.unmounted = err == nil
	fd, err := unix.Open(loop, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if j.free = err == nil; j.free {
		unix.Close(fd)
	} else if !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
	seen, err := os.ReadFile(filepath.Join(out, "agent-"+agent))
	if err != nil || len(seen) == 0 {
		t.Errorf("%s looked at nothing: %v", name, err)
	}
	j.saw = bytes.Contains(seen, []byte("seen"))
	all[name] = j
	if err := os.WriteFile(filepath.Join(out, name+".answer"), nil, 0o644); err != nil {
		t.Error(err)
	}
}

// groups lists the control groups that are there.
func groups(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		}
		if d.IsDir() {
			all[path] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// cleanGroups removes the empty control groups that a container left, by the names that systemd-nspawn
// gives them. Those of the laboratory of other tests are theirs.
func cleanGroups(t *testing.T, before map[string]bool) {
	t.Helper()
	var fresh []string
	for path := range groups(t) {
		if !before[path] && !strings.Contains(path, "/shisa-lab-") && (strings.Contains(path+"/", "/payload/") || strings.Contains(path+"/", "/supervisor/")) {
			fresh = append(fresh, path)
		}
	}
	slices.SortFunc(fresh, func(a, b string) int { return len(b) - len(a) })
	for _, path := range fresh {
		err := unix.Rmdir(path)
		// A process leaves its group some time after it was waited for.
		for end := time.Now().Add(patience); errors.Is(err, unix.EBUSY) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			err = unix.Rmdir(path)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			t.Error(fmt.Errorf("remove %s: %w", path, err))
		}
	}
}
