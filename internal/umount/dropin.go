// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package umount

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/shisa-vm/shisa/internal/holders"
	"github.com/shisa-vm/shisa/internal/plan"
)

// A drop-in keeps one unit of systemd from seeing one directory, and what is mounted there:
//
//	[Service]
//	InaccessiblePaths="-/mnt/pool"
//
// The unit gets a mount namespace of its own that receives mounts of the host (systemd.exec(5),
// "InaccessiblePaths="). An empty directory covers the path there; what the host mounts later comes to lie
// beneath it (fs/pnode.c, propagate_one), where no name leads, and is taken off with the host's umount. "-" lets
// the unit start where the path is missing, and then it is not covered.
const (
	// unitDir is where the administrator's units and drop-ins lie (systemd.unit(5), "Unit File Load Path").
	unitDir = "/etc/systemd/system"
	// maxUnitName is UNIT_NAME_MAX of systemd (src/basic/unit-name.h).
	maxUnitName = 255
	// maxReadable is how long the part of a drop-in's name is that tells the path.
	maxReadable = 100
)

// WrongCure says why the setting that comes to mind first is the wrong one.
const WrongCure = "PrivateMounts=yes alone is no cure: the unit gets copies of all mounts, those made later as " +
	"well, goes on looking into them, and a umount that goes to a busy copy is as busy as before; where " +
	"mounts are not shared, the copies even keep the device after the umount"

// unitDirs are where units are found (systemd.unit(5)), those of generators too.
func unitDirs() []string {
	return []string{unitDir, "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system",
		"/lib/systemd/system", "/run/systemd/transient", "/run/systemd/generator",
		"/run/systemd/generator.early", "/run/systemd/generator.late"}
}

// mounters are units whose own mounts are meant for the host, or in which people work: in a mount
// namespace of their own they would mount for nobody.
func mounters() []string {
	return []string{"autofs", "containerd", "cri-o", "crio", "cron", "crond", "dbus", "dbus-broker", "display-manager",
		"docker", "gdm", "getty", "k3s", "kubelet", "libvirtd", "lightdm", "lxc", "lxcfs", "lxd", "podman", "sddm",
		"serial-getty", "snapd", "ssh", "sshd", "systemd-homed", "systemd-journald", "systemd-logind",
		"systemd-machined", "systemd-nspawn", "systemd-udevd", "udisks2", "user", "virtlxcd", "virtqemud",
		"virtstoraged"}
}

// whole are directories that no program does without.
func whole() []string {
	return []string{"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/proc",
		"/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/var", "/var/lib",
		"/var/log", "/var/tmp"}
}

// fitsUnit refuses units that a drop-in would harm or not reach.
func fitsUnit(unit string) error {
	const chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@"
	name, service := strings.CutSuffix(unit, ".service")
	switch {
	case name == "" || len(unit) > maxUnitName || strings.Trim(unit, chars) != "" || strings.HasPrefix(name, "."):
		return fmt.Errorf("%.80q is not the name of a unit, such as vmtoolsd.service", unit)
	case !service:
		return fmt.Errorf("the unit %s: %w: a drop-in of this kind is for services", unit, ErrRefused)
	}
	if name, _, _ = strings.Cut(name, "@"); slices.Contains(mounters(), name) {
		return fmt.Errorf("the unit %s: %w: what it mounts is meant for the whole host, and in a mount "+
			"namespace of its own it would mount for nobody", unit, ErrRefused)
	}
	return nil
}

// fitsPath refuses paths that a unit file cannot name, and those that no program does without.
func fitsPath(path string) error {
	switch {
	case !filepath.IsAbs(path) || path != filepath.Clean(path):
		return fmt.Errorf("%.80q is not an absolute path", path)
	case slices.Contains(whole(), path):
		return fmt.Errorf("%s: %w: no program does without it", path, ErrRefused)
	case !utf8.ValidString(path) || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		// A unit file is UTF-8 in lines, and what stands for a control character elsewhere does not here.
		return fmt.Errorf("%q: %w: a unit file cannot name it", path, ErrRefused)
	}
	return nil
}

