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
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ept.h"

#ifndef KVM_DEV_VFIO_STATE
#define KVM_DEV_VFIO_STATE	0x1000
#define KVM_DEV_VFIO_STATE_VM	1
#endif
#ifndef KVM_DEV_VFIO_STATE_FILE
#define KVM_DEV_VFIO_STATE_FILE	2
#endif

#ifndef KVM_CAP_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY	236
struct kvm_pre_fault_memory {
	uint64_t gpa, size, flags, padding[5];
};
#define KVM_PRE_FAULT_MEMORY	_IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

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

/* A VM is one of these, and so is each of its vCPUs and each /dev/kvm that is open. */
static long kvm_users(void)
{
	return must(get_number("/sys/module/kvm_intel/refcnt"));
}

/* With no VM of this test there */
static long users_before, tables_before;

static void count_before(void)
{
	users_before = kvm_users();
	tables_before = page_tables();
}

static bool no_vm_is_left(void)
{
	return kvm_users() == users_before;
}

static bool all_is_given_back(void)
{
	return page_tables() == tables_before;
}

static void expect_end_of_vm(void)
{
	wait_until(no_vm_is_left, "the VM ends");
	wait_until(all_is_given_back, "its page tables are given back");
}

/* ---- a teardown that is held --------------------------------------------- */

#define BEFORE_TEARDOWN	"kvm_roots_teardown_task"
#define IN_TEARDOWN	"kvm_tdp_mmu_zap_invalidated_roots"
#define BY_WORKER	"kvm_roots_teardown_work"

static void must_tear_down_later(void)
{
	if (!kernel_has(BEFORE_TEARDOWN))
		skip("no teardown of roots");
}

static void hold_at(const char *function, const char *options)
{
	char text[120];

	snprintf(text, sizeof(text), "function=%s%s %s",
		 strncmp(function, "kvm_", 4) ? "" : "kvm:", function, options);
	load("hold.ko", text);
}

static void let_go(void)
{
	if (!somebody_is_held())
		fail("nobody is held until the test has done its part");
	must_put(HOLD "go", "1");
}

static bool idle_page_is_unmapped(void)
{
	struct entries found = entries_at(HUGE, mark());
	int i;

	for (i = 0; i < 16; i++)
		if (found.count[i] > 0)
			return false;
	return true;
}

/* The VM goes on as one that is (non-)coherent. */
static void goes_on(bool noncoherent)
{
	guest_touches(SMALL);
	expect(SMALL, noncoherent ? WB : WB | IPAT);
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

static struct {
	pthread_t thread;
	pid_t tid;
	bool done;
} slot_change;

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

static bool slot_change_has_ended(void)
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
static void hold_add_at(const char *function)
{
	must_tear_down_later();
	attach(NONCOHERENT, 0);
	guest_touches(SMALL);
	guest_touches(HUGE);
	hold_at(function, "");
	start_change_on(1, KVM_DEV_VFIO_GROUP_ADD);
	wait_until(somebody_is_held, "the teardown is held");
}

static void test_deletion_before(void)
{
	hold_add_at(BEFORE_TEARDOWN);
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
	hold_add_at(IN_TEARDOWN);
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

/* ---- a process that is killed -------------------------------------------- */

static struct {
	pid_t pid;
	int to, from;			/* pipes */
} child = { 0, -1, -1 };

/* It says that it is ready, then waits for a word. */
static void child_waits(int from, int to)
{
	char byte;

	must(write(to, "", 1));
	if (must(read(from, &byte, 1)) != 1)
		_exit(1);
}

static void start_child(void (*run)(int from, int to))
{
	int to[2], from[2];

	must(pipe2(to, O_CLOEXEC));
	must(pipe2(from, O_CLOEXEC));
	child.pid = must(fork());
	if (!child.pid) {
		close(to[1]);
		close(from[0]);
		if (!setjmp(test_end))
			run(to[0], from[1]);
		_exit(1);
	}
	close(to[0]);
	close(from[1]);
	child.to = to[1];
	child.from = from[0];
}

static void child_is_ready(void)
{
	char byte;

	if (read(child.from, &byte, 1) != 1)
		fail("the other process has come to an early end");
}

static void tell_child(void)
{
	must(write(child.to, "", 1));
}

static bool child_is_dead(void)
{
	int status;

	if (!child.pid)
		return true;
	if (must(waitpid(child.pid, &status, WNOHANG)) != child.pid)
		return false;
	child.pid = 0;
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail("the other process has ended by itself");
	return true;
}

static void kill_child(void)
{
	must(kill(child.pid, SIGKILL));
}

static void __attribute__((noreturn)) child_adds(int from, int to)
{
	set_up_vfio();
	make_vm();
	make_device();
	attach(NONCOHERENT, 0);
	run_on(0);
	guest_touches(HUGE + 2 * MIB);
	start_spinning();
	child_waits(from, to);
	add(NONCOHERENT);
	child_waits(from, to);
	_exit(1);
}

/* The groups that the dead process had are free, and do what they should. */
static void group_is_free(void)
{
	set_up();
	attach(NONCOHERENT, 0);
	guest_touches(SMALL);
	add(NONCOHERENT);
	goes_on(true);
}

/* A process with a running VM makes it non-coherent, and is killed at FUNCTION. */
static void killed_at(const char *function, const char *options)
{
	must_tear_down_later();
	tear_down();
	count_before();
	start_child(child_adds);
	run_on(1);
	child_is_ready();
	hold_at(function, options);
	tell_child();
	wait_until(somebody_is_held, "the other process is held");
	kill_child();
	let_go();
	wait_until(child_is_dead, "the other process dies");
	expect_end_of_vm();
	unload("hold");
	group_is_free();
}

static void test_killed_in_change(void)		{ killed_at("kvm_mmu_leave_sptes", "at_return=1"); }
static void test_killed_before(void)		{ killed_at(BEFORE_TEARDOWN, ""); }
static void test_killed_meanwhile(void)		{ killed_at(IN_TEARDOWN, ""); }

/* ---- another process than the VM's --------------------------------------- */

static int files_of_child[2];		/* container, group */

static void send_files(int socket, const int *files, int count)
{
	char byte = 0, control[CMSG_SPACE(2 * sizeof(int))] = { 0 };
	struct iovec vector = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = CMSG_SPACE(count * sizeof(int)),
	};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(head), files, count * sizeof(int));
	must(sendmsg(socket, &message, 0));
}

