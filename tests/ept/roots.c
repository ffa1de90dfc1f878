// SPDX-License-Identifier: GPL-2.0-only
/*
 * What becomes of the roots that a change of coherency has put out of use?
 *
 * The part of ept_test that it runs with the argument "roots". A change makes all
 * vCPUs leave the TDP MMU's roots and returns; the page tables are given back later
 * by the task that caused it, on its way back to user space, or, where it has none
 * or kvm->slots_lock is taken, by a worker of the kernel. What must hold:
 *
 *  - The memory comes back, all of it: after any number of changes, if the task is
 *    killed before or meanwhile, if it is another process than the VM's, if it is
 *    a kernel thread, if the VM ends first. The kernel's own count tells.
 *  - A memslot can be deleted before a teardown, and waits for one that has begun.
 *  - The VM ends, and the modules can be unloaded.
 *  - A vCPU is out of its old root when the change returns, even if it runs between
 *    the steps of the change, or is slow to leave.
 *  - KVM_PRE_FAULT_MEMORY ends, although its root has gone.
 *  - Who reads the device's state while a change is in progress can be killed.
 */
#define _GNU_SOURCE
#include <linux/io_uring.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "roots.h"

/* ---- what is counted ----------------------------------------------------- */

/* Pages that are KVM's page tables: the kernel's count, brought up to date first */
static long page_tables(void)
{
	FILE *counts;
	char line[100];
	long count = -1;

	must_put("/proc/sys/vm/stat_refresh", "1");
	counts = fopen("/proc/vmstat", "re");
	while (counts && count < 0 && fgets(line, sizeof(line), counts))
		sscanf(line, "nr_sec_page_table_pages %ld", &count);
	if (counts)
		fclose(counts);
	if (count < 0)
		fail("/proc/vmstat does not count page tables of VMs");
	return count;
}

long kvm_users(void)
{
	return must(get_number("/sys/module/kvm_intel/refcnt"));
}

static long users_before, tables_before;

void count_before(void)
{
	users_before = kvm_users();
	tables_before = page_tables();
}

bool no_vm_is_left(void)
{
	return kvm_users() == users_before;
}

static bool all_is_given_back(void)
{
	return page_tables() == tables_before;
}

void expect_end_of_vm(void)
{
	wait_until(no_vm_is_left, "the VM ends");
	wait_until(all_is_given_back, "its page tables are given back");
}

/* ---- the teardown -------------------------------------------------------- */

void must_tear_down_later(void)
{
	if (!kernel_has(BEFORE_TEARDOWN))
		skip("no teardown of roots");
}

bool idle_page_is_unmapped(void)
{
	struct entries found = entries_at(HUGE, mark());
	int i;

	for (i = 0; i < 16; i++)
		if (found.count[i] > 0)
			return false;
	return true;
}

void goes_on(bool noncoherent)
{
	guest_touches(SMALL);
	expect(SMALL, noncoherent ? WB : WB | IPAT);
}

static bool workers_moved;

void run_workers_on(const char *mask)
{
	must_put("/sys/devices/virtual/workqueue/cpumask", "%s", mask);
	workers_moved = true;
}

/* ---- many changes -------------------------------------------------------- */

enum { CHANGES = 200 };

#define COUNTING	0x3000u		/* the guest's code there */
#define SECOND_SMALL	(SMALL + 4096)

asm(".pushsection .rodata\n"
    ".code32\n"
    "guest_count:\n"			/* in three pages, until told to stop */
    "	incl	(%ebx)\n"
    "	incl	(%ecx)\n"
    "	incl	(%edx)\n"
    "	incl	(%edi)\n"
    "	cmpl	$0, 4(%edi)\n"
    "	je	guest_count\n"
    "	outb	%al, $0x80\n"
    "guest_count_end:\n"
    ".code64\n"
    ".popsection\n");

extern const char guest_count[], guest_count_end[];

