// SPDX-License-Identifier: GPL-2.0-only
/*
 * PCI devices, the lab's edu, behind VT-d without snoop control: registers of one of them
 * that another one accesses, and resets while a VM tracks one.
 *
 * This VT-d reads its tables past the caches, so each change of them is flushed as well.
 * They are told apart by where they are: see end_of_flushes().
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "dma.h"
#include "hold.h"
#include "iommufd.h"
#include "vm.h"

/* I/O addresses: of the first device's registers, there and once more, and of memory */
#define REGISTERS	0x10000000ull
#define REGISTERS_AGAIN	0x20000000ull
#define MEMORY		0x100000ull

/* ---- edu: see tools/testing/selftests/vfio/lib/drivers/edu --------------- */

#define EDU_ID		0x010000ed
#define EDU_BAR_SIZE	0x100000
#define EDU_DMA_SRC	0x80
#define EDU_DMA_DST	0x88
#define EDU_DMA_COUNT	0x90
#define EDU_DMA_CMD	0x98
#define   EDU_DMA_RUN		1u
#define   EDU_DMA_TO_MEMORY	2u
#define EDU_BUFFER	0x40000

/* The first is the one that others access, the second the one that is attached. */
enum { FIRST, SECOND };

struct edu {
	int file;
	char *registers;
};

static uint64_t region_offset(struct edu *edu, uint32_t index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	must(ioctl(edu->file, VFIO_DEVICE_GET_REGION_INFO, &info));
	return info.offset;
}

static void set_command(struct edu *edu, uint16_t set, uint16_t clear)
{
	uint64_t at = region_offset(edu, VFIO_PCI_CONFIG_REGION_INDEX) + PCI_COMMAND;
	uint16_t command;

	must(pread(edu->file, &command, sizeof(command), at));
	command = (command | set) & ~clear;
	must(pwrite(edu->file, &command, sizeof(command), at));
}

/* @file may be used. */
static struct edu use_edu(int file)
{
	struct edu edu = { .file = file };

	set_command(&edu, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 0);
	edu.registers = mmap(NULL, EDU_BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file,
			     region_offset(&edu, VFIO_PCI_BAR0_REGION_INDEX));
	if (edu.registers == MAP_FAILED)
		fail("the device's registers cannot be mapped: %s", strerror(errno));
	return edu;
}

static struct edu bound_edu(int index, int iommufd)
{
	int file = edu_file(index);

	must_bind(file, iommufd);
	return use_edu(file);
}

static void end_of_edu(struct edu *edu)
{
	munmap(edu->registers, EDU_BAR_SIZE);
	close_fd(&edu->file);
}

static void run_dma(struct edu *edu, uint64_t from, uint64_t to, uint32_t command)
{
	volatile uint32_t *status = (void *)(edu->registers + EDU_DMA_CMD);
	double limit = now() + 5 * patience;

	*(volatile uint64_t *)(edu->registers + EDU_DMA_SRC) = from;
	*(volatile uint64_t *)(edu->registers + EDU_DMA_DST) = to;
	*(volatile uint64_t *)(edu->registers + EDU_DMA_COUNT) = sizeof(uint32_t);
	*status = command | EDU_DMA_RUN;
	while (*status & EDU_DMA_RUN) {
		if (now() > limit)
			fail("the device's DMA does not end");
		sleep_ms(1);
	}
}

/* Such a read finds zeroes where nothing is mapped, and such a write changes nothing. */
#define NOTHING		0u
#define NOT_WRITTEN	~0u

/* In the middle of memory_page() */
#define SOMETHING	0x736f6d65u
#define SOME_PLACE	(MEMORY + PAGE / 2)

static char *memory_page(void)
{
	char *page = other_pages(1);

	*(uint32_t *)(page + PAGE / 2) = SOMETHING;
	return page;
}

