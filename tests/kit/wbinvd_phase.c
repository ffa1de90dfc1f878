// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the tests have in common whose oracle counts WBINVDs: see the header.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "mark.h"
#include "vm.h"
#include "wbinvd_phase.h"

bool noncoherent_host;
int patience = 1;

/* ---- waiting ------------------------------------------------------------- */

void sleep_ms(int ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000L };

	nanosleep(&t, NULL);
}

static double seconds(clockid_t clock)
{
	struct timespec t;

	must(clock_gettime(clock, &t));
	return t.tv_sec + t.tv_nsec / 1e9;
}

double now(void)
{
	return seconds(CLOCK_MONOTONIC);
}

/* ---- phases -------------------------------------------------------------- */

#define MARK_MAX	512

/* Shared by all processes of the test. */
static struct {
	int next_phase;
	bool offline;		/* CPU 2 was left offline */
} *shared;

const struct scenario *scenario;

struct expected expected;

void phase_begin(void)
{
	expected.number = shared->next_phase++;
	if (expected.number >= MARK_MAX)
		fail("more than %d phases", MARK_MAX);
	mark(expected.number);
}

static void print_range(int cpu, int min, int max)
{
	if (max < 0)
		printf(" %d:*", cpu);
	else if (min != max)
		printf(" %d:%d-%d", cpu, min, max);
	else if (max)
		printf(" %d:%d", cpu, max);
}

static void print_total(int n)
{
	if (n)
		printf(" total:%d", n);
}

static void print_clflushes(void)
{
	int i;

	if (!expected.clflushes_count)
		return;
	printf(" clflush %ld-%ld", expected.clflushes.min, expected.clflushes.max);
	for (i = 0; i < MAX_EVENTS; i++)
		if (expected.events[i].wanted)
			printf(" at %d:%ld-%ld", i, expected.events[i].first,
			       expected.events[i].last);
}

void phase_end(void)
{
	int cpu;

	mark(MARK_BETWEEN);
	printf("# expect %d by %d host", expected.number, expected.by);
	print_total(expected.host_total);
	for (cpu = 0; cpu < CPUS; cpu++)
		print_range(cpu, expected.host[cpu].min, expected.host[cpu].max);
	printf(" guest");
	print_total(expected.guest_total);
	for (cpu = 0; cpu < CPUS; cpu++)
		print_range(cpu, expected.guest[cpu], expected.guest[cpu]);
	print_clflushes();
	printf(" -- %s: %s\n", scenario->name, expected.what);
}

void expect_unrelated(int cpu, int min, int max)
{
	expected.host[cpu].min = min;
	expected.host[cpu].max = max;
}

void expect_some_flushes(int cpu, int min, int max)
{
	if (noncoherent_host) {
		expected.host[cpu].min += min;
		expected.host[cpu].max += max;
	}
}

void expect_flushes(int cpu, int n)
{
	expect_some_flushes(cpu, n, n);
}

void expect_flush(int cpu)
{
	expect_flushes(cpu, 1);
}

void expect_total(int n, int more)
{
	int cpu;

	for (cpu = 1; cpu < CPUS; cpu++) {
		expected.guest[cpu] = -1;
		expected.host[cpu].max = noncoherent_host ? -1 : 0;
	}
	expected.guest_total = n;
	expected.host_total = noncoherent_host ? n + more : 0;
}

void expect_clflushes(long min, long max)
{
	expected.clflushes_count = true;
	expected.clflushes.min = min;
	expected.clflushes.max = max;
}

void expect_event(int event, long first, long last)
{
	expected.events[event].wanted = true;
	expected.events[event].first = first;
	expected.events[event].last = last;
}

/* ---- CPUs ---------------------------------------------------------------- */

void set_online(int cpu, bool online)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
	must_put(path, "%d", online);
}

void set_cpu2_online(bool online)
{
	shared->offline = !online;
	set_online(2, online);
	/* A dying CPU reports itself dead just before its last WBINVD. */
	sleep_ms(500 * patience);
}

/* ---- vCPUs --------------------------------------------------------------- */

void wait_sem(sem_t *sem, const char *what)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	t.tv_sec += SCENARIO_LIMIT / 2;
	if (sem_timedwait(sem, &t))
		fail("%s: %s", what, strerror(errno));
}

void wait_vm_number(pid_t creator, int vm, const char *name, long long n)
{
	double limit = now() + SCENARIO_LIMIT / 2;
	long long got;

	while ((got = vm_number(creator, vm, name)) != n) {
		if (got < 0 || now() > limit)
			fail("%s is %lld and does not become %lld", name, got, n);
		sleep_ms(1);
	}
}

static void judge_stop(struct vcpu_thread *t)
{
	if (t->error)
		fail("KVM_RUN: %s", strerror(t->error));
	if (t->run->exit_reason != t->stop_reason)
		fail("a vCPU stopped with exit reason %u", t->run->exit_reason);
}

static void *vcpu_thread(void *arg)
{
	struct vcpu_thread *t = arg;

	t->tid = gettid();
	/* Creating a vCPU loads it too: let that be where it is to run. */
	must(pin(0, t->first_cpu));
	t->setup(t);
	sem_post(&t->ready);
	for (;;) {
		while (sem_wait(&t->go))
			;
		t->error = ioctl(t->fd, KVM_RUN, 0) ? errno : 0;
		if (!t->any_stop)
			judge_stop(t);
		sem_post(&t->stopped);
	}
	return NULL;
}

static void on_signal(int signal)
{
	(void)signal;
}

