// SPDX-License-Identifier: GPL-2.0-only
/*
 * Walks of torture_test: each is of a process of its own, so that its end closes all, and
 * the host has to be as it was before. One that fails is made shorter.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "mark.h"
#include "torture.h"

#define LONGEST		4000
/* Seconds without a step: a hang */
#define STEP_LIMIT	60
/* So many walks at most to make one shorter */
#define MOST_REPLAYS	250
/* Up to here all is compared after each step of a replay. */
#define SHORT		80
/*
 * Of so many steps enough are done with faults for calls to fail in each way. In fewer there
 * may be no ADD of a VM's first file with a VFIO file at hand, which alone asks for vfio.ko.
 * test_places() makes calls fail in each way for certain, where the devices are the fixture's.
 */
#define ENOUGH		5000

/* What the process of a walk and the one that watches it share */
static struct walk {
	volatile int at;	/* the step, or how many there were */
	int count;
	bool failed;
	enum aspect aspect;
	char why[2400];
	unsigned long injected;
	int fault_kinds, faults_from;	/* a step */
	uint64_t flushes[CPUS];	/* as the model says */
	bool cpu1_gone;		/* it went offline, and executed a WBINVD for that */
	long done[STEP_KINDS], succeeded[STEP_KINDS], seen[2];
	double took[STEP_KINDS], compared;	/* seconds */
	struct step steps[LONGEST];
} *walk;

bool stock, results_only, misled, without_step[STEP_KINDS];

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* ---- in the process of the walk ------------------------------------------ */

void wrong(enum aspect aspect, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(walk->why, sizeof(walk->why), format, args);
	va_end(args);
	walk->aspect = aspect;
	walk->failed = true;
	end_processes();
	_exit(1);
}

static void count_seen(void)
{
	int v;

	for (v = 0; v < VMS; v++)
		if (vms[v].has_device)
			walk->seen[!!vms[v].noncoherent]++;
}

static void open_containers(void)
{
	int i;

	for (i = 0; i < CONTAINERS; i++) {
		containers[i].fd = open_container();
		containers[i].alive = true;
	}
}

/* The steps from PICKED_FROM on are picked, when it is their turn. */
static void __attribute__((noreturn)) be_walk(int picked_from)
{
	bool replay = picked_from >= walk->count && !fuzzing, with_faults = faults;
	double begin, done;
	uint64_t before;
	int cpu;

	if (setjmp(test_end))
		wrong(BROKEN, "%s", why_ended());
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	model_begin();
	open_containers();
	/* An earlier walk may have left CPU 1 offline, and so its counter without a CPU. */
	if (cpu1_online)
		count_flushes_on(1);
	before = flushes_on[0] = flushes_counted();
	fault_open();
	fuzz_begin();
	for (walk->at = 0; walk->at < walk->count; walk->at++) {
		struct step *step = &walk->steps[walk->at];

		faults = with_faults && walk->at >= walk->faults_from;
		if (walk->at >= picked_from)
			pick_step(step);
		fuzz_reset();
		has_succeeded = false;
		begin = now();
		do_step(step);
		done = now();
		walk->succeeded[step->kind % STEP_KINDS] += has_succeeded;
		fuzz_follow();
		walk->took[step->kind % STEP_KINDS] += done - begin;
		if (!results_only) {
			if (replay && walk->count <= SHORT && !stock)
				check_all();
			else
				check_some(step, walk->at);
			count_seen();
			walk->compared += now() - done;
		}
		walk->done[step->kind % STEP_KINDS]++;
		walk->cpu1_gone |= !cpu1_online;
	}
	if (!results_only)
		check_all();
	for (cpu = 0; cpu < CPUS; cpu++)
		walk->flushes[cpu] = flushes_on[cpu] - (cpu ? 0 : before);
	walk->injected += faults_injected;
	walk->fault_kinds |= fault_kinds;
	end_processes();
	_exit(0);
}

/* ---- who watches it ------------------------------------------------------ */

static void hangs(pid_t pid)
{
	walk->failed = true;
	walk->aspect = HANG;
	snprintf(walk->why, sizeof(walk->why), "no end after %d s", STEP_LIMIT);
	say_where(pid);
	kill(pid, SIGKILL);
}

