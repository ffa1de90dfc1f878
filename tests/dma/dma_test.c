// SPDX-License-Identifier: GPL-2.0-only
/*
 * Are pages flushed from the CPU caches before a device can access them past the caches,
 * and again when it no longer can, before they are somebody else's? And no others?
 *
 * Runs in the svm lab without its IOMMU, with four CPUs and four fixtures:
 * vfio_testdev.ko has an IOMMU whose page tables need no flush of their own, mark.ko
 * tells the emulator when memory is mapped, unmapped, invalidated and unpinned, and
 * hold.ko holds a thread; flushed.ko tells which pages are flushed. The emulator counts each CLFLUSH that the kernel executes:
 * what is seen and how is described in wbinvd_phase.h.
 *
 * 64 lines a page, one flush each: so many for each page, not one more, and all of
 * those of a run of pages before it is mapped, after it is unmapped and the IOTLB
 * synced, and before it is unpinned.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "dma.h"

#define AT	0x100000ull		/* an I/O address */
#define NVDIMM	"/sys/bus/nd/"
#define DAX	"/dev/dax0.0"

/* ---- one group ----------------------------------------------------------- */

static void coherent(void)
{
	int container = attach_phase(group_of(COHERENT), true);

	map_phase(container, same_page(8), AT, 8 * PAGE, 8, 0);
	unmap_phase(container, AT, 8 * PAGE, 8, 0);
	map_phase(container, huge_pages(1), HUGE_PAGE, HUGE_PAGE, 1, 0);
	unmap_phase(container, HUGE_PAGE, HUGE_PAGE, 1, 0);
}

static void small_pages(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);

	map_phase(container, same_page(1), AT, PAGE, 1, LINES);
	unmap_phase(container, AT, PAGE, 1, LINES);
	map_phase(container, same_page(8), AT, 8 * PAGE, 8, 8 * LINES);
	unmap_phase(container, AT, 8 * PAGE, 8, 8 * LINES);
	/* More than are unmapped between two syncs of the IOTLB */
	map_phase(container, same_page(600), AT, 600 * PAGE, 600, 600 * LINES);
	unmap_phase(container, AT, 600 * PAGE, 600, 600 * LINES);
}

/* Where it is not known how many runs the pages make */
static void map_and_unmap(const char *what, int container, char *memory, int pages, long lines)
{
	phase("%s", what);
	must(container_map(container, memory, AT, pages * PAGE));
	expect_clflushes(lines, lines);
	phase_end();
	phase("and unmapped");
	must(container_unmap(container, AT, pages * PAGE));
	expect_clflushes(lines, lines);
	phase_end();
}

static void different_pages(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);
	char *memory = aligned_alloc(PAGE, 8 * PAGE);

	map_and_unmap("8 pages, each a different one, are mapped", container, memory, 8, 8 * LINES);
}

static void huge(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);
	char *memory = huge_pages(1);

	map_phase(container, memory, HUGE_PAGE, HUGE_PAGE, 1, HUGE_LINES);
	unmap_phase(container, HUGE_PAGE, HUGE_PAGE, 1, HUGE_LINES);
	/* Neither begins nor ends with a chunk */
	map_phase(container, memory + 3 * PAGE, AT, 500 * PAGE, 1, 500 * LINES);
	unmap_phase(container, AT, 500 * PAGE, 1, 500 * LINES);
}

/* Not only the number of lines has to be right. */
static void map_and_unmap_these(int container, char *memory, int n)
{
	forget_flushed();
	phase("the %d pages are mapped", n);
	must(container_map(container, memory, AT, n * PAGE));
	expect_clflushes(n * LINES, n * LINES);
	phase_end();
	must_be_flushed(memory, n, "mapped");
	forget_flushed();
	phase("and unmapped");
	must(container_unmap(container, AT, n * PAGE));
	expect_clflushes(n * LINES, n * LINES);
	phase_end();
	must_be_flushed(memory, n, "unmapped");
}

static void which_pages(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);

	map_and_unmap_these(container, other_pages(256), 256);
	map_and_unmap_these(container, huge_pages(1) + 3 * PAGE, 500);
}