/* What the device reads there, by way of the start of @memory, which is mapped at MEMORY */
static uint32_t edu_reads(struct edu *edu, char *memory, uint64_t iova)
{
	volatile uint32_t *word = (void *)memory;

	*word = SOMETHING;
	run_dma(edu, MEMORY, EDU_BUFFER, 0);
	run_dma(edu, iova, EDU_BUFFER, 0);
	*word = NOT_WRITTEN;
	run_dma(edu, EDU_BUFFER, MEMORY, EDU_DMA_TO_MEMORY);
	return *word;
}

static void must_read(struct edu *edu, char *memory, uint64_t iova, uint32_t wanted)
{
	uint32_t got = edu_reads(edu, memory, iova);

	if (got != wanted)
		fail("the device reads 0x%08x at 0x%llx, not 0x%08x", got,
		     (unsigned long long)iova, wanted);
}

/* ---- dma-buf ------------------------------------------------------------- */

#ifndef VFIO_DEVICE_FEATURE_DMA_BUF
#define VFIO_DEVICE_FEATURE_DMA_BUF	11
#endif

/* BAR 0 of @edu; or -1 and errno */
static int registers_of(struct edu *edu)
{
	struct {
		struct vfio_device_feature feature;
		uint32_t region, open_flags, flags, ranges;
		uint64_t offset, length;
	} request = {
		.feature.argsz = sizeof(request),
		.feature.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
		.region = VFIO_PCI_BAR0_REGION_INDEX,
		.open_flags = O_RDWR | O_CLOEXEC,
		.ranges = 1,
		.length = EDU_BAR_SIZE,
	};

	return ioctl(edu->file, VFIO_DEVICE_FEATURE, &request);
}

static int map_registers(int iommufd, uint32_t ioas, int fd, uint64_t iova)
{
	return ioas_map_file(iommufd, ioas, fd, iova, EDU_BAR_SIZE);
}

/* ---- what is flushed ----------------------------------------------------- */

/* Where the first device's registers are for the CPU */
static uint64_t registers_at(void)
{
	unsigned long long begin;
	char path[128], text[1024];
	int ret;

	snprintf(path, sizeof(path), "%s/resource", edu_device(FIRST));
	ret = get_text(path, text, sizeof(text));
	if (ret || sscanf(text, "%llx", &begin) != 1 || !begin)
		fail("%s does not say where the registers are", path);
	return begin;
}

#define flushes_of(...)			\
do {					\
	forget_flushed();		\
	phase(__VA_ARGS__);		\
} while (0)

/*
 * All of the @n pages of @memory have been flushed, each once; no registers; and nothing by
 * others than flushed.ko knows.
 */
static void end_of_flushes(const char *memory, int n)
{
	static struct flush calls[MAX_FLUSHES];
	uint64_t frames[4], registers = registers_at();
	int count = flushes(calls, MAX_FLUSHES), i, page;
	unsigned long flushed[4] = {};
	long lines = 0;

	for (i = 0; i < count && i < MAX_FLUSHES; i++)
		lines += (calls[i].at % 64 + calls[i].size + 63) / 64;
	expect_clflushes(lines, lines);
	phase_end();

	if (count > MAX_FLUSHES)
		fail("there are %d calls that flush", count);
	page_frames(memory, frames, n);
	for (i = 0; i < count; i++) {
		if (!calls[i].at || (calls[i].at + calls[i].size > registers &&
				     calls[i].at < registers + EDU_BAR_SIZE))
			fail("%u bytes are flushed that are no memory", calls[i].size);
		for (page = 0; page < n; page++)
			if (calls[i].at / PAGE == frames[page])
				flushed[page] += calls[i].size;
	}
	for (page = 0; page < n; page++)
		if (flushed[page] != PAGE)
			fail("%s: of page %d %lu bytes are flushed", expected.what, page,
			     flushed[page]);
}