static void receive_files(int socket, int *files, int count)
{
	char byte, control[CMSG_SPACE(2 * sizeof(int))];
	struct iovec vector = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = sizeof(control),
	};

	must(recvmsg(socket, &message, MSG_CMSG_CLOEXEC));
	if (!CMSG_FIRSTHDR(&message))
		_exit(1);
	memcpy(files, CMSG_DATA(CMSG_FIRSTHDR(&message)), count * sizeof(int));
}

static int sockets[2] = { -1, -1 };

/* It has nothing of the VM but the files that it is sent, and makes both changes. */
static void __attribute__((noreturn)) child_attaches(int from, int to)
{
	close(kvm);
	run_on(0);
	receive_files(sockets[1], files_of_child, 2);
	child_waits(from, to);
	must(ioctl(files_of_child[0], VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	child_waits(from, to);
	must(ioctl(files_of_child[1], VFIO_GROUP_UNSET_CONTAINER));
	child_waits(from, to);
	_exit(1);
}

/* Before there is a VM, whose memory it would share, and copy on write */
static void start_child_that_attaches(void)
{
	int files[2];

	tear_down();
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets));
	start_child(child_attaches);
	set_up();
	join(NONCOHERENT, 0);
	add(NONCOHERENT);
	files[0] = container[0];
	files[1] = group[NONCOHERENT];
	send_files(sockets[0], files, 2);
	child_is_ready();
}

/* The next change, by the other process; complete when it says that it has returned */
static void child_changes(void)
{
	tell_child();
	child_is_ready();
}

static void test_other_process(void)
{
	must_tear_down_later();
	start_child_that_attaches();
	changes_by_worker(child_changes, true);
	changes_by_worker(child_changes, false);
}

/* Unbound workers, on one CPU or on both */
static bool workers_moved;

static void run_workers_on(const char *mask)
{
	must_put("/sys/devices/virtual/workqueue/cpumask", "%s", mask);
	workers_moved = true;
}

/* It is killed when it has made the change: it is a worker that tears the roots down. */
static void test_other_process_killed(void)
{
	must_tear_down_later();
	start_child_that_attaches();
	run_on(1);
	guest_touches(HUGE);
	run_workers_on("1");
	hold_at(BY_WORKER, "");
	tell_child();
	wait_until(somebody_is_held, "a worker is to tear the roots down");
	kill_child();
	if (idle_page_is_unmapped())
		fail("the old root is torn down before the test lets it");
	let_go();
	wait_until(child_is_dead, "the other process dies");
	wait_until(idle_page_is_unmapped, "the worker tears the old root down");
	goes_on(true);
}

/* ---- the worker's teardown ----------------------------------------------- */

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

