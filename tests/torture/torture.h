/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of torture_test share: torture_model.c has the model, torture_steps.c
 * the steps, for real and in the model, torture_check.c the comparison, torture_pick.c
 * chooses steps, torture_walk.c runs them in a process of their own, and makes those that
 * fail few. torture_fuzz.c makes walks out of others, torture_faults.c makes calls fail, and
 * torture_places.c each of them in each place; torture_races.c does without a model.
 */
#ifndef LAB_TORTURE_H
#define LAB_TORTURE_H

#include <stdint.h>

#include "files.h"
#include "iommufd.h"
#include "pages.h"
#include "vm.h"

#define NONE		(-1)

#define VMS		8
#define LOCAL_VMS	6	/* the others are of processes of their own */
#define VCPUS		2
#define MEMSLOTS	2	/* that come and go */
#define FILES		32
#define CONTAINERS	3
#define GROUPS		16
#define IOASES		3	/* of one iommufd */
#define TABLES		18	/* of all of these */
#define PASID_TABLES	2	/* the first ones: one that enforces coherency, one that does not */
#define PASIDS		3	/* of a device: 1 to this */
#define DEVICES		24
#define HOLDERS		2	/* forked processes, with a copy of every descriptor */
#define FLIGHT		4	/* descriptors on their way through a socket */
#define CPUS		2
#define ALL_CPUS	3	/* a bit each */
#define CPU1		"/sys/devices/system/cpu/cpu1/online"

/* ---- steps --------------------------------------------------------------- */

/* Name, weight, and which of a, b and c mean what */
#define STEPS(step)							\
	step(VM, 12)		/* a: VM */				\
	step(VM_CLOSE, 4)	/* a: VM; a process of its own is killed */ \
	step(DEVICE, 24)	/* a: VM, b: how */			\
	step(DEVICE_CLOSE, 8)	/* a: VM */				\
	step(VCPU, 16)		/* a: VM, b: vCPU */			\
	step(RUN, 96)		/* a: VM, b: vCPU, c: CPU */		\
	step(BLOCK, 8)		/* a: VM, b: vCPU */			\
	step(UNBLOCK, 8)	/* a: VM */				\
	step(MEMSLOT, 12)	/* a: VM, b: slot, c: odd create, even delete */ \
	step(ADD, 104)		/* a: VM, b: file, c: odd by its copy */ \
	step(DEL, 64)		/* a: VM, b: file, c: odd by its copy */ \
	step(READ, 12)		/* a: VM, b: file, c: the VM's state, or the file's by its copy */ \
	step(BAD, 64)		/* a: VM, b: which call, c: file */	\
	step(OPEN, 40)		/* a: group, b: file */			\
	step(OPEN_DEVICE, 32)	/* a: the group's file, b: file, c: device */ \
	step(CDEV, 28)		/* a: device, b: file */		\
	step(CDEV_BIND, 28)	/* a: file */				\
	step(CDEV_ATTACH, 36)	/* a: file, b: IOAS, c: how */		\
	step(CDEV_DETACH, 16)	/* a: file */				\
	step(PASID_ATTACH, 24)	/* a: file, b: PASID, c: page table */	\
	step(PASID_DETACH, 12)	/* a: file, b: PASID */			\
	step(CLOSE, 32)		/* a: file, c: odd its copy */		\
	step(DUP, 12)		/* a: file */				\
	step(SEND, 8)		/* a: file */				\
	step(RECEIVE, 8)						\
	step(JOIN, 56)		/* a: file, b: container */		\
	step(LEAVE, 32)		/* a: file */				\
	step(IOMMU, 48)		/* b: container */			\
	step(CONTAINER, 8)	/* b: container, c: 1 open, 0 close */	\
	step(BIND, 16)		/* a: device */				\
	step(UNBIND, 12)	/* a: device */				\
	step(COHERENT, 12)	/* a: device, b: is it? */		\
	step(FORK, 4)		/* a: holder */				\
	step(KILL, 4)		/* a: holder */				\
	step(FOREIGN, 8)	/* a: holder, b: VM, c: file */		\
	step(CPU, 4)		/* c: CPU 1 is 1 online, 0 offline */

#define STEP_NUMBER(name, weight)	STEP_##name,
enum { STEPS(STEP_NUMBER) STEP_KINDS };
#undef STEP_NUMBER

