// SPDX-License-Identifier: GPL-2.0-only
/*
 * The same of iommufd: see dma_test.c.  It reads a batch of runs, flushes all of them,
 * and maps them then; and unpins them one by one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dma.h"
#include "iommufd.h"

#define AT	0x100000ull		/* an I/O address */

/* ---- devices' files, and page tables ------------------------------------- */

void must_bind(int file, int iommufd)
{
	int tries, ret;

	for (tries = 0; (ret = device_file_bind(file, iommufd)) && tries < 500; tries++)
		sleep_ms(10);
	must(ret);
}

static int bind(int device, int iommufd)
{
	int file = device_file(device);

	must_bind(file, iommufd);
	return file;
}

static int attach(int file, uint32_t ioas)
{
	return device_file_attach(file, &ioas);
}

/* The page table that it is attached to, of those of @ioas */
static uint32_t must_attach(int file, uint32_t ioas)
{
	must(device_file_attach(file, &ioas));
	return ioas;
}

/* ---- phases -------------------------------------------------------------- */

static void attach_flushes(int file, uint32_t ioas, long lines)
{
	phase("a device is attached");
	must(attach(file, ioas));
	expect_clflushes(lines, lines);
	if (lines)
		expect_event(MAPPED, lines, lines);
	phase_end();
}

static void detach_flushes(int file, long lines)
{
	phase("a device is detached");
	must(device_file_detach(file));
	expect_clflushes(lines, lines);
	phase_end();
}

/* All @lines are flushed before the first run of them is mapped. */
static void map_flushes(int iommufd, uint32_t ioas, void *memory, uint64_t iova, size_t size,
			long lines)
{
	phase("%zu KiB are mapped", size >> 10);
	must(ioas_map(iommufd, ioas, memory, iova, size));
	expect_clflushes(lines, lines);
	expect_event(MAPPED, lines, lines);
	phase_end();
}

/* And each of @runs, when all is unmapped, before it is unpinned */
static void unmap_flushes(int iommufd, uint32_t ioas, uint64_t iova, size_t size, int runs,
			  long lines)
{
	phase("%zu KiB are unmapped, in %d runs", size >> 10, runs);
	must(ioas_unmap(iommufd, ioas, iova, size));
	expect_clflushes(lines, lines);
	expect_event(UNMAPPED, 0, 0);
	expect_event(SYNCED, 0, 0);
	expect_event(UNPINNED, lines / runs, lines);
	phase_end();
}

/* ---- scenarios ----------------------------------------------------------- */

static void coherent(void)
{
	int iommufd = open_iommufd(), file = bind(COHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);

	attach_flushes(file, ioas, 0);
	map_flushes(iommufd, ioas, same_page(8), AT, 8 * PAGE, 0);
	unmap_flushes(iommufd, ioas, AT, 8 * PAGE, 8, 0);
	map_flushes(iommufd, ioas, huge_pages(1), HUGE_PAGE, HUGE_PAGE, 0);
	unmap_flushes(iommufd, ioas, HUGE_PAGE, HUGE_PAGE, 1, 0);
}

static void noncoherent(void)
{
	int iommufd = open_iommufd(), file = bind(NONCOHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);

	attach_flushes(file, ioas, 0);
	map_flushes(iommufd, ioas, same_page(1), AT, PAGE, LINES);
	unmap_flushes(iommufd, ioas, AT, PAGE, 1, LINES);
	map_flushes(iommufd, ioas, same_page(8), AT, 8 * PAGE, 8 * LINES);
	unmap_flushes(iommufd, ioas, AT, 8 * PAGE, 8, 8 * LINES);
	map_flushes(iommufd, ioas, huge_pages(1), HUGE_PAGE, HUGE_PAGE, HUGE_LINES);
	unmap_flushes(iommufd, ioas, HUGE_PAGE, HUGE_PAGE, 1, HUGE_LINES);
}