static void registers(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);
	char *memory = same_page(3);

	phase("a page of a device's registers is mapped");
	must(container_map(container, mmio_page(NULL), AT, PAGE));
	expect_clflushes(0, 0);
	expect_event(MAPPED, 0, 0);
	phase_end();
	phase("and unmapped");
	must(container_unmap(container, AT, PAGE));
	expect_clflushes(0, 0);
	expect_event(SYNCED, 0, 0);
	phase_end();

	mmio_page(memory + PAGE);
	map_and_unmap("one between two of memory", container, memory, 3, 2 * LINES);
}

/* Up to Linux 6.1 that is the zero page itself, later on a copy of it. */
static void zeroes(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);
	char *memory = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || *(volatile char *)memory)
		fail("no page of zeroes");
	phase("a page that was never written to is mapped to be read");
	must(container_map_flags(container, memory, AT, PAGE, VFIO_DMA_MAP_FLAG_READ));
	expect_clflushes(LINES, LINES);
	expect_event(MAPPED, LINES, LINES);
	phase_end();
	phase("and unmapped");
	must(container_unmap(container, AT, PAGE));
	expect_clflushes(LINES, LINES);
	phase_end();
}

static void all_at_once(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);

	map_phase(container, same_page(4), AT, 4 * PAGE, 4, 4 * LINES);
	map_phase(container, huge_pages(1), HUGE_PAGE, HUGE_PAGE, 1, HUGE_LINES);
	phase("all is unmapped by one call");
	if (must(container_unmap_all(container)) != (long)(4 * PAGE + HUGE_PAGE))
		fail("not all was unmapped");
	expect_clflushes(4 * LINES + HUGE_LINES, 4 * LINES + HUGE_LINES);
	phase_end();
}

static void end_of_container(void)
{
	int group = group_of(NONCOHERENT), container = attach_phase(group, false);

	map_phase(container, same_page(4), AT, 4 * PAGE, 4, 4 * LINES);
	leave_phase(group, 4 * LINES);
}

/* ---- several groups ------------------------------------------------------ */

static void noncoherent_joins(void)
{
	int group = group_of(NONCOHERENT), container = attach_phase(group_of(COHERENT), true);

	map_phase(container, same_page(4), AT, 4 * PAGE, 4, 0);
	phase("a non-coherent group joins: each run is flushed before it is mapped for it");
	must(group_join(group, container));
	expect_clflushes((4 + 2 * TEST_PAGES) * LINES, (4 + 2 * TEST_PAGES) * LINES);
	/* The test's pages are mapped before. */
	expect_event(MAPPED, TEST_PAGES ? TEST_PAGES * LINES : LINES,
		     (4 + 2 * TEST_PAGES) * LINES);
	phase_end();
	unmap_phase(container, AT, 4 * PAGE, 4, 4 * LINES);
	map_phase(container, same_page(4), AT, 4 * PAGE, 4, 4 * LINES);
	unmap_phase(container, AT, 4 * PAGE, 4, 4 * LINES);
}

/* What its devices have done remains. */
static void noncoherent_leaves(void)
{
	int group = group_of(NONCOHERENT), container = attach_phase(group_of(COHERENT), true);

	map_phase(container, same_page(4), AT, 4 * PAGE, 4, 0);
	join_phase(group, container, 4 * LINES, true);
	map_phase(container, same_page(2), 2 * AT, 2 * PAGE, 2, 2 * LINES);
	leave_phase(group, 0);
	map_phase(container, same_page(8), 3 * AT, 8 * PAGE, 8, 0);
	unmap_phase(container, AT, 4 * PAGE, 4, 4 * LINES);
	unmap_phase(container, 2 * AT, 2 * PAGE, 2, 2 * LINES);
	unmap_phase(container, 3 * AT, 8 * PAGE, 8, 0);
}

static void coherent_joins(void)
{
	int group = group_of(COHERENT), first = group_of(NONCOHERENT);
	int container = attach_phase(first, false);

	map_phase(container, same_page(4), AT, 4 * PAGE, 4, 4 * LINES);
	join_phase(group, container, 0, false);
	map_phase(container, same_page(2), 2 * AT, 2 * PAGE, 2, 2 * LINES);
	unmap_phase(container, AT, 4 * PAGE, 4, 4 * LINES);
	leave_phase(first, 0);
	unmap_phase(container, 2 * AT, 2 * PAGE, 2, 2 * LINES);
	map_phase(container, same_page(2), 2 * AT, 2 * PAGE, 2, 0);
	leave_phase(group, 0);
}

