// SPDX-License-Identifier: GPL-2.0-only
/* Cases of ept_test: a VM becomes non-coherent, or coherent again */
#define _GNU_SOURCE
#include <sys/ioctl.h>

#include "ept.h"

void add_coherent(void)		{ add(COHERENT); }
void add_noncoherent(void)	{ add(NONCOHERENT); }
void add_noncoherent2(void)	{ add(NONCOHERENT2); }
static void del_coherent(void)		{ del(COHERENT); }
void del_noncoherent(void)	{ del(NONCOHERENT); }
void del_noncoherent2(void)	{ del(NONCOHERENT2); }
static void set_iommu_0(void)		{ set_iommu(0); }
static void join_0(void)		{ join(NONCOHERENT, 0); }
static void leave_noncoherent(void)	{ leave(NONCOHERENT); }
static void unbind_noncoherent(void)	{ unbind(NONCOHERENT); }

static void test_add(void)
{
	attach(NONCOHERENT, 0);
	becomes_noncoherent(add_noncoherent);
}

static void test_set_iommu(void)
{
	join(NONCOHERENT, 0);
	add(NONCOHERENT);
	becomes_noncoherent(set_iommu_0);
}

/* The container has its IOMMU by another group, which this VM does not use. */
static void test_set_container(void)
{
	attach(COHERENT, 0);
	add(NONCOHERENT);
	becomes_noncoherent(join_0);
}

/* The group that joins is not tracked, but the one beside it is. */
static void test_neighbour_joins(void)
{
	coherent_vm();
	stays(join_0, WB | IPAT);
}

static void test_neighbour_leaves(void)
{
	coherent_vm();
	join(NONCOHERENT, 0);
	stays(leave_noncoherent, WB | IPAT);
}

static void test_del(void)
{
	noncoherent_vm();
	becomes_coherent(del_noncoherent);
}

static void test_unset_container(void)
{
	noncoherent_vm();
	becomes_coherent(leave_noncoherent);
}

static void test_close_device(void)
{
	noncoherent_vm();
	becomes_coherent(close_device);
}

static void test_unbind(void)
{
	noncoherent_vm();
	becomes_coherent(unbind_noncoherent);
}

static void test_last_of_two(void)
{
	coherent_vm();
	attach(NONCOHERENT, 1);
	join(NONCOHERENT2, 1);
	leave(NONCOHERENT2);
	add(NONCOHERENT);
	join(NONCOHERENT2, 1);
	add(NONCOHERENT2);
	stays(del_noncoherent2, WB);
	stays(del_coherent, WB);
	becomes_coherent(del_noncoherent);
}

static void test_coherent_comes_and_goes(void)
{
	attach(COHERENT, 0);
	stays(add_coherent, WB | IPAT);
	stays(del_coherent, WB | IPAT);
}

static void test_there_and_back(void)
{
	int i;

	attach(NONCOHERENT, 0);
	for (i = 0; i < 3; i++) {
		becomes_noncoherent(add_noncoherent);
		becomes_coherent(del_noncoherent);
	}
}

/* To the other state, back, and there again, with what the test watches. */
static void changes_and_back(void)
{
	attach(NONCOHERENT, 0);
	becomes_noncoherent(add_noncoherent);
	becomes_coherent(del_noncoherent);
	becomes_noncoherent(add_noncoherent);
}

static void test_mtrrs_across(void)
{
	static const int types[] = { UC, WC, WT };
	unsigned int i;

	watch_ram(WB | IPAT, WB);
	for (i = 0; i < ARRAY_SIZE(types); i++) {
		uint32_t gpa = SMALL + (16 + i) * 4096;

		set_mtrr(i, gpa, 4096, types[i]);
		watch((struct page){ gpa, { WB | IPAT, by_mtrr(types[i]) }, { 1, 1 } });
	}
	changes_and_back();
}

