// SPDX-License-Identifier: GPL-2.0-only
/* Cases of ept_test: groups of both kinds, of which the last non-coherent one leaves */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ept.h"

static void add_mixed(int coherent, int noncoherent)
{
	int i;

	for (i = 0; i < coherent; i++) {
		join(COHERENT + i, 0);
		if (!i)
			set_iommu(0);
		add(COHERENT + i);
	}
	for (i = 0; i < noncoherent; i++) {
		join(NONCOHERENT + i, 1);
		if (!i)
			set_iommu(1);
		add(NONCOHERENT + i);
	}
}

static void expect_mixed(bool noncoherent)
{
	guest_touches(SMALL);
	guest_touches(HUGE);
	expect(SMALL, noncoherent ? WB : WB | IPAT);
	expect(HUGE, noncoherent ? WB : WB | IPAT);
}

/* The VM is non-coherent until the last group that is leaves, one by one by GO. */
static void leave_mixed(void (*go)(int id), int count)
{
	int i, begin, end;

	expect_mixed(true);
	for (i = 0; i < count; i++) {
		bool last = i == count - 1;

		begin = mark();
		go(NONCOHERENT + i);
		end = mark();
		if (!legacy && removed_between(SMALL, begin, end) != last)
			fail("group %d of %d leaves, and the page is%s unmapped", i + 1, count,
			     last ? " not" : "");
		expect_mixed(!last);
		if (faulted_between(SMALL, begin, event_count, last ? WB | IPAT : WB) != last)
			fail("group %d of %d leaves, and then %s fault maps the page anew",
			     i + 1, count, last ? "no" : "a");
	}
}

/* RUN in a VM of its own for each number of groups of both kinds. */
static void for_each_mix(void (*run)(int coherent, int noncoherent, void (*go)(int id)),
			 void (*go)(int id))
{
	static const int mixes[][2] = {
		{ 0, 1 }, { 1, 1 }, { 3, 1 }, { 0, 2 }, { 1, 2 }, { 3, 2 },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(mixes); i++) {
		snprintf(about, sizeof(about), "%d coherent and %d non-coherent: ",
			 mixes[i][0], mixes[i][1]);
		if (i) {
			tear_down();
			set_up();
		}
		run(mixes[i][0], mixes[i][1], go);
	}
}

static void mixed(int coherent, int noncoherent, void (*go)(int id))
{
	add_mixed(coherent, noncoherent);
	leave_mixed(go, noncoherent);
}

/* All leave at once. */
static void mixed_close(int coherent, int noncoherent, void (*go)(int id))
{
	add_mixed(coherent, noncoherent);
	leave_mixed(go, 1);
}

static void go_by_close(int id __attribute__((unused)))
{
	close_device();
}

static void test_mixed_del(void)	{ for_each_mix(mixed, del); }
static void test_mixed_leave(void)	{ for_each_mix(mixed, leave); }
static void test_mixed_unbind(void)	{ for_each_mix(mixed, unbind); }
static void test_mixed_close(void)	{ for_each_mix(mixed_close, go_by_close); }

/* A process with a VM of that kind, ready when it has written to the pipe. */
static void __attribute__((noreturn))
other_process(int coherent, int noncoherent, int ready)
{
	if (setjmp(test_end))
		_exit(1);
	set_up_vfio();
	make_vm();
	make_device();
	add_mixed(coherent, noncoherent);
	guest_touches(SMALL);
	must(write(ready, "", 1));
	for (;;)
		pause();
}

/* It is killed: its groups are free for another VM, which they make what they did. */
static void mixed_kill(int coherent, int noncoherent,
		       void (*go)(int id) __attribute__((unused)))
{
	int ready[2], status;
	pid_t child;
	char byte;

	tear_down();
	must(pipe(ready));
	child = must(fork());
	if (!child)
		other_process(coherent, noncoherent, ready[1]);
	close(ready[1]);
	status = read(ready[0], &byte, 1);
	close(ready[0]);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	if (status != 1)
		fail("the other process has not made its VM");
	set_up();
	expect_mixed(false);
	add_mixed(coherent, noncoherent);
	leave_mixed(del, noncoherent);
}

static void test_mixed_kill(void)	{ for_each_mix(mixed_kill, NULL); }

static const struct test tests[] = {
	{ "groups of both kinds leave by DEL", test_mixed_del },
	{ "groups of both kinds leave by UNSET_CONTAINER", test_mixed_leave },
	{ "groups of both kinds leave by unbind", test_mixed_unbind },
	{ "groups of both kinds leave by close of the KVM device", test_mixed_close },
	{ "groups of both kinds leave by death of the process", test_mixed_kill },
};

const struct suite group_suite = SUITE(tests);
