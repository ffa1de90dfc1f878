// SPDX-License-Identifier: GPL-2.0-only
/*
 * What non-coherent DMA means to an x86 VM
 *
 * While kvm->arch.noncoherent_dma_count is zero, all DMA to the VM's memory
 * snoops the caches.  Guest memory is then mapped write-back whatever the
 * guest asks for, and WBINVD does nothing.  While it is not zero, some device
 * bypasses the caches, and the guest's memory types and its WBINVD are real.
 *
 * A change has to be complete before the system call that causes it returns,
 * with vCPUs running.  All readers of the count fall under one of these:
 *
 *  - An SPTE's memory type is computed under mmu_lock.  The zap takes mmu_lock
 *    after the count has changed, so an SPTE made from the old value is gone
 *    after it, and one made later is made from the new value.
 *
 *  - The mapping level of a page fault may depend on the count, too, and is
 *    chosen before mmu_lock is taken, but inside kvm->srcu.
 *
 *  - WBINVD: either the vCPU sees the VM non-coherent and flushes, or the one
 *    who made it so sees in wbinvd_dirty_mask the CPUs the vCPU has run on and
 *    flushes them.  Both sides write, have a full barrier, then read: the bit
 *    is set with a locked instruction when the vCPU is loaded on a CPU, and
 *    the count is changed with one.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/kvm_host.h>
#include <linux/smp.h>

#include <asm/special_insns.h>

#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "noncoherent_dma.h"
#include "x86.h"

static void wbinvd_ipi(void *unused)
{
	wbinvd();
}

/*
 * Without the WBINVD exit the guest's WBINVD reaches the CPU it runs on and no
 * other, so the caches of the one it leaves have to be written back at once.
 */
static void kvm_wbinvd_left_cpus(struct kvm_vcpu *vcpu, int cpu)
{
	struct cpumask *dirty = vcpu->arch.wbinvd_dirty_mask;

	if (!kvm_arch_has_noncoherent_dma(vcpu->kvm))
		return;

	cpumask_clear_cpu(cpu, dirty);
	on_each_cpu_mask(dirty, wbinvd_ipi, NULL, true);
	cpumask_clear(dirty);
}

/**
 * kvm_wbinvd_vcpu_moved - note that a vCPU is going to run on another CPU
 * @vcpu: the vCPU
 * @cpu: the CPU it is being loaded on, not the one it was loaded on last
 *
 * Context: preemption is disabled, interrupts are not
 */
void kvm_wbinvd_vcpu_moved(struct kvm_vcpu *vcpu, int cpu)
{
	if (!static_call(kvm_x86_has_wbinvd_exit)())
		kvm_wbinvd_left_cpus(vcpu, cpu);

	cpumask_set_cpu(cpu, vcpu->arch.wbinvd_dirty_mask);
}

/**
 * kvm_wbinvd - do what the guest's WBINVD has to do
 * @vcpu: the vCPU that executed it, loaded
 *
 * Nothing while the VM is coherent.  Otherwise every CPU that may hold dirty
 * lines of @vcpu writes its caches back.
 *
 * Context: process context, preemption and interrupts enabled
 */
void kvm_wbinvd(struct kvm_vcpu *vcpu)
{
	struct cpumask *dirty = vcpu->arch.wbinvd_dirty_mask;
	int cpu;

	if (!kvm_arch_has_noncoherent_dma(vcpu->kvm))
		return;

	/*
	 * No preemption from the flush until the mask says that only this CPU
	 * is left, which the vCPU goes on to dirty: being loaded on another
	 * one in between would be forgotten.
	 */
	cpu = get_cpu();
	on_each_cpu_mask(dirty, wbinvd_ipi, NULL, true);
	cpumask_clear(dirty);
	__cpumask_set_cpu(cpu, dirty);
	put_cpu();
}

static bool kvm_vcpus_dirtied_cpu(int cpu, void *data)
{
	struct kvm *kvm = data;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		if (cpumask_test_cpu(cpu, vcpu->arch.wbinvd_dirty_mask))
			return true;
	}
	return false;
}

static bool kvm_memtypes_depend_on_dma(struct kvm *kvm)
{
	/* Only EPT has memory types of its own. */
	if (!shadow_memtype_mask)
		return false;

#ifdef KVM_X86_QUIRK_IGNORE_GUEST_PAT
	/* A VM without the quirk has the guest's, coherent or not. */
	return kvm_check_has_quirk(kvm, KVM_X86_QUIRK_IGNORE_GUEST_PAT);
#else
	return true;
#endif
}

static void kvm_zap_memtypes(struct kvm *kvm)
{
	if (kvm_memtypes_depend_on_dma(kvm))
		kvm_zap_gfn_range(kvm, 0, ~0ULL);
}

/**
 * kvm_arch_register_noncoherent_dma - a VM's DMA is no longer all coherent
 * @kvm: the VM
 *
 * When this returns, the guest's memory types and its WBINVD are in effect on
 * all vCPUs, and what they had left in the caches before is in memory: each
 * WBINVD of the guest so far was skipped on the promise that DMA would find
 * the data there.
 *
 * Calls nest.  The caller makes sure that they do not overlap with each other
 * or with kvm_arch_unregister_noncoherent_dma() of the same VM.
 *
 * Context: may sleep; takes kvm->mmu_lock and waits for kvm->srcu
 */
void kvm_arch_register_noncoherent_dma(struct kvm *kvm)
{
	if (atomic_inc_return(&kvm->arch.noncoherent_dma_count) != 1)
		return;

	/* A vCPU that is created from now on finds the VM non-coherent. */
	if (!atomic_read(&kvm->online_vcpus))
		return;

	if (kvm_memtypes_depend_on_dma(kvm)) {
		/* Page faults that have chosen a level but hold no lock yet */
		synchronize_srcu_expedited(&kvm->srcu);
		kvm_zap_memtypes(kvm);
	}

	/* Last, when no vCPU dirties lines through an old mapping any more. */
	on_each_cpu_cond(kvm_vcpus_dirtied_cpu, wbinvd_ipi, kvm, true);
}

/**
 * kvm_arch_unregister_noncoherent_dma - undo one registration
 * @kvm: the VM
 *
 * When the last one goes, all guest memory is write-back again when this
 * returns.  Nothing is flushed: the DMA that needed it has ended.
 *
 * Context: as kvm_arch_register_noncoherent_dma()
 */
void kvm_arch_unregister_noncoherent_dma(struct kvm *kvm)
{
	if (atomic_dec_and_test(&kvm->arch.noncoherent_dma_count))
		kvm_zap_memtypes(kvm);
}