static void wait_for_walk(pid_t pid)
{
	struct pollfd end = { .fd = syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };
	double limit = now() + STEP_LIMIT;
	int at = walk->at;

	while (poll(&end, 1, 1000) == 0) {
		if (walk->at != at) {
			limit = now() + STEP_LIMIT;
			at = walk->at;
		} else if (now() > limit) {
			hangs(pid);
			if (poll(&end, 1, 10000) == 0)
				never_ends("a walk that is killed");
		}
	}
	close(end.fd);
}

/* It and those that it has forked, whose parent this process becomes */
static int reap(pid_t pid)
{
	int status = 0, other;
	pid_t found;

	while ((found = waitpid(-1, &other, 0)) > 0)
		if (found == pid)
			status = other;
	return status;
}

/* ---- seen from outside --------------------------------------------------- */

static int phases;
static bool in_phase;

/*
 * What the host executes from here on is the walk's, up to the end of all that it had. The marks
 * are this process's, which stays on CPU 0.
 */
static void begin_phase(void)
{
	int number = MARK_FIRST_PHASE + phases;

	if (!in_phase)
		return;
	if (number >= MOST_MARKS)
		fail("more than %d walks", phases);
	mark(number);
}

/* For tests/kit/wbinvd_compare. Of a walk that failed, or of stock modules, the model knows nothing. */
static void end_phase(const char *of, int seed)
{
	int cpu;

	if (!in_phase)
		return;
	mark(MARK_NO_PHASE);
	in_phase = false;
	printf("# expect %d by 0 host", MARK_FIRST_PHASE + phases++);
	for (cpu = 0; cpu < CPUS; cpu++)
		if (walk->failed || stock || (cpu && walk->cpu1_gone))
			printf(" %d:*", cpu);
		else
			printf(" %d:%lu", cpu, (unsigned long)walk->flushes[cpu]);
	printf(" guest");
	for (cpu = 0; cpu < CPUS; cpu++)
		printf(" %d:*", cpu);
	printf(" -- %s of seed %d\n", of, seed);
}

void end_phases(void)
{
	mark(MARK_END);
	printf("# expected %d phases\n", phases);
}

/* The first steps, up to PICKED_FROM, are in walk->steps already. */
static bool run_walk(int count, int picked_from)
{
	const char *left;
	int status;
	pid_t pid;

	if (picked_from < count || fuzzing)
		restore_devices();
	else
		renew_devices();	/* no replay depends on the one before */
	walk->at = 0;
	walk->count = count;
	walk->failed = false;
	walk->cpu1_gone = false;
	walk->why[0] = '\0';
	begin_phase();
	fflush(stdout);
	pid = must(fork());
	if (!pid)
		be_walk(picked_from);
	wait_for_walk(pid);
	status = reap(pid);
	if (!walk->failed && (!WIFEXITED(status) || WEXITSTATUS(status))) {
		walk->failed = true;
		walk->aspect = BROKEN;
		snprintf(walk->why, sizeof(walk->why), "the process ended with %#x", status);
	}
	left = walk->failed ? NULL : references_left();
	if (left) {
		walk->failed = true;
		walk->aspect = REFERENCES;
		snprintf(walk->why, sizeof(walk->why), "%s", left);
	}
	return !walk->failed;
}

/* ---- a failed walk ------------------------------------------------------- */

static void print_walk(int count)
{
	int i;

	printf("# static const struct step steps[] = {\n");
	for (i = 0; i < count; i++)
		printf("#\t{ STEP_%s, %d, %d, %d },\n", step_names[walk->steps[i].kind % STEP_KINDS],
		       walk->steps[i].a, walk->steps[i].b, walk->steps[i].c);
	printf("# };\n");
	if (faults)
		printf("# --faults %d\n", walk->faults_from);
}

static void print_why(void)
{
	char *line, *rest = walk->why;

	while ((line = strsep(&rest, "\n")))
		printf("# %s%s\n", line == walk->why ? "" : "  ", line);
}

