/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The guest of budget_test, and what is done with it: it executes WBINVDs, as many as
 * it is told, and KVM_RUN may return before it is through.
 */
#ifndef LAB_BUDGET_H
#define LAB_BUDGET_H

#include "wbinvd_phase.h"

#define BUDGET	"/sys/module/kvm/parameters/wbinvd_budget"

/* Where the guest's WBINVD is, and the one that KVM emulates */
#define WBINVD_AT		0x1000
#define EMULATED_WBINVD_AT	0x1205
/* One WBNOINVD, one that KVM emulates, and WBINVDs with other prefixes */
#define WBNOINVD_AT		0x1300
#define EMULATED_WBNOINVD_AT	0x1405
#define PREFIX_66_AT		0x1500
#define PREFIX_66_F3_AT		0x1600
/* A kick of vCPU 0, a WBINVD, and a HLT */
#define KICKED_AT		0x1700

/* The interrupt that the guest counts */
#define VECTOR			0x40

/* What a vCPU and the test share. Accessed by READ() and WRITE() only. */
struct box {
	uint32_t interrupts;
	uint32_t todo;		/* WBINVDs to execute */
	uint32_t done;		/* WBINVDs executed, ever */
	uint32_t nmis;
};

/*
 * A wait of the WBINVD that a vCPU executes, by now(): between the first two it has begun,
 * between the others it ends. Entering KVM_RUN and leaving it set the outer ones.
 */
struct wait {
	double entered, begun, ending, left;
};

struct vm {
	int fd;
	int dev;		/* the KVM-VFIO device */
	int group;
	char *mem;
	int n_vcpus;
	struct vcpu {
		struct vcpu_thread thread;	/* the first, for vcpu_setup() */
		struct vm *vm;
		int id;
		struct box *box;
		struct wait wait;
	} vcpus[2];
};

/* A non-coherent VM, and its first vCPU on @cpu */
struct vcpu *vm_create(struct vm *vm, int cpu);
struct vcpu *vcpu_create(struct vm *vm, int cpu);

/* KVM_RUN, with @n WBINVDs to do */
void begin(struct vcpu *v, int n);
/* KVM_RUN again, with those that are left */
void resume(struct vcpu *v);
/* It returns: when the guest is through, or because of a signal */
void end(struct vcpu *v);
void end_interrupted(struct vcpu *v, uint64_t rip);
void interrupt(struct vcpu *v);

long long count(struct vm *vm, const char *name);
/* Wait until it is @n. */
void wait_count(struct vm *vm, const char *name, long long n);

/* Begin elsewhere. */
void resume_at(struct vcpu *v, uint64_t rip);
/* The same, and run until the guest is through. */
void run_at(struct vcpu *v, uint64_t rip);
/* What the guest's CPUID says of WBNOINVD; before it runs */
void tell_wbnoinvd(struct vcpu *v, bool has);

void set_budget(int per_mille);

/* A vCPU that is stopped: its guest takes VECTOR then; with a timer, if that is not 0. */
void take_interrupts(struct vcpu *v, int timer_ms);
/* Or that stays pending. */
void hold_interrupts(struct vcpu *v);

/* ---- what kvm_vfio:kvm_wbinvd_delayed tells ------------------------------- */

struct delay {
	int vcpu;
	long long ns;
	char end[16];
};

/* It tells of waits that end from now on. */
void trace_delays(void);
/* Those that have ended since the last call, which are @n; wbinvd_delay_ns is the sum of all. */
void read_delays(struct vm *vm, struct delay *delays, int n);
void stop_tracing_delays(void);

/* ---- scenarios ----------------------------------------------------------- */

/* Whatever the one before has left */
void tidy_up(void);

#define SCENARIO(name)							\
void run_##name(void)						\
{									\
	tidy_up();							\
	name();								\
	tidy_up();							\
}

void run_wbnoinvd(void);
void run_wbnoinvd_within_budget(void);
void run_wbnoinvd_emulated(void);
void run_wbnoinvd_inherited(void);
void run_wbnoinvd_not_told(void);
void run_other_prefixes(void);
void run_no_wbnoinvd(void);

#endif
