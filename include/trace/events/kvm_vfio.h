/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm_vfio

#if !defined(_TRACE_KVM_VFIO_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_KVM_VFIO_H

#include <linux/kvm_host.h>
#include <linux/tracepoint.h>

/*
 * The VM is named by the process that created it, as its directory in debugfs
 * is, and a file by the end of its path: vfio/26 or devices/vfio0.
 */
#define KVM_VFIO_TRACE_NAME_LEN	32

/* A file was to be added or deleted; fd is -1 where the device was closed. */
TRACE_EVENT(kvm_vfio_file,
	TP_PROTO(struct kvm *kvm, bool add, int fd, struct file *file, int ret),
	TP_ARGS(kvm, add, fd, file, ret),

	TP_STRUCT__entry(
		__field(pid_t, vm)
		__field(bool, add)
		__field(bool, noncoherent)
		__field(int, fd)
		__field(int, ret)
		__array(char, file, KVM_VFIO_TRACE_NAME_LEN)
	),

	TP_fast_assign(
		__entry->vm = kvm->userspace_pid;
		__entry->add = add;
		__entry->noncoherent = kvm_arch_has_noncoherent_dma(kvm);
		__entry->fd = fd;
		__entry->ret = ret;
		snprintf(__entry->file, sizeof(__entry->file), "%pD2", file);
	),

	TP_printk("vm %d %s fd %d file %s ret %d, vm %s", __entry->vm,
		  __entry->add ? "add" : "del", __entry->fd, __entry->file,
		  __entry->ret,
		  __entry->noncoherent ? "non-coherent" : "coherent")
);

/* VFIO told that the DMA of a tracked file is different from now on. */
TRACE_EVENT(kvm_vfio_coherency,
	TP_PROTO(struct kvm *kvm, struct file *file, unsigned int coherency,
		 unsigned int noncoherent_files),
	TP_ARGS(kvm, file, coherency, noncoherent_files),

	TP_STRUCT__entry(
		__field(pid_t, vm)
		__field(bool, noncoherent)
		__field(unsigned int, coherency)
		__field(unsigned int, noncoherent_files)
		__array(char, file, KVM_VFIO_TRACE_NAME_LEN)
	),

	TP_fast_assign(
		__entry->vm = kvm->userspace_pid;
		__entry->noncoherent = kvm_arch_has_noncoherent_dma(kvm);
		__entry->coherency = coherency;
		__entry->noncoherent_files = noncoherent_files;
		snprintf(__entry->file, sizeof(__entry->file), "%pD2", file);
	),

	TP_printk("vm %d file %s %s, vm %s (%u non-coherent files)",
		  __entry->vm, __entry->file,
		  __print_symbolic(__entry->coherency,
				   { KVM_VFIO_FILE_NOT_ATTACHED, "not-attached" },
				   { KVM_VFIO_FILE_ENFORCED, "enforced" },
				   { KVM_VFIO_FILE_NOT_ENFORCED, "not-enforced" }),
		  __entry->noncoherent ? "non-coherent" : "coherent",
		  __entry->noncoherent_files)
);

#endif /* _TRACE_KVM_VFIO_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
