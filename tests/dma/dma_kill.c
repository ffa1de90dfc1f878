// SPDX-License-Identifier: GPL-2.0-only
/* Mappings that fail half way, and whose owner is killed: see dma_test.c. */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "dma.h"
#include "hold.h"

#define AT	0x100000ull

/* ---- what fails ---------------------------------------------------------- */

/* @pages of it were flushed, mapped and, if they are @unwound, flushed again. */
static void failing_phase(int container, void *memory, size_t size, int error, int pages,
			  int unwound)
{
	long before = pins();

	phase("mapping fails half way: %s", strerror(error));
	if (!container_map(container, memory, AT, size) || errno != error)
		fail("it does not fail by that, but by %s", strerror(errno));
	expect_clflushes((pages + unwound) * LINES, (pages + unwound) * LINES);
	phase_end();
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
	if (locked_kb())
		fail("%ld kB are still locked", locked_kb());
	if (container_unmap(container, AT, size))
		fail("something is still mapped");
}

static void hole(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);
	char *memory = same_page(16);

	must(munmap(memory + 12 * PAGE, PAGE));
	/* Where the last run ends is known only with the page behind it: it is not mapped. */
	failing_phase(container, memory, 16 * PAGE, EFAULT, 11, 11);
}

static void coherent_hole(void)
{
	int container = attach_phase(group_of(COHERENT), true);
	char *memory = same_page(16);

	must(munmap(memory + 12 * PAGE, PAGE));
	failing_phase(container, memory, 16 * PAGE, EFAULT, 0, 0);
}

static void memlock(void)
{
	const struct rlimit limit = { 8 * PAGE, 8 * PAGE };
	int container = attach_phase(group_of(NONCOHERENT), false);
	char *memory = same_page(16);
	long before = pins();
	int ret;

	must(setrlimit(RLIMIT_MEMLOCK, &limit));
	phase("mapping fails at RLIMIT_MEMLOCK");
	must(seteuid(65534));
	ret = container_map(container, memory, AT, 16 * PAGE);
	must(seteuid(0));
	if (!ret)
		fail("it does not fail");
	expect_clflushes(16 * LINES, 16 * LINES);
	phase_end();
	if (pins() != before || locked_kb())
		fail("%ld pages are pinned, %ld kB locked", pins() - before, locked_kb());
}

/* The domain takes some pages of a run, and gives them back. */
static void no_room(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);

	must_put(ROOM, "100");
	failing_phase(container, huge_pages(1), HUGE_PAGE, ENOSPC, 512, 512);
	must_put(ROOM, "10");
	failing_phase(container, same_page(16), 16 * PAGE, ENOSPC, 11, 11);
	must_put(ROOM, "-1");
}

/* In the second domain only: the devices of the first could access it. */
static void no_room_to_join(void)
{
	int group = group_of(NONCOHERENT), container = attach_phase(group_of(COHERENT), true);
	long lines;

	map_phase(container, same_page(4), AT, 4 * PAGE, 4, 0);
	must_put(ROOM, "%d", TEST_PAGES + 2);
	phase("a non-coherent group cannot join");
	if (!group_join(group, container) || errno != ENOSPC)
		fail("it does not fail by that, but by %s", strerror(errno));
	/* Three were flushed to be mapped, the last one again when it was not. */
	lines = (3 + 1 + 2 * TEST_PAGES) * LINES;
	expect_clflushes(lines, lines);
	phase_end();
	must_put(ROOM, "-1");
	unmap_phase(container, AT, 4 * PAGE, 4, 4 * LINES);
}

/* Those were pinned to be mapped, and are not any more. */
static void no_room_for_emulated(void)
{
	int container = attach_phase(group_of(new_device("emulated")), true);
	int bad = group_of(NONCOHERENT), good = group_of(COHERENT);
	long before = pins(), lines;

	must(container_map(container, same_page(4), AT, 4 * PAGE));
	must_put(ROOM, "%d", TEST_PAGES + 2);
	phase("a non-coherent group cannot join emulated ones");
	if (!group_join(bad, container) || errno != ENOSPC)
		fail("it does not fail by that, but by %s", strerror(errno));
	lines = (3 + 3 + 2 * TEST_PAGES) * LINES;
	expect_clflushes(lines, lines);
	/* The one that was not mapped first, of those that were the last at the end */
	expect_event(UNPINNED, lines - 2 * LINES, lines);
	phase_end();
	must_put(ROOM, "-1");
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
	join_phase(good, container, 0, false);
	leave_phase(good, 0);
}

