/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_NONCOHERENT_DMA_H
#define __KVM_X86_NONCOHERENT_DMA_H

#include <linux/kvm_host.h>
#include <linux/tracepoint-defs.h>

DECLARE_TRACEPOINT(kvm_wbinvd);

void kvm_wbinvd_vcpu_created(struct kvm_vcpu *vcpu);
void kvm_wbinvd_vcpu_moved(struct kvm_vcpu *vcpu, int cpu);
bool kvm_wbinvd_exit_is_wbnoinvd(struct kvm_vcpu *vcpu);
bool kvm_emulated_is_wbnoinvd(struct kvm_vcpu *vcpu);
unsigned int kvm_wbinvd_not_skipped(struct kvm_vcpu *vcpu, bool noinvd);
int kvm_emulate_wbinvd_not_skipped(struct kvm_vcpu *vcpu);
void kvm_wbinvd_cpu_offline(void);
void kvm_noncoherent_dma_init_vm(struct kvm *kvm);
void kvm_noncoherent_dma_pre_destroy_vm(struct kvm *kvm);
void kvm_noncoherent_dma_exit(void);
void kvm_noncoherent_dma_create_vm_debugfs(struct kvm *kvm);

/* In mmu/mmu.c, where what it needs is */
bool kvm_mmu_leave_sptes(struct kvm *kvm);
void kvm_mmu_tear_down_roots(struct kvm *kvm);
bool kvm_mmu_has_memtypes(struct kvm *kvm);

/*
 * Keep vcpu->arch.wbinvd_dirty_mask, the set of CPUs whose caches may hold
 * lines that the vCPU has dirtied since they were last written back.  The CPU
 * the vCPU was loaded on last is always in it, and it is kept whether or not
 * the VM is coherent: a coherent VM may have to pay for it later.  So may one that
 * goes on with another VM's guest: see kvm_arch_inherit_caches().
 */
static inline void kvm_wbinvd_vcpu_load(struct kvm_vcpu *vcpu, int cpu)
{
	if (unlikely(vcpu->cpu != cpu))
		kvm_wbinvd_vcpu_moved(vcpu, cpu);
}

/**
 * kvm_wbinvd_skipped - count a WBINVD of the guest
 * @vcpu: the vCPU that executed it, loaded
 *
 * Inline, with all else out of line, so that a coherent VM pays no more for an
 * exit than it would without the count and the tracepoint.
 *
 * Return: true if there is nothing to do: the VM is coherent, and nobody wants
 *	to hear of it
 */
static inline bool kvm_wbinvd_skipped(struct kvm_vcpu *vcpu)
{
	vcpu->stat.wbinvd_exits++;
	return !kvm_arch_has_noncoherent_dma(vcpu->kvm) &&
	       !tracepoint_enabled(kvm_wbinvd);
}

#endif /* __KVM_X86_NONCOHERENT_DMA_H */