static void these_are_flushed(int iommufd, uint32_t ioas, char *memory, int n)
{
	forget_flushed();
	phase("the %d pages are mapped", n);
	must(ioas_map(iommufd, ioas, memory, AT, n * PAGE));
	expect_clflushes(n * LINES, n * LINES);
	phase_end();
	must_be_flushed(memory, n, "mapped");
	forget_flushed();
	phase("and unmapped");
	must(ioas_unmap(iommufd, ioas, AT, n * PAGE));
	expect_clflushes(n * LINES, n * LINES);
	phase_end();
	must_be_flushed(memory, n, "unmapped");
}

static void which_pages(void)
{
	int iommufd = open_iommufd(), file = bind(NONCOHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);

	attach_flushes(file, ioas, 0);
	these_are_flushed(iommufd, ioas, other_pages(256), 256);
	these_are_flushed(iommufd, ioas, huge_pages(1) + 3 * PAGE, 500);
}

static void attached_to_mappings(void)
{
	int iommufd = open_iommufd(), file = bind(NONCOHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);

	phase("mapping into no domain");
	must(ioas_map(iommufd, ioas, same_page(4), AT, 4 * PAGE));
	expect_clflushes(0, 0);
	phase_end();
	attach_flushes(file, ioas, 4 * LINES);
	detach_flushes(file, 4 * LINES);
	attach_flushes(file, ioas, 4 * LINES);
	unmap_flushes(iommufd, ioas, AT, 4 * PAGE, 4, 4 * LINES);
}

/* Pages that a domain has pinned are read from it. What its device has done remains. */
static void joins_and_leaves(void)
{
	int iommufd = open_iommufd();
	int good = bind(COHERENT, iommufd), bad = bind(NONCOHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);

	attach_flushes(good, ioas, 0);
	map_flushes(iommufd, ioas, same_page(4), AT, 4 * PAGE, 0);
	attach_flushes(bad, ioas, 4 * LINES);
	map_flushes(iommufd, ioas, same_page(2), 2 * AT, 2 * PAGE, 2 * LINES);
	detach_flushes(bad, 0);
	map_flushes(iommufd, ioas, same_page(8), 3 * AT, 8 * PAGE, 0);
	unmap_flushes(iommufd, ioas, AT, 4 * PAGE, 4, 4 * LINES);
	unmap_flushes(iommufd, ioas, 2 * AT, 2 * PAGE, 2, 2 * LINES);
	unmap_flushes(iommufd, ioas, 3 * AT, 8 * PAGE, 8, 0);
}

/* An IOMMU may attach it to what has been made for the other one; iommufd must not. */
static void joins_anything(void)
{
	bool can = !put(LAX, "1");

	joins_and_leaves();
	if (can)
		must_put(LAX, "0");
}

/* They are unpinned by the last one that maps them. */
static void copies(void)
{
	int iommufd = open_iommufd();
	int good = bind(COHERENT, iommufd), bad = bind(NONCOHERENT, iommufd);
	uint32_t first = new_ioas(iommufd), second = new_ioas(iommufd);

	attach_flushes(good, first, 0);
	attach_flushes(bad, second, 0);
	map_flushes(iommufd, first, same_page(4), AT, 4 * PAGE, 0);
	phase("a copy is mapped for a device that is not coherent");
	must(ioas_copy(iommufd, second, first, AT, 4 * PAGE));
	expect_clflushes(4 * LINES, 4 * LINES);
	expect_event(MAPPED, 4 * LINES, 4 * LINES);
	phase_end();
	phase("and unmapped there");
	must(ioas_unmap(iommufd, second, AT, 4 * PAGE));
	expect_clflushes(0, 0);
	phase_end();
	unmap_flushes(iommufd, first, AT, 4 * PAGE, 4, 4 * LINES);
}

/* An emulated device accesses the pages through the CPU, and pins them like that. */
static void pin_pages(int device, uint64_t iova, int n)
{
	char path[96];

	snprintf(path, sizeof(path), TESTDEV "vfio_testdev.%d/pinned", device);
	must_put(path, "%llu %d", (unsigned long long)iova, n);
}

