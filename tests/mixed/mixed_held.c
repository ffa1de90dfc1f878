// SPDX-License-Identifier: GPL-2.0-only
/* Cases of mixed_test in which a thread is held by hold.ko on the second CPU */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hold.h"
#include "mixed.h"

/* ---- a thread that is held, and who comes meanwhile ---------------------- */

/* A system call of another thread */
struct caller {
	pthread_t thread;
	pid_t tid;
	int cpu;
	int (*call)(void);
	int result;
	bool started;
	atomic_bool ended;
};

/* Who is held by hold.ko keeps its CPU, so that is not ours. */
static struct caller held = { .cpu = 1 }, follower = { .cpu = 0 };
/* What their calls are about, and the file of a device that one of them opens */
static int their_device, their_file, their_fd = NONE;

/* Processes that can be killed one by one; they share our memory, so they may use the VM. */
static struct reader {
	pid_t pid;
	int (*read)(void);
	char stack[16384] __attribute__((aligned(16)));
} readers[2];

static void *caller_main(void *arg)
{
	struct caller *caller = arg;

	caller->tid = gettid();
	caller->result = call(pin(0, caller->cpu));
	if (!caller->result)
		caller->result = caller->call();
	caller->ended = true;
	return NULL;
}

static void start(struct caller *caller, int (*their_call)(void))
{
	caller->tid = 0;
	caller->call = their_call;
	caller->ended = false;
	if (pthread_create(&caller->thread, NULL, caller_main, caller))
		fail("no thread");
	caller->started = true;
}

static void join_caller(struct caller *caller)
{
	if (caller->started)
		must_join(caller->thread, "the call of another thread");
	caller->started = false;
}

static bool follower_drains(void)
{
	return sleeps_in(follower.tid, "drain");
}

static bool follower_has_ended(void)
{
	return follower.ended;
}

/* Hold the thread that makes THEIR_CALL when it comes to FUNCTION. */
static void hold(int (*their_call)(void), const char *function)
{
	hold_at(function, "");
	start(&held, their_call);
	wait_until(somebody_is_held, "somebody is held");
}

static void goes_on(void)
{
	let_go();
	join_caller(&held);
	unload("hold");
}

static int be_reader(void *arg)
{
	struct reader *reader = arg;

	return reader->read();
}

/* Returns when it waits in a function named like WHERE. */
static void start_reader(struct reader *reader, int (*read)(void), const char *where)
{
	char path[60], is[100];
	int tries;

	reader->read = read;
	reader->pid = must(clone(be_reader, reader->stack + sizeof(reader->stack),
				 CLONE_VM | SIGCHLD, reader));
	snprintf(path, sizeof(path), "/proc/%d/wchan", reader->pid);
	for (tries = 0; tries < 5000; tries++) {
		if (!get_text(path, is, sizeof(is)) && strstr(is, where))
			return;
		usleep(1000);
	}
	fail("a reader does not wait in %s, but in '%s'%s", where, is,
	     somebody_is_held() ? "" : ", and nobody is held any more");
}

static void kill_reader(struct reader *reader)
{
	int tries;

	kill(reader->pid, SIGKILL);
	for (tries = 0; tries < 2000; tries++) {
		if (waitpid(reader->pid, NULL, WNOHANG) == reader->pid) {
			reader->pid = 0;
			return;
		}
		usleep(1000);
	}
	fail("who waits cannot be killed");
}

void tear_down_held(void)
{
	size_t i;

	release_held();
	join_caller(&held);
	join_caller(&follower);
	for (i = 0; i < ARRAY_SIZE(readers); i++) {
		if (readers[i].pid > 0)
			must_die(readers[i].pid, "a reader that is killed");
		readers[i].pid = 0;
	}
	forget_hold();
	close_fd(&their_fd);
}

/* ---- while somebody is held ---------------------------------------------- */

static int call_set_iommu(void)
{
	return call(container_set_iommu(containers[0].fd));
}

static int call_open_device(void)
{
	char name[40];

	snprintf(name, sizeof(name), "vfio_testdev.%d", their_device);
	their_fd = call(ioctl(files[their_file].fd, VFIO_GROUP_GET_DEVICE_FD, name));
	return their_fd < 0 ? their_fd : 0;
}

static int call_del(void)
{
	return call(kvm_vfio_del(vms[0].device, files[their_file].fd));
}

