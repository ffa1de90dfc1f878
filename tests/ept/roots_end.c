// SPDX-License-Identifier: GPL-2.0-only
/* Old roots: the VM ends, or the modules are unloaded, while a teardown is pending */
#define _GNU_SOURCE
#include <dirent.h>
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

/* Each of them holds the vendor's module; up to Linux 6.6 those of /dev/kvm alone. */
static long kvm_files(void)
{
	DIR *fds = opendir("/proc/self/fd");
	struct dirent *entry;
	char what[40];
	long files = 0;

	while (fds && (entry = readdir(fds))) {
		ssize_t size = readlinkat(dirfd(fds), entry->d_name, what, sizeof(what) - 1);

		what[size > 0 ? size : 0] = '\0';
		files += !strcmp(what, "/dev/kvm") ||
			 (!strncmp(what, "anon_inode:kvm-", 15) && !kernel_before(6, 7));
	}
	closedir(fds);
	return files;
}

/*
 * A thread makes the VM non-coherent, by a call that concerns VFIO alone, and is on its
 * way back to user space. Another one could close all files of KVM now, and then the VM
 * would end there: it is the VM that has to hold the module. (Here it cannot: with somebody
 * held, closing waits for RCU.)
 */
static void test_module_is_held(void)
{
	pthread_t thread;

	must_tear_down_later();
	add(NONCOHERENT);
	guest_touches(SMALL);
	hold_at("kvm_put_kvm", "");
	thread = thread_on(1, attach_meanwhile);
	wait_until(somebody_is_held, "the thread is to let the VM go");
	if (kvm_users() != kvm_files() + 1)
		fail("the module has %ld users, of which %ld are files", kvm_users(), kvm_files());
	let_go();
	pthread_join(thread, NULL);
	goes_on(true);
}

/* A new VM, with a device that is the first one of KVM since it was loaded */
static void load_anew(void)
{
	close_fd(&vm.device);
	munmap(vm.run, vm.run_size);
	close_fd(&vm.vcpu);
	close_fd(&vm.fd);
	stop_trace();
	disable_events();
	close_fd(&kvm);
	wait_until(kvm_intel_unloads, "kvm_intel is unloaded");
	wait_until(kvm_unloads, "kvm is unloaded");
	load_kvm("");
	kvm = open_kvm();
	start_trace();
	make_vm();
	make_device();
}

/*
 * A guest that goes on in a KVM that has been loaded anew, while VFIO and the group have
 * stayed: VFIO takes the device for another one than that which had the group last.
 */
static void test_goes_on_in_new_kvm(void)
{
	long long others;

	attach(NONCOHERENT, 0);
	load_anew();
	add(NONCOHERENT);
	load_anew();
	add(NONCOHERENT);
	run_on(0);
	guest(guest_wbinvd, (struct kvm_regs){ 0 });
	others = vm_number(getpid(), vm.fd, "wbinvd_ipis");
	if (others != 1)
		fail("the guest's WBINVD has reached %lld other CPUs instead of one", others);
}

static const struct test tests[] = {
	{ "the VM ends with a teardown pending", test_end_of_vm },
	{ "the modules are unloaded right after the last VM", test_unload },
	{ "who may be the last to let a VM go holds the module", test_module_is_held },
	{ "a guest goes on in a KVM that was loaded anew", test_goes_on_in_new_kvm },
};

const struct suite roots_end_suite = SUITE(tests);
