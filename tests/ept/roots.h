/* SPDX-License-Identifier: GPL-2.0-only */
/* What the cases of old roots share: roots.c has it, and says what must hold. */
#ifndef LAB_ROOTS_H
#define LAB_ROOTS_H

#include "ept.h"

/* ---- what is counted ----------------------------------------------------- */

/* A VM is one of these, and so is each of its vCPUs and each /dev/kvm that is open. */
long kvm_users(void);
/* With no VM of this test there */
void count_before(void);
bool no_vm_is_left(void);
/* The VM is gone, and all its page tables are given back. */
void expect_end_of_vm(void);

/* ---- the teardown -------------------------------------------------------- */

#define BEFORE_TEARDOWN	"kvm_roots_teardown_task"
#define IN_TEARDOWN	"kvm_tdp_mmu_zap_invalidated_roots"
#define BY_WORKER	"kvm_roots_teardown_work"

void must_tear_down_later(void);
bool idle_page_is_unmapped(void);
/* The VM goes on as one that is (non-)coherent. */
void goes_on(bool noncoherent);

/* Unbound workers, on one CPU or on both */
void run_workers_on(const char *mask);

/* A call of another thread that concerns the VM's memslots */
extern struct slot_change {
	pthread_t thread;
	pid_t tid;
	bool done;
} slot_change;

bool slot_change_has_ended(void);

/*
 * A memslot is added, which holds slots_lock until the vCPU's page fault ends, and the
 * VM becomes non-coherent meanwhile. Adding one, unlike deleting one, tears no root down.
 */
void change_with_slots_busy(void);

/* ---- another process ----------------------------------------------------- */

extern struct child {
	pid_t pid;
	int to, from;			/* pipes */
} child;

void start_child(void (*run)(int from, int to));
/* In it: it says that it is ready, then waits for a word. */
void child_waits(int from, int to);
void child_is_ready(void);
void kill_child(void);
bool child_is_dead(void);
/* The groups that the dead process had are free, and do what they should. */
void group_is_free(void);

void tear_down_processes(void);
void tear_down_meanwhile(void);

#endif
