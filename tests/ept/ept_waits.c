// SPDX-License-Identifier: GPL-2.0-only
/* Cases of ept_test: a change waits for nothing that user space can hold up */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ept.h"
#include "pages.h"

/* ---- nothing waits for user space ---------------------------------------- */

static pid_t blocked_tid;

static void *read_blocked(void *unused)
{
	WRITE(blocked_tid, gettid());
	return spin(unused);
}

static bool vcpu_is_blocked(void)
{
	return sleeps_in(READ(blocked_tid), "handle_userfault");
}

/* The vCPU on CPU 1 waits for a page that only this test can bring. */
void block_vcpu(void)
{
	uffd = must(open_userfaultfd(0));
	must(madvise(vm.small, 4096, MADV_DONTNEED));
	must(hold_back(uffd, vm.small));
	WRITE(blocked_tid, 0);
	WRITE(vm.shared->loops, 0);
	WRITE(vm.shared->stop, 0);
	load_guest(guest_spin, (struct kvm_regs){ .rbx = SMALL, .rcx = SMALL, .rdi = DATA });
	vm.thread = thread_on(1, read_blocked);
	vm.spinning = true;
	wait_until(vcpu_is_blocked, "the vCPU waits for its page");
}

void unblock_vcpu(void)
{
	struct uffdio_zeropage page = { .range = { (uintptr_t)vm.small, 4096 } };

	if (!vcpu_is_blocked())
		fail("the vCPU's page fault has ended too early");
	must(ioctl(uffd, UFFDIO_ZEROPAGE, &page));
	let_it_spin();
	stop_spinning();
}

/* A call by a thread of its own, on CPU 0 */
static struct {
	bool done;
	void (*run)(void);
	pthread_t thread;
	pid_t tid;
} call;

int call_error;

static void *make_call(void *unused __attribute__((unused)))
{
	WRITE(call.tid, gettid());
	call.run();
	WRITE(call.done, true);
	return NULL;
}

void start_call(void (*run)(void))
{
	call.run = run;
	call.done = false;
	call_error = 0;
	call.tid = 0;
	call.thread = thread_on(0, make_call);
}

bool call_has_ended(void)
{
	return READ(call.done);
}

void end_call(const char *what)
{
	wait_until(call_has_ended, what);
	pthread_join(call.thread, NULL);
	if (call_error)
		fail("%s: %s", what, strerror(call_error));
}

#define returns(run)							\
do {									\
	start_call(run);						\
	end_call(#run " returns");					\
} while (0)

/* Not by must(), which is for the main thread. */
static void called(int ret)
{
	if (ret)
		call_error = errno;
}

static void call_add(void)	{ called(device_attr(KVM_DEV_VFIO_GROUP_ADD, NONCOHERENT)); }
static void call_del(void)	{ called(device_attr(KVM_DEV_VFIO_GROUP_DEL, NONCOHERENT)); }

static void call_set_iommu(void)
{
	called(container_set_iommu(container[0]));
}

static void call_unset(void)
{
	called(group_leave(group[NONCOHERENT]));
}

static void call_unbind(void)
{
	call_error = -unbind_testdev(NONCOHERENT2);
}

static void call_others(void)
{
	called(kvm_vfio_add(other.device, group[COHERENT + 1]));
	called(kvm_vfio_del(other.device, group[COHERENT + 1]));
}

/* What a reader sees; stock has neither, and returns at once, too. */
static void call_reads(void)
{
	struct kvm_vfio_vm_state state;
	char path[40], text[400];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", vm.device);
	call_error = -get_text(path, text, sizeof(text));
	kvm_vfio_attr(vm.device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
		      KVM_DEV_VFIO_STATE_VM, &state);
}

static void make_other(void)
{
	other.fd = must(ioctl(kvm, KVM_CREATE_VM, 0));
	other.device = must(kvm_vfio_create(other.fd));
}

static void test_nothing_waits(void)
{
	make_other();
	join(NONCOHERENT, 0);
	add(COHERENT);
	attach(NONCOHERENT2, 1);
	add(NONCOHERENT);
	block_vcpu();
	returns(call_set_iommu);
	returns(call_reads);
	returns(call_del);
	returns(call_add);
	returns(call_unset);
	add(NONCOHERENT2);
	returns(call_unbind);
	returns(call_others);
	returns(call_reads);
	unblock_vcpu();
	guest_touches(SMALL);
	expect(SMALL, WB | IPAT);
}

/* Somebody takes the memory away that HUGE is, with the vCPU in its page fault. */
static struct {
	pthread_t thread;
	pid_t tid;
	bool done;
} deletion;

static void *delete_slot(void *unused __attribute__((unused)))
{
	struct kvm_userspace_memory_region region = { .slot = 1, .guest_phys_addr = HUGE };

	WRITE(deletion.tid, gettid());
	ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region);
	WRITE(deletion.done, true);
	return NULL;
}

