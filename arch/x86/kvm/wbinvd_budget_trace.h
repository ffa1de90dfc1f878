/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm_vfio

#if !defined(_KVM_X86_WBINVD_BUDGET_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _KVM_X86_WBINVD_BUDGET_TRACE_H

#include <linux/kvm_host.h>
#include <linux/tracepoint.h>

/* A WBINVD of the guest had to wait for the VM's budget, or for another vCPU's flush. */
TRACE_EVENT(kvm_wbinvd_delayed,
	TP_PROTO(struct kvm_vcpu *vcpu, u64 ns, enum kvm_wbinvd_end end),
	TP_ARGS(vcpu, ns, end),

	TP_STRUCT__entry(
		__field(pid_t, vm)
		__field(unsigned int, vcpu_id)
		__field(u64, ns)
		__field(unsigned int, end)
	),

	TP_fast_assign(
		__entry->vm = vcpu->kvm->userspace_pid;
		__entry->vcpu_id = vcpu->vcpu_id;
		__entry->ns = ns;
		__entry->end = end;
	),

	TP_printk("vm %d vcpu %u %llu ns, then %s", __entry->vm, __entry->vcpu_id,
		  __entry->ns,
		  __print_symbolic(__entry->end, { 0, "interrupted" },
				   { 1, "executed" }, { 2, "shared" }))
);

#endif /* _KVM_X86_WBINVD_BUDGET_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH ../../arch/x86/kvm
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE wbinvd_budget_trace

/* This part must be outside protection */
#include <trace/define_trace.h>