/*
 * A memslot is added, which holds slots_lock until the vCPU's page fault ends, and the
 * VM becomes non-coherent meanwhile. Adding one, unlike deleting one, tears no root down.
 */
static void change_with_slots_busy(void)
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

static void __attribute__((noreturn)) child_with_slots_busy(int from, int to)
{
	set_up_vfio();
	make_vm();
	make_device();
	change_with_slots_busy();
	child_waits(from, to);
	_exit(1);
}

static void test_killed_with_slots_busy(void)
{
	must_tear_down_later();
	tear_down();
	count_before();
	start_child(child_with_slots_busy);
	child_is_ready();
	kill_child();
	wait_until(child_is_dead, "the other process dies");
	expect_end_of_vm();
	group_is_free();
}

static void __attribute__((noreturn)) child_has_files(int from, int to)
{
	child_waits(from, to);
	_exit(1);
}

/* The KVM device's last file is that of a process which dies; the VM lives on. */
static void test_closed_by_death(void)
{
	attach(NONCOHERENT, 0);
	add(NONCOHERENT);
	start_child(child_has_files);	/* which unmaps all, for copy-on-write */
	child_is_ready();
	guest_touches(SMALL);
	guest_touches(HUGE);
	close_fd(&vm.device);
	if (idle_page_is_unmapped())
		fail("the device is closed although a process has it");
	kill_child();
	wait_until(child_is_dead, "the other process dies");
	wait_until(idle_page_is_unmapped, "the old root is torn down");
	goes_on(false);
}

static bool unloaded(const char *name)
{
	return !syscall(SYS_delete_module, name, O_NONBLOCK);
}

static bool kvm_intel_unloads(void)	{ return unloaded("kvm_intel"); }
static bool kvm_unloads(void)		{ return unloaded("kvm"); }

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
	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC));
	group_is_free();
}

/* ---- a vCPU that runs meanwhile ------------------------------------------ */

static const char *between;		/* the function that is about to be called */
static int change_attr;

/* On CPU 0, while the vCPU goes on with its old root on CPU 1. */
static void change_held_between(void)
{
	run_on(1);
	hold_at(between, "");
	start_change(change_attr);
	wait_until(somebody_is_held, "the change is held");
	let_it_spin();
	end_change();
	unload("hold");
	run_on(0);
}

static void runs_between(const char *function)
{
	must_tear_down_later();
	between = function;
	attach(NONCOHERENT, 0);
	change_attr = KVM_DEV_VFIO_GROUP_ADD;
	becomes_noncoherent(change_held_between);
	change_attr = KVM_DEV_VFIO_GROUP_DEL;
	becomes_coherent(change_held_between);
}

static void test_runs_before_invalid(void)	{ runs_between("kvm_tdp_mmu_invalidate_all_roots"); }
static void test_runs_before_request(void)	{ runs_between("kvm_make_all_cpus_request"); }

/*
 * The vCPU is on its way into the guest, past the last look at its requests, and takes
 * some time: no interrupt reaches it.
 */
static void change_with_slow_vcpu(void)
{
	must_put(HOLD "armed", "1");
	wait_until(somebody_is_held, "the vCPU is about to enter the guest");
	if (device_attr(change_attr, NONCOHERENT))
		fail("the change: %s", strerror(errno));
}

static void slow_vcpu(int attr)
{
	hold_at("kvm_load_guest_xsave_state", "armed=0 for_ms=300");
	change_attr = attr;
	changes(change_with_slow_vcpu, attr == KVM_DEV_VFIO_GROUP_ADD);
	unload("hold");
}

static void test_slow_vcpu(void)
{
	attach(NONCOHERENT, 0);
	slow_vcpu(KVM_DEV_VFIO_GROUP_ADD);
	slow_vcpu(KVM_DEV_VFIO_GROUP_DEL);
}

/* ---- KVM_PRE_FAULT_MEMORY ------------------------------------------------- */

#define PREFAULTED	(SMALL + 32 * 4096)
enum { PREFAULTED_PAGES = 32, PREFAULT_CHANGES = 60 };

static struct {
	pthread_t thread;
	bool started, stop, done;
	unsigned int rounds;
	int error;
} prefault;

static bool has_prefault(void)
{
	bool has = ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY) > 0;

	if (!has && !kernel_before(6, 11))
		fail("KVM does not know KVM_PRE_FAULT_MEMORY, which 6.11 brought");
	return has;
}

