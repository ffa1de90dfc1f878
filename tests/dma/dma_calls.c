// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls to a container that have begun when its last group leaves, and end later: see
 * dma_test.c. What such a call has to do with is gone by then, so whatever is left of it
 * must not be freed before, nor kept afterwards.
 *
 * Either the call's argument is in a page that userfaultfd holds back, or it waits for type
 * 1's lock, which another one has that writes to such a page.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dma.h"

#define AT	0x100000ull
#define TYPE1	"vfio_iommu_type1"

/* As many IOMMUs as a container has room for: one, and those that calls go on with */
#define IOMMUS	4

/* ---- pages that are held back -------------------------------------------- */

static int uffd = -1;

static void *held_page(void)
{
	char *page = must_map(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (uffd < 0)
		uffd = must(open_userfaultfd(0));
	must(hold_back(uffd, page));
	return page;
}

static void let_have(void *page, const void *what, size_t size)
{
	static char text[PAGE] __attribute__((aligned(PAGE)));
	struct uffdio_copy copy = {
		.dst = (uintptr_t)page, .src = (uintptr_t)text, .len = PAGE,
	};

	memcpy(text, what, size);
	must(ioctl(uffd, UFFDIO_COPY, &copy));
}

/* ---- calls by other threads ---------------------------------------------- */

static struct vfio_iommu_type1_dma_map map_argument = {
	.argsz = sizeof(map_argument), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
	.iova = AT, .size = PAGE,
};
static struct vfio_iommu_type1_dma_unmap unmap_argument = {
	.argsz = sizeof(unmap_argument), .iova = AT, .size = PAGE,
};
static struct vfio_iommu_type1_info info_argument = { .argsz = sizeof(info_argument) };
static struct vfio_iommu_type1_dirty_bitmap dirty_argument = {
	.argsz = sizeof(dirty_argument), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
};

static const struct kind {
	const char *name;
	unsigned long request;
	void *argument;
	size_t size;
} kinds[] = {
	{ "MAP_DMA", VFIO_IOMMU_MAP_DMA, &map_argument, sizeof(map_argument) },
	{ "UNMAP_DMA", VFIO_IOMMU_UNMAP_DMA, &unmap_argument, sizeof(unmap_argument) },
	{ "GET_INFO", VFIO_IOMMU_GET_INFO, &info_argument, sizeof(info_argument) },
	{ "DIRTY_PAGES", VFIO_IOMMU_DIRTY_PAGES, &dirty_argument, sizeof(dirty_argument) },
};

enum { MAP, UNMAP, INFO, DIRTY, KINDS };

struct caller {
	const char *name;
	unsigned long request;
	int fd, ret;
	void *argument;
	pthread_t thread;
	pid_t tid;
};

static void *make_call(void *arg)
{
	struct caller *caller = arg;

	WRITE(caller->tid, gettid());
	caller->ret = ioctl(caller->fd, caller->request, caller->argument) ? -errno : 0;
	return NULL;
}

static void start(struct caller *caller, const char *name, int fd, unsigned long request,
		  void *argument)
{
	/* So it is if it does not return. */
	*caller = (struct caller){ name, request, fd, -ENODATA, argument };
	if (pthread_create(&caller->thread, NULL, make_call, caller))
		fail("no thread");
}

static struct caller *waiting;
static const char *waits_in;

static bool is_waiting(void)
{
	return READ(waiting->tid) && sleeps_in(waiting->tid, waits_in);
}

static void must_wait(struct caller *caller, const char *where)
{
	waiting = caller;
	waits_in = where;
	wait_until(is_waiting, caller->name);
}

/* A call whose argument is held back */
static void begin(struct caller *caller, int container, int kind)
{
	start(caller, kinds[kind].name, container, kinds[kind].request, held_page());
	must_wait(caller, "handle_userfault");
}

static void end(struct caller *caller)
{
	must_join(caller->thread, caller->name);
	if (caller->ret)
		fail("%s: %s", caller->name, strerror(-caller->ret));
}

static void let_end(struct caller *caller, int kind)
{
	let_have(caller->argument, kinds[kind].argument, kinds[kind].size);
	end(caller);
}

/* ---- what is left -------------------------------------------------------- */

static long pins_before, refs_before;
static char *memory;

static int begin_scenario(int group)
{
	int container = must(open_container());

	memory = same_page(1);
	map_argument.vaddr = (uintptr_t)memory;
	pins_before = pins();
	refs_before = must(module_references(TYPE1));
	must(group_join(group, container));
	must(container_set_iommu(container));
	return container;
}

static void nothing_is_left(void)
{
	long refs = must(module_references(TYPE1));

	if (pins() != pins_before || locked_kb())
		fail("%ld pages are pinned, %ld kB locked", pins() - pins_before, locked_kb());
	if (refs != refs_before)
		fail("type 1 has %ld references, and had %ld", refs, refs_before);
}

/* By a call alone. Who goes on where this fails uses what has been freed. */
static void must_be_kept(void)
{
	if (must(module_references(TYPE1)) != refs_before + 1)
		fail("a call uses type 1, and has no reference to it");
}

/* One page is mapped in what the container has now, where nothing was. */
static void must_map_one(int container)
{
	if (container_map(container, memory, AT, PAGE))
		fail("a page cannot be mapped: %s", strerror(errno));
	if (pins() != pins_before + 1)
		fail("%ld pages are pinned for the one that is mapped", pins() - pins_before);
}

static void must_unmap_one(int container)
{
	if (must(container_unmap(container, AT, PAGE)) != PAGE)
		fail("a page that was mapped is not any more");
}

/* As new */
static void must_work(int group, int container)
{
	must(group_join(group, container));
	must(container_set_iommu(container));
	must_map_one(container);
	must_unmap_one(container);
	must_map_one(container);
	must(group_leave(group));
	nothing_is_left();
}

/* ---- the argument is held back ------------------------------------------- */

/* It has begun before, and so it may do as if it had ended before. */
static void ends_later(int kind)
{
	int group = group_of(COHERENT), container = begin_scenario(group);
	struct caller caller;

	must_map_one(container);
	begin(&caller, container, kind);
	must(group_leave(group));
	must_be_kept();
	if (!container_map(container, memory, AT, PAGE) || errno != EINVAL)
		fail("a container without a group maps memory");
	let_end(&caller, kind);
	nothing_is_left();
	must_work(group, container);
}

static void map_ends_later(void)
{
	ends_later(MAP);
}

static void unmap_ends_later(void)
{
	ends_later(UNMAP);
}

static void info_ends_later(void)
{
	ends_later(INFO);
}

static void dirty_ends_later(void)
{
	ends_later(DIRTY);
}

/* What is of the former IOMMU stays there. */
static void next_iommu(void)
{
	int group = group_of(COHERENT), container = begin_scenario(group);
	struct caller caller[3];

	begin(&caller[0], container, MAP);
	begin(&caller[1], container, UNMAP);
	begin(&caller[2], container, MAP);
	must(group_leave(group));
	must_be_kept();
	must(group_join(group, container));
	must(container_set_iommu(container));
	let_end(&caller[0], MAP);
	must_map_one(container);
	let_end(&caller[1], UNMAP);
	must_unmap_one(container);
	must(group_leave(group));
	let_end(&caller[2], MAP);
	nothing_is_left();
	must_work(group, container);
}

/* No more than there is room for; and the room is there again. */
static void busy(void)
{
	int group = group_of(COHERENT), container = begin_scenario(group), i, round;
	struct caller caller[IOMMUS];

	for (round = 0; round < 2; round++) {
		for (i = 0; i < IOMMUS; i++) {
			if (i || round) {
				must(group_join(group, container));
				must(container_set_iommu(container));
			}
			begin(&caller[i], container, MAP);
			must(group_leave(group));
		}
		must(group_join(group, container));
		if (!container_set_iommu(container) || errno != EBUSY)
			fail("one more IOMMU than there is room for");
		let_end(&caller[2], MAP);
		must(container_set_iommu(container));
		must_map_one(container);
		/* Of the one that is in use, too, while it is */
		begin(&caller[2], container, INFO);
		let_end(&caller[2], INFO);
		must(group_leave(group));
		for (i = 0; i < IOMMUS; i++)
			if (i != 2)
				let_end(&caller[i], MAP);
		nothing_is_left();
	}
	must_work(group, container);
}

/* It goes on with a file that nobody has any more. */
static void all_closed(void)
{
	int group = group_of(COHERENT), container = begin_scenario(group);
	struct caller caller;

	must_map_one(container);
	begin(&caller, container, MAP);
	close(group);
	close(container);
	must_be_kept();
	let_end(&caller, MAP);
	nothing_is_left();
	group = group_of(COHERENT);
	must_work(group, must(open_container()));
}

static void wait_to_be_killed(void)
{
	static struct caller caller[2];
	int group = group_of(COHERENT), container = begin_scenario(group);

	must_map_one(container);
	begin(&caller[0], container, MAP);
	must(group_leave(group));
	must(group_join(group, container));
	must(container_set_iommu(container));
	must_map_one(container);
	begin(&caller[1], container, UNMAP);
}

static void killed(void)
{
	long before = pins(), refs = must(module_references(TYPE1));
	pid_t pid = fork_doomed(wait_to_be_killed);

	must_die(pid, "a process whose calls wait");
	pins_before = before;
	refs_before = refs;
	nothing_is_left();
	memory = same_page(1);
	must_work(group_of(COHERENT), must(open_container()));
}

/* ---- type 1's lock is held ----------------------------------------------- */

/* A bitmap is written with it, and so long the last group cannot leave, nor others do anything. */
static void all_wait_for_lock(void)
{
	int group = group_of(COHERENT), container = begin_scenario(group), i;
	struct vfio_iommu_type1_dma_map other = map_argument;
	struct caller first, leaves, caller[KINDS];
	struct {
		struct vfio_iommu_type1_dirty_bitmap head;
		struct vfio_iommu_type1_dirty_bitmap_get get;
	} dirty = {
		{ .argsz = sizeof(dirty), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP },
		{ .iova = AT, .size = PAGE, .bitmap = { .pgsize = PAGE, .size = 8 } },
	};
	void *bitmap = held_page();

	/* Nobody can look for it later, and the host would stop. */
	begin(&first, container, INFO);
	must(group_leave(group));
	must_be_kept();
	let_end(&first, INFO);
	must(group_join(group, container));
	must(container_set_iommu(container));
	must_map_one(container);
	must(ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &dirty_argument));
	dirty.get.bitmap.data = bitmap;
	start(&first, "a bitmap of dirty pages", container, VFIO_IOMMU_DIRTY_PAGES, &dirty);
	must_wait(&first, "handle_userfault");
	start(&leaves, "UNSET_CONTAINER", group, VFIO_GROUP_UNSET_CONTAINER, NULL);
	must_wait(&leaves, "vfio_iommu_type1");
	other.iova = 3 * AT;
	for (i = 0; i < KINDS; i++) {
		start(&caller[i], kinds[i].name, container, kinds[i].request,
		      i == MAP ? &other : kinds[i].argument);
		must_wait(&caller[i], "vfio_");
	}
	let_have(bitmap, "", 1);
	end(&first);
	end(&leaves);
	for (i = 0; i < KINDS; i++)
		end(&caller[i]);
	nothing_is_left();
	must_work(group, container);
}

const struct scenario call_scenarios[] = {
	{ "MAP_DMA ends after the last group has left", map_ends_later },
	{ "UNMAP_DMA ends after the last group has left", unmap_ends_later },
	{ "GET_INFO ends after the last group has left", info_ends_later },
	{ "DIRTY_PAGES ends after the last group has left", dirty_ends_later },
	{ "calls end when there is another IOMMU", next_iommu },
	{ "as many IOMMUs as a container has room for", busy },
	{ "a call ends when all is closed", all_closed },
	{ "killed while calls wait", killed },
	{ "calls wait behind the last group that leaves", all_wait_for_lock },
};

const int call_count = ARRAY_SIZE(call_scenarios);