struct step {
	uint8_t kind, a, b, c;
};

extern const char *const step_names[STEP_KINDS];
extern const int step_weights[STEP_KINDS];

/* ---- what the host has --------------------------------------------------- */

/* Devices that can be given to VFIO; found once, and the same for all walks. */
extern struct device {
	char name[32];		/* for VFIO_GROUP_GET_DEVICE_FD */
	int id;			/* the fixture's number, NONE: a PCI device */
	int group;
	bool emulated;
	bool coherent_at_first;
	/* The model: */
	bool coherent, bound;
} devices[DEVICES];
extern int nr_devices;

extern struct group {
	int number;
	bool emulated;
	/* The model: what iommufd has attached it to, or NONE, and by PASIDs */
	int table, pasid[PASIDS];
} groups[GROUPS];
extern int nr_groups;

/* Linux 6.1: a device's file is no VFIO file. */
extern bool old_vfio;
/* Devices have files of their own, and there is an iommufd to bind them to. */
extern bool has_iommufd;
/* From Linux 7.3 on the fixture's devices have PASIDs. */
extern bool has_pasids;
/* Stock modules have nothing to read back. */
extern bool stock;
/* Only these are compared in this walk. */
extern bool results_only;
/* The model counts one file of two too few, to be found wrong. */
extern bool misled;
/* A walk with these has failed, and others are to go on. */
extern bool without_step[STEP_KINDS];

void find_devices(void);
/* Of its own file, or -ENOENT */
int cdev_number(int device);
/* A system call: -1 and errno if it fails */
int open_cdev(int number);
bool has_noncoherent_devices(void);
/* The first such device; NONE: there is none */
int device_like(bool emulated, bool coherent);
/* As they were found: all bound, and as coherent as they were at first. */
void restore_devices(void);
void renew_devices(void);
int bind_device(int device, bool bind);

/* ---- the model ----------------------------------------------------------- */

extern struct vm {
	bool exists;		/* somebody has a descriptor of it */
	int fd, dev, vcpu[VCPUS];
	struct kvm_run *run[VCPUS];
	size_t run_size;
	uint8_t *memory;
	uint8_t *blocked_page;
	int uffd;
	pthread_t thread;	/* whose vCPU waits for a page */
	int blocked;		/* which one, or NONE */
	pid_t creator;
	int number;		/* its descriptor when it was made */
	pid_t process;		/* its own, if it is not ours */
	int socket;
	/* The model: */
	unsigned int held, device_held;		/* by holders, a bit each */
	bool has_device;
	int device_id;		/* which of all devices it is, or was */
	bool made[VCPUS];
	unsigned int dirty[VCPUS];		/* CPUs, a bit each */
	bool inherits, inherits_now;		/* what another VM's guest has dirtied */
	bool memslot[MEMSLOTS], blocked_slot;
	int order[FILES], files;		/* tracked, in the order of ADD */
	int noncoherent;			/* files */
	long changes, flushes, exits, exit_flushes, ipis, zaps;
} vms[VMS];

/* An open file, for as long as anybody has it */
extern struct file {
	bool used;
	int fd, copy;
	unsigned int flights;	/* on their way through the socket */
	unsigned int held;	/* by holders, a bit each */
	unsigned int owners;	/* by VMs, a bit each */
	int left_by;		/* the last that let go of it attached, as it still is; or 0 */
	int group;
	int device;		/* whose it is; NONE: a group's */
	int parent;		/* the group's file that it came from */
	/* Of a group's file: */
	bool dead;		/* its last device has left VFIO */
	int container;
	bool enforced;		/* by its domain */
	/* Of a device's own file: */
	bool cdev, bound, attached;
	unsigned int pasids;	/* that are attached, a bit each */
	int cdev_number;
} files[FILES];

/* iommufd's page tables, in the order in which they were made */
extern struct table {
	int ioas;		/* NONE: only for who asks for it */
	uint32_t id;
	bool enforced, for_pasids;
} tables[TABLES];
extern int nr_tables;

extern struct container {
	int fd;
	unsigned int held;
	bool alive, iommu;
} containers[CONTAINERS];

extern struct holder {
	pid_t pid;
	int socket;
} holders[HOLDERS];