/*
 * Of eight runs the IOMMU does not unmap number @nth, counted from 0. Those before it are
 * unpinned, and it is unmapped once more and unpinned, before the others are unmapped.
 */
static void unmap_fails_once(int container, int nth)
{
	/* Flushed by the time of the last call to unmap, and of the last sync */
	long last = nth < 7 ? (nth + 1) * LINES : nth * LINES;

	map_phase(container, same_page(8), AT, 8 * PAGE, 8, 8 * LINES);
	must_put(UNMAPS_LEFT, "%d", nth);
	phase("8 runs are unmapped, number %d only when it is tried again", nth);
	if (must(container_unmap(container, AT, 8 * PAGE)) != 8 * PAGE)
		fail("not all of it was unmapped");
	expect_clflushes(8 * LINES, 8 * LINES);
	expect_event(UNMAPPED, 0, last);
	expect_event(SYNCED, 0, last);
	expect_event(UNPINNED, LINES, 8 * LINES);
	phase_end();
	if (get_number(UNMAPS_LEFT) != -1)
		fail("it was not tried so often");
}

static void unmap_tried_again(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);
	long before = pins();

	unmap_fails_once(container, 0);
	unmap_fails_once(container, 3);
	unmap_fails_once(container, 7);
	map_phase(container, huge_pages(1), HUGE_PAGE, HUGE_PAGE, 1, HUGE_LINES);
	must_put(UNMAPS_LEFT, "0");
	unmap_phase(container, HUGE_PAGE, HUGE_PAGE, 1, HUGE_LINES);
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
}

/* ---- who is killed ------------------------------------------------------- */

/* When it may start, and that it is through */
static int go[2], done[2];

pid_t fork_flusher(void (*prepare)(void), void (*flush)(void))
{
	char byte;
	pid_t pid;

	must(pipe(go));
	must(pipe(done));
	pid = fork_child();
	if (pid)
		return pid;
	must(prctl(PR_SET_PDEATHSIG, SIGKILL));
	prepare();
	must(pin(0, 1));
	must(read(go[0], &byte, 1));
	flush();
	must(write(done[1], "x", 1));
	for (;;)
		pause();
}

void hold_flusher(int skip)
{
	char options[40];

	snprintf(options, sizeof(options), "second=%lu skip=%d", HUGE_PAGE, skip);
	hold_at("clflush_cache_range", options);
}

static bool is_held_or_through(void)
{
	struct pollfd through = { .fd = done[0], .events = POLLIN };

	return somebody_is_held() || poll(&through, 1, 0) == 1;
}

bool start_flusher(void)
{
	must(write(go[1], "x", 1));
	wait_until(is_held_or_through, "a flush");
	return somebody_is_held();
}

void end_flusher(void)
{
	char byte;

	release_held();
	if (poll(&(struct pollfd){ .fd = done[0], .events = POLLIN }, 1, 10000) != 1)
		fail("a process whose memory is flushed does not come back");
	must(read(done[0], &byte, 1));
}

bool kill_flusher(pid_t pid)
{
	bool held = start_flusher();

	must(kill(pid, SIGKILL));
	release_held();
	must_die(pid, "a process that has memory flushed");
	return held;
}

/* Who was held while it flushed and has been killed, with what it had pinned */
static void must_be_gone(bool held, long pins_before)
{
	unload("hold");
	if (!held)
		fail("so much was not flushed");
	if (pins() != pins_before)
		fail("%ld pages are still pinned", pins() - pins_before);
}

static int mapper_container;
static size_t mapper_size;
static char *mapper_memory;

static void get_memory(void)
{
	mapper_memory = huge_pages(mapper_size / HUGE_PAGE);
}

static void map_memory(void)
{
	container_map(mapper_container, mapper_memory, 1ull << 30, mapper_size);
}

/* @chunks to @most of 2 MiB are flushed by the time that it is gone, the first while it is held. */
static void kill_mapper(size_t size, int skip, long chunks, long most)
{
	int container = attach_phase(group_of(NONCOHERENT), false);
	long before = pins(), pages = free_huge_pages();
	bool held;
	pid_t pid;

	mapper_container = container;
	mapper_size = size;
	pid = fork_flusher(get_memory, map_memory);
	hold_flusher(skip);
	phase("a process that maps %zu MiB is killed during chunk %d", size >> 20, skip + 1);
	held = kill_flusher(pid);
	expect_clflushes(chunks * HUGE_LINES, most * HUGE_LINES);
	phase_end();
	must_be_gone(held, before);
	if (free_huge_pages() != pages)
		fail("%ld huge pages are still in use", pages - free_huge_pages());
	/* The container is ours, and nothing is left in it. */
	if (container_unmap_all(container))
		fail("something is still mapped");
}