/* None of the @n pages is. */
static void end_without_flush(const char *memory, int n)
{
	static struct flush calls[MAX_FLUSHES];
	uint64_t frames[4];
	int count, i, page;

	end_of_flushes(NULL, 0);
	count = flushes(calls, MAX_FLUSHES);
	page_frames(memory, frames, n);
	for (i = 0; i < count; i++)
		for (page = 0; page < n; page++)
			if (calls[i].at / PAGE == frames[page])
				fail("%s: page %d is flushed", expected.what, page);
}

/* ---- the VM that tracks the second device -------------------------------- */

static int vm, kvm_vfio, tracked;

static void track(int file)
{
	tracked = file;
	vm = create_vm();
	kvm_vfio = must(kvm_vfio_create(vm));
	must(kvm_vfio_add(kvm_vfio, file));
}

static void vm_must_be(bool noncoherent)
{
	struct kvm_vfio_vm_state state;

	/* Stock modules let nothing be read. */
	if (is_stock())
		return;
	must(kvm_vfio_attr(kvm_vfio, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
			   KVM_DEV_VFIO_STATE_VM, &state));
	if (state.noncoherent != noncoherent || state.noncoherent_files != noncoherent ||
	    state.files != 1)
		fail("of the VM's %u files %u are not coherent, it is %scoherent", state.files,
		     state.noncoherent_files, state.noncoherent ? "non-" : "");
}

struct seen {
	char text[1024];
};

static void see(struct seen *seen, const char *name, long long number)
{
	size_t used = strlen(seen->text);

	snprintf(seen->text + used, sizeof(seen->text) - used, " %s=%lld", name, number);
}

/* All that there is to see of the VM, and who holds the modules */
static struct seen see_vm(void)
{
	static const char * const numbers[] = {
		"noncoherent_dma", "noncoherent_dma_changes", "noncoherent_dma_flushes",
		"noncoherent_dma_zaps",
	}, * const modules[] = { "kvm", "vfio", "vfio_pci", "vfio_pci_core", "iommufd" };
	struct kvm_vfio_file_state state = { .fd = tracked };
	struct seen seen = {};
	char path[80];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(modules); i++)
		see(&seen, modules[i], module_references(modules[i]));
	if (is_stock())
		return seen;
	for (i = 0; i < ARRAY_SIZE(numbers); i++) {
		see(&seen, numbers[i], must(vm_number(gettid(), vm, numbers[i])));
		snprintf(path, sizeof(path), DEBUGFS "kvm/%s", numbers[i]);
		see(&seen, "of all", must(get_number(path)));
	}
	must(kvm_vfio_attr(kvm_vfio, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
			   KVM_DEV_VFIO_STATE_FILE, &state));
	see(&seen, "file", state.coherency);
	return seen;
}

/* What ends may be let go of a little later. */
static void must_be_as_before(const struct seen *before, const char *what)
{
	struct seen seen = see_vm();
	int tries;

	for (tries = 0; tries < 200 && strcmp(seen.text, before->text); tries++) {
		sleep_ms(10);
		seen = see_vm();
	}
	if (strcmp(seen.text, before->text))
		fail("%s: before,%s; then,%s", what, before->text, seen.text);
}

/* ---- registers ----------------------------------------------------------- */

static struct edu first, second;
static int iommufd, buffer;
static uint32_t ioas;
static char *memory;

/* @buffer are the first device's registers; the second is tracked. */
static void begin(void)
{
	iommufd = open_iommufd();
	ioas = new_ioas(iommufd);
	first = bound_edu(FIRST, iommufd);
	second = bound_edu(SECOND, iommufd);
	track(second.file);
	buffer = must(registers_of(&first));
	memory = memory_page();
	vm_must_be(false);
}

static void attach_second(void)
{
	uint32_t table = ioas;

	must(device_file_attach(second.file, &table));
}

