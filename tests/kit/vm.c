// SPDX-License-Identifier: GPL-2.0-only
/* VMs, vCPUs, and the one guest that does nothing but execute WBINVD */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vm.h"

int open_kvm(void)
{
	return must(open("/dev/kvm", O_RDWR | O_CLOEXEC));
}

int create_vm(void)
{
	int kvm = open_kvm(), vm = must(ioctl(kvm, KVM_CREATE_VM, 0));

	close(kvm);
	return vm;
}

void add_memory(int vm, int slot, uint64_t gpa, size_t size, void *memory)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = gpa, .memory_size = size,
		.userspace_addr = (uintptr_t)memory,
	};

	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
}

/* ---- vCPUs --------------------------------------------------------------- */

struct kvm_run *map_vcpu(int vcpu, size_t *size)
{
	int kvm = open_kvm();
	struct kvm_run *run;

	*size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	close(kvm);
	run = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		fail("mmap of a vCPU: %s", strerror(errno));
	return run;
}

void set_protected_mode(int vcpu)
{
	struct kvm_segment code = {
		.limit = ~0u, .selector = 8, .type = 11, .present = 1, .db = 1,
		.s = 1, .g = 1,
	}, data = code;
	struct kvm_sregs sregs;

	data.selector = 16;
	data.type = 3;
	must(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 0x31;		/* PE, NE, ET */
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs));
}

void start_real_mode(int vcpu, uint16_t entry, uint16_t data)
{
	struct kvm_regs regs = { .rip = entry, .rflags = 2, .rax = 0x5a };
	struct kvm_sregs sregs;

	must(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	sregs.ds.base = data;
	sregs.ds.selector = data >> 4;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs));
	must(ioctl(vcpu, KVM_SET_REGS, &regs));
}

int try_wbinvd_limit(int vm, uint32_t flags, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_WBINVD_LIMIT, .flags = flags, .args = { a, b, c, d },
	};

	return ioctl(vm, KVM_ENABLE_CAP, &cap) ? -errno : 0;
}

void set_wbinvd_limit(int vm, int per_mille)
{
	int ret = try_wbinvd_limit(vm, 0, per_mille, 0, 0, 0);

	if (ret)
		fail("KVM_CAP_X86_WBINVD_LIMIT of %d: %s", per_mille, strerror(-ret));
}

void set_lapic(int vcpu)
{
	struct kvm_lapic_state state;

	must(ioctl(vcpu, KVM_GET_LAPIC, &state));
	must(ioctl(vcpu, KVM_SET_LAPIC, &state));
}

void send_msi(int vm, uint32_t data)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = data };

	if (must(ioctl(vm, KVM_SIGNAL_MSI, &msi)) != 1)
		fail("the MSI reached no vCPU");
}

#define APIC_BASE	0xfee00000u

/* Registers of the local APIC, whose timer counts nanoseconds at most */
#define APIC_EOI	0xb0
#define APIC_SPIV	0xf0
#define APIC_LVTT	0x320
#define APIC_TMICT	0x380
#define APIC_TMCCT	0x390
#define APIC_TDCR	0x3e0
#define SOFTWARE_ENABLED	(1 << 8)
#define PERIODIC		(1 << 17)
#define DIVIDE_BY_1		0xb

static const uint8_t interrupt_code[] = {
	0x66, 0xff, 0x06, 0, 0,		/* incl 0 */
	0x26, 0x66, 0xa3, APIC_EOI, 0,	/* mov %eax, %es:APIC_EOI */
	0xcf,				/* iret */
};

void handle_interrupt(void *memory, int vector, uint16_t entry)
{
	uint16_t pointer[] = { entry, 0 };

	memcpy((char *)memory + entry, interrupt_code, sizeof(interrupt_code));
	memcpy((char *)memory + vector * sizeof(pointer), pointer, sizeof(pointer));
}

void set_least_cpuid(int vcpu)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry;
	} cpuid = { .head.nent = 1, .entry.function = 1 };

	must(ioctl(vcpu, KVM_SET_CPUID2, &cpuid));
}

static void set_apic_register(struct kvm_lapic_state *apic, int offset, uint32_t value)
{
	memcpy(apic->regs + offset, &value, sizeof(value));
}