static void test_disabled_mtrrs_across(void)
{
	set_msr(MSR_MTRR_DEF_TYPE, WB);
	watch_ram(WB | IPAT, by_mtrr(UC));
	changes_and_back();
}

static void test_cache_disable_quirk_across(void)
{
	guest_sets_cr0(0x31 | CR0_CD);
	watch_ram(WB | IPAT, honours_mtrrs ? WB | IPAT : WB);
	changes_and_back();
}

static void test_cache_disable_across(void)
{
	disable_quirk(KVM_X86_QUIRK_CD_NW_CLEARED);
	guest_sets_cr0(0x31 | CR0_CD);
	watch_ram(WB | IPAT, honours_mtrrs ? UC | IPAT : WB);
	changes_and_back();
}

static void test_split_mtrr_across(void)
{
	int level = honours_mtrrs ? 1 : 2;

	watch((struct page){ SMALL, { WB | IPAT, WB }, { 1, 1 } });
	watch((struct page){ HUGE, { WB | IPAT, WB }, { 2, 2 } });
	set_mtrr(0, HUGE + 2 * MIB, MIB, WC);
	watch((struct page){ HUGE + 2 * MIB, { WB | IPAT, by_mtrr(WC) }, { 2, level } });
	watch((struct page){ HUGE + 3 * MIB, { WB | IPAT, WB }, { 2, level } });
	changes_and_back();
}

static void test_host_mmio_across(void)
{
	add_host_mmio();
	watch_ram(WB | IPAT, WB);
	watch((struct page){ HOST_MMIO, { UC, UC }, { 1, 1 } });
	changes_and_back();
}

static void ignore_pat_no_more(void)
{
	disable_quirk(KVM_X86_QUIRK_IGNORE_GUEST_PAT);
	add_noncoherent();
}

/* From now on the guest's PAT counts always: not in the entries that there are. */
static void test_guest_pat(void)
{
	if (honours_mtrrs) {	/* and has no such quirk */
		struct kvm_enable_cap cap = {
			.cap = KVM_CAP_DISABLE_QUIRKS2,
			.args[0] = KVM_X86_QUIRK_IGNORE_GUEST_PAT,
		};

		if (!ioctl(vm.fd, KVM_ENABLE_CAP, &cap))
			fail("KVM knows a quirk that the test believes is of 6.12");
		return;
	}
	attach(NONCOHERENT, 0);
	becomes_noncoherent(ignore_pat_no_more);
	del(NONCOHERENT);
	guest_touches(SMALL);
	expect(SMALL, WB);
}

static const struct test tests[] = {
	{ "becomes non-coherent: ADD of an attached group", test_add },
	{ "becomes non-coherent: VFIO_SET_IOMMU after ADD", test_set_iommu },
	{ "becomes non-coherent: SET_CONTAINER after ADD", test_set_container },
	{ "a non-coherent group joins the tracked one's container",
	  test_neighbour_joins },
	{ "that group leaves it", test_neighbour_leaves },
	{ "becomes coherent: DEL", test_del },
	{ "becomes coherent: UNSET_CONTAINER", test_unset_container },
	{ "becomes coherent: the KVM device is closed", test_close_device },
	{ "becomes coherent: the VFIO device is unbound", test_unbind },
	{ "becomes coherent: with the last of two", test_last_of_two },
	{ "stays coherent: a coherent group comes and goes",
	  test_coherent_comes_and_goes },
	{ "there and back, three times", test_there_and_back },
	{ "MTRRs of three types, across changes", test_mtrrs_across },
	{ "MTRRs disabled, across changes", test_disabled_mtrrs_across },
	{ "two types within 2 MiB, across changes", test_split_mtrr_across },
	{ "CR0.CD with the quirk, across changes", test_cache_disable_quirk_across },
	{ "CR0.CD without the quirk, across changes", test_cache_disable_across },
	{ "host MMIO, across changes", test_host_mmio_across },
	{ "the guest's PAT is no longer ignored, then a change", test_guest_pat },
};

const struct suite change_suite = SUITE(tests);
