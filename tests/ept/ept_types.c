// SPDX-License-Identifier: GPL-2.0-only
/* Cases of ept_test: which memory type a page has */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ept.h"

#define MSR_MTRR_BASE(n)	(0x200 + 2 * (n))
#define MSR_MTRR_MASK(n)	(0x201 + 2 * (n))
#define MSR_MTRR_FIX16K_A0000	0x259
#define MTRR_ENABLE_FIXED	0x400
#define MTRR_MASK_VALID		0x800

void noncoherent_vm(void)
{
	attach(NONCOHERENT, 0);
	add(NONCOHERENT);
}

void coherent_vm(void)
{
	attach(COHERENT, 0);
	add(COHERENT);
}

static void test_no_device(void)
{
	guest_touches(SMALL);
	expect(SMALL, WB | IPAT);
	guest_touches(HUGE);
	expect(HUGE, WB | IPAT);
}

static void test_coherent_small(void)
{
	coherent_vm();
	guest_touches(SMALL);
	expect(SMALL, WB | IPAT);
	expect_level(SMALL, 1);
}

static void test_coherent_huge(void)
{
	coherent_vm();
	guest_touches(HUGE);
	expect(HUGE, WB | IPAT);
	expect_level(HUGE, 2);
}

static void test_noncoherent_small(void)
{
	noncoherent_vm();
	guest_touches(SMALL);
	expect(SMALL, WB);
	expect_level(SMALL, 1);
}

static void test_noncoherent_huge(void)
{
	noncoherent_vm();
	guest_touches(HUGE);
	expect(HUGE, WB);
	expect_level(HUGE, 2);
}

/*
 * One variable MTRR; SIZE a power of two. The mask comes first: stock 6.1 warns
 * when asked to zap the range of a base whose mask is still 0.
 */
void set_mtrr(int n, uint64_t base, uint64_t size, int type)
{
	uint64_t addresses = (1ull << vm.physical_bits) - 1;

	set_msr(MSR_MTRR_MASK(n), (addresses & -size) | MTRR_MASK_VALID);
	set_msr(MSR_MTRR_BASE(n), base | type);
}

/* What a MTRR of that type comes to on this base. */
int by_mtrr(int type)
{
	return honours_mtrrs ? type : WB;
}

static void test_variable_mtrrs(void)
{
	static const int types[] = { UC, WC, WT, WP };
	unsigned int i;

	noncoherent_vm();
	for (i = 0; i < ARRAY_SIZE(types); i++)
		set_mtrr(i, SMALL + i * 4096, 4096, types[i]);
	for (i = 0; i < ARRAY_SIZE(types); i++) {
		guest_touches(SMALL + i * 4096);
		expect(SMALL + i * 4096, by_mtrr(types[i]));
	}
	guest_touches(SMALL + i * 4096);
	expect(SMALL + i * 4096, WB);
}

static void test_huge_mtrr(void)
{
	noncoherent_vm();
	set_mtrr(0, HUGE, 2 * MIB, WT);
	guest_touches(HUGE);
	expect(HUGE, by_mtrr(WT));
	expect_level(HUGE, 2);
	guest_touches(HUGE + 2 * MIB);
	expect(HUGE + 2 * MIB, WB);
}

/* Two types within 2 MiB: they cannot be one entry. */
static void test_split_mtrr(void)
{
	noncoherent_vm();
	set_mtrr(0, HUGE, MIB, WC);
	guest_touches(HUGE);
	expect(HUGE, by_mtrr(WC));
	guest_touches(HUGE + MIB);
	expect(HUGE + MIB, WB);
	expect_level(HUGE + MIB, honours_mtrrs ? 1 : 2);
}

static void test_fixed_mtrr(void)
{
	noncoherent_vm();
	set_msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_ENABLE_FIXED | WB);
	/* The other fixed ones are 0, UC: the guest's code runs uncached. */
	set_msr(MSR_MTRR_FIX16K_A0000, 0x0101010101010406);
	guest_touches(0xa0000);
	expect(0xa0000, WB);
	guest_touches(0xa4000);
	expect(0xa4000, by_mtrr(WT));
	guest_touches(0xa8000);
	expect(0xa8000, by_mtrr(WC));
	guest_touches(0x80000);
	expect(0x80000, by_mtrr(UC));
}

static void test_disabled_mtrrs(void)
{
	noncoherent_vm();
	set_msr(MSR_MTRR_DEF_TYPE, WB);
	guest_touches(SMALL);
	expect(SMALL, by_mtrr(UC));
}

static void test_ignored_mtrrs(void)
{
	coherent_vm();
	set_mtrr(0, SMALL, 4096, UC);
	guest_touches(SMALL);
	expect(SMALL, WB | IPAT);
	set_msr(MSR_MTRR_DEF_TYPE, WB);
	guest_touches(SMALL + 4096);
	expect(SMALL + 4096, WB | IPAT);
}

