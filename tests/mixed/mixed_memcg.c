// SPDX-License-Identifier: GPL-2.0-only
/*
 * Cases of mixed_test in which the memory of a monitor's cgroup is used up: what KVM
 * allocates for it is charged there, so a call fails, and nothing has changed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mixed.h"

#define CGROUPS		"/tmp/cgroups/"
#define OURS		CGROUPS "monitor/"
/* An object is charged for from a page, so that is used up before all of them have one. */
#define MONITORED	96
/* Pages are charged ahead for each CPU, some 256 KiB. */
#define EVENTS		16000

static struct monitor {
	int vm[MONITORED], device[MONITORED];
	int file, limit;
	char why[200];
} *monitor;

/* Of the file that is open already: to open one takes memory. */
static void limit(const char *bytes)
{
	ssize_t length = strlen(bytes);

	if (write(monitor->limit, bytes, length) != length)
		fail("memory.max: %s", strerror(errno));
}

static void make_cgroup(void)
{
	mkdir(CGROUPS, 0700);
	if (mount("none", CGROUPS, "cgroup2", 0, NULL) && errno != EBUSY)
		fail("there are no cgroups: %s", strerror(errno));
	must_put(CGROUPS "cgroup.subtree_control", "+memory");
	if (mkdir(OURS, 0700) && errno != EEXIST)
		fail("there is no cgroup: %s", strerror(errno));
	must_put(OURS "memory.max", "max");
}

/* How deep it may go without a page fault */
static void grow_stack(void)
{
	volatile char stack[64 << 10];
	unsigned int i;

	for (i = 0; i < sizeof(stack); i += 4096)
		stack[i] = 1;
}

/*
 * The limit is less than what there is, so nothing more can be had, for a page fault
 * either: it would be tried again for ever. And nobody is killed for it.
 */
static void begin_monitor(void)
{
	const struct rlimit events = { EVENTS + 1000, EVENTS + 1000 };
	int i;

	alarm(200);
	pin(0, 0);
	must_put("/proc/self/oom_score_adj", "-1000");
	must_put(OURS "cgroup.procs", "%d", getpid());
	monitor->limit = must(open(OURS "memory.max", O_WRONLY | O_CLOEXEC));
	for (i = 0; i < MONITORED; i++) {
		monitor->device[i] = -1;
		monitor->vm[i] = create_vm();
	}
	/* Events end for want of small objects, not of a table for all of them. */
	if (setrlimit(RLIMIT_NOFILE, &events) || dup2(monitor->limit, EVENTS + 500) < 0)
		fail("no room for descriptors: %s", strerror(errno));
	grow_stack();
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		fail("mlockall: %s", strerror(errno));
}

static void use_up(void)
{
	int i;

	limit("0");
	for (i = 0; i < EVENTS; i++)
		if (eventfd(0, 0) < 0)
			break;
	if (i == EVENTS)
		fail("%d eventfds do not use up its memory", i);
}

static int add_to(int i)
{
	return call(kvm_vfio_add(monitor->device[i], monitor->file));
}

static int make_device(int i)
{
	monitor->device[i] = call(kvm_vfio_create(monitor->vm[i]));
	return monitor->device[i] < 0 ? monitor->device[i] : 0;
}

static void must_be_empty(int i)
{
	struct kvm_vfio_vm_state is = {};
	int ret;

	if (!readable)
		return;
	ret = call(kvm_vfio_attr(monitor->device[i], KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				 KVM_DEV_VFIO_STATE_VM, &is));
	if (ret || is.files || is.noncoherent || is.noncoherent_files)
		fail("%s, %u files, flag %u, where ADD has failed", strerror(-ret),
			      is.files, is.noncoherent);
}

/* The first VM for which there is no memory left */
static int first_without(const char *what, int (*allocate)(int i))
{
	int i, ret = 0;

	use_up();
	for (i = 0; i < MONITORED; i++) {
		ret = allocate(i);
		if (ret)
			break;
	}
	if (ret != -ENOMEM)
		fail("%s: %s, for VM %d, instead of ENOMEM", what, strerror(-ret), i);
	return i;
}

static void monitor_adds(void)
{
	int i, ret, without;

	begin_monitor();
	for (i = 0; i < MONITORED; i++)
		if (make_device(i))
			fail("there is no device");
	without = first_without("ADD", add_to);
	must_be_empty(without);
	if (without && call(kvm_vfio_del(monitor->device[0], monitor->file)))
		fail("DEL fails without memory");
	limit("max");
	ret = add_to(without);
	if (ret)
		fail("ADD with memory again: %s", strerror(-ret));
}

static void monitor_creates(void)
{
	int without, ret;

	begin_monitor();
	without = first_without("KVM_CREATE_DEVICE", make_device);
	limit("max");
	ret = make_device(without) ?: add_to(without);
	if (ret)
		fail("with memory again: %s", strerror(-ret));
}

/* In a process of its own, which must not come back to the test */
static void __attribute__((noreturn)) be_monitor(void (*run)(void))
{
	if (setjmp(test_end)) {
		snprintf(monitor->why, sizeof(monitor->why), "%s", why_ended());
		_exit(1);
	}
	run();
	_exit(0);
}

static void be_monitored(void (*run)(void))
{
	int f, status;
	pid_t pid;

	make_cgroup();
	f = open_group(devices[plug(false, NONE)].group);
	join(f, 0);
	set_iommu(0);
	monitor = shared_memory(sizeof(*monitor));
	monitor->file = files[f].fd;
	about[0] = '\0';		/* no step of the model fails from here on */
	fflush(stdout);
	pid = must(fork());
	if (!pid)
		be_monitor(run);
	must(waitpid(pid, &status, 0));
	if (monitor->why[0])
		fail("%s", monitor->why);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail("the monitor ended with %#x", status);
	munmap(monitor, sizeof(*monitor));
	check();
}

static void test_add(void)
{
	be_monitored(monitor_adds);
}

static void test_create(void)
{
	be_monitored(monitor_creates);
}

static const struct test tests[] = {
	{ "ADD without memory in the monitor's cgroup changes nothing", test_add },
	{ "a device without memory in the monitor's cgroup is none", test_create },
};
const struct suite memcg_suite = SUITE(tests);
