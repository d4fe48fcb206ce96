# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The shisa authors
#
# A fresh Debian 12 needs git, make and Go 1.26 for "make demo"; "make test" installs the rest.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT   ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
FUZZTIME ?= 30s
BENCH    ?=

# The version goes in by the linker, so Go need not ask git, which refuses a checkout of another
# user's.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
LDFLAGS := -s -w -X $(shell sed -n 's/^module //p' go.mod)/internal/cli.version=$(VERSION) \
	-X $(shell sed -n 's/^module //p' go.mod)/internal/cli.commit=$(COMMIT)

# What the tests call, and the Debian packages that have it. gcc is for the race detector.
TOOLS := qemu-img:qemu-utils qemu-io:qemu-utils gcc:gcc gdb:gdb python3:python3-minimal groff:groff-base \
	zsh:zsh fish:fish setpriv:util-linux losetup:mount mount:mount \
	fusermount3:fuse3 mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs linux.uml:user-mode-linux mkfs.btrfs:btrfs-progs sfdisk:fdisk sgdisk:gdisk parted:parted \
	blkid:util-linux partx:util-linux pvcreate:lvm2 mdadm:mdadm cryptsetup:cryptsetup-bin \
	mkfs.fat:dosfstools mkfs.exfat:exfatprogs mkntfs:ntfs-3g mkfs.f2fs:f2fs-tools \
	make-bcache:bcache-tools mkfs.jfs:jfsutils mkfs.nilfs2:nilfs-tools mkudffs:udftools \
	fuser:psmisc lsof:lsof genisoimage:genisoimage mksquashfs:squashfs-tools mkfs.erofs:erofs-utils \
	clang-14:clang-14 llvm-strip-14:llvm-14 systemd-nspawn:systemd-container dbus-daemon:dbus \
	journalctl:systemd systemd-analyze:systemd udevadm:udev /usr/lib/systemd/systemd-journal-remote:systemd-journal-remote xz:xz-utils \
	cpio:cpio zstd:zstd lz4:lz4 gzip:gzip bzip2:bzip2
# What guests need besides.
GUESTS := qemu-system-x86_64:qemu-system-x86 qemu-storage-daemon:qemu-system-common dmsetup:dmsetup debugfs:e2fsprogs
# What is looked for as a file: a library, and a program that the shell has a word for.
FILES := /usr/include/stdlib.h:libc6-dev /usr/bin/time:time /usr/share/zoneinfo/UTC:tzdata

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## build the program: build/shisa, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o build/shisa ./cmd/shisa

.PHONY: demo
demo: build ## make a small broken world in a scratch directory, scan it, and tell five stories
	@build/shisa demo || { status=$$?; test $$status -eq 3 || exit $$status; }

.PHONY: check
check: format vet static cross bpf race ## format, vet, staticcheck, cross-build, tests with -race, fuzz seeds, scripts

.PHONY: test
test: packages ## install what tests need, then check everything; only Nova is left out where it cannot be had
	SHISA_TEST_ALL=1 $(MAKE) check
	SHISA_TEST_ALL=1 $(MAKE) footprint
	SHISA_TEST_ALL=1 $(MAKE) sweeps
	SHISA_TEST_ALL=1 $(MAKE) test-vm-short
	$(MAKE) test-nova-here

.PHONY: format
format:
	@out=$$("$$($(GO) env GOROOT)/bin/gofmt" -l .); \
	if [ -n "$$out" ]; then echo "gofmt would change:" >&2; echo "$$out" >&2; exit 1; fi

.PHONY: vet
vet:
	$(GO) vet ./...

.PHONY: static
static:
	$(GO) tool staticcheck ./...

.PHONY: cross
cross:
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null ./cmd/shisa