static void test_changed_mtrr(void)
{
	noncoherent_vm();
	set_mtrr(0, SMALL, 4096, WC);
	guest_touches(SMALL);
	expect(SMALL, by_mtrr(WC));
	guest_writes_msr(MSR_MTRR_BASE(0), SMALL | WT);
	guest_touches(SMALL);
	expect(SMALL, by_mtrr(WT));
	guest_writes_msr(MSR_MTRR_DEF_TYPE, 0);
	guest_touches(SMALL);
	expect(SMALL, by_mtrr(UC));
}

static void test_cache_disable_quirk(void)
{
	noncoherent_vm();
	guest_sets_cr0(0x31 | CR0_CD);
	guest_touches(SMALL);
	expect(SMALL, honours_mtrrs ? WB | IPAT : WB);
}

void disable_quirk(uint64_t quirk)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DISABLE_QUIRKS2, .args[0] = quirk };

	must(ioctl(vm.fd, KVM_ENABLE_CAP, &cap));
}

static void test_cache_disable(void)
{
	disable_quirk(KVM_X86_QUIRK_CD_NW_CLEARED);
	noncoherent_vm();
	guest_touches(SMALL);
	expect(SMALL, WB);
	guest_sets_cr0(0x31 | CR0_CD);
	guest_touches(SMALL);
	expect(SMALL, honours_mtrrs ? UC | IPAT : WB);
	guest_sets_cr0(0x31);
	guest_touches(SMALL);
	expect(SMALL, WB);
}

static void test_ignored_cache_disable(void)
{
	disable_quirk(KVM_X86_QUIRK_CD_NW_CLEARED);
	coherent_vm();
	guest_sets_cr0(0x31 | CR0_CD);
	guest_touches(SMALL);
	expect(SMALL, WB | IPAT);
}

/* Any memory BAR of the emulated host that may be read without harm: VGA's. */
void add_host_mmio(void)
{
	char path[300];
	struct dirent *entry;
	DIR *dir = opendir("/sys/bus/pci/devices");
	int fd = -1;

	while (dir && fd < 0 && (entry = readdir(dir))) {
		char class[16] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/class", entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(class, sizeof(class), file) && !strncmp(class, "0x03", 4)) {
			snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource0",
				 entry->d_name);
			fd = open(path, O_RDWR | O_CLOEXEC);
		}
		fclose(file);
	}
	if (dir)
		closedir(dir);
	if (fd < 0)
		fail("the host has no display adapter to map");
	vm.mmio = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (vm.mmio == MAP_FAILED) {
		vm.mmio = NULL;
		fail("mmap of the display adapter: %s", strerror(errno));
	}
	add_memory(vm.fd, 3, HOST_MMIO, 4096, vm.mmio);
}

static void test_host_mmio(void)
{
	add_host_mmio();
	coherent_vm();
	guest_reads(HOST_MMIO);
	expect(HOST_MMIO, UC);
	attach(NONCOHERENT, 1);
	add(NONCOHERENT);
	guest_reads(HOST_MMIO);
	expect(HOST_MMIO, UC);
	del(NONCOHERENT);
	guest_reads(HOST_MMIO);
	expect(HOST_MMIO, UC);
}

static void read_hole(void)
{
	struct entries found;
	int i;

	vm.mmio_exits = 0;
	guest_reads(HOLE);
	if (vm.mmio_exits != 1)
		fail("a read of nothing left the guest %d times", vm.mmio_exits);
	found = entries_at(HOLE, mark());
	for (i = 0; i < 16; i++)
		if (found.count[i] > 0)
			fail("nothing is mapped as %s", type_name(i));
}

static void test_hole(void)
{
	coherent_vm();
	read_hole();
	attach(NONCOHERENT, 1);
	add(NONCOHERENT);
	read_hole();
	del(NONCOHERENT);
	read_hole();
}

static const struct test tests[] = {
	{ "no VFIO device: RAM is WB, PAT ignored", test_no_device },
	{ "coherent: a 4 KiB page is WB, PAT ignored", test_coherent_small },
	{ "coherent: a 2 MiB page is WB, PAT ignored", test_coherent_huge },
	{ "non-coherent: a 4 KiB page is WB, PAT honoured", test_noncoherent_small },
	{ "non-coherent: a 2 MiB page is WB, PAT honoured", test_noncoherent_huge },
	{ "non-coherent: variable MTRRs of 4 KiB", test_variable_mtrrs },
	{ "non-coherent: a variable MTRR of 2 MiB", test_huge_mtrr },
	{ "non-coherent: two types within 2 MiB", test_split_mtrr },
	{ "non-coherent: fixed MTRRs", test_fixed_mtrr },
	{ "non-coherent: MTRRs disabled", test_disabled_mtrrs },
	{ "non-coherent: the guest changes an MTRR", test_changed_mtrr },
	{ "non-coherent: CR0.CD with the quirk", test_cache_disable_quirk },
	{ "non-coherent: CR0.CD without the quirk", test_cache_disable },
	{ "coherent: MTRRs are ignored", test_ignored_mtrrs },
	{ "coherent: CR0.CD is ignored", test_ignored_cache_disable },
	{ "host MMIO is UC whatever changes", test_host_mmio },
	{ "no memory: each access leaves the guest", test_hole },
};

const struct suite type_suite = SUITE(tests);