/* STEPS without those from FROM up to TO; calls fail from the step on that was FAULTS_FROM. */
static int leave_out(const struct step *steps, int count, int from, int to, int faults_from)
{
	walk->faults_from = faults_from >= to ? faults_from - (to - from) :
			    faults_from > from ? from : faults_from;
	memcpy(walk->steps, steps, from * sizeof(*steps));
	memcpy(walk->steps + from, steps + to, (count - to) * sizeof(*steps));
	return count - (to - from);
}

/* Leaves out parts of it, smaller and smaller ones, until each single step is needed. */
static int make_shorter(int count, enum aspect aspect)
{
	static struct step steps[LONGEST];
	int part, from, left, before, faults_from = walk->faults_from, replays = 0;

	memcpy(steps, walk->steps, count * sizeof(*steps));
	for (part = (count + 1) / 2; part && replays < MOST_REPLAYS;
	     part = part > 1 ? (part + 1) / 2 : count < before) {
		before = count;
		for (from = 0; from < count && replays < MOST_REPLAYS; replays++) {
			int to = from + part < count ? from + part : count;

			left = leave_out(steps, count, from, to, faults_from);
			if (run_walk(left, left) || walk->aspect != aspect) {
				from = to;
				continue;
			}
			/* It failed at that step: those after it do not matter. */
			count = walk->at + 1 < left ? walk->at + 1 : left;
			faults_from = walk->faults_from;
			memcpy(steps, walk->steps, count * sizeof(*steps));
		}
	}
	memcpy(walk->steps, steps, count * sizeof(*steps));
	walk->faults_from = faults_from;
	printf("# %d steps are left, after %d replays\n", count, replays);
	return count;
}

/* All about it but the first line; the walk is in walk->steps. */
static void explain_walk(void)
{
	int count = walk->at < walk->count ? walk->at + 1 : walk->count;
	enum aspect aspect = walk->aspect;
	const char *left;

	print_why();
	left = references_left();
	/* With faults each replay takes its time: who waits for its end may end before. */
	if (faults)
		print_walk(count);
	if (left || aspect == HANG || aspect == BROKEN) {
		if (left)
			printf("# not made shorter, because after it %s\n", left);
		if (!faults)
			print_walk(count);
		return;
	}
	if (run_walk(count, count)) {
		printf("# all of it, done again, does not fail\n");
		print_walk(count);
		return;
	}
	count = make_shorter(walk->at < count ? walk->at + 1 : count, aspect);
	if (run_walk(count, count))
		printf("# which does not fail every time\n");
	else
		print_why();
	print_walk(count);
}

/* What is done again for that is a replay, whatever it was. */
static void explain(void)
{
	bool fuzzed = fuzzing;

	fuzzing = false;
	explain_walk();
	fuzzing = fuzzed;
}

/* ---- cases --------------------------------------------------------------- */

static void share_walk(void)
{
	if (walk)
		return;
	walk = shared_memory(sizeof(*walk));
	must(prctl(PR_SET_CHILD_SUBREAPER, 1));
}

static void print_done(void)
{
	int i;

	printf("# times, with success, and milliseconds:");
	for (i = 0; i < STEP_KINDS; i++)
		printf(" %s %ld %ld %.0f", step_names[i], walk->done[i], walk->succeeded[i],
		       walk->took[i] * 1e3);
	printf("; compared %.0f\n", walk->compared * 1e3);
}

/*
 * How many steps in a hundred are, with the three before them, those of the walk before this one?
 * Walks of one length that are picked anew have none in common, and those that can be told are few.
 */
static int alike(const struct step *steps, int count)
{
	static uint8_t before[1 << 16];
	uint8_t now[sizeof(before)] = {};
	int i, j, same = 0;
	uint64_t hash;

	for (i = 3; i < count; i++) {
		for (hash = 0, j = i - 3; j <= i; j++)
			hash = (hash ^ steps[j].kind ^ steps[j].a << 8 ^ steps[j].b << 16 ^
				(uint64_t)steps[j].c << 24) * 0x9e3779b97f4a7c15ULL;
		same += before[hash >> 48];
		now[hash >> 48] = 1;
	}
	memcpy(before, now, sizeof(before));
	return same * 100 / count;
}

