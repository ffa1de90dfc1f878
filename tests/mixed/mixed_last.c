// SPDX-License-Identifier: GPL-2.0-only
/* Cases of mixed_test in which the last non-coherent group leaves */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "mixed.h"

#define EACH	5

/* As many coherent groups as non-coherent ones, in a container for each kind. */
static int coherent_file[EACH], noncoherent_file[EACH], noncoherent_device[EACH];

static void track_mixed(void)
{
	int i, id;

	for (i = 0; i < EACH; i++) {
		id = plug(true, NONE);
		coherent_file[i] = track(devices[id].group, 0);
		noncoherent_device[i] = plug(false, NONE);
		noncoherent_file[i] = track(devices[noncoherent_device[i]].group, 1);
		expect_noncoherent(0, true);
	}
}

/* Neither the order of ADD nor its reverse */
static void leave_one_by_one(void (*one_leaves)(int i))
{
	static const int order[EACH] = { 2, 0, 4, 1, 3 };
	int i;

	track_mixed();
	for (i = 0; i < EACH; i++) {
		one_leaves(order[i]);
		expect_noncoherent(0, i + 1 < EACH);
		/* That a coherent one leaves is no reason for anything. */
		del(0, coherent_file[i]);
		expect_noncoherent(0, i + 1 < EACH);
	}
}

static void leave_by_del(int i)
{
	del(0, noncoherent_file[i]);
}

static void leave_by_unset(int i)
{
	leave(noncoherent_file[i]);
}

static void leave_by_unbind(int i)
{
	unbind_device(noncoherent_device[i]);
}

static void leave_by_unplug(int i)
{
	unplug(noncoherent_device[i]);
}

static void test_last_by_del(void)
{
	leave_one_by_one(leave_by_del);
}

static void test_last_by_unset(void)
{
	leave_one_by_one(leave_by_unset);
}

static void test_last_by_unbind(void)
{
	leave_one_by_one(leave_by_unbind);
}

static void test_last_by_unplug(void)
{
	leave_one_by_one(leave_by_unplug);
}

static void test_last_by_closing(void)
{
	track_mixed();
	reset(0);
	expect_noncoherent(0, false);
}

/* Closed files that only the VM has left. */
static void test_last_by_closing_all(void)
{
	int i;

	track_mixed();
	for (i = 0; i < EACH; i++) {
		close_file(coherent_file[i]);
		close_file(noncoherent_file[i]);
		expect_noncoherent(0, true);
	}
	reset(0);
	expect_noncoherent(0, false);
}

/*
 * A process that shares our memory, so that it may use the VM, but not our files. It
 * may not fail(): that would go on with our stack.
 */
static struct {
	int ready[2];
	int result;
	char stack[65536] __attribute__((aligned(16)));
} doomed;

static int be_doomed(void *unused)
{
	int device = create_device(0), i, fd, ret = device < 0 ? device : 0;
	char path[100];

	for (i = 0; i < groups && !ret; i++) {
		snprintf(path, sizeof(path), "/dev/vfio/%d", group_number[i]);
		fd = open(path, O_RDWR | O_CLOEXEC);
		ret = call(group_join(fd, containers[i % 2].fd));
		if (!ret && i < 2)
			ret = call(container_set_iommu(containers[i % 2].fd));
		if (!ret)
			ret = call(kvm_vfio_add(device, fd));
	}
	doomed.result = ret;
	for (i = write(doomed.ready[1], "x", 1);; pause())
		;
	return i;
}

static void test_last_by_death(void)
{
	int i, pid;
	char byte;

	close_fd(&vms[0].device);
	for (i = 0; i < 2 * EACH; i++)
		plug(i % 2, NONE);
	begin("another process tracks all groups");
	must(pipe2(doomed.ready, O_CLOEXEC));
	pid = must(clone(be_doomed, doomed.stack + sizeof(doomed.stack), CLONE_VM | SIGCHLD, NULL));
	must_be_readable(doomed.ready[0], "the other process's calls");
	must(read(doomed.ready[0], &byte, 1));
	begin("another process has tracked all groups");
	if (!doomed.result && !wbinvd_is_executed(&vms[0].vm))
		doomed.result = -EPROTO;
	must_die(pid, "a process that is killed");
	close_fd(&doomed.ready[0]);
	close_fd(&doomed.ready[1]);
	expect_result(doomed.result, 0);
	begin("the process that tracked all groups has died");
	if (wbinvd_is_executed(&vms[0].vm))
		fail("the VM is non-coherent");
	vms[0].device = must(create_device(0));
	expect_noncoherent(0, false);
	for (i = 0; i < groups; i++)
		track(i, i % 2);
	expect_noncoherent(0, true);
}

static const struct test tests[] = {
	{ "the last non-coherent of many leaves by DEL", test_last_by_del },
	{ "the last non-coherent of many leaves by UNSET_CONTAINER", test_last_by_unset },
	{ "the last non-coherent of many leaves by being unbound", test_last_by_unbind },
	{ "the last non-coherent of many leaves by being unplugged", test_last_by_unplug },
	{ "all leave by closing the KVM device", test_last_by_closing },
	{ "all leave by closing the KVM device, which has kept them", test_last_by_closing_all },
	{ "all leave by process death", test_last_by_death },
};

const struct suite last_suite = SUITE(tests);
