// SPDX-License-Identifier: GPL-2.0-only
/* Cases of ept_test: page faults and new vCPUs while the VM changes */
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

/* ---- page faults --------------------------------------------------------- */

/*
 * A page fault that has chosen 2 MiB by what the VM was, and is held before it takes
 * any lock. Who makes the VM non-coherent does not wait for it, and yet no page of
 * two types may become one entry.
 */
void add_behind_fault(void)
{
	char options[40];

	/* The memslot is looked up right after the level is chosen. */
	snprintf(options, sizeof(options), "second=%u", HUGE >> 12);
	hold_at("kvm:kvm_vcpu_gfn_to_memslot", options);
	start_reading(HUGE, HUGE);
	wait_until(somebody_is_held, "the vCPU's page fault is held");
	start_change(KVM_DEV_VFIO_GROUP_ADD);
	wait_until(change_has_ended, "ADD returns, without waiting for the page fault");
	end_change();
	let_it_spin();
	stop_spinning();
	guest_touches(HUGE);
	expect(HUGE, by_mtrr(WC));
	expect_level(HUGE, honours_mtrrs ? 1 : 2);
}

static void test_fault_before(void)
{
	set_mtrr(0, HUGE, MIB, WC);
	attach(NONCOHERENT, 0);
	add_behind_fault();
}

/* Hold who puts the old entries out of use; stock has another function for that. */
void load_hold_at_zap(bool at_return)
{
	char function[80];

	snprintf(function, sizeof(function), "kvm:%s", leave_function());
	hold_at(function, at_return ? "at_return=1" : "");
}

/*
 * A page fault right before or right after the zap: the flag has to be the new one by
 * then. The thread that changes it is held on CPU 0, and the vCPU runs on the other.
 */
static void faults_around_zap(int attr, int old, int new, bool behind)
{
	int begin;

	run_on(1);
	guest_touches(SMALL);
	expect(SMALL, old);
	load_hold_at_zap(behind);
	start_change(attr);
	wait_until(held_or_change_ended, "the call comes to the zap");
	if (change_has_ended())
		fail("the call returns without zapping");
	begin = mark();
	guest_touches(SMALL);
	guest_touches(SMALL + 4096);
	if (faulted_between(SMALL + 4096, begin, mark(), old))
		fail("a fault that comes after the flag goes by the old one");
	end_change();
	guest_touches(SMALL);
	expect(SMALL, new);
	guest_touches(SMALL + 4096);
	expect(SMALL + 4096, new);
}

static void test_fault_behind_add(void)
{
	attach(NONCOHERENT, 0);
	faults_around_zap(KVM_DEV_VFIO_GROUP_ADD, WB | IPAT, WB, true);
}

static void test_fault_ahead_of_add(void)
{
	attach(NONCOHERENT, 0);
	faults_around_zap(KVM_DEV_VFIO_GROUP_ADD, WB | IPAT, WB, false);
}

static void test_fault_behind_del(void)
{
	noncoherent_vm();
	faults_around_zap(KVM_DEV_VFIO_GROUP_DEL, WB, WB | IPAT, true);
}

static void test_fault_ahead_of_del(void)
{
	noncoherent_vm();
	faults_around_zap(KVM_DEV_VFIO_GROUP_DEL, WB, WB | IPAT, false);
}

/* ---- a vCPU that is run before its creation has returned ------------------ */

static void *create_vcpu(void *unused __attribute__((unused)))
{
	guessed.made = ioctl(vm.fd, KVM_CREATE_VCPU, 1) == guessed.fd;
	return NULL;
}

/* The guest's code at CODE in real mode would need a segment: WBINVD; OUT; at 0. */
static void *run_guessed(void *unused __attribute__((unused)))
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rflags = 0x202 };
	struct kvm_run *run;

	WRITE(guessed.tid, gettid());
	run = mmap(NULL, guessed.run_size, PROT_READ, MAP_SHARED, guessed.fd, 0);
	if (run == MAP_FAILED)
		guessed.trouble = "mmap";
	else
		guessed.run = run;
	if (ioctl(guessed.fd, KVM_GET_SREGS, &sregs))
		guessed.trouble = "KVM_GET_SREGS";
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(guessed.fd, KVM_SET_SREGS, &sregs) ||
	    ioctl(guessed.fd, KVM_SET_REGS, &regs))
		guessed.trouble = "setting its registers";
	while (!guessed.trouble && ioctl(guessed.fd, KVM_RUN, 0))
		if (errno != EINTR && errno != EAGAIN)
			guessed.trouble = "KVM_RUN";
	/* The exit is the guest's OUT, which comes behind its WBINVD. */
	if (!guessed.trouble &&
	    (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x80))
		guessed.trouble = "another exit than its OUT";
	WRITE(guessed.done, true);
	return NULL;
}

/* Without opening a file, which would take the number that has been guessed */
static int held_fd = -1;

static bool creation_is_held(void)
{
	char held;

	return pread(held_fd, &held, 1, 0) == 1 && held == '1';
}

static bool guessed_ran_or_waits(void)
{
	return READ(guessed.done) || sleeps_in(READ(guessed.tid), "kvm_vcpu_ioctl");
}

static bool guessed_has_ended(void)
{
	return READ(guessed.done);
}

static void test_vcpu_being_created(void)
{
	static const uint8_t code[] = { 0x0f, 0x09, 0xe6, 0x80 };	/* WBINVD; OUT */
	pthread_t creator, runner;
	int begin, end, exits;

	memcpy(vm.low, code, sizeof(code));
	memset(&guessed, 0, sizeof(guessed));
	guessed.run_size = vm.run_size;
	attach(NONCOHERENT, 0);
	run_on(1);
	begin = mark();
	hold_at("anon_inode_getfd", "at_return=1");
	held_fd = must(open(HOLD "held", O_RDONLY | O_CLOEXEC));
	/* The descriptor that is going to be the next one */
	guessed.fd = must(fcntl(vm.fd, F_DUPFD_CLOEXEC, 0));
	close(guessed.fd);
	creator = thread_on(0, create_vcpu);
	wait_until(creation_is_held, "the creation of a vCPU is held");
	close_fd(&held_fd);
	runner = thread_on(1, run_guessed);
	wait_until(guessed_ran_or_waits, "the vCPU runs, or waits until it may");
	if (guessed.trouble)
		fail("the vCPU by its guessed descriptor: %s", guessed.trouble);
	end = mark();
	exits = count_between(WBINVD_EXIT, 0, begin, end);
	add(NONCOHERENT);
	/* Its WBINVD was skipped, if there was one: that is owed now. */
	expect_flushes(begin, exits, exits, "when the VM becomes non-coherent");
	let_go();
	pthread_join(creator, NULL);
	wait_until(guessed_has_ended, "the vCPU runs");
	pthread_join(runner, NULL);
	if (guessed.trouble)
		fail("the vCPU by its guessed descriptor: %s", guessed.trouble);
	/* It was loaded on CPU 0 when it was created. */
	expect_flushes(begin, 1, 1, "after the one WBINVD of the guest");
}

static const struct test tests[] = {
	{ "a page fault that has chosen a level when ADD comes", test_fault_before },
	{ "a page fault right before ADD zaps", test_fault_ahead_of_add },
	{ "a page fault right before DEL zaps", test_fault_ahead_of_del },
	{ "a page fault right after ADD has zapped", test_fault_behind_add },
	{ "a page fault right after DEL has zapped", test_fault_behind_del },
	{ "a vCPU run before its creation has returned", test_vcpu_being_created },
};

const struct suite fault_suite = SUITE(tests);