extern int flight[FLIGHT], nr_flight, flight_socket[2];
extern bool cpu1_online;
/* How often each CPU wrote its caches back for guests; CPU 1 since it is online */
extern uint64_t flushes_on[CPUS];
extern bool has_uffd;

void model_begin(void);
bool is_local(int v);
bool tracks(int v, const struct file *file);
bool is_attached(const struct file *file);
int coherency_of(const struct file *file);
bool container_enforces(int container);
int live_file(int group);
bool group_is_alive(int group);
bool device_is_open(int device);
bool has_children(int parent);
/* Devices whose own files are bound, of this group */
bool group_is_bound(int group);
bool device_is_bound(int device);
void model_cdev(int f, int device, int fd, int number);
/*
 * The page table that this file's device gets of the IOAS, or TABLE, if that is not NONE.
 * -EINVAL: none. NONE: a new one, whose ID model_attach_cdev() is told
 */
int table_for(const struct file *file, int ioas, int table);
void model_attach_cdev(struct file *file, int ioas, int table, uint32_t id);
void model_detach_cdev(struct file *file);
/* PASID is 0 to PASIDS - 1 here, for 1 to PASIDS. What an attachment to TABLE returns */
int pasid_fits(const struct file *file, int pasid, int table);
/*
 * Would its device be attached to what enforces coherency, and another one that is bound and in
 * its group not? VMs are told before the IOMMU refuses that, and take it back.
 */
bool told_in_vain(const struct file *file);
/* The same of an attachment that was made to fail */
void model_took_back(void);
void model_attach_pasid(struct file *file, int pasid, int table);
void model_detach_pasid(struct file *file, int pasid);
void model_pasid_tables(uint32_t good, uint32_t bad);
void model_open(int f, int group, int device, int parent, int fd);
void model_join(int f, int container);
void model_detach(struct file *file);
void model_iommu(int container);
void model_unbound(int device);
void model_track(int v, int f, bool track);
void model_device_gone(int v);
/* What nobody has any more is gone. */
void model_settle(void);
/* What follows for the VMs from what has become of the files */
void model_follow(void);
void model_vcpu(int v, int vcpu);
void model_load(int v, int vcpu, int cpu);
void model_wbinvd(int v, int vcpu, int cpu);

/* ---- a walk -------------------------------------------------------------- */

/* In what something is not as the model says */
enum aspect { RESULT, STATE, FDINFO, STATISTICS, FLUSHES, ORACLE, REFERENCES, HANG, BROKEN };
extern const char *const aspect_names[];

/* Ends the walk, and this process. */
void __attribute__((noreturn, format(printf, 2, 3)))
wrong(enum aspect aspect, const char *format, ...);

const char *name_of(int result);
/* A call of the step has */
extern bool has_succeeded;
void expect(const char *what, int result, int expected);

/* A system call that returns 0 or more, or fails: the result as the kernel gave it */
static inline int call(long ret)
{
	return ret < 0 ? -errno : ret;
}

void do_step(const struct step *step);
void step_read(const struct step *step);
void check_some(const struct step *step, unsigned int turn);
void check_all(void);
void check_unchanged(unsigned int turn);

uint64_t splitmix64(uint64_t *state);
uint32_t next_random(void);
/* What has another STREAM has other numbers. */
void seed_random(uint32_t seed, uint32_t stream);
unsigned int chance(unsigned int n);
/* Any step, whatever the model says of it */
void any_step(struct step *step);
void pick_step(struct step *step);

/* Their processes end with this one, but nobody waits for that. */
void end_processes(void);

/* ---- what the races do as well ------------------------------------------- */

void open_null(void);
/*
 * KVM_CREATE_DEVICE; LOWEST is the lowest descriptor that is free. Where KVM cannot copy the
 * answer out, the device is there, and has that: it is closed.
 */
int create_device_at(int vm, struct kvm_create_device *request, int lowest);
/*
 * One of the device's calls that fail or only ask, about a descriptor that is no VFIO file: what
 * it returns, and in EXPECTED what it should
 */
int bad_call(unsigned int number, int device, int vm, int other, int container, bool flags,
	     int *expected);
/* A page of the guest that userfaultfd tells of; vm->uffd and vm->blocked_page */
bool make_missing_page(struct vm *vm);
/* It is a page of zeroes from now on, for who waits as well. */
int resolve_page(struct vm *vm);
/* Main function of a thread: vCPU vm->blocked touches the page; what run_guest() returns */
void *blocked_vcpu(void *vm);