/* Of so many steps some of each kind have done what they are for. */
#define MANY		8000

static bool is_possible(int kind)
{
	switch (kind) {
	case STEP_CDEV:
	case STEP_CDEV_BIND:
	case STEP_CDEV_ATTACH:
	case STEP_CDEV_DETACH:
		return has_iommufd;
	case STEP_PASID_ATTACH:
	case STEP_PASID_DETACH:
		return has_pasids;
	case STEP_UNBLOCK:
		return has_uffd;
	case STEP_BLOCK:
	case STEP_VM_CLOSE:
	case STEP_DEVICE_CLOSE:
	case STEP_BAD:
	case STEP_CLOSE:
	case STEP_RECEIVE:
	case STEP_CONTAINER:
	case STEP_COHERENT:
	case STEP_FORK:
	case STEP_KILL:
	case STEP_FOREIGN:
		return false;		/* nothing of theirs is expected to succeed, by its result */
	}
	return !without_step[kind];
}

static void must_have_succeeded(void)
{
	int kind;

	for (kind = 0; kind < STEP_KINDS; kind++)
		if (is_possible(kind) && !walk->succeeded[kind])
			fail("%s has never succeeded, in %ld steps", step_names[kind],
			     walk->done[kind]);
}

/* What the names of the cases have alone, for --only */
static const char *const stream_names[] = {
	"random calls", "a random walk", "a walk with faults", "a walk to new places",
};
enum stream { RANDOM_CALLS, RANDOM_WALK, WITH_FAULTS, TO_NEW_PLACES };

static void walk_on(long steps)
{
	int number, length, picked_from, failures = 0;
	double begin = now(), said = begin;
	enum stream stream = faults ? WITH_FAULTS : fuzzing ? TO_NEW_PLACES :
			     results_only ? RANDOM_CALLS : RANDOM_WALK;
	long done = 0;
	bool good;

	share_walk();
	memset(walk->done, 0, sizeof(walk->done));
	memset(walk->succeeded, 0, sizeof(walk->succeeded));
	memset(walk->took, 0, sizeof(walk->took));
	walk->compared = 0;
	memset(walk->seen, 0, sizeof(walk->seen));
	walk->injected = 0;
	walk->fault_kinds = 0;
	for (number = 0; done < steps; number++, done += length) {
		length = steps - done < options.length ? steps - done : options.length;
		seed_random(options.seed + number, stream);
		picked_from = 0;
		/* They are slow, and there has to be something that can go wrong. */
		walk->faults_from = length / 3;
		if (fuzzing)
			length = fuzz_walk(walk->steps, number, &picked_from);
		in_phase = true;
		good = run_walk(length, picked_from);
		end_phase(stream_names[stream], options.seed + number);
		if (!fuzzing && alike(walk->steps, length) > 30)
			fail("seed %u has the steps of the one before it", options.seed + number);
		if (good) {
			fuzz_keep(walk->steps, length);
		} else {
			enum aspect aspect = walk->aspect;
			int at = walk->at < length ? walk->at : length - 1;
			int kind = walk->steps[at].kind % STEP_KINDS;

			if (fuzzing || faults)
				printf("# a walk of %d steps, %d of them picked, %sfails in step %d (%s)\n",
				       length, length - picked_from, faults ? "with faults, " : "", at,
				       step_names[kind]);
			else
				printf("# --seed %u --steps %d --length %d --only '%s' fails in step %d (%s)\n",
				       options.seed + number, length, length,
				       stream_names[stream], at, step_names[kind]);
			explain();
			without_step[kind] = true;
			if (++failures >= options.failures)
				fail("seed %u, step %d: %s", options.seed + number, at,
				     aspect_names[aspect]);
		}
		if (now() - said > 10) {
			said = now();
			printf("# %ld of %ld steps, %.0f a second\n", done + length, steps,
			       (done + length) / (said - begin));
		}
	}
	if (failures)
		fail("%d walks have failed", failures);
	printf("# seed %u, %ld steps in %d walks, %.0f a second\n", options.seed, done, number,
	       done / (now() - begin));
	if (stream == RANDOM_WALK && done >= MANY)
		must_have_succeeded();
	print_done();
}

