/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_WBINVD_BUDGET_H
#define __KVM_X86_WBINVD_BUDGET_H

#include <linux/kvm_host.h>

/* How the wait of a WBINVD ended */
enum kvm_wbinvd_end {
	KVM_WBINVD_INTERRUPTED,		/* it is to be executed again */
	KVM_WBINVD_EXECUTED,
	KVM_WBINVD_SHARED,		/* another vCPU's flush was for it, too */
};

void kvm_wbinvd_init_budget(struct kvm *kvm);
bool kvm_wbinvd_can_be_limited(void);
int kvm_wbinvd_set_limit(struct kvm *kvm, const struct kvm_enable_cap *cap);
int kvm_wbinvd_emulated(struct kvm_vcpu *vcpu);
int kvm_emulate_wbinvd_contained(struct kvm_vcpu *vcpu);

#endif /* __KVM_X86_WBINVD_BUDGET_H */
