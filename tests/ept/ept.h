/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the cases of ept_test share: ept_vm.c has the guest and its VM, ept_trace.c what
 * the tracepoints tell, ept_judge.c what a change of coherency has to come to; the other
 * files have the cases, those of old roots in roots*.c.
 */
#ifndef LAB_EPT_H
#define LAB_EPT_H

#include <linux/kvm.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "hold.h"
#include "vfio.h"
#include "vm.h"

#define CR0_CD			0x40000000u
#define MSR_MTRR_DEF_TYPE	0x2ff
#define MTRR_ENABLE		0x800

#ifndef KVM_X86_QUIRK_CD_NW_CLEARED
#define KVM_X86_QUIRK_CD_NW_CLEARED	(1 << 1)
#endif
#ifndef KVM_X86_QUIRK_IGNORE_GUEST_PAT
#define KVM_X86_QUIRK_IGNORE_GUEST_PAT	(1 << 9)
#endif

/* Does this base's KVM look at the guest's MTRRs and CR0.CD? */
extern bool honours_mtrrs;
/* Without the TDP MMU nothing tells of entries that vanish. */
extern bool legacy;

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

/* In the middle of a test, for what it does before there is a VM, or after */
void set_up(void);
void tear_down(void);

/* ---- what the tracepoints tell ------------------------------------------- */

struct event {
	enum { CHANGED, SET, FLUSH, LEAVE, ENTRY, EXIT, WBINVD_EXIT, MARK } kind;
	uint64_t gfn, old, new;
	int level;
	int cpu;
};

extern struct event events[];
extern int event_count;

/* arch/x86/kvm/mmu/spte.h and the SDM's format of EPT entries */
bool is_leaf(uint64_t spte, int level);
int type_of(uint64_t spte);
const char *type_name(int type);

/*
 * How many entries of each type mapped GPA when event END happened. Counted by
 * type, because the hardware sets accessed and dirty bits meanwhile, and an
 * entry may be in more than one root.
 */
struct entries {
	int count[16];
	int level;
};

/* The number of the next event: all before it happened before this call. */
int mark(void);
struct entries entries_at(uint64_t gpa, int end);
/* GPA is mapped, with TYPE and with nothing else. */
void expect(uint64_t gpa, int type);
void expect_level(uint64_t gpa, int level);
/* Whether a fault installed an entry for GPA between two events */
bool faulted_between(uint64_t gpa, int begin, int end, int type);
/* Whether an entry for GPA vanished between two events */
bool removed_between(uint64_t gpa, int begin, int end);
int count_between(int kind, int cpu, int begin, int end);
void start_trace(void);
void stop_trace(void);
void disable_events(void);

/*
 * Make lab/wbinvd the event that a CPU executes WBINVD or WBNOINVD for a guest, and
 * lab/leave that somebody begins to put old entries out of use.
 */
void place_probes(void);
/* The function that puts the old entries out of use; stock has another one for that. */
const char *leave_function(void);

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
	bool has_wbnoinvd;
	void *low, *huge, *small, *mmio;
	struct shared *shared;
	pthread_t thread;
	bool spinning;
	char trouble[100];		/* of the vCPU thread */
	int mmio_exits;
} vm;

/* A VM with one vCPU whose MTRRs say WB everywhere, as a BIOS leaves RAM. */
void make_vm(void);
void set_msr(uint32_t index, uint64_t value);

/* Where the guest may begin */
extern const char guest_code[], guest_spin[], guest_wrmsr[], guest_cr0[], guest_wbinvd[],
		  guest_wbnoinvd[], guest_wbinvd66[];
void load_guest(const char *entry, struct kvm_regs regs);
/* Run it until its OUT. */
void guest(const char *entry, struct kvm_regs regs);
#define guest_sets_cr0(value)	guest(guest_cr0, (struct kvm_regs){ .rbx = (value) })
void guest_writes_msr(uint32_t index, uint64_t value);
void guest_touches(uint32_t gpa);
void guest_reads(uint32_t gpa);
void *spin(void *unused);
/* Wait until the vCPU has gone round its loop once more, from the start. */
void let_it_spin(void);
/* On CPU 1, while the test itself runs on CPU 0 */
void start_reading(uint32_t gpa1, uint32_t gpa2);
void start_spinning(void);
void stop_spinning(void);

void run_on(int cpu);			/* CPU 0 or 1; -1 is both */

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
/* Attach a group; the first one of a container chooses its IOMMU. */
void join(int id, int c);
void set_iommu(int c);
void attach(int id, int c);
void leave(int id);
void unbind(int id);
void make_device(void);
void close_device(void);
int device_attr(int attr, int id);
void add(int id);
void del(int id);

void add_coherent(void);
void add_noncoherent(void);
void add_noncoherent2(void);
void del_noncoherent(void);
void del_noncoherent2(void);

/* ---- what the cases set up ----------------------------------------------- */

void noncoherent_vm(void);
void coherent_vm(void);
/* One variable MTRR; SIZE a power of two */
void set_mtrr(int n, uint64_t base, uint64_t size, int type);
/* What a MTRR of that type comes to on this base. */
int by_mtrr(int type);
void disable_quirk(uint64_t quirk);
void add_host_mmio(void);

/* ---- pages that are watched ---------------------------------------------- */

struct page {
	uint32_t gpa;
	int type[2], level[2];
};

void watch_nothing(void);
void watch(struct page page);
/* RAM for which no MTRR has a word of its own */
void watch_ram(int coherent, int noncoherent);

/* ---- changes ------------------------------------------------------------- */

void changes(void (*change)(void), bool noncoherent);
/* The vCPU is out of its old root when the call returns, whose entries a worker removes. */
void changes_by_worker(void (*change)(void), bool noncoherent);

/* CHANGE has nothing to change. */
void stays(void (*change)(void), int type);
void expect_flushes(int begin, int cpu0, int cpu1, const char *when);

#define becomes_noncoherent(change)	changes(change, true)
#define becomes_coherent(change)	changes(change, false)

/* ---- one thread held, another one on its way ----------------------------- */

bool change_has_ended(void);
bool held_or_change_ended(void);

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
void add_behind_fault(void);

/* Lets go whoever waits for it when it is closed. */
extern int uffd;
/* A second VM, without vCPUs */
extern struct other {
	int fd, device;
} other;

/* A vCPU by its descriptor, before its creation has returned that */
extern struct guessed {
	int fd;
	struct kvm_run *run;
	size_t run_size;
	bool made, done;
	pid_t tid;
	const char *trouble;
} guessed;

void load_kvm(const char *options);

/* ---- the cases ----------------------------------------------------------- */

extern const struct suite type_suite, change_suite, fault_suite, wait_suite, group_suite,
			  wbinvd_suite, limit_suite;
extern const struct suite roots_suite, roots_process_suite, roots_meanwhile_suite,
			  roots_end_suite;
void tear_down_roots(void);

#endif