static void start_counting(void)
{
	struct kvm_regs regs = {
		.rbx = SMALL, .rcx = SECOND_SMALL, .rdx = HUGE, .rdi = DATA,
		.rip = COUNTING, .rflags = 0x202,
	};

	memcpy(vm.low + COUNTING, guest_count, guest_count_end - guest_count);
	memset(vm.small, 0, 2 * 4096);
	memset(vm.huge, 0, 4096);
	WRITE(vm.shared->loops, 0);
	WRITE(vm.shared->stop, 0);
	must(ioctl(vm.vcpu, KVM_SET_REGS, &regs));
	vm.thread = thread_on(1, spin);
	vm.spinning = true;
	let_it_spin();
}

static void expect_counted(const char *where, const uint32_t *count)
{
	if (*count != vm.shared->loops)
		fail("the guest has counted to %u in a %s page and to %u elsewhere", *count,
		     where, vm.shared->loops);
}

static void make_changes(int count)
{
	int i;

	for (i = 0; i < count; i += 2) {
		add(NONCOHERENT);
		del(NONCOHERENT);
	}
	let_it_spin();			/* and map all its pages again */
}

static void test_many_changes(void)
{
	long before, after;

	stop_trace();			/* which would be full soon */
	attach(NONCOHERENT, 0);
	start_counting();
	make_changes(2);
	before = page_tables();
	make_changes(CHANGES);
	after = page_tables();
	stop_spinning();
	expect_counted("4 KiB", vm.small);
	expect_counted("4 KiB", vm.small + 4096);
	expect_counted("2 MiB", vm.huge);
	if (after != before)
		fail("%d changes have turned %ld page tables into %ld", CHANGES, before, after);
	start_trace();
	add(NONCOHERENT);
	goes_on(true);
}

/* ---- a memslot's deletion ------------------------------------------------ */

struct slot_change slot_change;

static void delete_huge(void)
{
	struct kvm_userspace_memory_region region = { .slot = 1, .guest_phys_addr = HUGE };

	ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static void *delete_huge_meanwhile(void *unused __attribute__((unused)))
{
	WRITE(slot_change.tid, gettid());
	delete_huge();
	WRITE(slot_change.done, true);
	return NULL;
}

bool slot_change_has_ended(void)
{
	return READ(slot_change.done);
}

/* In kvm_vm_ioctl() itself it can only sleep for slots_lock. */
static bool slot_change_waits_or_ended(void)
{
	return slot_change_has_ended() || sleeps_in(READ(slot_change.tid), "kvm_vm_ioctl") ||
	       sleeps_in(READ(slot_change.tid), "kvm_set_memory_region");
}

static void expect_deleted(void)
{
	vm.mmio_exits = 0;
	guest_reads(HUGE);
	if (vm.mmio_exits != 1)
		fail("a read of deleted memory left the guest %d times", vm.mmio_exits);
}

/*
 * The other thread's ADD comes to FUNCTION, and is held there. Not on CPU 0, without
 * which no grace period of kvm->srcu ends while the struct is small.
 */
static void hold_add_at(const char *function, const char *options)
{
	must_tear_down_later();
	attach(NONCOHERENT, 0);
	guest_touches(SMALL);
	guest_touches(HUGE);
	hold_at(function, options);
	start_change_on(1, KVM_DEV_VFIO_GROUP_ADD);
	wait_until(somebody_is_held, "the teardown is held");
}

static void test_deletion_before(void)
{
	hold_add_at(BEFORE_TEARDOWN, "");
	if (idle_page_is_unmapped())
		fail("the old root is torn down before the test lets it");
	delete_huge();			/* it finds the root that waits to be torn down */
	if (!idle_page_is_unmapped())
		fail("deleted memory is still mapped");
	expect_deleted();
	end_change();
	goes_on(true);
	expect_deleted();
}

static void test_deletion_meanwhile(void)
{
	hold_add_at(IN_TEARDOWN, "");
	memset(&slot_change, 0, sizeof(slot_change));
	slot_change.thread = thread_on(0, delete_huge_meanwhile);
	wait_until(slot_change_waits_or_ended, "the deletion waits");
	if (slot_change_has_ended())
		fail("the deletion does not wait for the teardown");
	end_change();
	wait_until(slot_change_has_ended, "the deletion ends");
	pthread_join(slot_change.thread, NULL);
	if (!idle_page_is_unmapped())
		fail("deleted memory is still mapped");
	expect_deleted();
	goes_on(true);
}

/* A change for whose roots the teardown that is just ending comes too early */
static void test_change_meanwhile(void)
{
	hold_add_at(IN_TEARDOWN, "at_return=1");
	guest_touches(HUGE);
	del(NONCOHERENT);
	if (idle_page_is_unmapped())
		fail("the second root is torn down before the test lets it");
	end_change();
	wait_until(idle_page_is_unmapped, "the second root is torn down");
	goes_on(false);
}

/* ---- a worker tears down ------------------------------------------------- */

static void *add_slot_meanwhile(void *unused __attribute__((unused)))
{
	struct kvm_userspace_memory_region region = {
		.slot = 5, .guest_phys_addr = 0x20000000, .memory_size = 4096,
		.userspace_addr = (uintptr_t)vm.low,
	};

	WRITE(slot_change.tid, gettid());
	ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region);
	WRITE(slot_change.done, true);
	return NULL;
}