/* ---- faults on purpose --------------------------------------------------- */

extern bool faults;		/* each call of a walk is made to fail in each place */
extern unsigned long faults_injected;
extern int fault_kinds;		/* that were injected */
const char *no_faults(void);
void fault_open(void);
/* Outside of a walk: this thread's calls can be made to fail. */
void faults_begin(void);
void faults_end(void);
/* The next call in that place, 0: nowhere. How far from there did it end, did it come there? */
void fail_at(int nth);
int places_left(void);
bool has_failed(void);
void fault_begin(int kind);
/* How a call may fail that is made to, but for ENOMEM; see CALL() */
enum {
	BY_EFAULT = 1,
	BY_ANY_OTHER = 2,
	BY_NO_FILE = 4,		/* EBADF */
	BY_NO_VFIO = 8,		/* EINVAL */
	BY_NO_MEMORY = 16,	/* ENOMEM, always */
};
/* By what of HOW it may have failed that was made to; 0: not by that */
int failed_by(int result, int how);
/* Fails if calls have not failed in each of these ways. */
void must_be_all_kinds(int which);
/* It failed because it was made to, and has to be done again. */
bool fault_again(int result, int how);
/* A call of this step did without something that it was made not to get. */
extern bool fault_survived;

/* ---- fuzzing ------------------------------------------------------------- */

extern bool fuzzing;		/* walks are made from those that came to new places */
const char *no_kcov(void);
/* The steps of a walk; those from *PICKED_FROM on are still to be picked. Their number */
int fuzz_walk(struct step *steps, int number, int *picked_from);
/* In the process of the walk: before the first step, before and after each one */
void fuzz_begin(void);
void fuzz_reset(void);
void fuzz_follow(void);
/* It has ended well, and is kept if it came to new places. */
void fuzz_keep(const struct step *steps, int count);
void fuzz_print(void);

extern int current_kind;

#define FAULTY(expr, how)						\
({									\
	int faulty_ret;							\
									\
	do {								\
		fault_begin(current_kind);				\
		faulty_ret = call(expr);				\
	} while (fault_again(faulty_ret, how));				\
	faulty_ret;							\
})
/*
 * KVM's calls tell ENOMEM; VFIO's may tell of it otherwise, but not by EFAULT. That is of a
 * copy from or to user space, and only calls to which a pointer is passed have one: ..._COPY().
 * On VMX, which no walk runs on, KVM_CREATE_VCPU has it of the APIC access page as well.
 */
#define CALL(expr)		FAULTY(expr, 0)
#define CALL_COPY(expr)		FAULTY(expr, BY_EFAULT)
/* To which a descriptor is passed as well; for the first file vfio.ko is looked up. */
#define CALL_FILE(expr, first)						\
	FAULTY(expr, BY_EFAULT | BY_NO_FILE | ((first) ? BY_NO_VFIO : 0))
#define CALL_VFIO(expr)		FAULTY(expr, BY_ANY_OTHER)
#define CALL_VFIO_COPY(expr)	FAULTY(expr, BY_ANY_OTHER | BY_EFAULT)

/* ---- cases --------------------------------------------------------------- */

struct options {
	uint32_t seed;
	long steps;
	int length;		/* of a walk */
	int failures;		/* so many walks may fail before the case ends */
	int rounds;		/* of races */
	bool memtypes;		/* VMs have some of their own, by fixtures/memtypes.c */
	int faults;		/* of a replay: calls fail from this step on; NONE: none does */
	const char *replay;
	const char *only;
};
extern struct options options;

void test_results(void);
void test_walk(void);
/* At the program's end: how many walks the lab's plugin was told of, up to MOST_MARKS of them */
void end_phases(void);
#define MOST_MARKS	8192
void test_faults(void);
void test_flush_without_memory(void);
void test_places(void);
void test_fuzz(void);
void test_races(void);
void test_shorter(void);
void test_replay(void);
/* The modules that these tests are about, and how many references each of them has */
#define MODULES		8
extern const char * const modules[MODULES];
void get_references(long *references);
void remember_references(void);
/* Nobody uses anything. NULL, or what is wrong */
const char *references_left(void);

#endif
