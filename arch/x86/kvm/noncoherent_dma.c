// SPDX-License-Identifier: GPL-2.0-only
/*
 * What non-coherent DMA means to an x86 VM
 *
 * While the VM's flag is clear, all DMA to its memory snoops the caches.  Guest
 * memory is then mapped write-back whatever the guest asks for, and WBINVD does
 * nothing.  While it is set, some device bypasses the caches, and the guest's
 * memory types and its WBINVD are real.  Everybody reads the flag with
 * kvm_arch_has_noncoherent_dma(); it follows kvm->arch.noncoherent_dma_count,
 * which only those who change it look at.
 *
 * A change has to be complete before the system call that causes it returns,
 * with vCPUs running.  All readers of the flag fall under one of these:
 *
 *  - An SPTE's memory type is computed under mmu_lock.  The zap takes mmu_lock
 *    after the flag has changed, so an SPTE made from the old value is gone
 *    after it, and one made later is made from the new value.
 *
 *  - The mapping level of a page fault may depend on the flag, too, and is
 *    chosen before mmu_lock is taken, but inside kvm->srcu.
 *
 *  - WBINVD: either the vCPU sees the VM non-coherent and flushes, or the one
 *    who made it so sees in wbinvd_dirty_mask the CPUs the vCPU has run on and
 *    flushes them.  Both sides write, have a full barrier, then read: the bit
 *    of the CPU is set with a locked instruction when the vCPU is loaded on it,
 *    and the flag is set with one.  A CPU's bit is cleared only when the CPU
 *    has written its caches back.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/ktime.h>
#include <linux/kvm_host.h>
#include <linux/smp.h>

#include <asm/special_insns.h>

#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "noncoherent_dma.h"
#include "x86.h"

#define CREATE_TRACE_POINTS
#include "noncoherent_dma_trace.h"

/**
 * struct kvm_flush - CPUs write their caches back
 * @kvm: the VM that owes it, if it is the CPUs of all its vCPUs
 * @cpus: how many did
 */
struct kvm_flush {
	struct kvm *kvm;
	atomic_t cpus;
};

/* Not inlined where it is called directly: a probe here sees every flush. */
static noinline void wbinvd_ipi(void *data)
{
	struct kvm_flush *flush = data;

	wbinvd();
	atomic_inc(&flush->cpus);
}

/*
 * The CPUs in the vCPU's mask write their caches back, then it is empty.
 * Returns how many CPUs that were.  One that is not online writes them back
 * before it stops, and runs no vCPU from when it is not.
 */
static unsigned int kvm_flush_dirty_cpus(struct kvm_vcpu *vcpu)
{
	struct cpumask *dirty = vcpu->arch.wbinvd_dirty_mask;
	struct kvm_flush flush = {};

	on_each_cpu_mask(dirty, wbinvd_ipi, &flush, true);
	cpumask_clear(dirty);
	return atomic_read(&flush.cpus);
}

/*
 * Without the WBINVD exit the guest's WBINVD reaches the CPU it runs on and no
 * other, so the caches of the one it leaves have to be written back at once.
 */
