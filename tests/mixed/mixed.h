/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the cases of mixed_test share: mixed_model.c has the model, the steps, and the
 * comparison; mixed_test.c the cases of devices and groups, mixed_last.c those in which
 * the last non-coherent one leaves, mixed_held.c those in which a thread is held,
 * mixed_signals.c those in which who waits for it gets a signal, mixed_iommufd.c those with
 * iommufd, mixed_memcg.c those without memory, mixed_walk.c the random walk.
 */
#ifndef LAB_MIXED_H
#define LAB_MIXED_H

#include <stdatomic.h>

#include "files.h"
#include "vfio.h"
#include "vm.h"

/* Linux 6.1: a device's file is no VFIO file, and a device that leaves is none of its group. */
extern bool old_vfio;
/* Stock modules have nothing to read back: they are judged by WBINVD alone. */
extern bool readable;

/* ---- steps, and what is expected of them --------------------------------- */

extern int walked;		/* the number of the step in a random walk, or NONE */

/* The step that fail() names */
void __attribute__((format(printf, 1, 2))) begin(const char *format, ...);

/* A system call that returns 0 or more, or fails: the result as the kernel gave it. */
static inline int call(long ret)
{
	return ret < 0 ? -errno : ret;
}

/* RESULT is that of the step; what succeeds may return any number. */
void expect_result(int result, int expected);

/* ---- VMs ----------------------------------------------------------------- */

#define VMS		2

/* They live as long as the program, their devices from case to case. */
extern struct mixed_vm {
	struct wbinvd_vm vm;
	int device;
} vms[VMS];

int create_device(int v);
long long debugfs_flag(int v);

/* ---- the model ----------------------------------------------------------- */

#define DEVICES		400
#define GROUPS		16
#define FILES		100
#define CONTAINERS	3
#define NONE		(-1)

/* The fixture's devices, by their IDs. */
extern struct device {
	bool exists, coherent;
	bool bound;		/* to VFIO, or on its way out but still open */
	int group;
} devices[DEVICES];
extern int next_id;

/* A device that is open does not go before it is closed: a thread waits for that. */
extern struct leaving {
	pthread_t thread;
	pid_t tid;
	int id;
	bool started;
	int result;
} leaving;

/* IOMMU groups: the number is the name of the file, whichever device brings it back. */
extern int group_number[GROUPS];
extern int groups;

extern struct container {
	int fd;
	bool iommu;
} containers[CONTAINERS];

/*
 * An open file of a group or of a device, as long as anybody has it: this process, a
 * VM, or, of a group, the file of its device.
 */
extern struct file {
	bool used;
	int fd;			/* NONE: closed */
	unsigned int owners;	/* the VMs that track it, a bit each */
	int group;
	int device;		/* whose file it is; NONE: a group's */
	int parent;		/* of a device's file: the group's file it came from */
	/* Of a group's file: */
	bool dead;		/* the group's last device has left VFIO */
	int container;		/* or NONE */
	bool enforced;		/* by its domain, if the container has its IOMMU */
} files[FILES];

bool tracks(int v, const struct file *file);
bool is_attached(const struct file *file);
/* The file of a group as it is now, or NONE. */
int live_file(int group);
int open_files_of(int id);
bool is_leaving(int id);
int coherency_of(const struct file *file);
void model_set_iommu(int container);

/* ---- does it agree? ------------------------------------------------------ */

void check(void);
/* For the cases, which know what the model has to come to. */
void expect_noncoherent(int v, bool expected);

/* ---- steps: for real and in the model ------------------------------------ */

/* A new device, bound at once, in GROUP or, for NONE, in a new one: returns its ID. */
int plug(bool coherent, int group);
/* Only a device that is not open, or these would wait. */
void unplug(int id);
void unbind_device(int id);
void bind_device(int id);
void set_coherent(int id, bool coherent);
/* These two return the number of the file, or NONE. */
int open_group(int group);
int open_device(int f, int id);
void close_file(int f);
void join(int f, int container);
void leave(int f);
void set_iommu(int container);
void add(int v, int f);
void del(int v, int f);
void reset(int v);
/* Returns when VFIO waits for the device to be closed. */
void begin_to_unbind(int id);
void end_to_unbind(void);

/* A file that is attached to CONTAINER, and tracked by VM 0. */
int track(int group, int container);

/* ---- a thread that is held, and who comes meanwhile ---------------------- */

/* A system call of another thread; each has its CPU: who is held by hold.ko keeps it. */
extern struct caller {
	pthread_t thread;
	pid_t tid;
	int cpu;
	int (*call)(void);
	int result;
	bool started;
	atomic_bool ended;
} held, follower;

void start(struct caller *caller, int (*their_call)(void));
void join_caller(struct caller *caller);
bool follower_has_ended(void);
/* The one who makes THEIR_CALL, when it comes to FUNCTION; OPTIONS are hold.ko's. */
void hold(int (*their_call)(void), const char *function);
void hold_with(int (*their_call)(void), const char *function, const char *options);
/* Fails if it is not held any more. When this returns, its call has. */
void goes_on(void);

/*
 * Processes that get signals one by one. They share our memory, so they may use the VMs,
 * and have copies of our descriptors, which they close when they end.
 */
extern struct waiter {
	pid_t pid;
	int (*call)(void);
	int result;
	char stack[16384] __attribute__((aligned(16)));
} waiters[2];

/* Returns when it waits in a function named like FUNCTION. */
void start_waiter(struct waiter *waiter, int (*their_call)(void), const char *function);
/* It has the copies, and does nothing. */
void start_sleeper(struct waiter *waiter);
bool waits_in(const struct waiter *waiter, const char *function);
/* It has ended, or does so now: its status, as waitpid() gives it */
int end_of_waiter(struct waiter *waiter);

/* One that is handled, and counted, from before_signals() on; and one that kills */
extern const int signals_to_waiters[2];
void before_signals(void);
/* Fails if the signal ends its wait. */
void signal_waiter(struct waiter *waiter, int signal, const char *function);
/* What the signal comes to when the wait is over: its call has succeeded, if it lives. */
void expect_end_by(struct waiter *waiter, int signal);
/* None to vfio.ko and kvm.ko that was not there before_signals() */
void expect_no_references(void);

/* ---- cases --------------------------------------------------------------- */

void test_readable(void);
void tear_down_held(void);
/* Before, and after, who has been left there has ended */
void release_answer(void);
void tear_down_iommufd(void);
void choose_walk(int argc, char **argv);

extern const struct suite last_suite, held_suite, signals_suite, iommufd_suite, memcg_suite,
	walk_suite;

#endif