static void unpin_flushes(int device, long lines)
{
	phase("an emulated device unpins its pages");
	pin_pages(device, 0, 0);
	expect_clflushes(lines, lines);
	expect_event(UNPINNED, lines ? LINES : 0, lines);
	phase_end();
}

static void detach_leaves_pinned(int file, int unpinned)
{
	phase("a device is detached, and %d of 4 pages are unpinned", unpinned);
	must(device_file_detach(file));
	expect_clflushes(unpinned * LINES, unpinned * LINES);
	expect_event(UNPINNED, LINES, unpinned * LINES);
	phase_end();
}

/* Its pages are read from what it has pinned, and stay pinned when they are mapped no more. */
static void emulated_pins_first(void)
{
	int iommufd = open_iommufd(), emulated = new_device("emulated");
	int bad = bind(NONCOHERENT, iommufd), good = bind(COHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);
	long before = pins();

	attach_flushes(bind(emulated, iommufd), ioas, 0);
	must(ioas_map(iommufd, ioas, same_page(4), AT, 4 * PAGE));
	pin_pages(emulated, AT, 2);
	attach_flushes(good, ioas, 0);
	detach_flushes(good, 0);
	unpin_flushes(emulated, 0);

	pin_pages(emulated, AT + PAGE, 2);
	attach_flushes(bad, ioas, 4 * LINES);
	detach_leaves_pinned(bad, 2);
	attach_flushes(bad, ioas, 4 * LINES);
	detach_leaves_pinned(bad, 2);
	unpin_flushes(emulated, 2 * LINES);
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
}

/* It reads them from what is mapped. The last one that has them unpins them. */
static void emulated_pins_mapped(void)
{
	int iommufd = open_iommufd(), emulated = new_device("emulated");
	int bad = bind(NONCOHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);
	long before = pins();

	attach_flushes(bind(emulated, iommufd), ioas, 0);
	attach_flushes(bad, ioas, 0);
	map_flushes(iommufd, ioas, same_page(4), AT, 4 * PAGE, 4 * LINES);
	phase("an emulated device pins what is mapped, and unpins it");
	pin_pages(emulated, AT, 4);
	pin_pages(emulated, 0, 0);
	pin_pages(emulated, AT, 4);
	expect_clflushes(0, 0);
	phase_end();
	/* Its driver is told, and unpins them first. */
	unmap_flushes(iommufd, ioas, AT, 4 * PAGE, 4, 4 * LINES);

	map_flushes(iommufd, ioas, same_page(4), AT, 4 * PAGE, 4 * LINES);
	pin_pages(emulated, AT, 1);
	detach_leaves_pinned(bad, 3);
	phase("the page that is left is unmapped");
	must(ioas_unmap(iommufd, ioas, AT, 4 * PAGE));
	expect_clflushes(LINES, LINES);
	expect_event(UNPINNED, LINES, LINES);
	phase_end();
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
}

/* One that enforces nothing gets all that is mapped before a device has it. */
static void replaced_in_place(void)
{
	int iommufd = open_iommufd(), good = bind(COHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd), table;

	attach_flushes(good, ioas, 0);
	map_flushes(iommufd, ioas, same_page(4), AT, 4 * PAGE, 0);
	phase("a page table is made for a device that is not coherent");
	table = new_table(iommufd, NONCOHERENT, ioas);
	expect_clflushes(4 * LINES, 4 * LINES);
	expect_event(MAPPED, 4 * LINES, 4 * LINES);
	phase_end();
	phase("it takes the place of the one that enforces coherency");
	if (must_attach(good, table) != table)
		fail("it is another one");
	expect_clflushes(0, 0);
	phase_end();
	map_flushes(iommufd, ioas, same_page(2), 2 * AT, 2 * PAGE, 2 * LINES);
	unmap_flushes(iommufd, ioas, AT, 4 * PAGE, 4, 4 * LINES);
	unmap_flushes(iommufd, ioas, 2 * AT, 2 * PAGE, 2, 2 * LINES);
}

