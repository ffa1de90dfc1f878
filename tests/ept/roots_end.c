// SPDX-License-Identifier: GPL-2.0-only
/* Old roots: the VM ends, or the modules are unloaded, while a teardown is pending */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "roots.h"

static bool end_of_vm_waits(void)
{
	return dirty_log_has_ended() || sleeps_in(READ(dirty_log.tid), "flush_work");
}

/*
 * The VM ends on CPU 1 with a worker held on CPU 0, which is about to tear its roots
 * down. No grace period of RCU ends while the worker is held, so all that waits for one
 * comes before: of the references to the VM there is only that of a system call left,
 * which holds slots_lock, so that the worker comes again until it is held.
 */
static void end_vm_with_worker_held(void)
{
	run_on(1);
	guest_touches(SMALL);
	guest_touches(HUGE);
	hold_slots_lock(1);
	run_workers_on("1");
	close_fd(&vm.device);		/* which makes it coherent */
	if (idle_page_is_unmapped())
		fail("the old root is torn down without slots_lock");
	munmap(vm.run, vm.run_size);
	vm.run = NULL;
	close_fd(&vm.vcpu);
	close_fd(&vm.fd);
	stop_trace();
	disable_events();		/* of modules that are to be unloaded */
	hold_at(BY_WORKER, "");
	wait_until(somebody_is_held, "a worker is to tear the roots down");
	give_page_for_dirty_log();
	wait_until(end_of_vm_waits, "the VM's end waits");
	if (dirty_log_has_ended())
		fail("the VM has ended with a teardown pending");
}

/* The VM ends while a worker is about to tear its roots down. */
static void test_end_of_vm(void)
{
	must_tear_down_later();
	tear_down();
	count_before();
	set_up();
	attach(NONCOHERENT, 0);
	add(NONCOHERENT);
	end_vm_with_worker_held();
	if (no_vm_is_left())
		fail("the VM is gone with a teardown pending");
	let_go();
	dirty_log_ends("the VM's end goes on");
	expect_end_of_vm();
}

static bool kvm_intel_unloads(void)	{ return !try_unload("kvm_intel"); }
static bool kvm_unloads(void)		{ return !try_unload("kvm"); }

/* As soon as the VM has ended, which has waited for the worker */
static void test_unload(void)
{
	must_tear_down_later();
	attach(NONCOHERENT, 0);
	add(NONCOHERENT);
	end_vm_with_worker_held();
	close_fd(&kvm);
	if (kvm_intel_unloads())
		fail("the module is unloaded with a teardown pending");
	let_go();
	dirty_log_ends("the VM's end goes on");
	wait_until(kvm_intel_unloads, "kvm_intel is unloaded");
	wait_until(kvm_unloads, "kvm is unloaded");
	tear_down();
	load_kvm("");
	kvm = open_kvm();
	group_is_free();
}

static void *attach_meanwhile(void *unused __attribute__((unused)))
{
	attach(NONCOHERENT, 0);
	return NULL;
}

static long users_wanted;

static bool users_are_as_before(void)
{
	return kvm_users() == users_wanted;
}

/*
 * A thread makes the VM non-coherent, by a call that concerns VFIO alone, and is on its
 * way back to user space. Another one could close all files of KVM now, and then the VM
 * would end there. (Here it cannot: with somebody held, closing waits for RCU.)
 */
static void test_module_is_held(void)
{
	pthread_t thread;

	must_tear_down_later();
	add(NONCOHERENT);
	guest_touches(SMALL);
	users_wanted = kvm_users();
	hold_at("kvm_put_kvm", "");
	thread = thread_on(1, attach_meanwhile);
	wait_until(somebody_is_held, "the thread is to let the VM go");
	if (kvm_users() != users_wanted + 1)
		fail("the module has %ld users instead of %ld", kvm_users(), users_wanted + 1);
	let_go();
	pthread_join(thread, NULL);
	wait_until(users_are_as_before, "the module is let go as well");
	goes_on(true);
}

static const struct test tests[] = {
	{ "the VM ends with a teardown pending", test_end_of_vm },
	{ "the modules are unloaded right after the last VM", test_unload },
	{ "who may be the last to let a VM go holds the module", test_module_is_held },
};

const struct suite roots_end_suite = SUITE(tests);