# The programs for the kernel are kept as objects, and so is the library for User Mode Linux. The same compiler
# makes the same bytes of the same sources; where it is not installed, "make test" installs it.
.PHONY: bpf
bpf: ## compare the kept objects of C with what their sources give
	@if ! command -v clang-14 >/dev/null || ! command -v llvm-strip-14 >/dev/null; then \
		if [ -n "$(SHISA_TEST_ALL)" ]; then echo "bpf: no clang-14 or llvm-strip-14" >&2; exit 1; fi; \
		echo "bpf: not compared, for want of clang-14 or llvm-strip-14"; exit 0; \
	fi; \
	mkdir -p build && dir=$$(mktemp -d build/_bpf.XXXXXX) && trap 'rm -rf "$$dir"' EXIT; \
	for of in internal/linux/probe internal/uml; do \
		to="$$dir/$${of##*/}"; \
		cp -r $$of "$$to"; \
		rm -rf "$$to"/*_test.go "$$to"/*_bpfel.*; \
		$(GO) generate "./$$to"; \
		diff -rq -x '*_test.go' $$of "$$to" || { echo "bpf: run: go generate ./$$of" >&2; exit 1; }; \
	done

# Without GORACE each program with the race detector waits for a second before it ends. What vet says
# was asked before.
.PHONY: race
race:
	GORACE="$${GORACE:-atexit_sleep_ms=0}" $(GO) test -race -vet=off -timeout 30m ./...

# Each test that asks testenv.Rounds: a race run has a few rounds of it.
.PHONY: sweeps
sweeps: ## the tests that try random things, with many rounds and without -race
	@files=$$(grep -rl --include='*_test.go' 'testenv\.Rounds(' .); \
	tests=$$(awk '/^func / { name = $$2; sub(/\(.*/, "", name) } \
		/testenv\.Rounds\(/ && name !~ /^Test/ { print FILENAME ": not in a test itself" > "/dev/stderr"; exit 1 } \
		/testenv\.Rounds\(/ { print name }' $$files | sort -u | paste -sd '|'); \
	SHISA_SWEEP=1 $(GO) test -count=1 -timeout 30m -run "^($$tests)\$$" $$(dirname $$files | sort -u)

# The real program's start and size in memory, which -race would change.
.PHONY: footprint
footprint:
	$(GO) test -count=1 -run TestFootprint .

.PHONY: long
long: packages ## the long sweeps too
	SHISA_LONG=1 SHISA_TEST_ALL=1 $(GO) test -timeout 120m ./...
	$(MAKE) spin LONG=long

# The same world as in internal/refs/protocol, by a checker that is not ours. It takes a minute.
.PHONY: spin
spin: ## the model of the rules for base images, under spin (doc/protocol)
	@$(MAKE) packages TOOLS="spin:spin gcc:gcc" FILES=/usr/include/stdlib.h:libc6-dev
	doc/protocol/run.sh $(LONG)

# The kernel comes from the lists of packages that this machine has; without any, they are fetched first.
.PHONY: guests
guests: packages
	@$(MAKE) packages TOOLS="$(GUESTS)" FILES=
	@cache="$${XDG_CACHE_HOME:-$$HOME/.cache}/shisa-lab"; \
	if { ! compgen -G "$$cache/linux-image-*" || ! apt-cache show linux-image-amd64; } >/dev/null 2>&1 && \
		[ "$$(id -u)" -eq 0 ]; then \
		apt-get update -q </dev/null; \
	fi

# Guests that may run beside others wait most of their time, so there are more of them than processors. A test that
# is neither for the inside of a guest nor for Nova has to have passed.
.PHONY: test-vm
test-vm: guests ## the program in guests with other kernels (doc/lab.md)
	@said=$$(mktemp) && trap 'rm -f "$$said"' EXIT; \
	SHISA_TEST_VM=1 SHISA_TEST_ALL=1 CGO_ENABLED=0 $(GO) test -count=1 -timeout 60m -parallel 6 -v -skip '^TestShort$$' ./e2e | \
		tee "$$said"; \
	awk '/^func / { name = $$2; sub(/\(.*/, "", name) } \
		/^func Test/ && name !~ /^Test(Main|Short)$$/ { all[name] } \
		/testenv\.Need(Guest|Nova)\(/ { delete all[name] } \
		/^--- PASS: / { delete all[$$3] } \
		END { for (name in all) { print "test-vm: " name " is not among what passed" > "/dev/stderr"; status = 1 }; exit status }' \
		e2e/*_test.go "$$said"

# Where QEMU, User Mode Linux or the kernel's package cannot be had, the test says which, and fails.
.PHONY: test-vm-short
test-vm-short: guests ## a few guests, for two minutes: what only other kernels let the program do
	SHISA_TEST_VM=1 SHISA_TEST_ALL=1 CGO_ENABLED=0 $(GO) test -count=1 -timeout 30m -parallel 6 \
		-run '^Test(Short|LeaksOfKilledQEMU|Story(Store|Stall|Loop)|Failed|LoopOnDisk)$$' ./e2e

# Nova's own packages are unpacked and not installed; only Python is, all of it. As with the kernel, the lists of
# packages that this machine has say whether they can be had.
.PHONY: nova
nova: packages
	@$(MAKE) packages TOOLS= FILES=/usr/bin/pydoc3:python3
	@if ! apt-cache show python3-nova >/dev/null 2>&1 && [ "$$(id -u)" -eq 0 ]; then \
		apt-get update -q </dev/null || echo "nova: the lists of packages could not be had" >&2; \
	fi

.PHONY: test-nova
test-nova: nova ## OpenStack Nova's own cleaner and databases, Debian's (doc/base.md, doc/formats/nova-export.md)
	SHISA_TEST_NOVA=1 SHISA_TEST_ALL=1 CGO_ENABLED=0 $(GO) test -count=1 -timeout 30m -v -run '^TestNova$$' ./e2e

# The same where it can be had: apt may not know it, or not reach it. Then that is said, and is no failure.
.PHONY: test-nova-here
test-nova-here: nova
	@mkdir -p build && out=$$(mktemp build/_nova.XXXXXX) && trap 'rm -f "$$out"' EXIT; \
	SHISA_TEST_NOVA=1 SHISA_TEST_ALL= CGO_ENABLED=0 $(GO) test -count=1 -timeout 30m -v -run '^TestNova$$' ./e2e | tee "$$out"; \
	sed -n -e 's|^ *--- SKIP: TestNova .*|test-nova: LEFT OUT: OpenStack Nova cannot be had here|p' \
		-e 's|^ *--- SKIP: TestNova/databases/\([a-z]*\) .*|test-nova: LEFT OUT: \1 cannot be had here|p' "$$out"

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (30s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
		sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$dir/*_test.go | sort -u | while read -r name; do \
			echo "== $$dir $$name"; \
			$(GO) test $$dir -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) </dev/null; \
		done; \
	done

.PHONY: bench
bench: build ## compare with qemu-img on the same files and print a table (BENCH= takes its flags)
	$(GO) run ./bench $(BENCH)

.PHONY: man
man: build ## manual pages in build/man
	@rm -rf build/man && mkdir -p build/man
	@build/shisa man > build/man/shisa.1
	@build/shisa man --list | while read -r c; do \
		build/shisa man $$c > build/man/shisa-$$(echo $$c | tr ' ' -).1 || exit 1; \
	done
	@ls build/man

.PHONY: completions
completions: build ## shell completions in build/completions
	@rm -rf build/completions && mkdir -p build/completions
	@build/shisa completion bash > build/completions/shisa.bash
	@build/shisa completion zsh > build/completions/_shisa
	@build/shisa completion fish > build/completions/shisa.fish
	@ls build/completions

.PHONY: packages
packages:
	@missing=; \
	for pair in $(TOOLS); do command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; done; \
	for pair in $(FILES); do test -e "$${pair%%:*}" || missing="$$missing $${pair##*:}"; done; \
	missing=$$(printf '%s\n' $$missing | sort -u | tr '\n' ' '); \
	if [ -z "$${missing// }" ]; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ]; then \
		echo "the tests need Debian packages; run as root: apt-get install --no-install-recommends $$missing" >&2; \
		exit 1; \
	fi; \
	echo "installing $$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -q </dev/null && apt-get install -y -q --no-install-recommends $$missing </dev/null

.PHONY: clean
clean: ## remove build/
	rm -rf build