static void mapped_first(void)
{
	struct seen before;

	begin();
	flushes_of("registers and a page are mapped into no domain");
	must(map_registers(iommufd, ioas, buffer, REGISTERS));
	must(ioas_map(iommufd, ioas, memory, MEMORY, PAGE));
	end_without_flush(memory, 1);
	flushes_of("a device is attached to them");
	attach_second();
	end_of_flushes(memory, 1);
	vm_must_be(true);
	before = see_vm();
	must_read(&second, memory, REGISTERS, EDU_ID);
	must_be_as_before(&before, "DMA");
	flushes_of("it is detached");
	must(device_file_detach(second.file));
	end_of_flushes(memory, 1);
	vm_must_be(false);
	flushes_of("it is attached again");
	attach_second();
	end_of_flushes(memory, 1);
	must_read(&second, memory, REGISTERS, EDU_ID);
	before = see_vm();
	flushes_of("the registers are unmapped");
	must(ioas_unmap(iommufd, ioas, REGISTERS, EDU_BAR_SIZE));
	end_without_flush(memory, 1);
	must_be_as_before(&before, "unmapping");
	must_read(&second, memory, REGISTERS, NOTHING);
	flushes_of("the page is unmapped");
	must(ioas_unmap(iommufd, ioas, MEMORY, PAGE));
	end_of_flushes(memory, 1);
}

/* As every scenario that follows begins */
static void attached_to_both(void)
{
	struct seen before;

	begin();
	attach_second();
	vm_must_be(true);
	before = see_vm();
	flushes_of("registers are mapped where a device is attached");
	must(map_registers(iommufd, ioas, buffer, REGISTERS));
	end_of_flushes(NULL, 0);
	flushes_of("a page is mapped beside them");
	must(ioas_map(iommufd, ioas, memory, MEMORY, PAGE));
	end_of_flushes(memory, 1);
	must_read(&second, memory, REGISTERS, EDU_ID);
	must_be_as_before(&before, "mapping");
}

static void mapped_then(void)
{
	attached_to_both();
	flushes_of("the registers are unmapped");
	must(ioas_unmap(iommufd, ioas, REGISTERS, EDU_BAR_SIZE));
	end_without_flush(memory, 1);
	must_read(&second, memory, REGISTERS, NOTHING);
	must(map_registers(iommufd, ioas, buffer, REGISTERS));
	flushes_of("a device is detached from registers and a page");
	must(device_file_detach(second.file));
	end_of_flushes(memory, 1);
	vm_must_be(false);
}

static int hot_reset(struct edu *edu, int group)
{
	struct {
		struct vfio_pci_hot_reset reset;
		int32_t group;
	} request = {
		.reset.argsz = sizeof(request),
		.reset.count = group >= 0,
		.group = group,
	};

	return ioctl(edu->file, VFIO_DEVICE_PCI_HOT_RESET, &request);
}

static void by_reset(void)
{
	must(ioctl(first.file, VFIO_DEVICE_RESET));
}

static void by_hot_reset(void)
{
	must(hot_reset(&first, -1));
}

static void by_command(void)
{
	set_command(&first, 0, PCI_COMMAND_MEMORY);
}

static void by_close(void)
{
	end_of_edu(&first);
}