/* They share a domain, and what is mapped in it was flushed. */
static void another_joins(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);

	map_phase(container, same_page(4), AT, 4 * PAGE, 4, 4 * LINES);
	join_phase(group_of(NONCOHERENT_2), container, 0, false);
	unmap_phase(container, AT, 4 * PAGE, 4, 4 * LINES);
}

/* Their mappings are pinned when the first group with an IOMMU comes, until the last goes. */
static void emulated(void)
{
	int container = attach_phase(group_of(new_device("emulated")), true);
	int good = group_of(COHERENT), bad = group_of(NONCOHERENT);

	phase("memory for emulated devices is not mapped");
	must(container_map(container, same_page(4), AT, 4 * PAGE));
	expect_clflushes(0, 0);
	phase_end();
	join_phase(bad, container, 4 * LINES, true);
	leave_phase(bad, 4 * LINES);
	join_phase(good, container, 0, false);
	leave_phase(good, 0);
	join_phase(bad, container, 4 * LINES, true);
	phase("and unmapped");
	must(container_unmap(container, AT, 4 * PAGE));
	expect_clflushes(4 * LINES, 4 * LINES);
	phase_end();
}

/* ---- memory that is not as other memory ---------------------------------- */

/* A driver manages these pages, and user space maps them: "reserved", and in caches */
static void device_dax(void)
{
	int container = attach_phase(group_of(NONCOHERENT), false);
	int fd = must(open(DAX, O_RDWR | O_CLOEXEC));
	char *memory = mmap(NULL, HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (memory == MAP_FAILED)
		fail("mmap() of " DAX ": %s", strerror(errno));
	/* Type 1 does not unpin what is reserved. */
	map_and_unmap("memory of a driver is mapped", container, memory, HUGE_PAGE / PAGE, HUGE_LINES);
}

static void on_lost(int signal __attribute__((unused)))
{
}

/*
 * One page of a huge page is lost, and its head says so for all of it.  The injected
 * error leaves the kernel's mapping in place, so that one is flushed, too.
 */
static void poisoned(void)
{
	int group = group_of(NONCOHERENT), container = attach_phase(group_of(COHERENT), true);
	char *memory = huge_pages(1);

	map_phase(container, memory, HUGE_PAGE, HUGE_PAGE, 1, 0);
	/* Some kernels tell who has it. */
	signal(SIGBUS, on_lost);
	/* It is in use, so that all that happens to it is to be called lost. */
	if (madvise(memory + 3 * PAGE, PAGE, MADV_HWPOISON) && errno != EBUSY)
		fail("MADV_HWPOISON: %s", strerror(errno));
	join_phase(group, container, HUGE_LINES, true);
	unmap_phase(container, HUGE_PAGE, HUGE_PAGE, 1, HUGE_LINES);
}

/* Of other pages only the lost one is poisoned; it may lose its mapping at any time. */
static void poisoned_page(void)
{
	int group = group_of(NONCOHERENT), container = attach_phase(group_of(COHERENT), true);
	char *memory = scattered_pages(8);

	map_phase(container, memory, AT, 8 * PAGE, 8, 0);
	signal(SIGBUS, on_lost);
	/* It is pinned, so it stays what it is. */
	if (madvise(memory + 3 * PAGE, PAGE, MADV_HWPOISON) && errno != EBUSY)
		fail("MADV_HWPOISON: %s", strerror(errno));
	join_phase(group, container, 7 * LINES, true);
	/* Of the 8 runs one costs nothing. */
	unmap_phase(container, AT, 8 * PAGE, 7, 7 * LINES);
}

/* As a tool for such memory does it */
static void make_dax(void)
{
	static const char * const modules[] = { "libnvdimm", "nd_e820", "device_dax", "dax_pmem" };
	char uuid[40];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(modules); i++)
		load_kernels(modules[i], "");
	must(get_text("/proc/sys/kernel/random/uuid", uuid, sizeof(uuid)));
	must_put(NVDIMM "devices/dax0.0/mode", "ram");
	must_put(NVDIMM "devices/dax0.0/uuid", "%s", uuid);
	must_put(NVDIMM "devices/dax0.0/namespace", "namespace0.0");
	must_put(NVDIMM "drivers/dax_pmem/bind", "dax0.0");
}

