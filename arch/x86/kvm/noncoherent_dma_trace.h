/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm_vfio

#if !defined(_KVM_X86_NONCOHERENT_DMA_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _KVM_X86_NONCOHERENT_DMA_TRACE_H

#include <linux/kvm_host.h>
#include <linux/tracepoint.h>

/* A WBINVD of the guest: skipped, or how many CPUs wrote their caches back */
TRACE_EVENT(kvm_wbinvd,
	TP_PROTO(struct kvm_vcpu *vcpu, unsigned int cpus),
	TP_ARGS(vcpu, cpus),

	TP_STRUCT__entry(
		__field(pid_t, vm)
		__field(unsigned int, vcpu_id)
		__field(unsigned int, cpus)
	),

	TP_fast_assign(
		__entry->vm = vcpu->kvm->userspace_pid;
		__entry->vcpu_id = vcpu->vcpu_id;
		__entry->cpus = cpus;
	),

	TP_printk("vm %d vcpu %u %s (%u CPUs)", __entry->vm, __entry->vcpu_id,
		  __entry->cpus ? "executed" : "skipped", __entry->cpus)
);

#endif /* _KVM_X86_NONCOHERENT_DMA_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH ../../arch/x86/kvm
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE noncoherent_dma_trace

/* This part must be outside protection */
#include <trace/define_trace.h>
