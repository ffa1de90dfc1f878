// SPDX-License-Identifier: GPL-2.0-only
/* Scenarios of wbinvd_test: vCPUs that move, and CPUs that go */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <sys/syscall.h>

#include "hold.h"
#include "vm.h"
#include "wbinvd.h"

/* ---- a running vCPU ------------------------------------------------------ */

/* The vCPU never leaves KVM_RUN: it is migrated by the scheduler alone. */
void migration(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	v = noncoherent_vm(&vm, group, 1);
	vcpu_enter(v);

	phase("WBINVD on CPU 1");
	vcpu_wbinvd(v, 1);
	expect_flush(1);
	phase_end();

	phase("dirtying on CPU 1, then on CPU 2, flushes nothing");
	vcpu_wait_beats(v);
	vcpu_move(v, 2);
	vcpu_wait_beats(v);
	phase_end();

	phase("WBINVD on CPU 2 flushes CPUs 1 and 2");
	vcpu_wbinvd(v, 2);
	expect_flush(1);
	expect_flush(2);
	phase_end();

	phase("the next one CPU 2 only");
	vcpu_wbinvd(v, 2);
	expect_flush(2);
	phase_end();
	vcpu_leave(v);
}

/* ---- preemption ---------------------------------------------------------- */

#define MOVES	400

/* Let the guest execute WBINVDs, how many is seen later, until vcpu_stop_wbinvds(). */
static void vcpu_start_wbinvds(struct vcpu *v)
{
	WRITE(v->box->todo, INT_MAX);
	WRITE(v->box->cmd, CMD_WBINVD);
}

static void vcpu_stop_wbinvds(struct vcpu *v)
{
	double limit = now() + SCENARIO_LIMIT / 2;

	/* The guest may just be counting down, and not see it. */
	do {
		WRITE(v->box->todo, 1);
		if (now() > limit)
			fail("vCPU %d does not stop its WBINVDs", v->id);
		sleep_ms(1);
	} while (READ(v->box->cmd) != CMD_NONE);
}

/* Wait for WBINVDs of which one begins after this was called. */
static void vcpu_wait_wbinvd(struct vcpu *v)
{
	uint32_t start = READ(v->box->done);
	double limit = now() + SCENARIO_LIMIT / 2;

	while (READ(v->box->done) - start < 2)
		if (now() > limit)
			fail("vCPU %d executes no WBINVD", v->id);
}

/* A counter of the time that the vCPU's thread has run on @cpu */
static int open_clock(struct vcpu *v, int cpu)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_TASK_CLOCK,
	};

	return must(syscall(SYS_perf_event_open, &attr, v->thread.tid, cpu, -1,
			     PERF_FLAG_FD_CLOEXEC));
}

static uint64_t read_clock(int clock)
{
	uint64_t ns;

	must(read(clock, &ns, sizeof(ns)));
	return ns;
}

/* As vcpu_move(), but when this returns the vCPU has been loaded there. */
static void vcpu_move_and_load(struct vcpu *v, int cpu, int clock)
{
	uint64_t before = read_clock(clock);
	double limit = now() + SCENARIO_LIMIT / 2;

	vcpu_move(v, cpu);
	while (read_clock(clock) == before)
		if (now() > limit)
			fail("vCPU %d does not get to CPU %d", v->id, cpu);
}

/* Not to move the vCPU at the same point of each WBINVD */
static void spin(int n)
{
	volatile int i;

	for (i = 0; i < n; i++)
		;
}

/*
 * Where the kernel can be preempted, that may be between any two steps of
 * executing a WBINVD. Whatever the step, the CPU that the vCPU leaves keeps dirty
 * lines, which the next WBINVD, or the one that was interrupted, must write back
 * there: one flush more for each move, neither lost nor doubled.
 */
void moved_during_wbinvds(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0), cpu = 1, clock[CPUS], i;
	uint32_t first;

	v = noncoherent_vm(&vm, group, cpu);
	for (i = 1; i < CPUS; i++)
		clock[i] = open_clock(v, i);
	vcpu_enter(v);
	first = READ(v->box->done);
	phase("each of %d moves during WBINVDs costs one flush more", MOVES);
	vcpu_start_wbinvds(v);
	for (i = 0; i < MOVES; i++) {
		/*
		 * In pairs, so that the second move may hit the WBINVD that
		 * pays for the first. A third one would go back to where the
		 * first began, and there would be nothing more to pay for.
		 */
		if (i % 2 == 0)
			vcpu_wait_wbinvd(v);
		spin(i * 97 % 1000 * (i % 2 ? 1 : 10));
		cpu = 1 + cpu % 3;
		vcpu_move_and_load(v, cpu, clock[cpu]);
	}
	vcpu_wait_wbinvd(v);
	vcpu_stop_wbinvds(v);
	expect_total(READ(v->box->done) - first, MOVES);
	phase_end();

	phase("then one on CPU %d flushes that one only", cpu);
	vcpu_wbinvd(v, cpu);
	expect_flush(cpu);
	phase_end();

	phase("and one after another move both");
	vcpu_move(v, 1 + cpu % 3);
	vcpu_wait_beats(v);
	vcpu_wbinvd(v, 1 + cpu % 3);
	expect_flush(cpu);
	expect_flush(1 + cpu % 3);
	phase_end();
	vcpu_leave(v);
}

