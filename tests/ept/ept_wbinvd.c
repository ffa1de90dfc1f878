// SPDX-License-Identifier: GPL-2.0-only
/* Cases of ept_test: what is counted, and WBINVD with its exit and without */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "ept.h"

/* ---- the statistics ------------------------------------------------------ */

static long long statistic(const char *name)
{
	long long number = vm_number(getpid(), vm.fd, name);

	if (number < 0)
		fail("KVM does not count %s", name);
	return number;
}

struct statistics {
	long long changes, zaps, zap_ns, flushes;
};

static struct statistics statistics(void)
{
	return (struct statistics){
		statistic("noncoherent_dma_changes"), statistic("noncoherent_dma_zaps"),
		statistic("noncoherent_dma_zap_ns"), statistic("noncoherent_dma_flushes"),
	};
}

/* How far CHANGE makes the counters go. */
static void counts(void (*change)(void), int changed, int zaps, int flushes)
{
	struct statistics before = statistics(), after;

	change();
	after = statistics();
	if (after.changes - before.changes != changed)
		fail("%lld changes counted instead of %d",
		     after.changes - before.changes, changed);
	if (after.zaps - before.zaps != zaps)
		fail("%lld zaps counted instead of %d", after.zaps - before.zaps, zaps);
	if (after.flushes - before.flushes != flushes)
		fail("%lld flushes counted instead of %d",
		     after.flushes - before.flushes, flushes);
	if ((after.zap_ns > before.zap_ns) != (zaps > 0) || after.zap_ns < before.zap_ns)
		fail("zaps took %lld ns", after.zap_ns - before.zap_ns);
}

static void test_statistics(void)
{
	attach(COHERENT, 0);
	attach(NONCOHERENT, 1);
	join(NONCOHERENT2, 1);
	run_on(1);
	guest_touches(SMALL);
	run_on(0);
	guest_touches(SMALL);
	counts(add_coherent, 0, 0, 0);
	counts(add_noncoherent, 1, 1, 2);
	counts(add_noncoherent2, 0, 0, 0);
	counts(del_noncoherent, 0, 0, 0);
	counts(del_noncoherent2, 1, 1, 0);
	counts(add_noncoherent, 1, 1, 2);
	counts(close_device, 1, 1, 0);
}

/* Nobody knows since when the guest's PAT counts. */
static void test_statistics_guest_pat(void)
{
	if (!honours_mtrrs)
		disable_quirk(KVM_X86_QUIRK_IGNORE_GUEST_PAT);
	attach(NONCOHERENT, 1);
	guest_touches(SMALL);
	counts(add_noncoherent, 1, 1, 1);
	counts(del_noncoherent, 1, 1, 0);
}

/* ---- WBINVD, which exits on this processor ------------------------------- */

static void guest_wbinvds(int cpu)
{
	run_on(cpu);
	guest(guest_wbinvd, (struct kvm_regs){ 0 });
}

static void expect_exits(int begin, int expected)
{
	int found = count_between(WBINVD_EXIT, 0, begin, mark());

	if (found != expected)
		fail("%d WBINVDs left the guest instead of %d", found, expected);
}

/* A vCPU that has run on both CPUs, of a VM that tracks an unattached group. */
static void used_both_cpus(void)
{
	add(NONCOHERENT);
	guest_wbinvds(0);
	guest_wbinvds(1);
}

static void test_wbinvd_skipped(void)
{
	int begin;

	used_both_cpus();
	begin = mark();
	guest_wbinvds(0);
	guest_wbinvds(1);
	guest_wbinvds(1);
	expect_flushes(begin, 0, 0, "in a coherent VM");
	expect_exits(begin, 3);
}

static void test_wbinvd_owed(void)
{
	int begin;

	used_both_cpus();
	begin = mark();
	attach(NONCOHERENT, 0);
	expect_flushes(begin, 1, 1, "when the VM becomes non-coherent");
	begin = mark();
	leave(NONCOHERENT);
	expect_flushes(begin, 0, 0, "when it becomes coherent again");
}