/* @revoke takes the registers away; another mapping of them may be possible afterwards. */
static void revoked(void (*revoke)(void), bool again)
{
	struct seen before;

	attached_to_both();
	before = see_vm();
	flushes_of("registers that are mapped are revoked");
	revoke();
	end_without_flush(memory, 1);
	/* Who has closed its file holds one module less. */
	if (first.file >= 0)
		must_be_as_before(&before, "revoking");
	must_read(&second, memory, REGISTERS, NOTHING);
	vm_must_be(true);

	flushes_of("a device is detached from what was revoked, and a page");
	must(device_file_detach(second.file));
	end_of_flushes(memory, 1);
	flushes_of("it is attached to that again");
	attach_second();
	end_of_flushes(memory, 1);
	must_read(&second, memory, REGISTERS, NOTHING);
	vm_must_be(true);

	if (first.file >= 0)
		set_command(&first, PCI_COMMAND_MEMORY, 0);
	flushes_of("revoked registers are mapped once more");
	if (again) {
		must(map_registers(iommufd, ioas, buffer, REGISTERS_AGAIN));
	} else if (!map_registers(iommufd, ioas, buffer, REGISTERS_AGAIN) || errno != ENODEV) {
		fail("registers of a closed device can be mapped");
	}
	end_without_flush(memory, 1);
	if (again)
		must_read(&second, memory, REGISTERS_AGAIN, EDU_ID);
	flushes_of("the revoked registers are unmapped");
	must(ioas_unmap(iommufd, ioas, REGISTERS, EDU_BAR_SIZE));
	end_without_flush(memory, 1);
	flushes_of("the page beside them is unmapped");
	must(ioas_unmap(iommufd, ioas, MEMORY, PAGE));
	end_of_flushes(memory, 1);
	vm_must_be(true);
}

static void reset_revokes(void)
{
	revoked(by_reset, true);
}

static void hot_reset_revokes(void)
{
	revoked(by_hot_reset, true);
}

static void command_revokes(void)
{
	revoked(by_command, true);
}

static void close_revokes(void)
{
	revoked(by_close, false);
}

/* ---- resets of the tracked device ---------------------------------------- */

/* It is attached, and does DMA after that as before. */
static void is_reset(bool hot, int group)
{
	struct seen before;

	vm_must_be(true);
	must_read(&second, memory, SOME_PLACE, SOMETHING);
	before = see_vm();
	flushes_of("a device is %sreset", hot ? "hot " : "");
	must(hot ? hot_reset(&second, group) : ioctl(second.file, VFIO_DEVICE_RESET));
	end_without_flush(memory, 1);
	vm_must_be(true);
	must_be_as_before(&before, "a reset");
	must_read(&second, memory, SOME_PLACE, SOMETHING);
}

static void file_is_reset(void)
{
	begin();
	must(ioas_map(iommufd, ioas, memory, MEMORY, PAGE));
	attach_second();
	is_reset(false, -1);
	is_reset(true, -1);
	must(device_file_detach(second.file));
	vm_must_be(false);
}

/* In a container of type 1 */
static void group_is_reset(void)
{
	int group = group_open(SECOND), container;

	track(group);
	container = group_attach(group);
	memory = memory_page();
	must(container_map(container, memory, MEMORY, PAGE));
	second = use_edu(must(ioctl(group, VFIO_GROUP_GET_DEVICE_FD,
				    strrchr(edu_device(SECOND), '/') + 1)));
	is_reset(false, -1);
	is_reset(true, group);
	end_of_edu(&second);
	must(group_leave(group));
	vm_must_be(false);
}

/* ---- meanwhile ----------------------------------------------------------- */

/* The device's DMA is blocked by then. */
#define RESETS	"pci_bridge_secondary_bus_reset"

static int reset_result;

static void *reset_second(void *unused)
{
	char path[128];

	(void)unused;
	if (second.file >= 0) {
		reset_result = ioctl(second.file, VFIO_DEVICE_RESET) ? -errno : 0;
	} else {
		snprintf(path, sizeof(path), "%s/reset", edu_device(SECOND));
		reset_result = put(path, "1");
	}
	return NULL;
}

/* Another thread resets the second device, and is held when it does. */
static pthread_t begin_reset(void)
{
	pthread_t thread;

	/* The scenario before may have failed. */
	release_held();
	forget_hold();
	try_unload("ats");
	load("ats.ko", "");
	hold_at(RESETS, "");
	thread = thread_on(1, reset_second);
	wait_until(somebody_is_held, "the device is not reset");
	return thread;
}

static void end_reset(pthread_t thread)
{
	let_go();
	must_join(thread, "a reset");
	unload("hold");
	unload("ats");
	if (reset_result)
		fail("the reset fails: %s", strerror(-reset_result));
}

