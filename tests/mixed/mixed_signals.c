// SPDX-License-Identifier: GPL-2.0-only
/*
 * Cases of mixed_test in which who waits for a thread that is held gets a signal.
 *
 * What changes something waits uninterruptibly: a signal does not end its wait, and killed
 * or not it goes on to its end, since what it has begun must not be left half done. Who
 * reads the state can be killed (mixed_held.c has that), and goes on after any other signal.
 * A VM that has no part in it goes on meanwhile.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mixed_held.h"

/* ---- signals to one that waits ------------------------------------------- */

const int signals_to_waiters[2] = { SIGUSR1, SIGKILL };

static atomic_int handled;

static void count_signal(int number __attribute__((unused)))
{
	handled++;
}

void signal_waiter(struct waiter *waiter, int signal, const char *function)
{
	must(kill(waiter->pid, signal));
	usleep(20000);
	if (!waits_in(waiter, function))
		fail("it does not wait any more");
}

void expect_end_by(struct waiter *waiter, int signal)
{
	int status = end_of_waiter(waiter);

	if (signal == SIGKILL) {
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
			fail("it is not killed, its status is %x", status);
		return;
	}
	if (!WIFEXITED(status))
		fail("it does not exit, its status is %x", status);
	expect_result(waiter->result, 0);
	if (!handled)
		fail("it has not handled the signal");
	handled--;
}

/* ---- what is left -------------------------------------------------------- */

static const char *const references[] = {
	"/sys/module/vfio/refcnt", "/sys/module/kvm/refcnt",
};

static long references_before[ARRAY_SIZE(references)];

void before_signals(void)
{
	struct sigaction action = { .sa_handler = count_signal };
	size_t i;

	test_readable();
	must(sigaction(SIGUSR1, &action, NULL));
	handled = 0;
	for (i = 0; i < ARRAY_SIZE(references); i++)
		references_before[i] = get_number(references[i]);
}

/* The last one may be put a moment after its owner has gone. */
void expect_no_references(void)
{
	long now = 0;
	size_t i;
	int tries;

	for (i = 0; i < ARRAY_SIZE(references); i++) {
		for (tries = 0; tries < 2000; tries++) {
			now = get_number(references[i]);
			if (now == references_before[i])
				break;
			usleep(1000);
		}
		if (now != references_before[i])
			fail("when all is closed, %s is %ld instead of %ld", references[i], now,
			     references_before[i]);
	}
}

/* Whatever is open, and all devices: nobody keeps any of it. */
static void let_go_of_all(void)
{
	int i, v;

	for (i = 0; i < FILES; i++)
		for (v = 0; v < VMS; v++)
			if (files[i].used && tracks(v, &files[i]))
				del(v, i);
	for (i = 0; i < FILES; i++)
		if (files[i].used)
			close_file(i);
	for (i = 0; i < next_id; i++)
		if (devices[i].exists)
			unplug(i);
	for (v = 0; v < VMS; v++)
		expect_noncoherent(v, false);
	expect_no_references();
}

/* ---- who waits for another one ------------------------------------------- */

struct wait {
	void (*set_up)(void);
	int (*first)(void);		/* is held ... */
	const char *function;		/* ... here */
	int (*second)(void);		/* waits for it ... */
	const char *where;		/* ... here */
	void (*done)(void);		/* what both come to, in the model */
	int other;			/* a VM that waits for neither */
};

/* A VM works with a file that has no part in it. Not by steps, which look at both VMs. */
static void goes_on_meanwhile(int v, int file)
{
	struct kvm_vfio_vm_state state;

	begin("VM %d goes on meanwhile", v);
	expect_result(call(kvm_vfio_add(vms[v].device, files[file].fd)), 0);
	expect_result(call(kvm_vfio_del(vms[v].device, files[file].fd)), 0);
	/* VM 0 is being changed: its state can be read after that. */
	if (v)
		expect_result(call(kvm_vfio_attr(vms[v].device, KVM_GET_DEVICE_ATTR,
						 KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM,
						 &state)), 0);
}

static void wait_with(const struct wait *wait, int signal)
{
	int spare;

	before_signals();
	spare = open_group(devices[plug(true, NONE)].group);
	wait->set_up();
	begin("the first one is held");
	hold(wait->first, wait->function);
	begin("the second one");
	start_waiter(&waiters[0], wait->second, wait->where);
	begin("signal %d to the second one", signal);
	signal_waiter(&waiters[0], signal, wait->where);
	goes_on_meanwhile(wait->other, spare);
	goes_on();
	begin("the first one goes on");
	expect_result(held.result, 0);
	begin("the second one goes on after signal %d", signal);
	expect_end_by(&waiters[0], signal);
	close_fd(&their_fd);
	wait->done();
	check();
	let_go_of_all();
}

static void wait_with_signals(const struct wait *wait)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(signals_to_waiters); i++)
		wait_with(wait, signals_to_waiters[i]);
}

/* A group's file in container 0 */
static void in_container(void)
{
	their_file = open_group(devices[plug(false, NONE)].group);
	join(their_file, 0);
}

static void attached(void)
{
	in_container();
	set_iommu(0);
}

static void attached_and_tracked(void)
{
	attached();
	add(0, their_file);
}

static void tracked(void)
{
	in_container();
	add(0, their_file);
}

static void added(void)
{
	files[their_file].owners |= 1;
	expect_noncoherent(0, true);
}