/* The owed flush of a vCPU that runs comes last, which changes() looks at. */
static void test_wbinvd_owed_running(void)
{
	int begin = mark();

	attach(NONCOHERENT, 0);
	becomes_noncoherent(add_noncoherent);
	expect_flushes(begin, 1, 1, "when the VM becomes non-coherent");
	begin = mark();
	becomes_coherent(del_noncoherent);
	expect_flushes(begin, 0, 0, "when it becomes coherent again");
}

static void test_wbinvd_executed(void)
{
	int begin;

	used_both_cpus();
	attach(NONCOHERENT, 0);
	begin = mark();
	guest_wbinvds(1);
	expect_flushes(begin, 1, 1, "of a vCPU that has run on both CPUs");
	begin = mark();
	guest_wbinvds(1);
	expect_flushes(begin, 0, 1, "with the next one on the same CPU");
	begin = mark();
	guest_wbinvds(0);
	expect_flushes(begin, 1, 1, "with another one on the other CPU");
	leave(NONCOHERENT);
	begin = mark();
	guest_wbinvds(0);
	expect_flushes(begin, 0, 0, "with one more when the VM is coherent again");
}

static void spin_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (pthread_setaffinity_np(vm.thread, sizeof(set), &set))
		fail("the vCPU's thread cannot be moved to CPU %d", cpu);
}

/* Move a vCPU from CPU 1 to CPU 0 while its guest runs. */
static void moves_running(void)
{
	start_spinning();
	let_it_spin();
	spin_on(0);
	let_it_spin();
	stop_spinning();
}

static void test_wbinvd_moved_running(void)
{
	int begin;

	noncoherent_vm();
	guest_wbinvds(0);
	begin = mark();
	moves_running();
	expect_flushes(begin, 0, 0, "without WBINVD");
	guest_wbinvds(0);
	expect_flushes(begin, 1, 1, "of a vCPU that has moved while running");
}

/*
 * VMX has the same exit for both; its length and the guest's code tell them apart. What KVM
 * takes it for shows: after a WBNOINVD all CPUs that the vCPU has run on stay noted.
 */
static void noted_for_both_cpus(void)
{
	if (!vm.has_wbnoinvd)
		fail("the processor has no WBNOINVD");
	noncoherent_vm();
	guest_wbinvds(0);
	run_on(1);
}

static void guest_executes(const char *entry, int cpu0, int cpu1, const char *what)
{
	int begin = mark();

	guest(entry, (struct kvm_regs){ 0 });
	expect_flushes(begin, cpu0, cpu1, what);
}

static void test_wbnoinvd(void)
{
	noted_for_both_cpus();
	guest_executes(guest_wbnoinvd, 1, 1, "with WBNOINVD");
	guest_executes(guest_wbnoinvd, 1, 1, "with the second one");
	guest_executes(guest_wbinvd, 1, 1, "with the WBINVD that follows");
	guest_executes(guest_wbnoinvd, 0, 1, "with WBNOINVD after that");
}

/* As long as a WBNOINVD */
static void test_wbinvd_prefixed(void)
{
	noted_for_both_cpus();
	guest_executes(guest_wbinvd66, 1, 1, "with a prefix that means nothing");
	guest_executes(guest_wbinvd66, 0, 1, "with the second one");
}

/* ---- WBINVD where VMX does not exit on it -------------------------------- */

static void test_no_exit_coherent(void)
{
	int begin = mark();

	used_both_cpus();
	guest_wbinvds(1);
	guest_wbinvds(0);
	moves_running();
	expect_flushes(begin, 0, 0, "in a coherent VM");
	expect_exits(begin, 0);
}

