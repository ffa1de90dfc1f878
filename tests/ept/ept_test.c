// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which memory type does EPT give to a guest's pages, and since when?
 *
 * Runs in the vmx lab, with vfio_testdev.ko beside it for the VFIO groups.
 * Drives small KVM guests and judges by the kernel's own tracepoints:
 * kvmmmu:kvm_tdp_mmu_spte_changed tells of each entry that appears in or
 * vanishes from the EPT tables, kvmmmu:kvm_mmu_set_spte of each one that a
 * fault installs. Neither belongs to the code under test. With the argument
 * "legacy", KVM is loaded anew without its TDP MMU and has only the latter: that
 * a change has removed an entry is then told by the fault of the next access.
 *
 * What must hold of a VM:
 *
 *  - Coherent: RAM is WB, and the guest's PAT is ignored (IPAT).
 *  - Non-coherent: IPAT is clear. Up to Linux 6.9 the type is what the guest's
 *    MTRRs say, and a change of them takes effect at once; with CR0.CD set it
 *    is WB (UC without KVM_X86_QUIRK_CD_NW_CLEARED), with IPAT. From 6.10 on
 *    KVM looks at neither, and RAM is WB.
 *  - The host's MMIO is always UC without IPAT; where there is no memory, every
 *    access leaves the guest.
 *  - When a call that makes the VM coherent or non-coherent returns, no entry
 *    with the type of before is left, and the next access faults: seen with a
 *    vCPU that keeps reading a 4 KiB and a 2 MiB page during the call.
 *  - Such a call waits for nothing that user space can hold up: seen with a vCPU
 *    in a page fault that userfaultfd has not resolved.
 *  - WBINVD, which makes the guest exit here: skipped while coherent, else executed
 *    on the CPUs the vCPU has used. Where there is no such exit, which the fixture
 *    no_wbinvd_exit_vmx.ko pretends, each CPU that the vCPU leaves executes one. When
 *    the VM becomes non-coherent, all CPUs used do, when nobody can dirty them through
 *    an old entry any more. With the TDP MMU that is when the vCPU has left its old
 *    root, whose entries go later: it has left the guest before the first flush, and
 *    no fault installs an old type after it. Without, the last old entry is gone.
 *    Bochs counts none, so a kprobe on the very instruction does, CPU by CPU.
 *
 * With the argument "roots" it runs the cases of roots*.c instead, with "limit" that of
 * ept_limit.c.
 *
 * Output: KTAP.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <unistd.h>

#include "ept.h"

/* Does this base's KVM look at the guest's MTRRs and CR0.CD? */
bool honours_mtrrs;
/* Without the TDP MMU nothing tells of entries that vanish. */
bool legacy;

void load_kvm(const char *options)
{
	load_kernels("kvm", options);
	load_kernels("kvm_intel", "");
}

/* Does the processor exit on WBINVD, as far as KVM knows? */
static void set_wbinvd_exit(bool wanted)
{
	static bool taken;

	if (wanted == !taken)
		return;
	if (wanted)
		unload("no_wbinvd_exit_vmx");
	else
		load("no_wbinvd_exit_vmx.ko", "");
	taken = !wanted;
}

static void set_up_test(const struct test *test)
{
	set_wbinvd_exit(!test->variant);
	set_up();
}

static void prepare(void)
{
	honours_mtrrs = kernel_before(6, 10);
	if (legacy) {
		unload("kvm_intel");
		unload("kvm");
		load_kvm("tdp_mmu=0");
	}
	kvm = open_kvm();
	/* Off by default on a machine as small as the lab's. */
	must_put("/sys/kernel/mm/transparent_hugepage/enabled", "madvise");
	if (access(TESTDEV, F_OK))
		load_testdev("coherent=3 noncoherent=2");
	place_probes();
}

/* ept_test [legacy|roots|limit [NAME]]: with NAME, only cases that have it in theirs */
int main(int argc, char **argv)
{
	static const struct program program = { prepare, set_up_test, tear_down };
	static const struct suite *const suites[] = {
		&type_suite, &change_suite, &fault_suite, &wait_suite, &group_suite,
		&wbinvd_suite,
	}, *const roots_suites[] = {
		&roots_suite, &roots_process_suite, &roots_meanwhile_suite,
		&roots_end_suite,
	}, *const limit_suites[] = { &limit_suite };
	const char *wanted = argc > 2 ? argv[2] : "";

	if (argc > 1 && !strcmp(argv[1], "roots"))
		return run_tests(&program, roots_suites, ARRAY_SIZE(roots_suites), wanted);
	if (argc > 1 && !strcmp(argv[1], "limit"))
		return run_tests(&program, limit_suites, ARRAY_SIZE(limit_suites), wanted);
	legacy = argc > 1 && !strcmp(argv[1], "legacy");
	return run_tests(&program, suites, ARRAY_SIZE(suites), wanted);
}
