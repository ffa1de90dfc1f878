// SPDX-License-Identifier: GPL-2.0-only
/* Memory, devices and containers for dma_test: see the header. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "dma.h"

/* ---- devices ------------------------------------------------------------- */

int group_of(int device)
{
	int fd = open_group_number(testdev_group_number(device)), tries;

	for (tries = 0; fd == -EBUSY && tries < 500; tries++) {
		sleep_ms(10);
		fd = open_group_number(testdev_group_number(device));
	}
	if (fd < 0)
		fail("the group of device %d: %s", device, strerror(-fd));
	return fd;
}

int new_device(const char *kind)
{
	int id = must(get_number(TESTDEV "create"));

	must_put(TESTDEV "create", "1 %s", kind);
	return id;
}

/* ---- memory -------------------------------------------------------------- */

char *other_pages(int n)
{
	char *memory = must_map(NULL, n * PAGE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int i;

	madvise(memory, n * PAGE, MADV_NOHUGEPAGE);
	/* Every other one first, so that few lie side by side. */
	for (i = 0; i < n; i += 2)
		memory[i * PAGE] = 1;
	for (i = 1; i < n; i += 2)
		memory[i * PAGE] = 1;
	return memory;
}

#define PAGEMAP_PFN	((1ull << 55) - 1)
#define PAGEMAP_PRESENT	(1ull << 63)

void page_frames(const char *memory, uint64_t *pages, int n)
{
	int fd = must(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)), i;
	ssize_t size = n * sizeof(*pages);

	if (pread(fd, pages, size, (uintptr_t)memory / PAGE * sizeof(*pages)) != size)
		fail("/proc/self/pagemap: %s", strerror(errno));
	close(fd);
	for (i = 0; i < n; i++) {
		if (!(pages[i] & PAGEMAP_PRESENT) || !(pages[i] & PAGEMAP_PFN))
			fail("page %d is not there", i);
		pages[i] &= PAGEMAP_PFN;
	}
}

