/* SPDX-License-Identifier: GPL-2.0-only */
/* VMs, vCPUs, and the one guest that does nothing but execute WBINVD */
#ifndef LAB_VM_H
#define LAB_VM_H

#include <linux/kvm.h>
#include <stdint.h>

#include "files.h"

#ifndef KVM_CAP_X86_WBINVD_LIMIT
#define KVM_CAP_X86_WBINVD_LIMIT	0x1000
#endif

/* What returns a file descriptor or a pointer fails if there is none. */
int open_kvm(void);
int create_vm(void);

void add_memory(int vm, int slot, uint64_t gpa, size_t size, void *memory);

struct kvm_run *map_vcpu(int vcpu, size_t *size);
/* 32-bit protected mode without paging, all of memory in each segment */
void set_protected_mode(int vcpu);
/* Real mode, to begin at @entry in the first 64 KiB, with DS at @data there */
void start_real_mode(int vcpu, uint16_t entry, uint16_t data);

/* What KVM_CAP_X86_WBINVD_LIMIT returns for these arguments: 0 or -errno */
int try_wbinvd_limit(int vm, uint32_t flags, uint64_t a, uint64_t b, uint64_t c, uint64_t d);
/* Fails if it is not taken. */
void set_wbinvd_limit(int vm, int per_mille);

/*
 * KVM knows nobody by the ID of a local APIC until the state of one is set or changed,
 * and monitors set it.
 */
void set_lapic(int vcpu);
/* An interrupt without the vCPU's help: NMI, INIT or a vector */
enum { MSI_NMI = 4 << 8, MSI_INIT = 5 << 8 };
void send_msi(int vm, uint32_t data);

/*
 * A guest in real mode whose interrupts are counted in the 32 bits that its DS begins with. Its
 * memory begins at 0, and has the handler at @entry.
 */
void handle_interrupt(void *memory, int vector, uint16_t entry);
/* Of leaf 1, which makes KVM know the modes of the APIC's timer; before the vCPU runs */
void set_least_cpuid(int vcpu);
/*
 * The local APIC takes interrupts, and has @vector from its timer every so many milliseconds, if
 * they are not 0. They stay pending until RFLAGS.IF is set.
 */
void enable_apic(int vcpu, int vector, int timer_ms);
void enable_interrupts(int vcpu);

/* A number that debugfs has of the VM that thread @creator has made, or -errno */
long long vm_number(pid_t creator, int vm, const char *name);

/* ---- does a WBINVD of the guest reach the CPU? --------------------------- */

struct wbinvd_vm {
	int fd, vcpu;
	pid_t creator;		/* what the kernel calls the VM by: a thread of its own */
	struct kvm_run *run;
	void *memory;		/* one page */
};

void make_wbinvd_vm(struct wbinvd_vm *vm);
/* From now on this thread stays on CPU 0, where the kernel's WBINVDs for guests count. */
void count_flushes(void);
uint64_t flushes_counted(void);
/* The same for CPU 0 or 1, wherever the thread is; anew when the CPU was offline */
void count_flushes_on(int cpu);
uint64_t flushes_counted_on(int cpu);
/* For kprobes: KVM's own, or what newer kernels share with KVM */
const char *wbinvd_function(void);
/* Its vCPU executes one, here. */
bool wbinvd_is_executed(struct wbinvd_vm *vm);

#endif
