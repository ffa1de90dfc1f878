/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_NONCOHERENT_DMA_H
#define __KVM_X86_NONCOHERENT_DMA_H

#include <linux/kvm_host.h>
#include <linux/tracepoint-defs.h>

DECLARE_TRACEPOINT(kvm_wbinvd);

void kvm_wbinvd_vcpu_moved(struct kvm_vcpu *vcpu, int cpu);
void kvm_wbinvd_noncoherent(struct kvm_vcpu *vcpu);
void kvm_wbinvd_trace_skipped(struct kvm_vcpu *vcpu);
void kvm_noncoherent_dma_create_vm_debugfs(struct kvm *kvm);

/*
 * Keep vcpu->arch.wbinvd_dirty_mask, the set of CPUs whose caches may hold
 * lines that the vCPU has dirtied since they were last written back.  The CPU
 * the vCPU was loaded on last is always in it, and it is kept whether or not
 * the VM is coherent: a coherent VM may have to pay for it later.
 */
static inline void kvm_wbinvd_vcpu_load(struct kvm_vcpu *vcpu, int cpu)
{
	if (unlikely(vcpu->cpu != cpu))
		kvm_wbinvd_vcpu_moved(vcpu, cpu);
}

/**
 * kvm_wbinvd - do what the guest's WBINVD has to do
 * @vcpu: the vCPU that executed it, loaded
 *
 * Nothing while the VM is coherent.
 */
static inline void kvm_wbinvd(struct kvm_vcpu *vcpu)
{
	vcpu->stat.wbinvd_exits++;
	if (kvm_arch_has_noncoherent_dma(vcpu->kvm))
		kvm_wbinvd_noncoherent(vcpu);
	else if (tracepoint_enabled(kvm_wbinvd))
		kvm_wbinvd_trace_skipped(vcpu);
}

#endif /* __KVM_X86_NONCOHERENT_DMA_H */