static void end_of_iommufd(void)
{
	int iommufd = open_iommufd(), file = bind(NONCOHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);
	long before = pins();

	attach_flushes(file, ioas, 0);
	map_flushes(iommufd, ioas, same_page(4), AT, 4 * PAGE, 4 * LINES);
	phase("both files are closed");
	close(file);
	close(iommufd);
	expect_clflushes(4 * LINES, 4 * LINES);
	expect_event(UNPINNED, LINES, 4 * LINES);
	phase_end();
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
}

/* What was mapped before the hole is unmapped again, and was accessible until then. */
static void hole(void)
{
	int iommufd = open_iommufd(), file = bind(NONCOHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);
	char *memory = same_page(16);
	long before = pins();

	attach_flushes(file, ioas, 0);
	must(munmap(memory + 12 * PAGE, PAGE));
	phase("mapping fails half way");
	if (!ioas_map(iommufd, ioas, memory, AT, 16 * PAGE) || errno != EFAULT)
		fail("it does not fail by EFAULT");
	expect_clflushes(0, 2 * 12 * LINES);
	phase_end();
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
}

/*
 * The first page table has mapped all that the second has no room for.  It is not
 * mapped there any more when it is flushed, and unpinned.
 */
static void second_is_full(void)
{
	int iommufd = open_iommufd();
	int good = bind(COHERENT, iommufd), bad = bind(NONCOHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);
	long before = pins();

	attach_flushes(good, ioas, 0);
	attach_flushes(bad, ioas, 0);
	must_put(ROOM, "12");
	phase("a second page table has no room");
	if (!ioas_map(iommufd, ioas, same_page(8), AT, 8 * PAGE))
		fail("it does not fail");
	expect_clflushes(2 * 8 * LINES, 2 * 8 * LINES);
	expect_event(MAPPED, 8 * LINES, 8 * LINES);
	expect_event(UNMAPPED, 8 * LINES, 8 * LINES);
	expect_event(UNPINNED, 9 * LINES, 16 * LINES);
	phase_end();
	must_put(ROOM, "-1");
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
}

/* What a process that is killed was to flush */
static struct {
	int iommufd, file;
	uint32_t ioas;
	char *memory;
} doomed;

static void doomed_gets_memory(void)
{
	doomed.memory = huge_pages(2);
}

static void doomed_maps(void)
{
	ioas_map(doomed.iommufd, doomed.ioas, doomed.memory, HUGE_PAGE, 2 * HUGE_PAGE);
}

static void doomed_has_memory(void)
{
}

static void doomed_attaches(void)
{
	attach(doomed.file, doomed.ioas);
}

/* It is killed in the first of two flushes of 2 MiB; both are flushed again if they were pinned. */
static void kill_doomed(pid_t pid, const char *what)
{
	bool held;

	hold_flusher(0);
	phase("a process is killed that %s", what);
	held = kill_flusher(pid);
	expect_clflushes(HUGE_LINES, 3 * HUGE_LINES);
	phase_end();
	unload("hold");
	if (!held)
		fail("nothing was flushed");
}

static void killed_in_map(void)
{
	long before = pins();

	doomed.iommufd = open_iommufd();
	doomed.file = bind(NONCOHERENT, doomed.iommufd);
	doomed.ioas = new_ioas(doomed.iommufd);
	attach_flushes(doomed.file, doomed.ioas, 0);
	kill_doomed(fork_flusher(doomed_gets_memory, doomed_maps), "maps 4 MiB");
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
	if (!ioas_unmap(doomed.iommufd, doomed.ioas, HUGE_PAGE, 2 * HUGE_PAGE))
		fail("something is mapped");
}