static void *run_prefault(void *unused __attribute__((unused)))
{
	do {
		struct kvm_pre_fault_memory range = {
			.gpa = PREFAULTED, .size = PREFAULTED_PAGES * 4096,
		};

		while (range.size && !prefault.error) {
			if (!ioctl(vm.vcpu, KVM_PRE_FAULT_MEMORY, &range))
				continue;
			if (errno != EINTR && errno != EAGAIN)
				prefault.error = errno;
			else if (READ(prefault.stop))
				break;
		}
		WRITE(prefault.rounds, prefault.rounds + 1);
	} while (!READ(prefault.stop) && !prefault.error);
	WRITE(prefault.done, true);
	return NULL;
}

static void interrupt(int signal __attribute__((unused)))
{
}

/* On CPU 1: one round, or until it is told to stop */
static void start_prefault(bool once)
{
	struct sigaction action = { .sa_handler = interrupt };

	sigaction(SIGUSR1, &action, NULL);
	memset(&prefault, 0, sizeof(prefault));
	prefault.stop = once;
	prefault.thread = thread_on(1, run_prefault);
	prefault.started = true;
}

static bool prefault_has_ended(void)
{
	return READ(prefault.done);
}

static unsigned int rounds_wanted;

static bool prefault_goes_on(void)
{
	return (int)(READ(prefault.rounds) - rounds_wanted) >= 0 || READ(prefault.error);
}

static void end_prefault(void)
{
	WRITE(prefault.stop, true);
	wait_until(prefault_has_ended, "KVM_PRE_FAULT_MEMORY ends");
	pthread_join(prefault.thread, NULL);
	prefault.started = false;
	if (prefault.error)
		fail("KVM_PRE_FAULT_MEMORY: %s", strerror(prefault.error));
}

/* Its root goes while it is in the fault. */
static void test_prefault_held(void)
{
	char options[40];

	if (!has_prefault())
		return;
	attach(NONCOHERENT, 0);
	snprintf(options, sizeof(options), "second=%u", PREFAULTED >> 12);
	hold_at("kvm_vcpu_gfn_to_memslot", options);
	start_prefault(true);
	wait_until(somebody_is_held, "KVM_PRE_FAULT_MEMORY is held in its fault");
	add(NONCOHERENT);
	let_go();
	end_prefault();
	expect(PREFAULTED, WB);
	goes_on(true);
}

static void test_prefault_against_changes(void)
{
	int i;

	if (!has_prefault())
		return;
	stop_trace();			/* which would be full soon */
	attach(NONCOHERENT, 0);
	start_prefault(false);
	for (i = 0; i < PREFAULT_CHANGES; i++) {
		rounds_wanted = READ(prefault.rounds) + 1;
		if (i % 2)
			del(NONCOHERENT);
		else
			add(NONCOHERENT);
		wait_until(prefault_goes_on, "KVM_PRE_FAULT_MEMORY goes on after a change");
	}
	end_prefault();
	start_trace();
	add(NONCOHERENT);
	goes_on(true);
}

/* ---- readers of the device's state ---------------------------------------- */

static struct {
	pid_t pid;
	int file;
	char stack[65536] __attribute__((aligned(16)));
} reader;

static int read_fdinfo(void *unused __attribute__((unused)))
{
	char text[400];

	_exit(read(reader.file, text, sizeof(text)) < 0);
}

static int read_state(void *attr)
{
	int state[4] = { group[NONCOHERENT] };
	struct kvm_device_attr request = {
		.group = KVM_DEV_VFIO_STATE, .attr = (uintptr_t)attr,
		.addr = (uintptr_t)state,
	};

	ioctl(vm.device, KVM_GET_DEVICE_ATTR, &request);
	_exit(0);
}

/*
 * A process of its own that shares the memory, as the VM demands of who asks the
 * device: it can be killed, and the test goes on.
 */
static void start_reader(int (*run)(void *), unsigned long argument)
{
	char path[60];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", vm.device);
	reader.file = must(open(path, O_RDONLY | O_CLOEXEC));
	reader.pid = must(clone(run, reader.stack + sizeof(reader.stack),
				CLONE_VM | SIGCHLD, (void *)argument));
}

static bool reader_has_ended(void)
{
	if (reader.pid && must(waitpid(reader.pid, NULL, WNOHANG)) == reader.pid) {
		reader.pid = 0;
		close_fd(&reader.file);
	}
	return !reader.pid;
}

static bool reader_waits_or_ended(void)
{
	char path[40], where[60];

	if (reader_has_ended())
		return true;
	snprintf(path, sizeof(path), "/proc/%d/wchan", reader.pid);
	return !get_text(path, where, sizeof(where)) && strstr(where, "vfio");
}