static bool deletion_waits(void)
{
	return sleeps_in(READ(deletion.tid), "synchronize_srcu");
}

static bool deletion_has_ended(void)
{
	return READ(deletion.done);
}

/* It holds slots_lock meanwhile, which is needed to give the old roots' pages back. */
static void test_nothing_waits_for_slots(void)
{
	attach(NONCOHERENT, 0);
	guest_touches(HUGE);
	block_vcpu();
	memset(&deletion, 0, sizeof(deletion));
	deletion.thread = thread_on(0, delete_slot);
	wait_until(deletion_waits, "the deletion waits for the vCPU");
	returns(call_add);
	returns(call_reads);
	returns(call_del);
	returns(call_add);
	if (deletion_has_ended())
		fail("the deletion has not waited");
	unblock_vcpu();
	wait_until(deletion_has_ended, "the deletion ends");
	pthread_join(deletion.thread, NULL);
	guest_touches(SMALL);
	expect(SMALL, WB);
}

#define LOGGED		0x02000000u	/* a page of RAM whose writes are logged */

struct dirty_log dirty_log;

static void *get_dirty_log(void *unused __attribute__((unused)))
{
	struct kvm_dirty_log request = { .slot = 9, .dirty_bitmap = dirty_log.bitmap };

	WRITE(dirty_log.tid, gettid());
	ioctl(vm.fd, KVM_GET_DIRTY_LOG, &request);
	WRITE(dirty_log.done, true);
	return NULL;
}

static bool dirty_log_waits(void)
{
	return sleeps_in(READ(dirty_log.tid), "handle_userfault");
}

bool dirty_log_has_ended(void)
{
	return READ(dirty_log.done);
}

void hold_slots_lock(int cpu)
{
	struct kvm_userspace_memory_region region = {
		.slot = 9, .flags = KVM_MEM_LOG_DIRTY_PAGES, .guest_phys_addr = LOGGED,
		.memory_size = 4096, .userspace_addr = (uintptr_t)vm.small,
	};

	must(ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region));
	memset(&dirty_log, 0, sizeof(dirty_log));
	dirty_log.bitmap = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uffd = must(open_userfaultfd(0));
	must(hold_back(uffd, dirty_log.bitmap));
	dirty_log.thread = thread_on(cpu, get_dirty_log);
	wait_until(dirty_log_waits, "somebody waits with slots_lock held");
}

void give_page_for_dirty_log(void)
{
	struct uffdio_zeropage page = { .range = { (uintptr_t)dirty_log.bitmap, 4096 } };

	if (!dirty_log_waits())
		fail("slots_lock has not been held all the time");
	must(ioctl(uffd, UFFDIO_ZEROPAGE, &page));
}

void dirty_log_ends(const char *what)
{
	wait_until(dirty_log_has_ended, what);
	pthread_join(dirty_log.thread, NULL);
	munmap(dirty_log.bitmap, 4096);
}

static void release_slots_lock(void)
{
	give_page_for_dirty_log();
	dirty_log_ends("slots_lock is free");
}

/* An entry that is there has that bit; another one need not be 0. */
static bool is_present(uint64_t spte)
{
	return spte & (1 << 11);
}

/* Roots that came into use, or whose pages were given back: their first entry */
static int count_roots(bool made, int begin, int end)
{
	int count = 0;

	for (; begin < end; begin++) {
		const struct event *event = &events[begin];

		count += event->kind == CHANGED && event->level >= 4 && !event->gfn &&
			 is_present(event->old) == !made &&
			 is_present(event->new) == made;
	}
	return count;
}