static void kvm_wbinvd_left_cpus(struct kvm_vcpu *vcpu, int cpu)
{
	struct cpumask *dirty = vcpu->arch.wbinvd_dirty_mask;
	struct kvm_flush flush = {};

	if (!kvm_arch_has_noncoherent_dma(vcpu->kvm))
		return;

	/*
	 * Not the one it arrives at, which the guest's own WBINVD reaches.  That
	 * one's bit stays, if it is set: who makes the VM non-coherent at this
	 * moment may yet have to find it, for a WBINVD of before.
	 */
	smp_call_function_many(dirty, wbinvd_ipi, &flush, true);
	cpumask_and(dirty, dirty, cpumask_of(cpu));
	vcpu->stat.wbinvd_ipis += atomic_read(&flush.cpus);
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

/*
 * Execute the guest's WBINVD: every CPU that may hold dirty lines of the vCPU
 * writes its caches back.  Returns how many CPUs that were.
 */
static unsigned int kvm_wbinvd_noncoherent(struct kvm_vcpu *vcpu)
{
	struct cpumask *dirty = vcpu->arch.wbinvd_dirty_mask;
	struct kvm_flush flush = {};
	unsigned int cpus = 1;
	int cpu;

	/*
	 * No preemption from the flush until the mask says that only this CPU
	 * is left, which the vCPU goes on to dirty: being loaded on another
	 * one in between would be forgotten.
	 */
	cpu = get_cpu();
	if (cpumask_any_but(dirty, cpu) >= nr_cpu_ids) {
		wbinvd_ipi(&flush);
	} else {
		cpus = kvm_flush_dirty_cpus(vcpu);
		vcpu->stat.wbinvd_ipis += cpus - 1;
		cpumask_set_cpu(cpu, dirty);
	}
	put_cpu();

	vcpu->stat.wbinvd_flushes++;
	return cpus;
}

/**
 * kvm_wbinvd_not_skipped - do what kvm_wbinvd_skipped() could not leave undone
 * @vcpu: the vCPU that executed WBINVD, loaded
 *
 * Context: process context, preemption and interrupts enabled
 */
void kvm_wbinvd_not_skipped(struct kvm_vcpu *vcpu)
{
	unsigned int cpus = 0;

	if (kvm_arch_has_noncoherent_dma(vcpu->kvm))
		cpus = kvm_wbinvd_noncoherent(vcpu);
	trace_kvm_wbinvd(vcpu, cpus);
}

/**
 * kvm_emulate_wbinvd_not_skipped - the same for an exit of the guest
 * @vcpu: the vCPU that executed WBINVD, loaded
 *
 * Context: as kvm_wbinvd_not_skipped()
 * Return: as kvm_skip_emulated_instruction()
 */
int kvm_emulate_wbinvd_not_skipped(struct kvm_vcpu *vcpu)
{
	kvm_wbinvd_not_skipped(vcpu);
	return kvm_skip_emulated_instruction(vcpu);
}

static bool kvm_vcpus_dirtied_cpu(int cpu, void *data)
{
	struct kvm_flush *flush = data;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, flush->kvm) {
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
	return kvm_mmu_may_ignore_guest_pat(kvm);
#else
	return true;
#endif
}

static void kvm_zap_memtypes(struct kvm *kvm)
{
	struct kvm_noncoherent_dma_stat *stat = &kvm->noncoherent_dma_stat;
	ktime_t start;
	int idx;

	if (!kvm_memtypes_depend_on_dma(kvm))
		return;

	start = ktime_get();
	/*
	 * Page faults that have chosen a level but hold no lock yet.  Not on
	 * the way back: all levels are right then, if small.
	 */
	if (kvm_arch_has_noncoherent_dma(kvm))
		synchronize_srcu_expedited(&kvm->srcu);
	/* Where there are rmaps, this walks the memslots. */
	idx = srcu_read_lock(&kvm->srcu);
	kvm_zap_gfn_range(kvm, 0, ~0ULL);
	srcu_read_unlock(&kvm->srcu, idx);

	stat->zaps++;
	stat->zap_ns += ktime_to_ns(ktime_sub(ktime_get(), start));
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
 * Context: may sleep; takes kvm->mmu_lock and waits for kvm->srcu, that is for
 *	page faults that user space may have to resolve (userfaultfd)
 */
void kvm_arch_register_noncoherent_dma(struct kvm *kvm)
{
	struct kvm_flush owed = { .kvm = kvm };

	if (atomic_inc_return(&kvm->arch.noncoherent_dma_count) != 1)
		return;

	set_bit(KVM_NONCOHERENT_DMA, &kvm->noncoherent_dma);
	/* Before the dirty masks are read, and the number of vCPUs */
	smp_mb__after_atomic();

	kvm->noncoherent_dma_stat.changes++;

	/* A vCPU that is created from now on finds the VM non-coherent. */
	if (!atomic_read(&kvm->online_vcpus))
		return;

	kvm_zap_memtypes(kvm);

	/* Last, when no vCPU dirties lines through an old mapping any more. */
	on_each_cpu_cond(kvm_vcpus_dirtied_cpu, wbinvd_ipi, &owed, true);
	kvm->noncoherent_dma_stat.flushes += atomic_read(&owed.cpus);
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
	if (!atomic_dec_and_test(&kvm->arch.noncoherent_dma_count))
		return;

	clear_bit(KVM_NONCOHERENT_DMA, &kvm->noncoherent_dma);

	kvm->noncoherent_dma_stat.changes++;
	kvm_zap_memtypes(kvm);
}