static void killed_at_once(void)
{
	kill_mapper(2 * HUGE_PAGE, 0, 1, 1);
}

/* What was mapped already is flushed again: as many chunks at most. */
static void killed_half_way(void)
{
	kill_mapper(HUGE_PAGES * HUGE_PAGE, 100, 101, 201);
}

static int joiner_group, joiner_container;

static void needs_nothing(void)
{
}

static void join(void)
{
	group_join(joiner_group, joiner_container);
}

/*
 * A process that makes a group join a container with two chunks of 2 MiB is killed while one
 * is flushed: that is not mapped.  If @unwound, the one before it may be in another run, which
 * was mapped for the group alone, and is flushed again.
 */
static void kill_joiner(int container, int skip, bool unwound)
{
	long tests = 2 * TEST_PAGES * LINES, chunks = skip + 1, before = pins();
	bool held;
	pid_t pid;

	joiner_container = container;
	joiner_group = group_of(NONCOHERENT);
	pid = fork_flusher(needs_nothing, join);
	hold_flusher(skip);
	phase("a process that lets a group join is killed during chunk %d", skip + 1);
	held = kill_flusher(pid);
	expect_clflushes(tests + chunks * HUGE_LINES,
			 tests + (chunks + (unwound ? skip : 0)) * HUGE_LINES);
	phase_end();
	must_be_gone(held, before);
	join_phase(joiner_group, container, 2 * HUGE_LINES, true);
	leave_phase(joiner_group, unwound ? 2 * HUGE_LINES : 0);
	close(joiner_group);
	if (pins() != before)
		fail("%ld pages are pinned for a group that left", pins() - before);
}

/* Memory for emulated devices is pinned to be mapped, and not any more then. */
static void killed_in_replay(void)
{
	int container = attach_phase(group_of(new_device("emulated")), true);

	must(container_map(container, huge_pages(2), HUGE_PAGE, 2 * HUGE_PAGE));
	kill_joiner(container, 0, true);
	kill_joiner(container, 1, true);
}

/* It stays mapped and pinned for the coherent group, until that unmaps it. */
static void killed_in_replay_of_mapped(void)
{
	int container = attach_phase(group_of(COHERENT), true);

	map_phase(container, huge_pages(2), HUGE_PAGE, 2 * HUGE_PAGE, 1, 0);
	kill_joiner(container, 0, false);
	kill_joiner(container, 1, false);
	phase("what was flushed for a group that was to join is unmapped");
	must(container_unmap(container, HUGE_PAGE, 2 * HUGE_PAGE));
	expect_clflushes(2 * HUGE_LINES, 2 * HUGE_LINES);
	expect_event(SYNCED, 0, 0);
	phase_end();
}

static int doomed_pages;

static void map_and_wait(void)
{
	int container = group_attach(group_of(NONCOHERENT));

	must(container_map(container, same_page(4), AT, 4 * PAGE));
	must(container_map(container, huge_pages(doomed_pages), 1ull << 30,
			   doomed_pages * HUGE_PAGE));
}

static void killed_with_mappings(void)
{
	long before = pins(), pages = free_huge_pages(), lines;
	pid_t pid;

	doomed_pages = HUGE_PAGES;
	lines = 4 * LINES + HUGE_PAGES * HUGE_LINES;
	phase("a process maps 1 GiB");
	pid = fork_doomed(map_and_wait);
	expect_clflushes(lines + 2 * TEST_PAGES * LINES, lines + 2 * TEST_PAGES * LINES);
	phase_end();
	phase("a process with 1 GiB mapped is killed");
	must_die(pid, "a process with mappings");
	expect_clflushes(lines, lines);
	phase_end();
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
	if (free_huge_pages() != pages)
		fail("%ld huge pages are still in use", pages - free_huge_pages());
}

const struct scenario kill_scenarios[] = {
	{ "a hole", hole },
	{ "a hole, coherent", coherent_hole },
	{ "RLIMIT_MEMLOCK", memlock },
	{ "no room in the domain", no_room },
	{ "no room in the second domain", no_room_to_join },
	{ "no room for emulated devices' memory", no_room_for_emulated },
	{ "unmapping has to be tried again", unmap_tried_again },
	{ "killed at once", killed_at_once },
	{ "killed half way through 1 GiB", killed_half_way },
	{ "killed while a group joins emulated ones", killed_in_replay },
	{ "killed while a group joins a coherent one", killed_in_replay_of_mapped },
	{ "killed with 1 GiB mapped", killed_with_mappings },
};

const int kill_count = ARRAY_SIZE(kill_scenarios);
