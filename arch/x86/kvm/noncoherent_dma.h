/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_NONCOHERENT_DMA_H
#define __KVM_X86_NONCOHERENT_DMA_H

#include <linux/kvm_host.h>

void kvm_wbinvd_vcpu_moved(struct kvm_vcpu *vcpu, int cpu);
void kvm_wbinvd(struct kvm_vcpu *vcpu);

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

#endif /* __KVM_X86_NONCOHERENT_DMA_H */