static void deleted(void)
{
	files[their_file].owners = 0;
	expect_noncoherent(0, false);
}

static void test_del_after_add(void)
{
	wait_with_signals(&(struct wait){
		attached, call_add, "kvm_arch_register_noncoherent_dma",
		call_del, "kvm_vfio_", deleted, .other = 1,
	});
}

static void test_add_after_del(void)
{
	wait_with_signals(&(struct wait){
		attached_and_tracked, call_del, "kvm_arch_unregister_noncoherent_dma",
		call_add, "kvm_vfio_", added, .other = 1,
	});
}

static void set_and_deleted(void)
{
	model_set_iommu(0);
	deleted();
}

static void test_del_after_set_iommu(void)
{
	wait_with_signals(&(struct wait){
		tracked, call_set_iommu, "kvm_arch_register_noncoherent_dma",
		call_del, "vfio_external_user_del", set_and_deleted, .other = 1,
	});
}

static int call_add_to_other(void)
{
	return call(kvm_vfio_add(vms[1].device, files[their_file].fd));
}

static void set_and_added(void)
{
	model_set_iommu(0);
	files[their_file].owners = 3;
	expect_noncoherent(0, true);
	expect_noncoherent(1, true);
}

static void test_add_after_set_iommu(void)
{
	wait_with_signals(&(struct wait){
		tracked, call_set_iommu, "kvm_arch_register_noncoherent_dma",
		call_add_to_other, "vfio_external_user_get", set_and_added, .other = 0,
	});
}

static void two_tracked(void)
{
	int file = open_group(devices[plug(false, NONE)].group);

	add(0, file);
	join(file, 1);
	tracked();
}

static void both_set(void)
{
	model_set_iommu(0);
	model_set_iommu(1);
	expect_noncoherent(0, true);
}

static void test_set_iommu_after_another(void)
{
	wait_with_signals(&(struct wait){
		two_tracked, call_set_iommu, "kvm_arch_register_noncoherent_dma",
		call_set_another_iommu, "kvm_vfio_coherency_changed", both_set, .other = 1,
	});
}

static void added_and_left(void)
{
	files[their_file].owners = 1;
	files[their_file].container = NONE;
	containers[0].iommu = false;
	expect_noncoherent(0, false);
}

static void test_leave_after_add(void)
{
	wait_with_signals(&(struct wait){
		attached, call_add, "kvm_arch_register_noncoherent_dma",
		call_leave, "vfio_external_slot_update", added_and_left, .other = 1,
	});
}

/* In a process of its own: the device is closed when that ends. */
static int call_open_device_there(void)
{
	int their_own = their_fd, ret = call_open_device();

	their_fd = their_own;
	return ret;
}

static void attached_device(void)
{
	their_device = next_id;
	attached();
}

static void test_open_after_add(void)
{
	wait_with_signals(&(struct wait){
		attached_device, call_add, "kvm_arch_register_noncoherent_dma",
		call_open_device_there, "vfio_", added, .other = 1,
	});
}

static void tracked_device(void)
{
	attached_device();
	add(0, their_file);
}

/* Only on 6.1: later a driver has its own reference to the VM. */
static void test_del_after_open(void)
{
	test_readable();
	if (!old_vfio)
		return;
	wait_with_signals(&(struct wait){
		tracked_device, call_open_device, "vfio_testdev:testdev_open_device",
		call_del, "drain", deleted, .other = 1,
	});
}

/* ---- who reads the state ------------------------------------------------- */

static void test_readers_go_on(void)
{
	size_t i;

	before_signals();
	in_container();
	add(0, their_file);
	for (i = 0; i < ARRAY_SIZE(pairs); i++) {
		begin("SET_IOMMU is held while pair %zu reads", i);
		hold(call_set_iommu, "kvm_arch_register_noncoherent_dma");
		start_pair(&pairs[i]);
		begin("pair %zu gets signals", i);
		signal_waiter(&waiters[1], SIGUSR1, "kvm_vfio");
		signal_waiter(&waiters[0], SIGUSR1, pairs[i].waits_in);
		goes_on();
		begin("SET_IOMMU goes on");
		expect_result(held.result, 0);
		begin("pair %zu goes on", i);
		expect_end_by(&waiters[0], SIGUSR1);
		expect_end_by(&waiters[1], SIGUSR1);
		model_set_iommu(0);
		expect_noncoherent(0, true);
		leave(their_file);
		join(their_file, 0);
	}
	let_go_of_all();
}

static const struct test tests[] = {
	{ "a DEL that waits for an ADD gets a signal", test_del_after_add },
	{ "an ADD that waits for a DEL gets a signal", test_add_after_del },
	{ "a DEL that waits for SET_IOMMU gets a signal", test_del_after_set_iommu },
	{ "an ADD that waits for SET_IOMMU gets a signal", test_add_after_set_iommu },
	{ "a SET_IOMMU that waits for another one gets a signal", test_set_iommu_after_another },
	{ "an UNSET_CONTAINER that waits for an ADD gets a signal", test_leave_after_add },
	{ "a GET_DEVICE_FD that waits for an ADD gets a signal", test_open_after_add },
	{ "a DEL that waits for a driver gets a signal", test_del_after_open },
	{ "who reads the state goes on after a signal", test_readers_go_on },
};

const struct suite signals_suite = SUITE(tests);