char *scattered_pages(int n)
{
	char *memory = must_map(NULL, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	char *others = other_pages(2 * n);
	uint64_t *frames = calloc(2 * n, sizeof(*frames)), last = 0;
	int i, found = 0;

	page_frames(others, frames, 2 * n);
	/* Of any two at least one does not continue the last. */
	for (i = 0; found < n; i++) {
		if (frames[i] == last + 1)
			continue;
		if (mremap(others + i * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   memory + found++ * PAGE) == MAP_FAILED)
			fail("mremap(): %s", strerror(errno));
		last = frames[i];
	}
	free(frames);
	return memory;
}

char *huge_pages(int n)
{
	return must_map(NULL, n * HUGE_PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
}

/* Of the first device that lets it be mapped */
static int open_registers(void)
{
	static const char pci[] = "/sys/bus/pci/devices";
	DIR *devices = opendir(pci);
	struct dirent *device;
	char path[400];
	void *memory;
	int bar, fd;

	while (devices && (device = readdir(devices))) {
		for (bar = 0; bar < 6; bar++) {
			snprintf(path, sizeof(path), "%s/%s/resource%d", pci,
				 device->d_name, bar);
			fd = open(path, O_RDWR | O_CLOEXEC);
			if (fd < 0)
				continue;
			memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
			if (memory != MAP_FAILED) {
				munmap(memory, PAGE);
				closedir(devices);
				return fd;
			}
			close(fd);
		}
	}
	fail("no PCI device has registers in memory");
}

char *mmio_page(void *at)
{
	int fd = open_registers();
	char *page = must_map(at, PAGE, PROT_READ | PROT_WRITE,
			      MAP_SHARED | (at ? MAP_FIXED : 0), fd);

	close(fd);
	return page;
}

long free_huge_pages(void)
{
	return number_in("/proc/meminfo", "HugePages_Free:");
}

/* ---- what was flushed ---------------------------------------------------- */

#define FLUSHED		DEBUGFS "flushed"

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

void forget_flushed(void)
{
	must_put(FLUSHED, "\n");
}

int flushes(struct flush *calls, int max)
{
	FILE *file = fopen(FLUSHED, "r");
	unsigned long long at;
	unsigned int size;
	char line[80];
	int n = 0;

	if (!file)
		fail(FLUSHED ": %s", strerror(errno));
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%llx %u", &at, &size) != 2)
			fail("what was flushed is not known: %s", line);
		if (n++ < max)
			calls[n - 1] = (struct flush){ at, size };
	}
	fclose(file);
	return n;
}

/* The pages that the kernel says it has flushed, at most @max, sorted; how many it were */
static int flushed_pages(uint64_t *pages, int max)
{
	static struct flush calls[MAX_FLUSHES];
	int count = flushes(calls, MAX_FLUSHES), n = 0, i;
	unsigned int done;

	if (count > MAX_FLUSHES)
		fail("there are %d calls that flush", count);
	for (i = 0; i < count; i++) {
		if (calls[i].at % PAGE || calls[i].size % PAGE)
			fail("%u bytes at %llx are flushed, which are no pages", calls[i].size,
			     (unsigned long long)calls[i].at);
		for (done = 0; done < calls[i].size; done += PAGE)
			if (n++ < max)
				pages[n - 1] = (calls[i].at + done) / PAGE;
	}
	if (n <= max)
		qsort(pages, n, sizeof(*pages), compare);
	return n;
}

/* Those that are mapped there, as the process's page tables say; sorted */
static void mapped_pages(const char *memory, uint64_t *pages, int n)
{
	page_frames(memory, pages, n);
	qsort(pages, n, sizeof(*pages), compare);
}

void must_be_flushed(const char *memory, int n, const char *when)
{
	uint64_t *flushed = calloc(n, sizeof(*flushed)), *mapped = calloc(n, sizeof(*mapped));
	int found = flushed_pages(flushed, n), i;

	if (found != n)
		fail("%s, %d pages were flushed, not %d", when, found, n);
	mapped_pages(memory, mapped, n);
	for (i = 0; i < n; i++)
		if (flushed[i] != mapped[i])
			fail("%s, page %llx was flushed and not %llx", when,
			     (unsigned long long)flushed[i], (unsigned long long)mapped[i]);
	free(flushed);
	free(mapped);
}

/* ---- phases -------------------------------------------------------------- */

static long test_lines(bool new_noncoherent_domain)
{
	return new_noncoherent_domain ? TEST_PAGES * 2 * LINES : 0;
}

int attach_phase(int group, bool coherent)
{
	long lines = test_lines(!coherent);
	int container;

	phase("attaching a %scoherent group to a container", coherent ? "" : "non-");
	container = group_attach(group);
	expect_clflushes(lines, lines);
	phase_end();
	return container;
}

void join_phase(int group, int container, long lines, bool new_noncoherent_domain)
{
	lines += test_lines(new_noncoherent_domain);
	phase("a group joins a container with mappings");
	must(group_join(group, container));
	expect_clflushes(lines, lines);
	phase_end();
}

void leave_phase(int group, long lines)
{
	phase("a group leaves its container");
	must(group_leave(group));
	expect_clflushes(lines, lines);
	phase_end();
}

void map_phase(int container, void *memory, uint64_t iova, size_t size, int runs, long lines)
{
	phase("%zu KiB are mapped, in %d runs", size >> 10, runs);
	must(container_map(container, memory, iova, size));
	expect_clflushes(lines, lines);
	expect_event(MAPPED, lines / runs, lines);
	phase_end();
}

/* Type 1 unmaps so many runs at most before it syncs, and unpins them. */
#define SYNC_MAX	512

void unmap_phase(int container, uint64_t iova, size_t size, int runs, long lines)
{
	long before_last = (runs - 1) / SYNC_MAX * SYNC_MAX * (lines / runs);

	phase("%zu KiB are unmapped, in %d runs", size >> 10, runs);
	if (must(container_unmap(container, iova, size)) != (long)size)
		fail("not all of it was unmapped");
	expect_clflushes(lines, lines);
	expect_event(UNMAPPED, 0, before_last);
	expect_event(SYNCED, 0, before_last);
	expect_event(UNPINNED, lines / runs, lines);
	phase_end();
}