static int read_vm_state(void)
{
	struct kvm_vfio_vm_state state;

	return call(kvm_vfio_attr(vms[0].device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				  KVM_DEV_VFIO_STATE_VM, &state));
}

static int read_file_state(void)
{
	struct kvm_vfio_file_state state = { .fd = files[their_file].fd };

	return call(kvm_vfio_attr(vms[0].device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				  KVM_DEV_VFIO_STATE_FILE, &state));
}

static int read_fdinfo(void)
{
	char path[60], text[200];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", vms[0].device);
	return get_text(path, text, sizeof(text));
}

/*
 * A change takes long. Whoever wants to know the state waits for it, or for somebody
 * who does, and can be killed.
 */
static void test_readers_are_killed(void)
{
	static const struct {
		int (*first)(void), (*second)(void);
		const char *waits_in;		/* the first one */
	} pairs[] = {
		{ read_file_state, read_vm_state, "vfio_external" },
		{ read_vm_state, read_file_state, "kvm_vfio" },
		{ read_fdinfo, read_fdinfo, "kvm_vfio" },
	};
	int id = plug(false, NONE);
	size_t i;

	test_readable();
	their_file = open_group(devices[id].group);
	add(0, their_file);
	for (i = 0; i < ARRAY_SIZE(pairs); i++) {
		join(their_file, 0);
		begin("SET_IOMMU is held while the VM becomes non-coherent");
		hold(call_set_iommu, "kvm:kvm_arch_register_noncoherent_dma");
		begin("pair %zu reads meanwhile", i);
		start_reader(&readers[0], pairs[i].first, pairs[i].waits_in);
		start_reader(&readers[1], pairs[i].second, "kvm_vfio");
		begin("the second of pair %zu", i);
		kill_reader(&readers[1]);
		begin("the first of pair %zu", i);
		kill_reader(&readers[0]);
		goes_on();
		begin("SET_IOMMU goes on");
		expect_result(held.result, 0);
		model_set_iommu(0);
		expect_noncoherent(0, true);
		leave(their_file);
	}
}

static int call_map(void)
{
	return call(container_map(containers[0].fd, vms[0].vm.memory, 0, 4096));
}

/* No memory can be mapped for DMA before the VM is non-coherent. */
static void test_no_dma_before(void)
{
	int id = plug(false, NONE), file = open_group(devices[id].group);

	test_readable();
	join(file, 0);
	add(0, file);
	begin("VFIO_IOMMU_MAP_DMA before SET_IOMMU");
	expect_result(call_map(), -EINVAL);
	begin("SET_IOMMU is held before the VM is non-coherent");
	hold(call_set_iommu, "kvm:kvm_arch_register_noncoherent_dma");
	begin("VFIO_IOMMU_MAP_DMA before the VM is non-coherent");
	expect_result(call_map(), -EINVAL);
	goes_on();
	begin("SET_IOMMU goes on");
	expect_result(held.result, 0);
	model_set_iommu(0);
	begin("VFIO_IOMMU_MAP_DMA after SET_IOMMU");
	expect_result(call_map(), 0);
	expect_noncoherent(0, true);
}

/*
 * A driver is about to refer to the VM. On 6.1 nobody has a reference for it yet, so DEL
 * waits; who does something else with the KVM device does not.
 */
static void test_del_while_opened(void)
{
	their_device = plug(false, NONE);
	their_file = track(devices[their_device].group, 0);
	begin("GET_DEVICE_FD is held in the driver");
	hold(call_open_device, "vfio_testdev:testdev_open_device");
	begin("DEL while a device is opened");
	start(&follower, call_del);
	if (old_vfio)
		wait_until(follower_drains, "DEL waits for the driver");
	else
		wait_until(follower_has_ended, "DEL returns");
	begin("the VM's state is read while a device is opened");
	expect_result(read_vm_state(), 0);
	goes_on();
	begin("GET_DEVICE_FD goes on");
	expect_result(held.result, 0);
	close_fd(&their_fd);
	begin("DEL goes on");
	join_caller(&follower);
	expect_result(follower.result, 0);
	files[their_file].owners = 0;
	expect_noncoherent(0, false);
}

static const struct test tests[] = {
	{ "who reads the state can be killed while it changes", test_readers_are_killed },
	{ "no memory is mapped for DMA before the VM is non-coherent", test_no_dma_before },
	{ "DEL while a driver opens a device of the file", test_del_while_opened },
};

const struct suite held_suite = SUITE(tests);