static bool slot_change_has_slots_lock(void)
{
	return sleeps_in(READ(slot_change.tid), "synchronize_srcu");
}

void change_with_slots_busy(void)
{
	attach(NONCOHERENT, 0);
	guest_touches(HUGE);
	block_vcpu();
	memset(&slot_change, 0, sizeof(slot_change));
	slot_change.thread = thread_on(0, add_slot_meanwhile);
	wait_until(slot_change_has_slots_lock, "who adds a memslot waits for the vCPU");
	add(NONCOHERENT);
}

static void test_slots_busy(void)
{
	must_tear_down_later();
	change_with_slots_busy();
	if (idle_page_is_unmapped())
		fail("the old root is torn down without slots_lock");
	unblock_vcpu();
	wait_until(slot_change_has_ended, "the memslot is added");
	pthread_join(slot_change.thread, NULL);
	wait_until(idle_page_is_unmapped, "a worker tears the old root down");
	goes_on(true);
}

static int ring = -1;

/* The last file of the KVM device goes with an io_uring: a kernel thread closes it. */
static void close_device_by_kernel_thread(void)
{
	struct io_uring_params params = { 0 };

	ring = must(syscall(SYS_io_uring_setup, 1, &params));
	must(syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &vm.device, 1));
	close_fd(&vm.device);
	close_fd(&ring);
}

static void test_kernel_thread(void)
{
	must_tear_down_later();
	attach(NONCOHERENT, 0);
	add(NONCOHERENT);
	run_on(1);
	guest_touches(SMALL);
	guest_touches(HUGE);
	run_workers_on("1");
	hold_at(BY_WORKER, "");
	close_device_by_kernel_thread();
	wait_until(somebody_is_held, "a worker is to tear the roots down");
	guest_touches(SMALL);
	let_go();
	wait_until(idle_page_is_unmapped, "the worker tears them down");
	goes_on(false);
}

/* ---- putting it together ------------------------------------------------- */

/* What a test has left; no must() here */
void tear_down_roots(void)
{
	tear_down_processes();
	tear_down_meanwhile();
	close_fd(&ring);
	if (workers_moved)
		put("/sys/devices/virtual/workqueue/cpumask", "3");
	workers_moved = false;
}

static const struct test tests[] = {
	{ "hundreds of changes: the guest computes right, all memory comes back",
	  test_many_changes },
	{ "a memslot is deleted before the teardown", test_deletion_before },
	{ "a memslot's deletion waits for the teardown", test_deletion_meanwhile },
	{ "a change while a teardown ends", test_change_meanwhile },
	{ "slots_lock is taken: a worker tears down later", test_slots_busy },
	{ "a kernel thread makes the change: a worker tears down", test_kernel_thread },
};

const struct suite roots_suite = SUITE(tests);
