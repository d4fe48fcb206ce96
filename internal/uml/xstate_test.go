// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package uml_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shisa-vm/shisa/internal/testenv"
	"github.com/shisa-vm/shisa/internal/uml"
)

// keeper keeps the first registers of a process only, as the kernel does where a processor has more than it
// knows, gives them back changed, and looks what became of the others.
const keeper = `
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned char before[32768], kept[32768], after[32768];

static int regs(int request, int pid, void *to, size_t n, size_t *had)
{
	struct iovec v = {to, n};
	long ret = ptrace(request, pid, (void *)NT_X86_XSTATE, &v);

	*had = v.iov_len;
	return ret ? errno : 0;
}

int main(void)
{
	size_t all, n;
	int status, bad, pid = fork();

	if (!pid) {
		unsigned char high[32];

		memset(high, 0x5a, sizeof(high));
		__asm__ volatile("vmovdqu %0, %%ymm7" : : "m"(high) : "xmm7");
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		kill(getpid(), SIGSTOP); /* not raise: nothing is done with the registers in between */
		_exit(0);
	}
	waitpid(pid, &status, 0);
	if ((bad = regs(PTRACE_GETREGSET, pid, before, sizeof(before), &all)))
		return fprintf(stderr, "get: %d\n", bad), 1;
	if (all <= 832)
		return printf("whole\n"), 0;
	/* Those of x87 and SSE and the header, which says of the others only that they are in use. */
	if ((bad = regs(PTRACE_GETREGSET, pid, kept, 576, &n)))
		return fprintf(stderr, "get some: %d\n", bad), 1;
	for (int round = 1; round < 3; round++) {
		memset(kept + 160 + 16, round, 16); /* xmm1 */
		if ((bad = regs(PTRACE_SETREGSET, pid, kept, 576, &n)))
			return printf("refused: %d\n", bad), 0;
		memset(before + 160 + 16, round, 16);
		if ((bad = regs(PTRACE_GETREGSET, pid, after, sizeof(after), &n)) || n != all)
			return fprintf(stderr, "get after: %d, %zu of %zu\n", bad, n, all), 1;
		if (memcmp(before, after, all))
			return printf("others changed\n"), 0;
	}
	/* What the C library does beside is as it was: a word, and a word that is an error as well. */
	errno = EINVAL;
	long word = ptrace(PTRACE_PEEKUSER, pid, (void *)0, 0);
	if (word == -1 && errno)
		return printf("peek: %d\n", errno), 0;
	if (ptrace(PTRACE_PEEKUSER, pid, (void *)3, 0) != -1 || errno != EIO)
		return printf("a peek at nothing: %d\n", errno), 0;
	if (ptrace(PTRACE_CONT, pid, 0, 0) || waitpid(pid, &status, 0) != pid || status)
		return printf("cont: %x\n", status), 0;
	printf("kept\n");
}
`

// TestPreload takes the registers of another process in part and gives them back, without and with what
// User Mode Linux is to load.
func TestPreload(t *testing.T) {
	t.Parallel()
	testenv.Need(t, uml.Program, "gcc")
	dir := t.TempDir()
	program := filepath.Join(dir, "keeper")
	if err := os.WriteFile(program+".c", []byte(keeper), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-O1", "-o", program, program+".c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	preload, err := uml.Preload(dir)
	if err != nil {
		t.Fatal(err)
	}
	says := func(env ...string) string {
		c := exec.Command(program)
		c.Env = env
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", env, err, out)
		}
		return string(out)
	}
	switch without, with := says(), says(preload); {
	case without == "whole\n":
		// A processor without AVX-512 and keys has nothing beside.
		if with != without {
			t.Errorf("with the library it says %q", with)
		}
	case without != "refused: 14\n" || with != "kept\n":
		t.Errorf("without the library it says %q, with it %q", without, with)
	}
}
