// SPDX-License-Identifier: GPL-2.0-only
/* Cases of ept_test: VMX's preemption timer, which counts in the guest alone */
#define _GNU_SOURCE
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ept.h"

#define MEMORY		0x10000
#define ENTRY		0x1000
#define HANDLER		0x1100
#define BOX		0x2000
#define VECTOR		0x40

/* Real mode; OUT gives control back. */
static const uint8_t limited_code[] = {
	0x0f, 0x09,			/* next:  wbinvd */
	0x66, 0xff, 0x06, 4, 0,		/*        incl box.done */
	0xe6, 0x80,			/*        out %al, $0x80 */
	0xeb, 0xf5,			/*        jmp next */
};

/* A VM of its own, whose vCPU has a local APIC */
static struct {
	int fd, vcpu, device;
	struct kvm_run *run;
	size_t run_size;
	char *memory;
	struct box {
		uint32_t ticks;
		uint32_t done;
	} *box;
	pthread_t thread;
	bool left;
	int error;
} limited;

static void make_limited(void)
{
	limited.fd = must(ioctl(kvm, KVM_CREATE_VM, 0));
	must(ioctl(limited.fd, KVM_CREATE_IRQCHIP, 0));
	limited.memory = shared_memory(MEMORY);
	limited.box = (void *)(limited.memory + BOX);
	memcpy(limited.memory + ENTRY, limited_code, sizeof(limited_code));
	handle_interrupt(limited.memory, VECTOR, HANDLER);
	add_memory(limited.fd, 0, 0, MEMORY, limited.memory);
	limited.vcpu = must(ioctl(limited.fd, KVM_CREATE_VCPU, 0));
	limited.run = map_vcpu(limited.vcpu, &limited.run_size);
	set_least_cpuid(limited.vcpu);
	start_real_mode(limited.vcpu, ENTRY, BOX);
	enable_interrupts(limited.vcpu);	/* see load_guest() */
	limited.device = must(kvm_vfio_create(limited.fd));
	must(kvm_vfio_add(limited.device, group[NONCOHERENT]));
}

static void end_limited(void)
{
	close(limited.device);
	munmap(limited.run, limited.run_size);
	close(limited.vcpu);
	close(limited.fd);
	munmap(limited.memory, MEMORY);
}

static void *run_limited(void *unused __attribute__((unused)))
{
	int ret;

	do {
		ret = ioctl(limited.vcpu, KVM_RUN, 0);
	} while (ret && errno == EINTR);
	limited.error = ret ? errno : 0;
	WRITE(limited.left, true);
	return NULL;
}

static bool has_left(void)
{
	return READ(limited.left);
}

/* On CPU 1, until its OUT */
static void start_limited(void)
{
	WRITE(limited.left, false);
	limited.thread = thread_on(1, run_limited);
}

static void limited_ends(uint32_t done)
{
	wait_until(has_left, "the guest is through");
	pthread_join(limited.thread, NULL);
	if (limited.error || limited.run->exit_reason != KVM_EXIT_IO)
		fail("the guest left with %s, exit %u", strerror(limited.error),
		     limited.run->exit_reason);
	if (READ(limited.box->done) != done)
		fail("%u WBINVDs are done, not %u", READ(limited.box->done), done);
}

static uint32_t ticks_wanted;

static bool has_ticked(void)
{
	return READ(limited.box->ticks) >= ticks_wanted;
}

static bool waits(void)
{
	return vm_number(getpid(), limited.fd, "wbinvd_delays") > 0;
}

/* That timer stops when the vCPU sleeps, and another one has to take its place. */
static void test_ticks(void)
{
	int begin;

	attach(NONCOHERENT, 0);
	make_limited();
	set_wbinvd_limit(limited.fd, 1);
	/* Longer than any test runs, in thousand times as much time: see budget_test.c. */
	hold_at(wbinvd_function(), "for_ms=100");
	start_limited();
	limited_ends(1);
	forget_hold();

	enable_apic(limited.vcpu, VECTOR, 50);
	begin = mark();
	start_limited();
	wait_until(waits, "the next WBINVD waits");
	ticks_wanted = READ(limited.box->ticks) + 3;
	wait_until(has_ticked, "the timer's interrupts while it waits");
	expect_flushes(begin, 0, 0, "while it waits");
	set_wbinvd_limit(limited.fd, 0);
	limited_ends(2);
	end_limited();
}

static const struct test tests[] = {
	{ "limited: the APIC's timer goes on while a WBINVD waits", test_ticks },
};

const struct suite limit_suite = SUITE(tests);