/* In real mode ES reaches the APIC only by its hidden base. */
void enable_apic(int vcpu, int vector, int timer_ms)
{
	struct kvm_lapic_state apic;
	struct kvm_sregs sregs;

	must(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.es.base = APIC_BASE;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs));
	must(ioctl(vcpu, KVM_GET_LAPIC, &apic));
	set_apic_register(&apic, APIC_SPIV, SOFTWARE_ENABLED | 0xff);
	if (timer_ms) {
		set_apic_register(&apic, APIC_LVTT, PERIODIC | vector);
		set_apic_register(&apic, APIC_TDCR, DIVIDE_BY_1);
		set_apic_register(&apic, APIC_TMICT, timer_ms * 1000000);
		set_apic_register(&apic, APIC_TMCCT, 0);
	}
	must(ioctl(vcpu, KVM_SET_LAPIC, &apic));
}

void enable_interrupts(int vcpu)
{
	struct kvm_regs regs;

	must(ioctl(vcpu, KVM_GET_REGS, &regs));
	regs.rflags |= 1 << 9;
	must(ioctl(vcpu, KVM_SET_REGS, &regs));
}

long long vm_number(pid_t creator, int vm, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), DEBUGFS "kvm/%d-%d/%s", creator, vm, name);
	return get_number(path);
}

/* ---- does a WBINVD of the guest reach the CPU? --------------------------- */

#define KPROBE_TYPE	"/sys/bus/event_source/devices/kprobe/type"
#define ENTRY		0x1000

/* wbinvd; hlt; jmp to the start */
static const uint8_t wbinvd_code[] = { 0x0f, 0x09, 0xf4, 0xeb, 0xfb };

static int probes[] = { -1, -1 };	/* count wbinvd_function(), by CPU */

const char *wbinvd_function(void)
{
	return kernel_has("wbinvd_ipi") ? "kvm:wbinvd_ipi" : "__wbinvd";
}

/* In a thread, so that each VM has a creator of its own; it may not fail(). */
static void *create_in_thread(void *arg)
{
	struct wbinvd_vm *vm = arg;
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	vm->creator = gettid();
	vm->fd = ioctl(kvm, KVM_CREATE_VM, 0);
	close(kvm);
	return NULL;
}

void make_wbinvd_vm(struct wbinvd_vm *vm)
{
	pthread_t thread;
	size_t run_size;

	if (pthread_create(&thread, NULL, create_in_thread, vm) || pthread_join(thread, NULL))
		fail("no thread");
	if (vm->fd < 0)
		fail("no VM");
	vm->memory = shared_memory(4096);
	memcpy(vm->memory, wbinvd_code, sizeof(wbinvd_code));
	add_memory(vm->fd, 0, ENTRY, 4096, vm->memory);
	vm->vcpu = must(ioctl(vm->fd, KVM_CREATE_VCPU, 0));
	vm->run = map_vcpu(vm->vcpu, &run_size);
	start_real_mode(vm->vcpu, ENTRY, 0);
}

/* One that goes offline takes the counter with it, so there may be an older one. */
void count_flushes_on(int cpu)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr),
		.kprobe_func = (uintptr_t)wbinvd_function(),
	};
	long type = get_number(KPROBE_TYPE);

	if (type < 0)
		fail("%s: %s", KPROBE_TYPE, strerror(-type));
	attr.type = type;
	if (probes[cpu] >= 0)
		close(probes[cpu]);
	probes[cpu] = must(syscall(SYS_perf_event_open, &attr, -1, cpu, -1,
				   PERF_FLAG_FD_CLOEXEC));
}

uint64_t flushes_counted_on(int cpu)
{
	uint64_t count;

	if (read(probes[cpu], &count, sizeof(count)) != sizeof(count))
		fail("the kprobe does not count");
	return count;
}

void count_flushes(void)
{
	must(pin(0, 0));
	count_flushes_on(0);
}

uint64_t flushes_counted(void)
{
	return flushes_counted_on(0);
}

bool wbinvd_is_executed(struct wbinvd_vm *vm)
{
	uint64_t before = flushes_counted();
	int ret;

	do {
		ret = ioctl(vm->vcpu, KVM_RUN, 0);
	} while (ret && errno == EINTR);
	if (ret || vm->run->exit_reason != KVM_EXIT_HLT)
		fail("the guest left with %d, exit %u", ret, vm->run->exit_reason);
	return flushes_counted() > before;
}