static void killed_in_attach(void)
{
	long before;

	doomed.iommufd = open_iommufd();
	doomed.file = bind(NONCOHERENT, doomed.iommufd);
	doomed.ioas = new_ioas(doomed.iommufd);
	must(ioas_map(doomed.iommufd, doomed.ioas, huge_pages(2), HUGE_PAGE, 2 * HUGE_PAGE));
	before = pins();
	kill_doomed(fork_flusher(doomed_has_memory, doomed_attaches),
		    "attaches a device to 4 MiB");
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
	attach_flushes(doomed.file, doomed.ioas, 2 * HUGE_LINES);
}

static struct attach_pt *doomed_request;
static int *doomed_result;

static void doomed_is_told(void)
{
	*doomed_result = ioctl(doomed.file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, doomed_request) ? -errno : 0;
}

/* What it is attached to cannot be said: the memory that was to tell it goes away meanwhile. */
static void attached_untold(void)
{
	int told = must(memfd_create("pt", MFD_CLOEXEC));
	long before;
	bool held;
	pid_t pid;

	must(ftruncate(told, PAGE));
	doomed_request = (void *)must_map(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, told);
	doomed_result = shared_memory(sizeof(*doomed_result));
	doomed.iommufd = open_iommufd();
	doomed.file = bind(NONCOHERENT, doomed.iommufd);
	doomed.ioas = new_ioas(doomed.iommufd);
	must(ioas_map(doomed.iommufd, doomed.ioas, huge_pages(2), HUGE_PAGE, 2 * HUGE_PAGE));
	*doomed_request = (struct attach_pt){
		.argsz = sizeof(*doomed_request),
		.pt_id = doomed.ioas,
	};
	before = pins();
	pid = fork_flusher(doomed_has_memory, doomed_is_told);
	hold_flusher(0);
	phase("a device is attached, and its page table's ID cannot be written");
	held = start_flusher();
	must(ftruncate(told, 0));
	end_flusher();
	expect_clflushes(2 * HUGE_LINES, 4 * HUGE_LINES);
	phase_end();
	unload("hold");
	must(kill(pid, SIGKILL));
	must_die(pid, "a process whose memory is flushed");
	if (!held)
		fail("nothing was flushed");
	if (*doomed_result != -EFAULT)
		fail("it returns %d, not -EFAULT", *doomed_result);
	if (pins() != before)
		fail("%ld pages are still pinned", pins() - before);
	attach_flushes(doomed.file, doomed.ioas, 2 * HUGE_LINES);
}

static void refused(void)
{
	int iommufd = open_iommufd();
	int good = bind(COHERENT, iommufd), bad = bind(NONCOHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd);

	must(ioas_map(iommufd, ioas, same_page(4), AT, 4 * PAGE));
	may("refuse");
	phase("an attachment that is refused");
	must_be_refused(attach(bad, ioas), "attaching");
	expect_clflushes(0, 0);
	phase_end();
	attach_flushes(good, ioas, 0);
	phase("one beside a coherent device");
	must_be_refused(attach(bad, ioas), "attaching");
	expect_clflushes(0, 0);
	phase_end();
	may("allow");
	attach_flushes(bad, ioas, 4 * LINES);
	may("refuse");
	unmap_flushes(iommufd, ioas, AT, 4 * PAGE, 4, 4 * LINES);
	detach_flushes(bad, 0);
}