static void test_no_exit_moved(void)
{
	int begin;

	noncoherent_vm();
	guest_wbinvds(0);
	begin = mark();
	guest_wbinvds(0);
	expect_flushes(begin, 0, 0, "of a vCPU that stays on its CPU");
	guest_wbinvds(1);
	expect_flushes(begin, 1, 0, "of a vCPU that leaves CPU 0");
	begin = mark();
	guest_wbinvds(1);
	expect_flushes(begin, 0, 0, "of a vCPU that stays on CPU 1");
	guest_wbinvds(0);
	expect_flushes(begin, 0, 1, "of a vCPU that leaves CPU 1");
	expect_exits(begin, 0);
}

static void test_no_exit_moved_running(void)
{
	int begin;

	noncoherent_vm();
	guest_wbinvds(1);
	begin = mark();
	moves_running();
	expect_flushes(begin, 0, 1, "of a vCPU that leaves CPU 1 while running");
}

static void test_no_exit_owed(void)
{
	int begin;

	used_both_cpus();
	begin = mark();
	attach(NONCOHERENT, 0);
	expect_flushes(begin, 1, 1, "when the VM becomes non-coherent");
	expect_exits(begin, 0);
}

/* What is flushed when left is not owed, what is left while coherent is. */
static void test_no_exit_owed_again(void)
{
	int begin;

	used_both_cpus();
	attach(NONCOHERENT, 0);
	guest_wbinvds(0);
	guest_wbinvds(1);
	leave(NONCOHERENT);
	begin = mark();
	attach(NONCOHERENT, 0);
	expect_flushes(begin, 0, 1, "of a vCPU that has left CPU 0 flushed");
	leave(NONCOHERENT);
	begin = mark();
	guest_wbinvds(0);
	expect_flushes(begin, 0, 0, "of a vCPU that leaves a CPU while coherent");
	attach(NONCOHERENT, 0);
	expect_flushes(begin, 1, 1, "when the VM becomes non-coherent once more");
}

static void test_no_exit_statistics(void)
{
	long long ipis;

	noncoherent_vm();
	guest_wbinvds(0);
	ipis = statistic("wbinvd_ipis");
	guest_wbinvds(1);
	guest_wbinvds(1);
	guest_wbinvds(0);
	ipis = statistic("wbinvd_ipis") - ipis;
	if (ipis != 2)
		fail("%lld IPIs counted instead of 2", ipis);
	if (statistic("wbinvd_exits") || statistic("wbinvd_flushes"))
		fail("WBINVDs counted that never left the guest");
}

static const struct test tests[] = {
	{ "statistics: changes, zaps, flushes", test_statistics },
	{ "statistics: the same without the quirk of the PAT",
	  test_statistics_guest_pat },
	{ "WBINVD: skipped while coherent", test_wbinvd_skipped },
	{ "WBINVD: the owed flush on both CPUs used", test_wbinvd_owed },
	{ "WBINVD: the owed flush follows the last old entry", test_wbinvd_owed_running },
	{ "WBINVD: executed on the CPUs used while non-coherent", test_wbinvd_executed },
	{ "WBINVD: executed on the CPU that a running vCPU left",
	  test_wbinvd_moved_running },
	{ "WBNOINVD: all CPUs stay noted", test_wbnoinvd },
	{ "WBNOINVD: WBINVD with another prefix is none", test_wbinvd_prefixed },
	{ "no WBINVD exit: coherent, nothing is flushed", test_no_exit_coherent, true },
	{ "no WBINVD exit: the CPU that is left is flushed", test_no_exit_moved, true },
	{ "no WBINVD exit: so it is when a running vCPU leaves it",
	  test_no_exit_moved_running, true },
	{ "no WBINVD exit: the owed flush on both CPUs used", test_no_exit_owed, true },
	{ "no WBINVD exit: the flush owed after there and back",
	  test_no_exit_owed_again, true },
	{ "no WBINVD exit: statistics", test_no_exit_statistics, true },
};

const struct suite wbinvd_suite = SUITE(tests);
