/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests have in common whose oracle counts WBINVDs: phases and what is
 * expected of each, scenarios, threads that run vCPUs, and VFIO groups.
 *
 * Such a test drives KVM guests through phases, and says for each phase how
 * often the host kernel must have executed WBINVD on each CPU. It cannot know
 * what the kernel really did: that is counted by the TCG plugin
 * lab/machines/plugin/wbinvd.c, outside of the emulated host, and tests/kit/wbinvd_compare
 * puts the two together.
 *
 * Each phase lies between two marks, `nopl imm32(%rax)`, whose displacement
 * tells the plugin the phase's number. What lies between two phases (creating
 * VMs, moving vCPUs, closing everything) may not execute any WBINVD either. All
 * before the first mark, that is the boot with its MTRR set-up, and all after
 * the last one is nobody's business here.
 *
 * Output: KTAP, one test a scenario, `ok` when its calls succeeded; and one line
 * a phase,
 *
 *	# expect PHASE by CPU host CPU:COUNT... guest CPU:COUNT... -- WHAT
 *
 * with COUNT as N, N-M or * (any number); CPUs that are not named have none. A
 * CPU named total stands for the sum of all. A phase that says how many CLFLUSHs there
 * must be, too, has ` clflush COUNT` before the ` --`, and ` at EVENT:FIRST-LAST` for each
 * event that must happen: how many there must have been before its first and its last time.
 */
#ifndef WBINVD_PHASE_H
#define WBINVD_PHASE_H

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "vfio.h"

#define CPUS		4
#define MAX_EVENTS	8
#define SCENARIO_LIMIT	(20 * patience)	/* seconds; they take less than two */

extern bool noncoherent_host;	/* all DMA of VFIO devices is non-coherent */
extern int patience;		/* more for a debug kernel */

/* ---- waiting ------------------------------------------------------------- */

void sleep_ms(int ms);
double now(void);
void wait_sem(sem_t *sem, const char *what);
/* Until it is @n: see vm_number(). */
void wait_vm_number(pid_t creator, int vm, const char *name, long long n);

/* ---- phases -------------------------------------------------------------- */

/* What the present phase must show. */
extern struct expected {
	int number;
	int by;
	char what[160];
	struct { int min, max; } host[CPUS];
	int guest[CPUS];	/* -1: any number */
	int host_total, guest_total;	/* if they are not 0 */
	bool clflushes_count;
	struct { long min, max; } clflushes;
	struct { bool wanted; long first, last; } events[MAX_EVENTS];
} expected;

/* What follows, up to phase_end(), is a phase: says what must be seen in it. */
#define phase(...)								\
do {										\
	memset(&expected, 0, sizeof(expected));					\
	snprintf(expected.what, sizeof(expected.what), __VA_ARGS__);		\
	phase_begin();								\
} while (0)

void phase_begin(void);
void phase_end(void);

/* Counts of WBINVDs in the host's kernel that have nothing to do with VMs. */
void expect_unrelated(int cpu, int min, int max);
/* @n flushes for a VM on @cpu, or @min to @max; none if the host's DMA is coherent. */
void expect_flushes(int cpu, int n);
void expect_some_flushes(int cpu, int min, int max);
void expect_flush(int cpu);
/* On CPUs but 0, no matter which: @n WBINVDs of guests, and @more flushes than that. */
void expect_total(int n, int more);

/* Of the host's kernel, on all CPUs together */
void expect_clflushes(long min, long max);
/* An event of mark.ko, before whose first and last time there were so many */
void expect_event(int event, long first, long last);

/* ---- CPUs ---------------------------------------------------------------- */

void set_online(int cpu, bool online);
void set_cpu2_online(bool online);

/* ---- vCPUs --------------------------------------------------------------- */

/* A thread that enters a vCPU when it is told to. */
struct vcpu_thread {
	/* By @setup, in the thread: creates the vCPU. */
	void (*setup)(struct vcpu_thread *t);
	int fd;
	struct kvm_run *run;
	unsigned int stop_reason;	/* the one exit from KVM_RUN allowed */
	bool any_stop;			/* what ends KVM_RUN is for the caller to judge */
	int error;			/* of the last KVM_RUN then, 0 for none */

	int first_cpu;
	pid_t tid;
	pthread_t thread;
	sem_t ready, go, stopped;
};

/* Start the thread on @cpu. */
void vcpu_thread_create(struct vcpu_thread *t, int cpu,
			void (*setup)(struct vcpu_thread *t));
/* Let it enter the guest, and wait until the guest has left. */
void vcpu_thread_go(struct vcpu_thread *t);
void vcpu_thread_wait(struct vcpu_thread *t);
/* A signal, by which it leaves KVM_RUN. */
void vcpu_thread_interrupt(struct vcpu_thread *t);
/* Seconds for which it has had a CPU so far; what the guest has had counts, too. */
double vcpu_thread_cpu_time(struct vcpu_thread *t);

/* ---- VFIO ---------------------------------------------------------------- */

/* The group of one of the lab's edu devices */
int group_open(int index);
/* Attach @group to a container of its own, and return that. */
int group_attach(int group);

/* ---- scenarios ----------------------------------------------------------- */

/* Each is run by a process of its own, so that its end closes everything. */
struct scenario {
	const char *name;
	void (*run)(void);
	bool variant;		/* means what the test wants it to mean */
};

extern const struct scenario *scenario;	/* the present one */

pid_t fork_child(void);
void wait_for_death(pid_t pid);
/* A process that is to be killed, and that has done @setup when this returns. */
pid_t fork_doomed(void (*setup)(void));

/* All of main(); @remark, perhaps NULL, goes on the plan line. */
int run_scenarios(const struct scenario *scenarios, int n, const char *remark);

#endif