/* The page table that enforces nothing is there first. It is for who may have it. */
static void refused_gets_another(void)
{
	int iommufd = open_iommufd(), log = open_log();
	int bad = bind(NONCOHERENT, iommufd), bad_2 = bind(NONCOHERENT_2, iommufd);
	int good = bind(COHERENT, iommufd), good_2 = bind(COHERENT_2, iommufd);
	uint32_t ioas = new_ioas(iommufd), table = must_attach(bad, ioas), another;

	map_flushes(iommufd, ioas, same_page(4), AT, 4 * PAGE, 4 * LINES);
	if (must_attach(good, ioas) != table)
		fail("a page table more than there has to be is made");
	must(device_file_detach(good));

	may("refuse");
	phase("a coherent device is attached beside one that is not");
	another = must_attach(good, ioas);
	expect_clflushes(0, 0);
	phase_end();
	if (another == table)
		fail("it has the page table that enforces nothing");
	if (must_attach(good_2, ioas) != another)
		fail("a second coherent device does not share the first one's page table");
	if (refusals_logged(log, COHERENT) || refusals_logged(log, COHERENT_2))
		fail("what is attached is logged as refused");
	must_be_refused(attach(bad_2, ioas), "attaching a second that is not coherent");
	/* All that are left enforce coherency. */
	detach_flushes(bad, 0);
	map_flushes(iommufd, ioas, same_page(2), 2 * AT, 2 * PAGE, 0);
	unmap_flushes(iommufd, ioas, AT, 4 * PAGE, 4, 4 * LINES);
	unmap_flushes(iommufd, ioas, 2 * AT, 2 * PAGE, 2, 0);
}

/* It asks for a page table that is there, by its own ID, and keeps the one that it has. */
static void refused_to_replace(void)
{
	int iommufd = open_iommufd(), log = open_log();
	int bad = bind(NONCOHERENT, iommufd), good = bind(COHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd), table = must_attach(bad, new_ioas(iommufd));

	attach_flushes(good, ioas, 0);
	may("refuse");
	phase("a coherent device asks for a page table that enforces nothing");
	must_be_refused(attach(good, table), "replacing the page table");
	expect_clflushes(0, 0);
	phase_end();
	if (refusals_logged(log, COHERENT) != 1)
		fail("this is not logged once");
	map_flushes(iommufd, ioas, same_page(4), AT, 4 * PAGE, 0);
	unmap_flushes(iommufd, ioas, AT, 4 * PAGE, 4, 0);
	may("allow");
	if (must_attach(good, table) != table)
		fail("another page table takes the place of the first");
}

static void must_be_logged_once(int log, int device)
{
	int lines = refusals_logged(log, device);

	if (lines != 1)
		fail("%d lines say that device %d is refused, not one", lines, device);
}

static void must_not_be_logged(int log, int device)
{
	if (refusals_logged(log, device))
		fail("what is done to device %d is logged as refused", device);
}

/* Attaching it where it is, by the page table's own ID, changes nothing. */
static void attach_again(int file, uint32_t table)
{
	phase("a device is attached to the page table that it has");
	if (must_attach(file, table) != table)
		fail("it has another one now");
	expect_clflushes(0, 0);
	phase_end();
}

/* What is attached stays, and may be attached again; that, or a detachment, begins nothing. */
static void refused_again(void)
{
	int iommufd = open_iommufd(), log = open_log(), log_2 = open_log();
	int bad = bind(NONCOHERENT, iommufd), good = bind(COHERENT, iommufd);
	uint32_t ioas = new_ioas(iommufd), table = must_attach(bad, ioas);

	must_attach(good, table);
	map_flushes(iommufd, ioas, same_page(4), AT, 4 * PAGE, 4 * LINES);
	may("refuse");
	attach_again(bad, table);
	attach_again(good, table);
	if (must_attach(bad, ioas) != table)
		fail("the IOAS has another page table for a device that is not coherent");
	must_not_be_logged(log, NONCOHERENT);
	must_not_be_logged(log_2, COHERENT);
	unmap_flushes(iommufd, ioas, AT, 4 * PAGE, 4, 4 * LINES);
	detach_flushes(bad, 0);
	must_be_refused(attach(bad, table), "attaching what was detached");
	must_be_logged_once(log, NONCOHERENT);
}

