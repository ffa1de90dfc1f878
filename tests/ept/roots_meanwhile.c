// SPDX-License-Identifier: GPL-2.0-only
/* Old roots: vCPUs, KVM_PRE_FAULT_MEMORY and readers while a change is made */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "roots.h"

#ifndef KVM_CAP_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY	236
struct kvm_pre_fault_memory {
	uint64_t gpa, size, flags, padding[5];
};
#define KVM_PRE_FAULT_MEMORY	_IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

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

static void test_runs_before_invalid(void)
{
	/* Linux 7.3 tells it which roots. */
	runs_between(kernel_has("kvm_tdp_mmu_invalidate_roots") ?
		     "kvm_tdp_mmu_invalidate_roots" : "kvm_tdp_mmu_invalidate_all_roots");
}

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
	hold_at("vmx_vcpu_run", "armed=0 for_ms=300");
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

static void need_prefault(void)
{
	if (ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY) > 0)
		return;
	if (!kernel_before(6, 11))
		fail("KVM does not know KVM_PRE_FAULT_MEMORY, which 6.11 brought");
	skip("Linux before 6.11 has no KVM_PRE_FAULT_MEMORY");
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

	need_prefault();
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

	need_prefault();
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

/* There is nothing to map: it says so, and does not try for ever. */
static void test_prefault_fails(void)
{
	struct kvm_pre_fault_memory range = { .gpa = PREFAULTED, .size = 4096 };
	void *page = (char *)vm.small + (PREFAULTED - SMALL);

	need_prefault();
	attach(NONCOHERENT, 0);
	add(NONCOHERENT);
	must(mprotect(page, 4096, PROT_NONE));
	if (!ioctl(vm.vcpu, KVM_PRE_FAULT_MEMORY, &range) || errno != EFAULT)
		fail("KVM_PRE_FAULT_MEMORY of what nobody can read does not fail with EFAULT");
	must(mprotect(page, 4096, PROT_READ | PROT_WRITE));
	must(ioctl(vm.vcpu, KVM_PRE_FAULT_MEMORY, &range));
	expect(PREFAULTED, WB);
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
	snprintf(about, sizeof(about), "%s: ", what);
	start_reader(run, argument);
	wait_until(reader_waits_or_ended, "a reader waits for the change, or does not");
	if (reader.pid)
		must(kill(reader.pid, SIGKILL));
	wait_until(reader_has_ended, "a reader that is killed dies");
	if (!somebody_is_held())
		fail("nobody is held until the test has done its part");
	about[0] = '\0';
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
	if (container_set_iommu(container[0]))
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

void tear_down_meanwhile(void)
{
	if (reader.pid > 0) {
		must_die(reader.pid, "a reader that is killed");
		reader.pid = 0;
		close_fd(&reader.file);
	}
	if (prefault.started) {
		WRITE(prefault.stop, true);
		pthread_kill(prefault.thread, SIGUSR1);
		must_join(prefault.thread, "KVM_PRE_FAULT_MEMORY");
		prefault.started = false;
	}
}

static const struct test tests[] = {
	{ "a vCPU runs right before the roots are invalid", test_runs_before_invalid },
	{ "a vCPU runs right before it is asked to leave", test_runs_before_request },
	{ "a vCPU is slow to leave", test_slow_vcpu },
	{ "KVM_PRE_FAULT_MEMORY loses its root in the fault", test_prefault_held },
	{ "KVM_PRE_FAULT_MEMORY against changes", test_prefault_against_changes },
	{ "KVM_PRE_FAULT_MEMORY of memory that cannot be read", test_prefault_fails },
	{ "readers can be killed while ADD is held", test_readers_in_add },
	{ "readers can be killed while VFIO_SET_IOMMU is held", test_readers_in_set_iommu },
};

const struct suite roots_meanwhile_suite = SUITE(tests);