static void must_be_busy(int ret, const char *what)
{
	if (!ret || errno != EBUSY)
		fail("%s a device that is reset: %s", what, ret ? strerror(errno) : "it works");
}

static void attached_meanwhile(void)
{
	uint32_t table;
	pthread_t reset;

	begin();
	must(ioas_map(iommufd, ioas, memory, MEMORY, PAGE));
	table = ioas;
	reset = begin_reset();
	flushes_of("a device is to be attached that is being reset");
	must_be_busy(device_file_attach(second.file, &table), "attaching");
	end_without_flush(memory, 1);
	vm_must_be(false);
	end_reset(reset);
	vm_must_be(false);
	flushes_of("it has been reset");
	attach_second();
	end_of_flushes(memory, 1);
	vm_must_be(true);
	must_read(&second, memory, SOME_PLACE, SOMETHING);
}

static void detached_meanwhile(void)
{
	pthread_t reset;

	begin();
	must(ioas_map(iommufd, ioas, memory, MEMORY, PAGE));
	attach_second();
	must_read(&second, memory, SOME_PLACE, SOMETHING);
	reset = begin_reset();
	flushes_of("a device is detached that is being reset");
	must(device_file_detach(second.file));
	end_of_flushes(memory, 1);
	vm_must_be(false);
	end_reset(reset);
	vm_must_be(false);
	must_read(&second, memory, SOME_PLACE, NOT_WRITTEN);
	attach_second();
	vm_must_be(true);
	must_read(&second, memory, SOME_PLACE, SOMETHING);
}

static void replaced_meanwhile(void)
{
	uint32_t other, table;
	struct seen before;
	pthread_t reset;

	begin();
	must(ioas_map(iommufd, ioas, memory, MEMORY, PAGE));
	attach_second();
	other = new_ioas(iommufd);
	before = see_vm();
	reset = begin_reset();
	table = other;
	flushes_of("a device that is being reset is to be attached elsewhere");
	must_be_busy(device_file_attach(second.file, &table), "replacing the page table of");
	end_without_flush(memory, 1);
	vm_must_be(true);
	end_reset(reset);
	must_be_as_before(&before, "what fails");
	must_read(&second, memory, SOME_PLACE, SOMETHING);
	flushes_of("it is attached elsewhere when it has been reset");
	must(device_file_attach(second.file, &other));
	end_of_flushes(memory, 1);
	vm_must_be(true);
}

/* By its group, before anybody has its file: user space may reset it by sysfs. */
static void joins_meanwhile(void)
{
	int group = group_open(SECOND), container = must(open_container());
	pthread_t reset;

	second.file = -1;
	track(group);
	must(group_join(group, container));
	reset = begin_reset();
	must_be_busy(container_set_iommu(container), "giving an IOMMU to the container of");
	vm_must_be(false);
	end_reset(reset);
	vm_must_be(false);
	must(container_set_iommu(container));
	vm_must_be(true);
}

const struct scenario pci_scenarios[] = {
	{ "pci: registers that are mapped before a device is attached", mapped_first },
	{ "pci: registers that are mapped where one is attached", mapped_then },
	{ "pci: registers revoked by a reset", reset_revokes },
	{ "pci: registers revoked by a hot reset", hot_reset_revokes },
	{ "pci: registers revoked by the command register", command_revokes },
	{ "pci: registers revoked when their device is closed", close_revokes },
	{ "pci: a device's own file, and resets", file_is_reset },
	{ "pci: a group, and resets", group_is_reset },
	{ "pci: attached while it is reset", attached_meanwhile },
	{ "pci: detached while it is reset", detached_meanwhile },
	{ "pci: attached elsewhere while it is reset", replaced_meanwhile },
	{ "pci: attached by its group while it is reset", joins_meanwhile },
};

const int pci_count = ARRAY_SIZE(pci_scenarios);