/* Whoever makes the VM non-coherent meanwhile relies on what is being written back. */
void changed_during_a_wbinvd(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	if (!noncoherent_host)
		return;
	v = noncoherent_vm(&vm, group, 1);
	phase("running on CPUs 2 and 1 flushes nothing");
	vcpu_run_on(v, 2);
	vcpu_run_on(v, 1);
	vcpu_enter(v);
	phase_end();

	hold_at(wbinvd_function(), "for_ms=500");
	phase("DEL, and ADD during a WBINVD: both flush CPUs 1 and 2");
	vcpu_begin_wbinvds(v, 1, 1);
	wait_until(somebody_is_held, "the WBINVD is being executed");
	file_del(&vm, group);
	file_add(&vm, group);
	vcpu_end_wbinvds(v);
	expect_flushes(1, 2);
	expect_flushes(2, 2);
	phase_end();
	forget_hold();
	vcpu_leave(v);
}

/* Of a run with that on the kernel's command line */
void fully_preemptible(void)
{
	char text[64];

	if (get_text("/sys/kernel/debug/sched/preempt", text, sizeof(text)))
		fail("the kernel does not say how it is preempted");
	if (!strstr(text, "(full)"))
		fail("the kernel's preemption is %s", text);
}

/* ---- CPUs that go -------------------------------------------------------- */

static void cpu2_offline(void)
{
	phase("CPU 2 goes offline: KVM's WBINVD on it and the kernel's own");
	set_cpu2_online(false);
	expect_unrelated(2, 2, 2);
	phase_end();
}

static void cpu2_online(void)
{
	phase("CPU 2 comes online: only the kernel's own WBINVDs on it");
	set_cpu2_online(true);
	expect_unrelated(2, 0, -1);
	phase_end();
}

void unplug_a_noted_cpu(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	v = noncoherent_vm(&vm, group, 1);
	phase("running on CPUs 2 and 1 flushes nothing");
	vcpu_run_on(v, 2);
	vcpu_run_on(v, 1);
	phase_end();

	cpu2_offline();
	phase("WBINVD flushes CPU 1 only, CPU 2 is offline");
	vcpu_enter(v);
	vcpu_wbinvd(v, 1);
	expect_flush(1);
	phase_end();

	cpu2_online();
	vcpu_move(v, 2);
	vcpu_wait_beats(v);
	phase("back on CPU 2, WBINVD flushes CPUs 1 and 2");
	vcpu_wbinvd(v, 2);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	vcpu_leave(v);
}

void change_with_a_cpu_offline(void)
{
	struct vm vm;
	struct vcpu *v = vcpu_with_debt(&vm);
	int group = group_open(0);

	vcpu_move(v, 1);
	file_add(&vm, group);
	cpu2_offline();
	phase("attaching pays the owed flush on CPU 1, CPU 2 is offline");
	group_attach(group);
	expect_flush(1);
	phase_end();

	cpu2_online();
	/* Going offline cleaned CPU 2, so it may have been forgotten or not. */
	phase("WBINVD flushes CPU 1, perhaps CPU 2");
	vcpu_enter(v);
	vcpu_wbinvd(v, 1);
	expect_flush(1);
	expect_unrelated(2, 0, noncoherent_host);
	vcpu_leave(v);
	phase_end();
}

void unplug_under_a_running_vcpu(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);
	cpu_set_t set;

	v = noncoherent_vm(&vm, group, 2);
	phase("WBINVD on CPU 2");
	vcpu_enter(v);
	vcpu_wbinvd(v, 2);
	expect_flush(2);
	phase_end();

	/* Where to go when CPU 2 goes. */
	CPU_ZERO(&set);
	CPU_SET(2, &set);
	CPU_SET(3, &set);
	must(sched_setaffinity(v->thread.tid, sizeof(set), &set));
	cpu2_offline();
	vcpu_wait_beats(v);
	phase("WBINVD flushes CPU 3, to which the vCPU was moved");
	vcpu_wbinvd(v, 3);
	expect_flush(3);
	phase_end();
	vcpu_leave(v);
	cpu2_online();
}

static void *cpu2_goes(void *unused)
{
	set_cpu2_online(false);
	return NULL;
}

/*
 * A CPU on its way down leaves cpu_active_mask first, and cpu_online_mask well
 * after that. Hold it at FUNCTION, in between: a flush has to reach it all the same.
 * @own: what it has written back by itself until then
 */
static void flush_a_cpu_held_at(struct vcpu *v, const char *function, const char *options,
				int own)
{
	pthread_t thread;

	phase("running on CPUs 2 and 1 flushes nothing");
	vcpu_run_on(v, 2);
	vcpu_run_on(v, 1);
	phase_end();

	hold_at(function, options);
	phase("CPU 2, held at %s() on its way down, writes back %d times", function, own);
	must(-pthread_create(&thread, NULL, cpu2_goes, NULL));
	wait_until(somebody_is_held, "CPU 2 is held");
	expect_unrelated(2, own, own);
	phase_end();

	phase("WBINVD on CPU 1 flushes CPU 2 as well, which is held on its way down");
	vcpu_enter(v);
	vcpu_wbinvd(v, 1);
	expect_flush(1);
	expect_flush(2);
	vcpu_leave(v);
	phase_end();

	phase("CPU 2 goes on: KVM's WBINVD, if it is to come, and the kernel's own");
	let_go();
	must(-pthread_join(thread, NULL));
	expect_unrelated(2, 2 - own, 2 - own);
	phase_end();
	forget_hold();
	cpu2_online();
}

void unplug_held_halfway(void)
{
	struct vm vm;
	struct vcpu *v;

	v = noncoherent_vm(&vm, group_open(0), 1);
	flush_a_cpu_held_at(v, "workqueue_offline_cpu", "", 0);
	/* Older kernels call KVM with all other CPUs stopped: nobody can come in between. */
	if (kernel_has("kvm_offline_cpu"))
		flush_a_cpu_held_at(v, "kvm_offline_cpu", "at_return=1", 1);
}