void vcpu_thread_create(struct vcpu_thread *t, int cpu,
			void (*setup)(struct vcpu_thread *t))
{
	struct sigaction action = { .sa_handler = on_signal };

	must(sigaction(SIGUSR1, &action, NULL));
	t->setup = setup;
	t->first_cpu = cpu;
	sem_init(&t->ready, 0, 0);
	sem_init(&t->go, 0, 0);
	sem_init(&t->stopped, 0, 0);
	if (pthread_create(&t->thread, NULL, vcpu_thread, t))
		fail("cannot create a thread");
	wait_sem(&t->ready, "creating a vCPU");
}

void vcpu_thread_go(struct vcpu_thread *t)
{
	sem_post(&t->go);
}

void vcpu_thread_wait(struct vcpu_thread *t)
{
	wait_sem(&t->stopped, "stopping a vCPU");
}

void vcpu_thread_interrupt(struct vcpu_thread *t)
{
	if (pthread_kill(t->thread, SIGUSR1))
		fail("the vCPU's thread takes no signal");
}

double vcpu_thread_cpu_time(struct vcpu_thread *t)
{
	clockid_t clock;

	if (pthread_getcpuclockid(t->thread, &clock))
		fail("the vCPU's thread has no clock");
	return seconds(clock);
}

/* ---- VFIO ---------------------------------------------------------------- */

int group_open(int index)
{
	int number = group_number_of(edu_device(index)), fd;
	double limit = now() + 5;

	/* Only one file a group: the scenario before may still be closing it. */
	while ((fd = open_group_number(number)) == -EBUSY && now() < limit)
		sleep_ms(10);
	if (fd < 0)
		fail("/dev/vfio/%d: %s", number, strerror(-fd));
	return fd;
}

int group_attach(int group)
{
	int container = must(open_container());

	must(group_join(group, container));
	must(container_set_iommu(container));
	return container;
}

/* ---- scenarios ----------------------------------------------------------- */

void wait_for_death(pid_t pid)
{
	must(waitpid(pid, NULL, 0));
}

pid_t fork_child(void)
{
	fflush(stdout);
	return must(fork());
}

pid_t fork_doomed(void (*setup)(void))
{
	int report[2];
	char byte;
	pid_t pid;

	must(pipe(report));
	pid = fork_child();
	if (!pid) {
		setup();
		must(write(report[1], "x", 1));
		for (;;)
			pause();
	}
	/* Only the other process can end the read without a byte. */
	close(report[1]);
	if (read(report[0], &byte, 1) != 1)
		fail("the process to be killed ended by itself");
	close(report[0]);
	return pid;
}

/* Something hangs, and with it perhaps the CPU: nothing is to be learned any more. */
static void bail_out(pid_t pid)
{
	kill(pid, SIGKILL);
	printf("Bail out! No end after %d s\n", SCENARIO_LIMIT);
	exit(1);
}

/* A process of its own, so that its end closes everything. */
static bool run_scenario(const struct scenario *s)
{
	double limit = now() + SCENARIO_LIMIT;
	pid_t pid = fork_child();
	int status;

	if (!pid) {
		scenario = s;
		s->run();
		fflush(stdout);
		_exit(0);
	}
	while (must(waitpid(pid, &status, WNOHANG)) == 0) {
		if (now() > limit)
			bail_out(pid);
		sleep_ms(20);
	}
	/* Not to spoil what follows. */
	if (shared->offline)
		set_cpu2_online(true);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/*
 * The first VM, and the first vCPU with and without an interrupt controller,
 * make KVM patch kernel code that every CPU executes all the time (static
 * keys); the last ones patch it back. QEMU 7.2 may keep what it translated from
 * an INT3 that stood there for a moment: a CPU that translates it just while
 * another one overwrites it then traps for ever. So let one VM of each kind
 * exist all the time, and create them while no other CPU is there to fall into
 * that.
 */
static void keep_a_vm(bool irqchip)
{
	int vm = create_vm();

	if (irqchip)
		must(ioctl(vm, KVM_CREATE_IRQCHIP, 0));
	must(ioctl(vm, KVM_CREATE_VCPU, 0));
}

static void keep_vms(void)
{
	int cpu;

	for (cpu = 1; cpu < CPUS; cpu++)
		set_online(cpu, false);
	keep_a_vm(false);
	keep_a_vm(true);
	for (cpu = 1; cpu < CPUS; cpu++)
		set_online(cpu, true);
}

static void prepare(void)
{
	const char *snoop = getenv("LAB_SNOOP"), *kernel = getenv("LAB_KERNEL");

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (sysconf(_SC_NPROCESSORS_ONLN) != CPUS)
		fail("this test needs %d CPUs, run it with --smp %d", CPUS, CPUS);
	if (!snoop)
		fail("LAB_SNOOP is not set, run this in the lab");
	noncoherent_host = !strcmp(snoop, "off");
	if (kernel && (!strcmp(kernel, "debug") || !strcmp(kernel, "races")))
		patience = 6;
	shared = shared_memory(sizeof(*shared));
	shared->next_phase = MARK_FIRST_PHASE;
	make_marks(MARK_MAX);
	must(pin(0, 0));
	keep_vms();
}

int run_scenarios(const struct scenario *scenarios, int n, const char *remark)
{
	int i, failed = 0;

	printf("KTAP version 1\n1..%d", n);
	if (remark)
		printf(" # %s", remark);
	printf("\n");
	prepare();
	mark(MARK_BETWEEN);
	for (i = 0; i < n; i++) {
		bool ok = run_scenario(&scenarios[i]);

		printf("%s %d %s\n", ok ? "ok" : "not ok", i + 1, scenarios[i].name);
		failed += !ok;
	}
	mark(MARK_END);
	printf("# expected %d phases\n", shared->next_phase - MARK_FIRST_PHASE);
	return failed != 0;
}
