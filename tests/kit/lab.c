// SPDX-License-Identifier: GPL-2.0-only
/* What the lab's programs share: see the header. */
#define _GNU_SOURCE
#include <dirent.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lab.h"

/* Seconds for what takes milliseconds: the lab may be slow. */
#define PATIENCE	60

jmp_buf test_end;
char about[160];
static bool in_test;
static char reason[400];

/* ---- failing ------------------------------------------------------------- */

void end_test(int how, const char *format, ...)
{
	va_list args;
	int used = 0;

	va_start(args, format);
	if (in_test) {
		if (how == FAILED)
			used = snprintf(reason, sizeof(reason), "%s", about);
		vsnprintf(reason + used, sizeof(reason) - used, format, args);
		va_end(args);
		longjmp(test_end, how);
	}
	printf("# FAILED: ");
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	_exit(1);
}

const char *why_ended(void)
{
	return reason;
}

void *shared_memory(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			    -1, 0);

	if (memory == MAP_FAILED)
		fail("no shared memory: %s", strerror(errno));
	return memory;
}

/* ---- waiting ------------------------------------------------------------- */

void wait_until(bool (*condition)(void), const char *what)
{
	int i;

	for (i = 0; !condition(); i++) {
		if (i == 8000)
			fail("it never comes to that: %s", what);
		usleep(1000);
	}
}

void never_ends(const char *what)
{
	printf("Bail out! %sno end of %s after %d s\n", about, what, PATIENCE);
	fflush(stdout);
	syscall(SYS_close_range, 3, ~0u, 0);
	_exit(1);
}

/* A file of /proc, each line as a remark */
static void say_file(const char *path)
{
	char line[200];
	FILE *file = fopen(path, "r");

	while (file && fgets(line, sizeof(line), file))
		printf("#   %s%s", line, strchr(line, '\n') ? "" : "\n");
	if (file)
		fclose(file);
}

static void say_link(const char *path)
{
	char target[200];
	ssize_t got = readlink(path, target, sizeof(target) - 1);

	if (got > 0)
		printf("#   %.*s\n", (int)got, target);
}

static void say_each(pid_t pid, const char *folder, const char *file,
		     void (*say)(const char *path))
{
	char path[300];
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, folder);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/%s/%s%s", pid, folder,
			 entry->d_name, file);
		printf("# %s\n", path);
		say(path);
	}
	if (dir)
		closedir(dir);
}

void say_where(pid_t pid)
{
	say_each(pid, "task", "/syscall", say_file);
	say_each(pid, "task", "/stack", say_file);
	say_each(pid, "fd", "", say_link);
	fflush(stdout);
}

void must_join(pthread_t thread, const char *what)
{
	struct timespec limit;

	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += PATIENCE;
	if (pthread_timedjoin_np(thread, NULL, &limit))
		never_ends(what);
}

void must_die(pid_t pid, const char *what)
{
	int tries;

	kill(pid, SIGKILL);
	for (tries = 0; waitpid(pid, NULL, WNOHANG) != pid; tries++) {
		if (tries == PATIENCE * 1000)
			never_ends(what);
		usleep(1000);
	}
}

void must_be_readable(int fd, const char *what)
{
	struct pollfd file = { .fd = fd, .events = POLLIN };

	if (must(poll(&file, 1, PATIENCE * 1000)) != 1)
		never_ends(what);
}

/* ---- CPUs ---------------------------------------------------------------- */

static cpu_set_t cpus(int cpu)
{
	cpu_set_t set;
	int i;

	CPU_ZERO(&set);
	for (i = 0; i < CPU_SETSIZE; i++)
		if (cpu < 0 || cpu == i)
			CPU_SET(i, &set);
	return set;
}

int pin(pid_t tid, int cpu)
{
	cpu_set_t set = cpus(cpu);

	return sched_setaffinity(tid, sizeof(set), &set);
}

pthread_t thread_on(int cpu, void *(*run)(void *))
{
	cpu_set_t set = cpus(cpu);
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
	if (pthread_create(&thread, &attr, run, NULL))
		fail("no thread for CPU %d", cpu);
	pthread_attr_destroy(&attr);
	return thread;
}

/* ---- tests and their report ---------------------------------------------- */

static void bail_out_if_fails(void (*run)(void))
{
	if (setjmp(test_end)) {
		printf("Bail out! %s\n", reason);
		exit(1);
	}
	run();
}

static int run_test(const struct program *program, const struct test *test)
{
	int how = setjmp(test_end);

	if (how == PASSED) {
		about[0] = '\0';
		program->set_up(test);
		test->run();
	}
	return how;
}

static bool one_test(const struct program *program, const struct test *test, unsigned int number)
{
	int how = run_test(program, test);
	char why[sizeof(reason)];

	memcpy(why, reason, sizeof(why));
	bail_out_if_fails(program->tear_down);
	if (how == FAILED)
		printf("# %s\n", why);
	printf("%sok %u %s", how == FAILED ? "not " : "", number, test->name);
	if (how == SKIPPED)
		printf(" # SKIP %s", why);
	printf("\n");
	return how != FAILED;
}

int run_tests(const struct program *program, const struct suite *const *suites,
	      unsigned int count, const char *wanted)
{
	unsigned int planned = 0, done = 0, failures = 0, s, i;

	for (s = 0; s < count; s++)
		for (i = 0; i < suites[s]->count; i++)
			planned += !!strstr(suites[s]->tests[i].name, wanted);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("KTAP version 1\n1..%u\n", planned);
	in_test = true;
	bail_out_if_fails(program->prepare);
	for (s = 0; s < count; s++) {
		for (i = 0; i < suites[s]->count; i++) {
			const struct test *test = &suites[s]->tests[i];

			if (strstr(test->name, wanted))
				failures += !one_test(program, test, ++done);
		}
	}
	printf("# %u of %u failed\n", failures, planned);
	return failures ? 1 : 0;
}
