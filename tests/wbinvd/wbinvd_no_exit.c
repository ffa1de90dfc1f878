// SPDX-License-Identifier: GPL-2.0-only
/* Scenarios of wbinvd_test: a processor without the WBINVD exit */
#define _GNU_SOURCE
#include <sys/ioctl.h>

#include "vm.h"
#include "wbinvd.h"

/*
 * There a guest's WBINVD reaches the CPU that it runs on and no other, so the
 * vCPU has each CPU it leaves written back. These are run with an argument, the
 * module that makes KVM believe it runs on such a processor.
 */
static void leaves_clean_cpus(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	v = noncoherent_vm(&vm, group, 1);
	phase("running on CPU 1 flushes nothing");
	vcpu_run_on(v, 1);
	phase_end();

	phase("moving to CPU 2 flushes CPU 1");
	vcpu_run_on(v, 2);
	expect_flush(1);
	phase_end();

	phase("moving on to CPU 3 flushes CPU 2 only");
	vcpu_run_on(v, 3);
	expect_flush(2);
	phase_end();

	phase("coming back to CPU 3 flushes nothing");
	vcpu_run_on(v, 3);
	phase_end();
}

static void leaves_clean_cpus_while_running(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	v = noncoherent_vm(&vm, group, 1);
	vcpu_enter(v);
	phase("being moved from CPU 1 to CPU 2 flushes CPU 1");
	vcpu_move(v, 2);
	vcpu_wait_beats(v);
	expect_flush(1);
	phase_end();
	vcpu_leave(v);
}

/* A vCPU of a coherent VM with a tracked group, which is attached then */
static void owe_on_cpus_1_and_2(struct vcpu *v, int group, const char *moving)
{
	phase(moving);
	vcpu_run_on(v, 1);
	vcpu_run_on(v, 2);
	phase_end();

	phase("attaching pays the owed flush on CPUs 1 and 2");
	group_attach(group);
	expect_flush(1);
	expect_flush(2);
	phase_end();
}

static void coherent_leaves_cpus(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	owe_on_cpus_1_and_2(v, group, "a coherent VM's vCPU moves without a flush");

	phase("moving to CPU 3 flushes both, since then noted");
	vcpu_run_on(v, 3);
	expect_flush(1);
	expect_flush(2);
	phase_end();

	phase("coherent again, it moves without a flush");
	must(group_leave(group));
	vcpu_run_on(v, 1);
	phase_end();
}

/* What a coherent VM owed is paid on both, and both stay noted. */
static void owed_then_back(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	owe_on_cpus_1_and_2(v, group,
			    "running on CPU 1, then on CPU 2, while coherent flushes nothing");

	phase("moving back to CPU 1 flushes CPU 2 only");
	vcpu_run_on(v, 1);
	expect_flush(2);
	phase_end();

	phase("moving on to CPU 3 flushes CPU 1 only");
	vcpu_run_on(v, 3);
	expect_flush(1);
	phase_end();
}

static void expect_stats(struct vm *vm, long exits, long flushes, long ipis)
{
	pid_t creator = getpid();
	long got[] = {
		vm_number(creator, vm->fd, "wbinvd_exits"),
		vm_number(creator, vm->fd, "wbinvd_flushes"),
		vm_number(creator, vm->fd, "wbinvd_ipis"),
	};

	if (!noncoherent_host)
		flushes = ipis = 0;
	if (got[0] != exits || got[1] != flushes || got[2] != ipis)
		fail("exits, flushes, ipis are %ld, %ld, %ld, not %ld, %ld, %ld: %s",
		    got[0], got[1], got[2], exits, flushes, ipis, expected.what);
}

/* A CPU that is left clean is interrupted for it, and no WBINVD was executed. */
static void statistics(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	phase_skipped(v, 1, "a coherent VM");
	phase_skipped(v, 2, "a coherent VM");
	expect_stats(&vm, 10, 0, 0);

	phase("attaching pays the owed flush on CPUs 1 and 2");
	group_attach(group);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	expect_stats(&vm, 10, 0, 0);

	phase("moving to CPU 3 flushes both, since then noted");
	vcpu_run_on(v, 3);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	expect_stats(&vm, 10, 0, 2);
	phase_executed(v, 3, "where it still exits");
	expect_stats(&vm, 15, 5, 2);

	phase("moving to CPU 1 flushes CPU 3");
	vcpu_run_on(v, 1);
	expect_flush(3);
	phase_end();
	expect_stats(&vm, 15, 5, 3);
}

/* What does not exit cannot wait, either. */
static void no_limit(void)
{
	struct vm vm;
	int ret;

	vm_create(&vm);
	if (must(ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_X86_WBINVD_LIMIT)))
		fail("KVM_CAP_X86_WBINVD_LIMIT is there");
	ret = try_wbinvd_limit(vm.fd, 0, 1, 0, 0, 0);
	if (ret != -EINVAL)
		fail("a limit is not EINVAL but %d", ret);
}

const struct scenario no_exit_scenarios[] = {
	{ "marks name the CPUs they are executed on", marks_name_cpus },
	{ "without the exit: a vCPU leaves its CPUs clean", leaves_clean_cpus },
	{ "without the exit: so does one that is moved", leaves_clean_cpus_while_running },
	{ "without the exit: not one of a coherent VM", coherent_leaves_cpus },
	{ "without the exit: back to a CPU paid for", owed_then_back },
	{ "without the exit: statistics", statistics },
	{ "without the exit: no limit", no_limit },
};

const int no_exit_count = ARRAY_SIZE(no_exit_scenarios);
