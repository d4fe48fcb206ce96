// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shisa-vm/shisa/internal/finding"
	"github.com/shisa-vm/shisa/internal/guest/volume"
	"github.com/shisa-vm/shisa/internal/inside"
	"github.com/shisa-vm/shisa/internal/mount"
	"github.com/shisa-vm/shisa/internal/render"
)

// kernelRisk is what is accepted with a mount by the kernel's driver.
const kernelRisk = "kernel-mount"

type diskMountOptions struct {
	guestOptions
	state      string
	allowOther bool
	foreground bool
	// background: this is the process in the background.
	background bool
	kernel     bool
	layer      byteSize
	risks      []string
}

func newDiskMount(s *stdio) *cobra.Command {
	var o diskMountOptions
	c := &cobra.Command{
		Use:   "mount DISK[:PART] DIR [-- COMMAND...]",
		Short: "show a file system of the guest at a directory",
		Long: `mount shows a file system of the guest at a directory, read-only, by FUSE: our own reader
serves it, and no driver of this host's kernel sees a byte of the guest. It works without root where
fusermount3 is installed, and is seen by the user alone who mounted it. The command returns when the
directory can be looked at; a process in the background serves it until it is unmounted. What cannot be
read is an error where it is met; umount says why.

If the view is incomplete, that is said, the directory is mounted all the same, and the exit status
is 4.

With --kernel the kernel's own driver mounts it instead, over a layer in memory that takes all writes,
and replays the journal into that. COMMAND (or a shell) sees it at DIR, nobody else does, and nothing is
left when it has ended; the exit status is that of COMMAND. The drivers of a kernel are made for disks
that one trusts: a disk whose owner means harm can take over this host. So this needs root, and
--accept-risk=kernel-mount:IMAGE.`,
		Example: `  shisa disk mount vm.qcow2 /mnt
  shisa disk mount vm.qcow2:2 /mnt
  shisa disk umount /mnt
  shisa disk mount --kernel --accept-risk=kernel-mount:vm.raw vm.raw /mnt`,
		Args:              wantArgs(2, -1),
		ValidArgsFunction: diskThenDirectory,
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.ready(c, args); err != nil {
				return err
			}
			switch {
			case o.kernel:
				return runKernelMount(c.Context(), o, args, s)
			case o.foreground || o.background:
				return runDiskMount(c.Context(), o, args[0], args[1], s)
			}
			status, err := mount.Background(c.Context(), again(c, "--background", args))
			if err != nil {
				return err
			}
			return exitWith(status) // the other one has said everything
		},
	}
	f := o.flags(c)
	stateFlag(c, &o.state, "keep the record of the mount below `DIR`")
	f.BoolVar(&o.foreground, "foreground", false, "serve the directory until it is unmounted, or Ctrl-C")
	f.BoolVar(&o.allowOther, "allow-other", false, "let other users look too, as far as the guest's modes "+
		"allow (for root)")
	f.BoolVar(&o.kernel, "kernel", false, "mount with the kernel's driver, for COMMAND alone (for root)")
	f.Var(&o.layer, "cow-limit", "with --kernel: keep at most `SIZE` of what the driver writes, in memory "+
		"(default 512M)")
	f.Var((*repeated)(&o.risks), "accept-risk", "accept a risk for one image, as `RISK:IMAGE`; "+
		"kernel-mount: the kernel's driver reads what the guest wrote (may be repeated)")
	f.BoolVar(&o.background, "background", false, "be the process that serves in the background")
	if err := f.MarkHidden("background"); err != nil {
		panic(err) // the flag was added above
	}
	complete(c, map[string]cobra.CompletionFunc{"accept-risk": cobra.FixedCompletions(
		[]string{kernelRisk + ":"}, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp)})
	return c
}

// diskThenDirectory completes a disk, a directory, and the words of a command.
func diskThenDirectory(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return directories(c, args, word)
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// again gives the command line of c with one more flag.
func again(c *cobra.Command, more string, args []string) []string {
	line := append(strings.Fields(c.CommandPath())[1:], more)
	c.Flags().Visit(func(f *pflag.Flag) {
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			line = append(line, "--"+f.Name+"="+v)
		}
	})
	return append(append(line, "--"), args...)
}