/* ---- main ---------------------------------------------------------------- */

static const struct scenario mapping_scenarios[] = {
	{ "a coherent group", coherent },
	{ "small pages", small_pages },
	{ "small pages, all different", different_pages },
	{ "a huge page", huge },
	{ "which pages are flushed", which_pages },
	{ "registers", registers },
	{ "zeroes", zeroes },
	{ "all unmapped at once", all_at_once },
	{ "the last group leaves", end_of_container },
	{ "a non-coherent group joins a container with mappings", noncoherent_joins },
	{ "a non-coherent group leaves mappings behind", noncoherent_leaves },
	{ "a coherent group joins a non-coherent one", coherent_joins },
	{ "a second non-coherent group joins", another_joins },
	{ "emulated devices, and others that come and go", emulated },
};

static const struct scenario memory_scenarios[] = {
	{ "device DAX", device_dax },
	{ "a huge page, a part of which is poisoned", poisoned },
	{ "pages, of which one is poisoned", poisoned_page },
};

#define MAX_SCENARIOS	64

static struct scenario all[MAX_SCENARIOS];
static int count;

static void add(const struct scenario *scenarios, int n)
{
	memcpy(all + count, scenarios, n * sizeof(*scenarios));
	count += n;
}

/* Of what is called when pages are unpinned: by type 1 before Linux 7.3, and by all else */
static void load_marks(bool iommufd)
{
	load("flushed.ko", "");
	load("mark.ko", kernel_before(7, 3) && !iommufd ?
	     "functions=vfio_testdev:testdev_map_pages,vfio_testdev:testdev_unmap_pages,"
	     "vfio_testdev:testdev_iotlb_sync,unpin_user_pages_dirty_lock" :
	     "functions=vfio_testdev:testdev_map_pages,vfio_testdev:testdev_unmap_pages,"
	     "vfio_testdev:testdev_iotlb_sync,unpin_user_page_range_dirty_lock");
}

/* The lab's edu devices, behind VT-d */
static int pci_main(void)
{
	load("flushed.ko", "");
	return run_scenarios(pci_scenarios, pci_count, NULL);
}

/* dma_test [memory|iommufd|calls|pci] */
int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	bool iommufd = !strcmp(what, "iommufd");

	/* The emulator calls back for each of a GiB's lines. */
	patience = 4;
	if (!strcmp(what, "pci"))
		return pci_main();
	load_testdev("coherent=2 noncoherent=2");
	if (!strcmp(what, "calls"))
		return run_scenarios(call_scenarios, call_count, NULL);
	must_put("/proc/sys/vm/nr_hugepages", "%d", HUGE_PAGES);
	if (free_huge_pages() != HUGE_PAGES)
		fail("no %d huge pages: too little memory", HUGE_PAGES);
	load_marks(iommufd);
	if (iommufd) {
		must_put("/sys/module/iommufd/parameters/allow_unsafe_interrupts", "1");
		add(iommufd_scenarios, iommufd_count);
		/* Linux 6.12 maps no files. */
		if (!kernel_before(7, 3))
			add(file_scenarios, file_count);
		add(noiommu_scenarios, noiommu_count);
	} else if (!strcmp(what, "memory")) {
		make_dax();
		add(memory_scenarios, ARRAY_SIZE(memory_scenarios));
	} else {
		add(mapping_scenarios, ARRAY_SIZE(mapping_scenarios));
		add(kill_scenarios, kill_count);
		add(refuse_scenarios, refuse_count);
		/* Debian's kernel has no devices without an IOMMU. */
		if (!access(NOIOMMU, W_OK))
			add(noiommu_scenarios, noiommu_count);
	}
	return run_scenarios(all, count, NULL);
}
