/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the cases of ept_test share: ept_test.c has the guest, the VM, what the
 * tracepoints tell and the cases of memory types; ept_roots.c those of old roots.
 */
#ifndef LAB_EPT_H
#define LAB_EPT_H

#include <linux/kvm.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define READ(x)		__atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define WRITE(x, value)	__atomic_store_n(&(x), value, __ATOMIC_SEQ_CST)

/* Guest-physical addresses. */
#define LOW		0x00000000u	/* 1 MiB of RAM: code, data, fixed MTRRs */
#define CODE		0x00001000u
#define DATA		0x00002000u	/* struct shared */
#define HUGE		0x00400000u	/* 4 MiB of RAM in 2 MiB pages */
#define SMALL		0x01000000u	/* 1 MiB of RAM in 4 KiB pages */
#define HOST_MMIO	0xc0000000u	/* a BAR of the emulated host */
#define HOLE		0xd0000000u	/* nothing */

enum { UC = 0, WC = 1, WT = 4, WP = 5, WB = 6 };	/* as in MTRRs and EPT */

#define IPAT		8			/* ours, beside a type */

/* ---- a case -------------------------------------------------------------- */

struct test {
	const char *name;
	void (*run)(void);
	bool no_exit;			/* on a processor without the WBINVD exit */
};

enum { PASSED, FAILED, SKIPPED };
extern jmp_buf test_end;
extern char variant[60];		/* of the test that is running, if it has some */

/* End the test that is running. Only for the main thread. */
void __attribute__((noreturn, format(printf, 2, 3)))
end_test(int how, const char *format, ...);

#define fail(...)	end_test(FAILED, __VA_ARGS__)
#define skip(...)	end_test(SKIPPED, __VA_ARGS__)

#include "testdev.h"

/* In the middle of a test, for what it does before there is a VM, or after */
void set_up(void);
void tear_down(void);

/* ---- what the tracepoints tell ------------------------------------------- */

/*
 * How many entries of each type mapped GPA when event END happened. Counted by
 * type, because the hardware sets accessed and dirty bits meanwhile, and an
 * entry may be in more than one root.
 */
struct entries {
	int count[16];
	int level;
};

int mark(void);
struct entries entries_at(uint64_t gpa, int end);
void expect(uint64_t gpa, int type);
void start_trace(void);
void stop_trace(void);

/* ---- the VM -------------------------------------------------------------- */

struct shared {
	uint32_t loops;
	uint32_t stop;
};

extern int kvm;

extern struct vm {
	int fd, vcpu, device;
	struct kvm_run *run;
	size_t run_size;
	int physical_bits;
	void *low, *huge, *small, *mmio;
	struct shared *shared;
	pthread_t thread;
	bool spinning;
	char trouble[100];		/* of the vCPU thread */
	int mmio_exits;
} vm;

void make_vm(void);
void guest_touches(uint32_t gpa);
void guest_reads(uint32_t gpa);
void *spin(void *unused);
void let_it_spin(void);
void start_spinning(void);
void stop_spinning(void);

void run_on(int cpu);			/* CPU 0 or 1; -1 is both */
pthread_t thread_on(int cpu, void *(*run)(void *));

/*
 * Somebody asks for a memslot's dirty pages on CPU, and the memory that they are to be
 * written to is kept away. He holds slots_lock meanwhile, the VM's file, and nothing else.
 */
extern struct dirty_log {
	pthread_t thread;
	pid_t tid;
	bool done;
	uint64_t *bitmap;
} dirty_log;

void hold_slots_lock(int cpu);
void give_page_for_dirty_log(void);
bool dirty_log_has_ended(void);
void dirty_log_ends(const char *what);

void block_vcpu(void);			/* in a page fault that only the test resolves */
void unblock_vcpu(void);

/* ---- VFIO ---------------------------------------------------------------- */

/* The fixture's devices: three that are coherent, two that are not. */
enum { COHERENT, NONCOHERENT = 3, NONCOHERENT2, DEVICES };

extern int group[DEVICES], container[2];

void set_up_vfio(void);
void join(int id, int c);
void attach(int id, int c);
void make_device(void);
int device_attr(int attr, int id);
void add(int id);
void del(int id);

/* ---- changes ------------------------------------------------------------- */

void changes(void (*change)(void), bool noncoherent);
/* The vCPU is out of its old root when the call returns, whose entries a worker removes. */
void changes_by_worker(void (*change)(void), bool noncoherent);

#define becomes_noncoherent(change)	changes(change, true)
#define becomes_coherent(change)	changes(change, false)

/* ---- one thread held, another one on its way ----------------------------- */

#define HOLD		"/sys/module/hold/parameters/"

bool kernel_has(const char *function);
bool somebody_is_held(void);
bool change_has_ended(void);
bool held_or_change_ended(void);
void wait_until(bool (*condition)(void), const char *what);
bool sleeps_in(pid_t tid, const char *function);

/* An ADD or DEL of NONCOHERENT by another thread, on CPU 0 */
void start_change(int attr);
void start_change_on(int cpu, int attr);
void end_change(void);

/* Any call by another thread, on CPU 0; it leaves its errno in call_error. */
extern int call_error;
void start_call(void (*run)(void));
bool call_has_ended(void);
void end_call(const char *what);

void load_hold_at_zap(bool at_return);

void unload(const char *name);
void load_kvm(const char *options);

/* ---- ept_roots.c --------------------------------------------------------- */

extern const struct test root_tests[];
extern const unsigned int root_test_count;
void tear_down_roots(void);

#endif