// ready refuses command lines that make no sense.
func (o *diskMountOptions) ready(c *cobra.Command, args []string) error {
	for _, text := range o.risks {
		switch name, image, _ := strings.Cut(text, ":"); {
		case name != kernelRisk:
			return usageError(c, "--accept-risk %s: there is no risk of that name, known is: %s", text,
				kernelRisk)
		case image == "":
			return usageError(c, "--accept-risk %s: it does not say for which image, want %s:IMAGE", text,
				kernelRisk)
		}
	}
	switch {
	case o.kernel && (o.json || o.foreground || o.allowOther || o.background):
		return usageError(c, "--kernel runs a command that alone sees the mount: it goes with neither of "+
			"--json, --foreground, --allow-other")
	case o.foreground && o.background:
		return usageError(c, "--foreground and --background, want one of them")
	case !o.kernel && len(args) > 2:
		return usageError(c, "unexpected argument %q: only with --kernel a command is run", args[2])
	case !o.kernel && (len(o.risks) > 0 || o.layer > 0):
		return usageError(c, "--accept-risk and --cow-limit are for --kernel")
	}
	return nil
}

// wholePart refuses a path: what is mounted is a whole file system.
func wholePart(path string) error {
	if path == "" || path == "/" {
		return nil
	}
	return withStatus(finding.StatusUsage, fmt.Errorf("%s: a part can be mounted, and not a path in it",
		path))
}

func runDiskMount(ctx context.Context, o diskMountOptions, arg, dir string, s *stdio) (err error) {
	state, err := stateDir(o.state)
	if err != nil {
		return err
	}
	l, err := o.fileSystem(ctx, arg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := wholePart(l.head.Path); err != nil {
		return err
	}
	opts := mount.Options{StateDir: state, Source: l.source(), AllowOther: o.allowOther, Ended: l.ended}
	if o.foreground {
		say := warn(s)
		opts.Log = func(line mount.Line) { say(render.MountLine(line)) }
	}
	lasting, err := l.Lasting(ctx, l.part)
	if err != nil {
		return err
	}
	l.fs = lasting
	m, err := mount.Files(l.fs, dir, opts)
	if err != nil {
		return mountError(err, dir)
	}
	defer func() { err = errors.Join(err, m.Unmount()) }()
	end := l.end(0, nil)
	doc := &render.GuestMountDocument{GuestHead: l.head, Directory: m.Dir(), GuestEnd: end}
	if err := o.show(s, doc); err != nil {
		return err
	}
	err = errors.Join(l.finish(s, end, !o.json), s.flush())
	if err != nil && !errors.As(err, new(*statusError)) {
		return err
	}
	if o.background {
		if err := mount.Ready(end.Status[0]); err != nil {
			return err
		}
	}
	select {
	case <-m.Done():
	case <-ctx.Done():
	}
	if err := m.Unmount(); err != nil {
		return err
	}
	return exitWith(l.end(0, nil).Status[0]) // more may have been met since
}

// ended tells what became of the images while a file system was shown.
func (l *look) ended() []mount.Line {
	var all []mount.Line
	for _, name := range l.Changed() {
		all = append(all, mount.Line{About: mount.Changed, Text: name})
	}
	if n := l.Missing(); n > 0 {
		all = append(all, mount.Line{About: mount.Unread, Text: render.MissingText(n)})
	}
	return all
}

// show prints what is mounted.
func (o *diskMountOptions) show(s *stdio, d *render.GuestMountDocument) error {
	if o.json {
		return render.JSON(s.out, render.GuestMountSchema, d)
	}
	return render.GuestMount(s.out, d, s.style(false))
}

// source is what the table of mounts shows as the device.
func (l *look) source() string {
	name := l.head.Disk
	if l.head.Snapshot != "" {
		name += "@" + l.head.Snapshot
	}
	return name + ":" + l.head.Part
}

// warn prints lines of several goroutines.
func warn(s *stdio) func(text string) {
	var mu sync.Mutex
	return func(text string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(s.err, "shisa: %s\n", render.Text(text))
	}
}

// mountError gives an error of mounting and unmounting its status and hint.
func mountError(err error, dir string) error {
	hint := func(text string) error { return finding.WithHint(oneLine{err}, text) }
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mount.ErrMounted):
		return withStatus(finding.StatusRefused, hint("take it away with: shisa disk umount "+operand(dir)))
	case errors.Is(err, mount.ErrBusy):
		return withStatus(finding.StatusRefused, hint("end the programs that use it, or leave the "+
			"directory, and try again"))
	case errors.Is(err, mount.ErrNotOurs):
		return hint("name the state directory that it was mounted with (--state), or take it away with: " +
			"umount " + operand(dir))
	case errors.Is(err, mount.ErrRoot):
		return hint("run it as root")
	case errors.Is(err, mount.ErrKind):
		return hint("--kernel mounts " + strings.Join(mount.KernelKinds(), ", "))
	case errors.Is(err, mount.ErrFull):
		return hint("let it keep more with --cow-limit")
	case errors.Is(err, syscall.ENODEV):
		return hint("the kernel of this host has no such driver, or may not load it")
	}
	return oneLine{err}
}

