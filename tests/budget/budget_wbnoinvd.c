// SPDX-License-Identifier: GPL-2.0-only
/*
 * Scenarios of budget_test: WBNOINVD
 *
 * The emulated CPU has none, and takes it for WBINVD: the oracle counts both. But what
 * KVM takes it for shows. After a WBINVD only the CPU that the vCPU runs on stays noted,
 * after a WBNOINVD all do, since a WBINVD that follows has to invalidate what is there.
 */
#define _GNU_SOURCE
#include "budget.h"
#include "files.h"
#include "hold.h"
#include "vm.h"

static struct vm vm;

void tidy_up(void)
{
	put(BUDGET, "0");
	stop_tracing_delays();
	forget_hold();
	try_unload("wbnoinvd");
	try_unload("protect");
}

/* The vCPU is on CPU 2 and noted for CPUs 1 and 2. */
static struct vcpu *noted_for_two(bool told)
{
	struct vcpu *v = vm_create(&vm, 1);

	tell_wbnoinvd(v, told);
	phase("a WBINVD on CPU 1");
	begin(v, 1);
	end(v);
	expected.guest[1] = 1;
	expect_flush(1);
	phase_end();
	must(pin(v->thread.tid, 2));
	return v;
}

static void flushes_two(struct vcpu *v, uint64_t rip, int tries, const char *what)
{
	phase("%s is executed on CPUs 1 and 2", what);
	run_at(v, rip);
	expected.guest[2] = tries;
	expect_flush(1);
	expect_flush(2);
	phase_end();
}

static void flushes_one(struct vcpu *v, uint64_t rip, int tries, const char *what)
{
	phase("%s is executed on CPU 2, where the vCPU is", what);
	run_at(v, rip);
	expected.guest[2] = tries;
	expect_flush(2);
	phase_end();
}

static void begin_wbinvd(struct vcpu *v)
{
	WRITE(v->box->todo, 1);
}

/* CPU 1 stays noted until a WBINVD comes. */
static void stays_noted(struct vcpu *v, uint64_t rip, int tries)
{
	flushes_two(v, rip, tries, "a WBNOINVD");
	flushes_two(v, rip, tries, "the second one");
	begin_wbinvd(v);
	flushes_two(v, WBINVD_AT, 1, "the WBINVD that follows");
	flushes_one(v, rip, tries, "the WBNOINVD after that");
}

static void wbnoinvd(void)
{
	load("wbnoinvd.ko", "");
	stays_noted(noted_for_two(true), WBNOINVD_AT, 1);
}
SCENARIO(wbnoinvd)

static void wbnoinvd_within_budget(void)
{
	load("wbnoinvd.ko", "");
	must_put(BUDGET, "1000");
	stays_noted(noted_for_two(true), WBNOINVD_AT, 1);
}
SCENARIO(wbnoinvd_within_budget)

static void wbnoinvd_emulated(void)
{
	load("wbnoinvd.ko", "");
	must_put("/sys/module/kvm/parameters/force_emulation_prefix", "1");
	stays_noted(noted_for_two(true), EMULATED_WBNOINVD_AT - 5, 0);
	must_put("/sys/module/kvm/parameters/force_emulation_prefix", "0");
}
SCENARIO(wbnoinvd_emulated)

/* Of another VM's guest any CPU may have lines: they are written back once. */
static void wbnoinvd_inherited(void)
{
	static struct vm other;
	struct vcpu *v;

	load("wbnoinvd.ko", "");
	v = noted_for_two(true);
	other.fd = create_vm();
	other.dev = must(kvm_vfio_create(other.fd));
	must(kvm_vfio_add(other.dev, vm.group));
	phase("the VM tracks the file anew, and pays what it owes, on CPU 1");
	must(kvm_vfio_del(vm.dev, vm.group));
	must(kvm_vfio_add(vm.dev, vm.group));
	expect_flush(1);
	phase_end();
	phase("the first WBNOINVD of a guest that is handed over reaches all CPUs");
	begin_wbinvd(v);
	run_at(v, WBNOINVD_AT);
	expected.guest[2] = 1;
	for (int cpu = 0; cpu < CPUS; cpu++)
		expect_flush(cpu);
	phase_end();
	flushes_one(v, WBNOINVD_AT, 1, "the second one");
}
SCENARIO(wbnoinvd_inherited)

/* The guest's processor does not have it, so what it executes is a WBINVD. */
static void wbnoinvd_not_told(void)
{
	struct vcpu *v;

	load("wbnoinvd.ko", "");
	v = noted_for_two(false);
	flushes_two(v, WBNOINVD_AT, 1, "what the guest cannot call WBNOINVD");
	flushes_one(v, WBNOINVD_AT, 1, "the second one");
}
SCENARIO(wbnoinvd_not_told)

static void other_prefixes(void)
{
	struct vcpu *v;

	load("wbnoinvd.ko", "");
	v = noted_for_two(true);
	flushes_two(v, PREFIX_66_AT, 1, "WBINVD with a prefix that means nothing");
	flushes_one(v, PREFIX_66_AT, 1, "the second one");
	must(pin(v->thread.tid, 1));
	begin_wbinvd(v);
	phase("a WBINVD on CPU 1");
	run_at(v, WBINVD_AT);
	expected.guest[1] = 1;
	expect_flush(1);
	expect_flush(2);
	phase_end();
	must(pin(v->thread.tid, 2));
	flushes_two(v, PREFIX_66_F3_AT, 1, "what is in doubt, with two prefixes,");
	flushes_one(v, PREFIX_66_F3_AT, 1, "the second one");
}
SCENARIO(other_prefixes)

/* The guest was told, but it is not so. */
static void no_wbnoinvd(void)
{
	struct vcpu *v = noted_for_two(true);

	flushes_two(v, WBNOINVD_AT, 1, "WBNOINVD on a processor without it");
	flushes_one(v, WBNOINVD_AT, 1, "the second one");
}
SCENARIO(no_wbnoinvd)