/* Who has a page table that enforces nothing may have another one that does not, either. */
static void refused_nothing_new(void)
{
	int iommufd = open_iommufd(), log = open_log(), log_2 = open_log();
	int bad = bind(NONCOHERENT, iommufd), bad_2 = bind(NONCOHERENT_2, iommufd);
	int good = bind(COHERENT, iommufd);
	uint32_t first = new_ioas(iommufd), second = new_ioas(iommufd);
	uint32_t table = must_attach(bad, first), table_2 = must_attach(bad_2, second);

	must_attach(good, table);
	map_flushes(iommufd, second, same_page(4), AT, 4 * PAGE, 4 * LINES);
	may("refuse");
	phase("two devices leave a page table that enforces nothing for another one");
	if (must_attach(bad, table_2) != table_2 || must_attach(good, table_2) != table_2)
		fail("they have other ones");
	expect_clflushes(0, 0);
	phase_end();
	must_not_be_logged(log, NONCOHERENT);
	must_not_be_logged(log_2, COHERENT);
	unmap_flushes(iommufd, second, AT, 4 * PAGE, 4, 4 * LINES);
}

/* @kind: of a second device, in the group of a new coherent one, which it returns */
static int new_group(const char *kind)
{
	int device = new_device("coherent");

	must_put(TESTDEV "create", "1 %s %d", kind, device);
	return device;
}

/* All devices of a group have one page table: that of the first, until it is replaced. */
static void refused_in_a_group(void)
{
	int iommufd = open_iommufd(), bad = bind(NONCOHERENT, iommufd), log = open_log();
	int device = new_group("coherent");
	int first = bind(device, iommufd), second = bind(device + 1, iommufd);
	uint32_t ioas = new_ioas(iommufd), table = must_attach(bad, ioas), another;

	if (must_attach(first, ioas) != table)
		fail("a page table more than there has to be is made");
	may("refuse");
	must_be_refused(attach(second, ioas), "attaching a second device of the group");
	must_be_logged_once(log, device + 1);
	may("allow");
	if (must_attach(second, ioas) != table)
		fail("the devices of a group have different page tables");

	may("refuse");
	another = must_attach(first, ioas);
	if (another == table)
		fail("the group's page table is not replaced");
	if (must_attach(second, ioas) != another)
		fail("that of the second device is another one");
	detach_flushes(bad, 0);
	map_flushes(iommufd, ioas, same_page(2), AT, 2 * PAGE, 0);
	unmap_flushes(iommufd, ioas, AT, 2 * PAGE, 2, 0);
}

/* No page table can enforce coherency for the one without being refused for the other. */
static void refused_for_the_group(void)
{
	int iommufd = open_iommufd(), bad = bind(NONCOHERENT, iommufd), log = open_log();
	int device = new_group("noncoherent"), file = bind(device, iommufd), tries;
	uint32_t ioas = new_ioas(iommufd), table = must_attach(bad, ioas);

	may("refuse");
	for (tries = 0; tries < 2; tries++) {
		must_be_refused(attach(file, ioas), "attaching a coherent device of the group");
		must_be_logged_once(log, device);
	}
	may("allow");
	if (must_attach(file, ioas) != table)
		fail("a page table more than there has to be is made");
}

const struct scenario iommufd_scenarios[] = {
	{ "iommufd: a coherent device", coherent },
	{ "iommufd: a non-coherent device", noncoherent },
	{ "iommufd: which pages are flushed", which_pages },
	{ "iommufd: attached where memory is mapped", attached_to_mappings },
	{ "iommufd: a non-coherent device joins, and leaves", joins_and_leaves },
	{ "iommufd: it does where the IOMMU attaches anything", joins_anything },
	{ "iommufd: copies of a mapping", copies },
	{ "iommufd: mapped where an emulated device has pinned", emulated_pins_first },
	{ "iommufd: pinned for an emulated device where it is mapped", emulated_pins_mapped },
	{ "iommufd: a page table replaced by one that enforces nothing", replaced_in_place },
	{ "iommufd: the files are closed", end_of_iommufd },
	{ "iommufd: a hole", hole },
	{ "iommufd: a second page table has no room", second_is_full },
	{ "iommufd: killed while memory is mapped", killed_in_map },
	{ "iommufd: killed while a device is attached", killed_in_attach },
	{ "iommufd: attached, and cannot be told", attached_untold },
	{ "iommufd: refused", refused },
	{ "iommufd: allowed again", allowed_again },
	{ "iommufd: refused one page table, attached to another", refused_gets_another },
	{ "iommufd: allowed after that", allowed_again },
	{ "iommufd: refused another page table than it has", refused_to_replace },
	{ "iommufd: allowed to replace it after that", allowed_again },
	{ "iommufd: refused, and attached again to what it has", refused_again },
	{ "iommufd: allowed after that was attached", allowed_again },
	{ "iommufd: refused, and attached to what enforces no less", refused_nothing_new },
	{ "iommufd: allowed after no less", allowed_again },
	{ "iommufd: refused to one of a group that has a page table", refused_in_a_group },
	{ "iommufd: allowed after a group", allowed_again },
	{ "iommufd: refused for another of the group", refused_for_the_group },
	{ "iommufd: allowed after the other of the group", allowed_again },
};