func runKernelMount(ctx context.Context, o diskMountOptions, args []string, s *stdio) (err error) {
	state, err := stateDir(o.state)
	if err != nil {
		return err
	}
	l, name, err := o.open(ctx, args[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := errors.Join(wholePart(name.Path), o.accepts(name.Disk)); err != nil {
		return err
	}
	// A disk that changes below a driver of the kernel is worse than one that was made to do harm.
	if err := unused(ctx, name.Disk, 0); err != nil {
		return err
	}
	v, err := l.volume(ctx, name.Part)
	if err != nil {
		return err
	}
	command := args[2:]
	if len(command) == 0 {
		command = []string{cmp.Or(os.Getenv("SHELL"), "/bin/sh")}
	}
	mounted := func() {
		if len(args) == 2 {
			warn(s)(fmt.Sprintf("%s of %s is at %s in this shell alone; leave it with exit", v.Kind, l.source(),
				args[1]))
		}
	}
	if err := s.flush(); err != nil {
		return err
	}
	// What is typed in the terminal is for the command. Quitting would take its mount away from it.
	interrupt, quit := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Reset(os.Interrupt)
	signal.Notify(interrupt, os.Interrupt)
	signal.Notify(quit, syscall.SIGQUIT)
	status, err := mount.Kernel(ctx, v, args[1], mount.KernelOptions{StateDir: state, Source: l.source(),
		LayerBytes: int64(o.layer), Command: command, Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout,
		Stderr: os.Stderr, Mounted: mounted, Interrupt: interrupt, Log: warn(s)})
	if err != nil {
		return mountError(err, args[1])
	}
	return exitWith(status)
}

// accepts refuses to mount with the kernel's driver what was not said to be trusted.
func (o *diskMountOptions) accepts(image string) error {
	var all []risk
	for _, text := range o.risks {
		_, of, _ := strings.Cut(text, ":")
		all = append(all, risk{kernelRisk, of})
	}
	if accepted(all, kernelRisk, image) {
		return nil
	}
	err := fmt.Errorf("%s: the kernel's driver would read what the guest wrote: a disk whose owner means "+
		"harm can take over this host", image)
	return withStatus(finding.StatusRefused, finding.WithHint(err, "if you trust it: --accept-risk="+
		kernelRisk+":"+render.Word(image)+"; without --kernel nothing of that can happen"))
}

// volume gives a part of a disk that the kernel can be given.
func (l *look) volume(ctx context.Context, name string) (mount.Volume, error) {
	part := -1
	if name == "" {
		// More kinds can be mounted so than are read here.
		part = l.onlyFor(mount.KernelKinds())
	}
	var err error
	if part < 0 {
		part, err = l.Part(ctx, name)
	}
	if err != nil {
		return mount.Volume{}, err
	}
	v := l.Layout.Volumes[part]
	l.head.Part = v.Name
	if v.Disk < 0 || v.Start < 0 || len(v.In) > 0 || !slices.Contains([]volume.Class{volume.Whole,
		volume.Partition}, v.Class) {
		err := fmt.Errorf("part %s is put together of others, and not given to the kernel", v.Name)
		return mount.Volume{}, finding.WithHint(err, "logical volumes and arrays can be mounted without "+
			"--kernel")
	}
	data := io.NewSectionReader(l.Layout.Disks[v.Disk].Data, v.Start, v.Size)
	return mount.Volume{Reader: data, SizeBytes: v.Size, Kind: string(v.Kind)}, nil
}

// onlyFor gives the only volume of some kinds, -1 if there is none, or several.
func (l *look) onlyFor(kinds []string) int {
	found := -1
	for i, v := range l.Layout.Volumes {
		switch {
		case !slices.Contains(kinds, string(v.Kind)):
		case found >= 0:
			return -1
		default:
			found = i
		}
	}
	return found
}

// kernelHint says to an error about a part that is not read here what else may read it.
func (l *look) kernelHint(part int, err error) error {
	kind := string(l.Layout.Volumes[part].Kind)
	if slices.Contains(inside.Readable(l.Guest), part) || !slices.Contains(mount.KernelKinds(), kind) {
		return err
	}
	return finding.WithHint(err, "if you trust the disk, the kernel's driver may read it: shisa disk mount --kernel "+
		operand(l.head.Disk+":"+l.Layout.Volumes[part].Name)+" DIR")
}