static int count_removed(uint64_t gpa, int begin, int end)
{
	int count = 0;

	for (; begin < end; begin++)
		count += removed_between(gpa, begin, begin + 1);
	return count;
}

static int roots_begin, roots_made;

static bool old_roots_are_gone(void)
{
	return count_roots(false, roots_begin, mark()) >= roots_made - 1;
}

/* A change and what the guest does then, which must not remove more than it had. */
static void change_and_touch(bool noncoherent, int type)
{
	int begin = mark(), removed;

	if (noncoherent)
		returns(call_add);
	else
		returns(call_del);
	removed = count_removed(SMALL, begin, mark());
	if (removed > 1)
		fail("%d entries of a page are removed by one change", removed);
	begin = mark();
	guest_touches(SMALL);
	if (!faulted_between(SMALL, begin, mark(), type))
		fail("no fault makes the page %s after a change", type_name(type));
}

/*
 * Changes in a loop, while nothing can be given back. Few roots are waiting for that
 * then, see KVM_ROOTS_TO_TEAR_DOWN; and each change has its effect all the same.
 */
static void test_roots_do_not_pile_up(void)
{
	int i;

	set_mtrr(0, HUGE, MIB, WC);
	attach(NONCOHERENT, 0);
	hold_slots_lock(0);
	roots_begin = mark();
	guest_touches(SMALL);
	for (i = 0; i < 20; i++) {
		change_and_touch(true, WB);
		change_and_touch(false, WB | IPAT);
	}
	roots_made = count_roots(true, roots_begin, mark());
	if (!legacy && !roots_made)
		fail("no root is seen");
	if (roots_made > 17)
		fail("%d roots for 40 changes", roots_made);
	/* There is no other root than that of the fault by now. */
	add_behind_fault();
	release_slots_lock();
	if (roots_made > 1)
		wait_until(old_roots_are_gone, "the pages of the old roots are given back");
	guest_touches(SMALL);
	expect(SMALL, WB);
}

/* ---- another process changes it, and does not come back -------------------- */

static bool vm_has_ended(void)
{
	char path[80];

	snprintf(path, sizeof(path), DEBUGFS "kvm/%d-%d", getpid(), vm.fd);
	return access(path, F_OK);
}

/*
 * A process that has nothing to do with the VM unbinds one of its devices, and does
 * not return. Who unbinds more than one may have to wait for the monitor of the next.
 */
#define STAY		"/sys/module/vfio_testdev/parameters/stay"

/* As far as anybody can tell: stock has no such file. */
static bool is_coherent(void)
{
	return vm_number(getpid(), vm.fd, "noncoherent_dma") <= 0;
}

static void test_changed_by_another_process(void)
{
	int status;
	pid_t child;

	noncoherent_vm();
	guest_touches(SMALL);
	must_put(STAY, "1");
	child = must(fork());
	if (!child) {
		munmap(vm.run, vm.run_size);
		syscall(SYS_close_range, 3, ~0u, 0);
		_exit(unbind_testdev(NONCOHERENT) ? 1 : 0);
	}
	wait_until(is_coherent, "the other process makes the VM coherent");
	close_device();
	munmap(vm.run, vm.run_size);
	vm.run = NULL;
	close_fd(&vm.vcpu);
	close(vm.fd);
	wait_until(vm_has_ended, "the VM ends without the other process");
	vm.fd = -1;
	if (waitpid(child, &status, WNOHANG))
		fail("the other process has returned");
	must_put(STAY, "0");
	waitpid(child, &status, 0);
	if (status)
		fail("the other process has not unbound the device");
}

static const struct test tests[] = {
	{ "nothing waits for a page fault that user space resolves", test_nothing_waits },
	{ "nothing waits for a memslot's deletion that does", test_nothing_waits_for_slots },
	{ "few roots wait for slots_lock, and changes do not", test_roots_do_not_pile_up },
	{ "another process that changes it does not keep the VM",
	  test_changed_by_another_process },
};

const struct suite wait_suite = SUITE(tests);