void test_results(void)
{
	results_only = true;
	walk_on(options.steps / 4);
	results_only = false;
}

void test_walk(void)
{
	walk_on(options.steps);
	printf("# a VM with a device was coherent %ld times, non-coherent %ld times\n",
	       walk->seen[0], walk->seen[1]);
	/* Of devices that are all coherent, no VM ever becomes non-coherent. */
	if (has_noncoherent_devices() ? walk->seen[0] < walk->seen[1] / 10 ||
	    walk->seen[1] < walk->seen[0] / 10 : !walk->seen[0] || walk->seen[1])
		fail("walks in which VMs are of one kind prove little");
}

void test_faults(void)
{
	const char *why = no_faults();

	if (why)
		skip("%s", why);
	faults = true;
	walk_on(options.steps / 10);
	faults = false;
	printf("# %lu calls failed because they were made to\n", walk->injected);
	if (!walk->injected)
		fail("no call was made to fail");
	if (options.steps >= ENOUGH)
		must_be_all_kinds(walk->fault_kinds);
}

/* Is what is wrong noticed, and does little of the walk remain? */
void test_shorter(void)
{
	int count, seed = options.seed;

	/* Of which files are not counted */
	if (stock)
		return;
	share_walk();
	misled = true;
	walk->faults_from = LONGEST;
	do
		seed_random(seed++, RANDOM_WALK);
	while (run_walk(options.length, 0) && seed < (int)options.seed + 8);
	if (!walk->failed)
		fail("a model that is wrong is as good as another one");
	count = make_shorter(walk->at + 1, walk->aspect);
	if (run_walk(count, count))
		fail("what is left does not fail");
	if (walk->aspect != STATE)
		fail("what is left fails by its %s: %s", aspect_names[walk->aspect], walk->why);
	/*
	 * A VM, its device, and two files that it tracks take six; of two devices of groups in
	 * containers of their own it is twelve: the groups, which join, and the IOMMUs.
	 */
	if (count > 12) {
		print_walk(count);
		fail("%d steps are left", count);
	}
	misled = false;
	if (!run_walk(count, count))
		fail("what is left fails with the right model, too: %s", walk->why);
}

/* Walks that are like those that came to new places in the kernel */
void test_fuzz(void)
{
	const char *why = no_kcov();

	if (why)
		skip("%s", why);
	fuzzing = true;
	walk_on(options.steps / 2);
	fuzzing = false;
	fuzz_print();
	if (options.steps >= ENOUGH && has_noncoherent_devices() && !walk->seen[1])
		fail("no VM was ever non-coherent");
}

/* ---- a walk from a file -------------------------------------------------- */

static int kind_named(const char *name)
{
	int i;

	for (i = 0; i < STEP_KINDS; i++)
		if (!strcmp(step_names[i], name))
			return i;
	fail("%s has a step %s, which is none", options.replay, name);
}

static int read_walk(void)
{
	FILE *file = fopen(options.replay, "re");
	char line[200], name[40];
	unsigned int a, b, c;
	int count = 0;

	if (!file)
		fail("%s: %s", options.replay, strerror(errno));
	while (fgets(line, sizeof(line), file) && count < LONGEST) {
		const char *step = strstr(line, "{ STEP_");

		if (step && sscanf(step, "{ STEP_%39[A-Z_], %u, %u, %u }", name, &a, &b, &c) == 4)
			walk->steps[count++] = (struct step){ kind_named(name), a, b, c };
	}
	fclose(file);
	return count;
}

void test_replay(void)
{
	const char *why = options.faults != NONE ? no_faults() : NULL;
	int count;

	if (why)
		skip("%s", why);
	share_walk();
	count = read_walk();
	printf("# %d steps of %s\n", count, options.replay);
	walk->faults_from = options.faults;
	faults = options.faults != NONE;
	if (run_walk(count, count))
		return;
	print_why();
	fail("step %d: %s", walk->at, aspect_names[walk->aspect]);
}