/* While somebody who makes a change is held. One that does not wait is as good. */
static void reader_can_be_killed(const char *what, int (*run)(void *), unsigned long argument)
{
	snprintf(variant, sizeof(variant), "%s: ", what);
	start_reader(run, argument);
	wait_until(reader_waits_or_ended, "a reader waits for the change, or does not");
	if (reader.pid)
		must(kill(reader.pid, SIGKILL));
	wait_until(reader_has_ended, "a reader that is killed dies");
	if (!somebody_is_held())
		fail("nobody is held until the test has done its part");
	variant[0] = '\0';
}

static void readers_can_be_killed(void)
{
	reader_can_be_killed("fdinfo", read_fdinfo, 0);
	reader_can_be_killed("state of the VM", read_state, KVM_DEV_VFIO_STATE_VM);
	reader_can_be_killed("state of a file", read_state, KVM_DEV_VFIO_STATE_FILE);
}

static void test_readers_in_add(void)
{
	attach(NONCOHERENT, 0);
	run_on(1);
	guest_touches(SMALL);
	load_hold_at_zap(false);
	start_change(KVM_DEV_VFIO_GROUP_ADD);
	wait_until(held_or_change_ended, "the call comes to the zap");
	if (change_has_ended())
		fail("the call returns without zapping");
	readers_can_be_killed();
	end_change();
	goes_on(true);
}

static void sets_iommu(void)
{
	if (ioctl(container[0], VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		call_error = errno;
}

static bool held_or_call_ended(void)
{
	return somebody_is_held() || call_has_ended();
}

/* Not a call of the KVM device: the locks that are held are others. */
static void test_readers_in_set_iommu(void)
{
	join(NONCOHERENT, 0);
	add(NONCOHERENT);
	run_on(1);
	guest_touches(SMALL);
	load_hold_at_zap(false);
	start_call(sets_iommu);
	wait_until(held_or_call_ended, "the call comes to the zap");
	if (call_has_ended())
		fail("the call returns without zapping");
	readers_can_be_killed();
	let_go();
	end_call("VFIO_SET_IOMMU returns");
	goes_on(true);
}

/* ---- putting it together ------------------------------------------------- */

/* What a test has left; no must() here */
void tear_down_roots(void)
{
	if (child.pid > 0) {
		kill(child.pid, SIGKILL);
		waitpid(child.pid, NULL, 0);
		child.pid = 0;
	}
	close_fd(&child.to);
	close_fd(&child.from);
	close_fd(&sockets[0]);
	close_fd(&sockets[1]);
	if (reader.pid > 0) {
		kill(reader.pid, SIGKILL);
		waitpid(reader.pid, NULL, 0);
		reader.pid = 0;
		close_fd(&reader.file);
	}
	if (prefault.started) {
		WRITE(prefault.stop, true);
		pthread_kill(prefault.thread, SIGUSR1);
		pthread_join(prefault.thread, NULL);
		prefault.started = false;
	}
	close_fd(&ring);
	if (workers_moved)
		put("/sys/devices/virtual/workqueue/cpumask", "3");
	workers_moved = false;
}

const struct test root_tests[] = {
	{ "hundreds of changes: the guest computes right, all memory comes back",
	  test_many_changes },
	{ "a memslot is deleted before the teardown", test_deletion_before },
	{ "a memslot's deletion waits for the teardown", test_deletion_meanwhile },
	{ "slots_lock is taken: a worker tears down later", test_slots_busy },
	{ "a kernel thread makes the change: a worker tears down", test_kernel_thread },
	{ "a dying process makes the change", test_closed_by_death },
	{ "another process than the VM's makes the changes", test_other_process },
	{ "another process is killed before its teardown", test_other_process_killed },
	{ "killed at the end of the change", test_killed_in_change },
	{ "killed before the teardown", test_killed_before },
	{ "killed during the teardown", test_killed_meanwhile },
	{ "killed while slots_lock is taken", test_killed_with_slots_busy },
	{ "the VM ends with a teardown pending", test_end_of_vm },
	{ "a vCPU runs right before the roots are invalid", test_runs_before_invalid },
	{ "a vCPU runs right before it is asked to leave", test_runs_before_request },
	{ "a vCPU is slow to leave", test_slow_vcpu },
	{ "KVM_PRE_FAULT_MEMORY loses its root in the fault", test_prefault_held },
	{ "KVM_PRE_FAULT_MEMORY against changes", test_prefault_against_changes },
	{ "readers can be killed while ADD is held", test_readers_in_add },
	{ "readers can be killed while VFIO_SET_IOMMU is held", test_readers_in_set_iommu },
	{ "the modules are unloaded right after the last VM", test_unload },
};
const unsigned int root_test_count = ARRAY_SIZE(root_tests);