const int iommufd_count = ARRAY_SIZE(iommufd_scenarios);

/* ---- files --------------------------------------------------------------- */

static void map_file_flushes(int iommufd, uint32_t ioas, int fd, uint64_t iova, size_t size,
			     long lines)
{
	phase("%zu KiB of a file are mapped", size >> 10);
	must(ioas_map_file(iommufd, ioas, fd, iova, size));
	expect_clflushes(lines, lines);
	expect_event(MAPPED, lines, lines);
	phase_end();
}

static void file(void)
{
	int iommufd = open_iommufd(), file = bind(NONCOHERENT, iommufd);
	int memory = must(memfd_create("file", MFD_CLOEXEC));
	uint32_t ioas = new_ioas(iommufd);
	char *mapped;

	must(ftruncate(memory, 8 * PAGE));
	attach_flushes(file, ioas, 0);
	forget_flushed();
	map_file_flushes(iommufd, ioas, memory, AT, 8 * PAGE, 8 * LINES);
	/* To find out where they are */
	mapped = must_map(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory);
	must_be_flushed(mapped, 8, "mapped");
	forget_flushed();
	detach_flushes(file, 8 * LINES);
	must_be_flushed(mapped, 8, "unmapped");
	attach_flushes(file, ioas, 8 * LINES);
	phase("what was mapped of the file is unmapped");
	must(ioas_unmap(iommufd, ioas, AT, 8 * PAGE));
	expect_clflushes(8 * LINES, 8 * LINES);
	expect_event(UNMAPPED, 0, 0);
	phase_end();
}

static void huge_file(void)
{
	int iommufd = open_iommufd(), file = bind(NONCOHERENT, iommufd);
	int memory = must(memfd_create("file", MFD_CLOEXEC | MFD_HUGETLB));
	uint32_t ioas = new_ioas(iommufd);

	must(ftruncate(memory, HUGE_PAGE));
	attach_flushes(file, ioas, 0);
	map_file_flushes(iommufd, ioas, memory, HUGE_PAGE, HUGE_PAGE, HUGE_LINES);
	unmap_flushes(iommufd, ioas, HUGE_PAGE, HUGE_PAGE, 1, HUGE_LINES);
}

static void coherent_file(void)
{
	int iommufd = open_iommufd(), file = bind(COHERENT, iommufd);
	int memory = must(memfd_create("file", MFD_CLOEXEC));
	uint32_t ioas = new_ioas(iommufd);

	must(ftruncate(memory, 8 * PAGE));
	attach_flushes(file, ioas, 0);
	map_file_flushes(iommufd, ioas, memory, AT, 8 * PAGE, 0);
	detach_flushes(file, 0);
}

const struct scenario file_scenarios[] = {
	{ "iommufd: a file", file },
	{ "iommufd: a file of huge pages", huge_file },
	{ "iommufd: a file, and a coherent device", coherent_file },
};

const int file_count = ARRAY_SIZE(file_scenarios);
