/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm_vfio

#if !defined(_TRACE_KVM_VFIO_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_KVM_VFIO_H

#include <linux/kvm_host.h>
#include <linux/tracepoint.h>

/*
 * The VM is named by the process that created it, as its directory in debugfs
 * is.
 */

TRACE_EVENT(kvm_vfio_file,
	TP_PROTO(struct kvm *kvm, bool add, int fd, int ret),
	TP_ARGS(kvm, add, fd, ret),

	TP_STRUCT__entry(
		__field(pid_t, vm)
		__field(bool, add)
		__field(int, fd)
		__field(int, ret)
	),

	TP_fast_assign(
		__entry->vm = kvm->userspace_pid;
		__entry->add = add;
		__entry->fd = fd;
		__entry->ret = ret;
	),

	TP_printk("vm %d %s fd %d ret %d", __entry->vm,
		  __entry->add ? "add" : "del", __entry->fd, __entry->ret)
);

TRACE_EVENT(kvm_vfio_coherency,
	TP_PROTO(struct kvm *kvm, bool noncoherent, unsigned int files),
	TP_ARGS(kvm, noncoherent, files),

	TP_STRUCT__entry(
		__field(pid_t, vm)
		__field(bool, noncoherent)
		__field(unsigned int, files)
	),

	TP_fast_assign(
		__entry->vm = kvm->userspace_pid;
		__entry->noncoherent = noncoherent;
		__entry->files = files;
	),

	TP_printk("vm %d a file became %s, vm %s (%u non-coherent files)",
		  __entry->vm,
		  __entry->noncoherent ? "non-coherent" : "coherent",
		  __entry->files ? "non-coherent" : "coherent",
		  __entry->files)
);

#endif /* _TRACE_KVM_VFIO_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