// unitWord gives a path as one word of such a setting: words are split at blanks outside of quotes, a
// backslash makes the next character plain, and "%" begins a specifier (systemd.syntax(7), "Quoting";
// systemd.unit(5), "Specifiers"). A quote stands between quotes of the other kind: pieces that touch are
// one word. TestDropinWithSystemd asks systemd itself.
func unitWord(path string) string {
	r := strings.NewReplacer("%", "%%", `\`, `\\`, `"`, `"'"'"`)
	return `"-` + r.Replace(path) + `"`
}

// dropinName is the name of the drop-in for a path: readable, and never that of another path.
func dropinName(path string) string {
	var b strings.Builder
	exact := true
	for _, r := range strings.Trim(path, "/") {
		switch {
		case r < utf8.RuneSelf && (r == '_' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'):
			b.WriteRune(r)
		case r == '/':
			b.WriteByte('-')
		default:
			exact = false
			b.WriteByte('_')
		}
	}
	name := b.String()
	if len(name) > maxReadable {
		name, exact = name[:maxReadable], false
	}
	if !exact {
		sum := sha256.Sum256([]byte(path))
		name += "-" + hex.EncodeToString(sum[:4])
	}
	return "50-shisa-" + name + ".conf"
}

// Dropin is the drop-in that keeps a unit from seeing path. The errors are ErrRefused, and those of what
// is no unit or path.
func Dropin(unit, path string) (plan.Text, error) {
	if err := errors.Join(fitsUnit(unit), fitsPath(path)); err != nil {
		return plan.Text{}, err
	}
	return plan.Text{
		Path: filepath.Join(unitDir, unit+".d", dropinName(path)), Mode: "0644",
		Content: "# Made by shisa holders --write-dropin: the unit does not see what is mounted there, so it\n" +
			"# cannot keep it busy.\n[Service]\nInaccessiblePaths=" + unitWord(path) + "\n",
	}, nil
}

// userMounters are units of users' managers whose own mounts are meant for all that the user runs.
func userMounters() []string { return []string{"gvfs-daemon", "xdg-document-portal"} }

// userDropin is the drop-in for a unit of a user's own manager. A drop-in below unitDir is for the units of the
// system's manager, and would be for all that the user runs: user@UID.service. A user's manager may not
// make a view of the mounts, but in a user namespace it may, which PrivateUsers= gives the unit
// (systemd.exec(5), "Sandboxing", systemd 252). What the host unmounts goes from there, too. It lies in the user's
// home, where shisa writes nothing.
func userDropin(p holders.Process, path string) (Way, error) {
	name, _, _ := strings.Cut(strings.TrimSuffix(p.UserUnit, ".service"), "@")
	switch err := errors.Join(fitsUnit(p.UserUnit), fitsPath(path)); {
	case !strings.HasSuffix(p.UserUnit, ".service"):
		return Way{}, fmt.Errorf("%s is no service, which a drop-in could be for, but a scope of a user's own manager "+
			"for what was started by other means: change what the program looks at, or stop it", p.UserUnit)
	case slices.Contains(userMounters(), name):
		return Way{}, fmt.Errorf("%s is a unit of a user's own manager that mounts for all that the user runs, and in a "+
			"view of its own it would mount for nobody", p.UserUnit)
	case err != nil:
		return Way{}, err
	}
	manager := fmt.Sprintf("systemctl --user --machine=%d@ ", max(p.UID, 0))
	return Way{Kind: WayUserDropin, File: "~/.config/systemd/user/" + p.UserUnit + ".d/" + dropinName(path),
		What: fmt.Sprintf("its unit does not see what is mounted there. It is of the own manager of the user %d, so a drop-in "+
			"of the system (--write-dropin) does not reach it: the user makes this one. With PrivateUsers=yes, without which "+
			"a user's manager cannot do it, the unit sees the files of all others but root as nobody's", max(p.UID, 0)),
		Text:     "[Service]\nPrivateUsers=yes\nInaccessiblePaths=" + unitWord(path) + "\n",
		Commands: []string{manager + "daemon-reload", manager + "restart " + quoteUnit(p.UserUnit)}}, nil
}

// DropinPlan is the plan that makes the drop-in, without what only the host tells. root is where the units
// of the host are found, "" for its own; a unit that is not there is fs.ErrNotExist. Further errors are
// those of Dropin.
func DropinPlan(root, unit, path string) (*plan.Texts, error) {
	text, err := Dropin(unit, path)
	if err != nil {
		return nil, err
	}
	if err := unitIsThere(root, unit); err != nil {
		return nil, err
	}
	return &plan.Texts{
		Why:   fmt.Sprintf("%s is kept from %s, so that it cannot keep it busy", unit, path),
		Files: []plan.Text{text},
		Then: []plan.Told{
			{Command: "systemctl daemon-reload", Why: "systemd reads the drop-in"},
			{Command: "systemctl restart " + quoteUnit(unit), Why: "the unit gets its own view of the mounts; do it " +
				"while " + path + " is there as a directory"},
		},
	}, nil
}

// quoteUnit gives the name of a unit as a word of a command line: of what it may hold only the
// backslash means something to a shell.
func quoteUnit(unit string) string {
	if strings.Contains(unit, `\`) {
		return "'" + unit + "'"
	}
	return unit
}

// unitIsThere looks for a unit's file, or that of its template: a drop-in for a unit that is not there,
// misspelt perhaps, would cure nothing and nobody would notice.
func unitIsThere(root, unit string) error {
	names := []string{unit}
	if prefix, _, ok := strings.Cut(unit, "@"); ok {
		names = append(names, prefix+"@.service")
	}
	for _, dir := range unitDirs() {
		for _, name := range names {
			_, err := os.Lstat(filepath.Join(root, dir, name))
			switch {
			case err == nil:
				return nil
			case !errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("look for the unit %s: %w", unit, err)
			}
		}
	}
	return fmt.Errorf("there is no unit %s on this host: %w", unit, fs.ErrNotExist)
}
