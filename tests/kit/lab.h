/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the lab's programs share: how they fail, wait and report.
 *
 * Beside it: files.h (sysfs, modules), pages.h (memory, userfaultfd), vfio.h (groups, the
 * KVM-VFIO device), iommufd.h (devices' own files), vm.h (VMs, vCPUs, a guest that executes
 * WBINVD), hold.h (a thread held at a function of the kernel), wbinvd_phase.h (tests whose
 * oracle counts WBINVDs).
 */
#ifndef LAB_LAB_H
#define LAB_LAB_H

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/types.h>

#ifndef ARRAY_SIZE
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#endif
#define MIB		(1u << 20)

#define READ(x)		__atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define WRITE(x, value)	__atomic_store_n(&(x), value, __ATOMIC_SEQ_CST)

/* ---- failing ------------------------------------------------------------- */

enum { PASSED, FAILED, SKIPPED };

/* fail() says it first: a step, a variant. Empty when a test begins */
extern char about[160];
extern jmp_buf test_end;

/*
 * In a test of run_tests(): end it; only for the main thread. Else, in a program that
 * has none: end the process, from any thread.
 */
void __attribute__((noreturn, format(printf, 2, 3)))
end_test(int how, const char *format, ...);

/* What was said; for a process that has come to test_end by itself */
const char *why_ended(void);

#define fail(...)	end_test(FAILED, __VA_ARGS__)
#define skip(...)	end_test(SKIPPED, __VA_ARGS__)

#define must(call)							\
({									\
	long must_ret = (call);						\
									\
	if (must_ret < 0)						\
		fail("%s: %s", #call, strerror(errno));			\
	must_ret;							\
})

/* Of zeroes, the same for processes that this one forks later; fails */
void *shared_memory(size_t size);

/* ---- waiting ------------------------------------------------------------- */

/* Some seconds, but for less time than hold.ko holds a thread at most */
void wait_until(bool (*condition)(void), const char *what);

/*
 * What does not end would take the whole run with it. It may wait for a file that is
 * open here, and the process would not end before it: so this closes all, and exits.
 */
void __attribute__((noreturn)) never_ends(const char *what);

/*
 * Print where in the kernel each thread of a process stands that does not come any
 * further, as far as this kernel tells, and what is open there: before it is killed.
 */
void say_where(pid_t pid);

/* Ends by never_ends() if the thread does not; the process is killed first. */
void must_join(pthread_t thread, const char *what);
void must_die(pid_t pid, const char *what);
/* Somebody writes to it, or has written. */
void must_be_readable(int fd, const char *what);

/* Thread @tid, 0 for this one, may run on @cpu, -1 is on any: -1 and errno if not */
int pin(pid_t tid, int cpu);
pthread_t thread_on(int cpu, void *(*run)(void *));

/* ---- tests and their report ---------------------------------------------- */

struct test {
	const char *name;
	void (*run)(void);
	bool variant;		/* means what the program wants it to mean */
};

struct suite {
	const struct test *tests;
	unsigned int count;
};

#define SUITE(array)	{ array, ARRAY_SIZE(array) }

struct program {
	void (*prepare)(void);			/* once, before the first test */
	void (*set_up)(const struct test *test);
	void (*tear_down)(void);		/* however the test has ended */
};

/*
 * All of main(): runs the tests that have @wanted in their names, and prints KTAP. What
 * fails in prepare() or tear_down() ends the program.
 */
int run_tests(const struct program *program, const struct suite *const *suites,
	      unsigned int count, const char *wanted);

#endif
