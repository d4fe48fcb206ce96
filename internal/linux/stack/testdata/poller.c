// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

// Calls stat from the depth, as agents do that look at every mount; built without frame pointers.
// What it is told to sleep in: a system call, a signal handler, or a callback of the C library.
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile int sink;

__attribute__((noinline)) void GuestInfo_Wait(void) {
	struct stat st;
	stat("/", &st);
	for (;;)
		pause();
}

__attribute__((noinline)) int GuestInfo_GetDiskInfo(int depth) {
	volatile char buffer[4000];
	memset((void *)buffer, depth, sizeof buffer);
	if (depth > 0)
		sink += GuestInfo_GetDiskInfo(depth - 1);
	else
		GuestInfo_Wait();
	return sink + buffer[depth];
}

static void on_signal(int n) { sink += GuestInfo_GetDiskInfo(n - n); }

static int compare(const void *a, const void *b) {
	sink += GuestInfo_GetDiskInfo(0);
	return *(const int *)a - *(const int *)b;
}

int main(int argc, char **argv) {
	const char *how = argc > 1 ? argv[1] : "call";
	if (!strcmp(how, "signal")) {
		signal(SIGUSR1, on_signal);
		raise(SIGUSR1);
	} else if (!strcmp(how, "callback")) {
		int numbers[] = {3, 1, 2};
		qsort(numbers, 3, sizeof(int), compare);
	} else {
		sink += GuestInfo_GetDiskInfo(2);
	}
	return sink;
}
