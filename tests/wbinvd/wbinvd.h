/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the scenarios of wbinvd_test share: wbinvd_guest.c has the guest, wbinvd_test.c
 * the scenarios of groups that come and go, wbinvd_moves.c those of vCPUs that move and
 * of CPUs that go, wbinvd_no_exit.c those of a processor without the WBINVD exit.
 */
#ifndef LAB_WBINVD_H
#define LAB_WBINVD_H

#include "wbinvd_phase.h"

/* ---- the guest ----------------------------------------------------------- */

#define MAX_VCPUS	2

enum { CMD_NONE, CMD_WBINVD, CMD_STOP };

/*
 * What a vCPU and the test share, the guest finding it at DS:0. Accessed by
 * READ() and WRITE() only.
 */
struct box {
	uint32_t cmd;
	uint32_t todo;		/* WBINVDs to execute */
	uint32_t done;		/* WBINVDs executed, ever */
	uint32_t beat;		/* counts while the guest runs, and dirties a line */
};

struct vm {
	int fd;
	int dev;		/* the KVM-VFIO device */
	char *mem;
	int n_vcpus;
	struct vcpu {
		struct vcpu_thread thread;	/* the first, for vcpu_setup() */
		struct vm *vm;
		int id;
		struct box *box;
		uint32_t goal;	/* its WBINVDs, when it has executed those that were begun */
	} vcpus[MAX_VCPUS];
};

void vm_create(struct vm *vm);
struct vcpu *vcpu_create(struct vm *vm, int cpu);

/* Wait until the guest has gone round its loop for some time, dirtying. */
void vcpu_wait_beats(struct vcpu *v);
/* Let the guest run until vcpu_leave(), on the CPU the vCPU is pinned to. */
void vcpu_enter(struct vcpu *v);
void vcpu_leave(struct vcpu *v);
/* From now on the vCPU runs on @cpu, whether it runs now or not. */
void vcpu_move(struct vcpu *v, int cpu);
void vcpu_run_on(struct vcpu *v, int cpu);
/* @n WBINVDs in a guest that runs on @cpu. */
void vcpu_wbinvds(struct vcpu *v, int cpu, int n);
void vcpu_begin_wbinvds(struct vcpu *v, int cpu, int n);
void vcpu_end_wbinvds(struct vcpu *v);
void vcpu_wbinvd(struct vcpu *v, int cpu);

/* A phase in which a stopped vCPU runs on @cpu and its WBINVDs are skipped. */
void phase_skipped(struct vcpu *v, int cpu, const char *why);
/* A phase in which a stopped vCPU, only @cpu noted, runs there: all are executed. */
void phase_executed(struct vcpu *v, int cpu, const char *why);

void device_create(struct vm *vm);
void file_add(struct vm *vm, int fd);
void file_del(struct vm *vm, int fd);

/* A VM that tracks @group, which is attached, and its vCPU on @cpu */
struct vcpu *noncoherent_vm(struct vm *vm, int group, int cpu);

/* ---- scenarios ----------------------------------------------------------- */

/* A vCPU that has run on CPUs 1 and 2, its WBINVDs skipped. */
struct vcpu *vcpu_with_debt(struct vm *vm);

void marks_name_cpus(void);
void migration(void);
void moved_during_wbinvds(void);
void changed_during_a_wbinvd(void);
void fully_preemptible(void);
void unplug_a_noted_cpu(void);
void change_with_a_cpu_offline(void);
void unplug_under_a_running_vcpu(void);
void unplug_held_halfway(void);

extern const struct scenario no_exit_scenarios[];
extern const int no_exit_count;

#endif
