// SPDX-License-Identifier: GPL-2.0-only
/* The guest of budget_test: see the header. */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/ioctl.h>

#include "budget.h"
#include "vm.h"

#define GUEST_MEM	0x10000
#define NMI_HANDLER	0x1100
#define EMULATED_CODE	0x1200
#define INTERRUPT_HANDLER 0x1800
#define GUEST_BOX	0x2000		/* one page a vCPU */
#define RESET_PAGE	0xfffff000u	/* where a vCPU begins after INIT */

/* Real mode, below 64 KiB, interrupts disabled at first; OUT gives control back. */
static const uint8_t guest_code[] = {
	0x0f, 0x09,			/* next:  wbinvd */
	0x66, 0xff, 0x06, 8, 0,		/*        incl box.done */
	0x66, 0xff, 0x0e, 4, 0,		/*        decl box.todo */
	0x75, 0xf2,			/*        jnz next */
	0xe6, 0x80,			/*        out %al, $0x80 */
	0xeb, 0xee,			/*        jmp next */
};

static const uint8_t nmi_code[] = {
	0x66, 0xff, 0x06, 12, 0,	/*        incl box.nmis */
	0xcf,				/*        iret */
};

/* One that KVM emulates, if force_emulation_prefix says so */
static const uint8_t emulated_code[] = {
	0x0f, 0x0b, 'k', 'v', 'm',	/*        ud2; the sign */
	0x0f, 0x09,			/*        wbinvd */
	0x66, 0xff, 0x06, 8, 0,		/*        incl box.done */
	0xe6, 0x80,			/*        out %al, $0x80 */
};

#define REST	0x66, 0xff, 0x06, 8, 0, 0xe6, 0x80	/* incl box.done; out */

static const uint8_t wbnoinvd_code[] = { 0xf3, 0x0f, 0x09, REST };
static const uint8_t emulated_wbnoinvd_code[] = {
	0x0f, 0x0b, 'k', 'v', 'm', 0xf3, 0x0f, 0x09, REST
};
static const uint8_t prefix_66_code[] = { 0x66, 0x0f, 0x09, REST };
static const uint8_t prefix_66_f3_code[] = { 0x66, 0xf3, 0x0f, 0x09, REST };

/* Whoever is kicked while he runs is not halted by his next HLT. */
static const uint8_t kicked_code[] = {
	0x66, 0xb8, 5, 0, 0, 0,		/*        mov $KVM_HC_KICK_CPU, %eax */
	0x66, 0x31, 0xdb,		/*        xor %ebx, %ebx */
	0x66, 0x31, 0xc9,		/*        xor %ecx, %ecx: vCPU 0 */
	0x0f, 0x01, 0xd9,		/*        vmmcall */
	0x0f, 0x09,			/*        wbinvd */
	0xf4,				/*        hlt */
	REST
};

static const uint8_t reset_code[] = {
	0xe6, 0x81,			/*        out %al, $0x81 */
	0xeb, 0xfc,
};

struct vcpu *vm_create(struct vm *vm, int cpu)
{
	char *reset = shared_memory(0x1000);

	memset(vm, 0, sizeof(*vm));
	vm->fd = create_vm();
	must(ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0));
	vm->mem = shared_memory(GUEST_MEM);
	memcpy(vm->mem + WBINVD_AT, guest_code, sizeof(guest_code));
	memcpy(vm->mem + NMI_HANDLER, nmi_code, sizeof(nmi_code));
	memcpy(vm->mem + EMULATED_CODE, emulated_code, sizeof(emulated_code));
	memcpy(vm->mem + WBNOINVD_AT, wbnoinvd_code, sizeof(wbnoinvd_code));
	memcpy(vm->mem + EMULATED_WBNOINVD_AT - 5, emulated_wbnoinvd_code,
	       sizeof(emulated_wbnoinvd_code));
	memcpy(vm->mem + PREFIX_66_AT, prefix_66_code, sizeof(prefix_66_code));
	memcpy(vm->mem + PREFIX_66_F3_AT, prefix_66_f3_code, sizeof(prefix_66_f3_code));
	memcpy(vm->mem + KICKED_AT, kicked_code, sizeof(kicked_code));
	*(uint32_t *)(vm->mem + 2 * 4) = NMI_HANDLER;	/* segment 0 */
	handle_interrupt(vm->mem, VECTOR, INTERRUPT_HANDLER);
	add_memory(vm->fd, 0, 0, GUEST_MEM, vm->mem);
	memcpy(reset + 0xff0, reset_code, sizeof(reset_code));
	add_memory(vm->fd, 1, RESET_PAGE, 0x1000, reset);

	vm->group = group_open(0);
	group_attach(vm->group);
	vm->dev = must(kvm_vfio_create(vm->fd));
	must(kvm_vfio_add(vm->dev, vm->group));
	return vcpu_create(vm, cpu);
}

static void vcpu_setup(struct vcpu_thread *t)
{
	struct vcpu *v = (struct vcpu *)t;
	size_t size;

	t->fd = must(ioctl(v->vm->fd, KVM_CREATE_VCPU, v->id));
	set_least_cpuid(t->fd);
	t->run = map_vcpu(t->fd, &size);
	t->any_stop = true;
	if (v->id) {
		struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };

		must(ioctl(t->fd, KVM_SET_MP_STATE, &state));
	}
	set_lapic(t->fd);
	start_real_mode(t->fd, WBINVD_AT, GUEST_BOX + v->id * 0x1000);
}

struct vcpu *vcpu_create(struct vm *vm, int cpu)
{
	struct vcpu *v = &vm->vcpus[vm->n_vcpus];

	v->vm = vm;
	v->id = vm->n_vcpus++;
	v->box = (void *)(vm->mem + GUEST_BOX + v->id * 0x1000);
	vcpu_thread_create(&v->thread, cpu, vcpu_setup);
	return v;
}

/* Calls of a vCPU load it, and KVM notes the CPU that they are made on. */
static void go_to(struct vcpu *v)
{
	cpu_set_t set;
	int cpu;

	must(sched_getaffinity(v->thread.tid, sizeof(set), &set));
	for (cpu = 0; !CPU_ISSET(cpu, &set); cpu++)
		;
	must(pin(0, cpu));
}

static void ask_vcpu(struct vcpu *v, unsigned long request, void *arg)
{
	go_to(v);
	must(ioctl(v->thread.fd, request, arg));
	must(pin(0, 0));
}

void begin(struct vcpu *v, int n)
{
	WRITE(v->box->todo, n);
	resume(v);
}

void resume(struct vcpu *v)
{
	v->wait.entered = now();
	vcpu_thread_go(&v->thread);
}

static void wait_stopped(struct vcpu *v, const char *what)
{
	wait_sem(&v->thread.stopped, what);
	v->wait.left = now();
}

void end(struct vcpu *v)
{
	wait_stopped(v, "KVM_RUN");
	if (v->thread.error)
		fail("KVM_RUN of vCPU %d: %s", v->id, strerror(v->thread.error));
	if (v->thread.run->exit_reason != KVM_EXIT_IO || v->thread.run->io.port != 0x80)
		fail("vCPU %d stopped with exit reason %u", v->id, v->thread.run->exit_reason);
}

void end_interrupted(struct vcpu *v, uint64_t rip)
{
	struct kvm_regs regs;

	wait_stopped(v, "KVM_RUN, interrupted,");
	if (v->thread.error != EINTR)
		fail("KVM_RUN was interrupted and returned %s", strerror(v->thread.error));
	if (v->thread.run->exit_reason != KVM_EXIT_INTR && !v->thread.run->immediate_exit)
		fail("KVM_RUN was interrupted with exit reason %u", v->thread.run->exit_reason);
	ask_vcpu(v, KVM_GET_REGS, &regs);
	if (regs.rip != rip)
		fail("it was interrupted at %#llx, not at its WBINVD", regs.rip);
}

void resume_at(struct vcpu *v, uint64_t rip)
{
	struct kvm_regs regs;

	ask_vcpu(v, KVM_GET_REGS, &regs);
	regs.rip = rip;
	ask_vcpu(v, KVM_SET_REGS, &regs);
	resume(v);
}

void run_at(struct vcpu *v, uint64_t rip)
{
	resume_at(v, rip);
	end(v);
}

void tell_wbnoinvd(struct vcpu *v, bool has)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry;
	} cpuid = {
		.head.nent = 1,
		.entry = { .function = 0x80000008, .eax = 0x3028, .ebx = has << 9 },
	};

	ask_vcpu(v, KVM_SET_CPUID2, &cpuid);
}

void take_interrupts(struct vcpu *v, int timer_ms)
{
	go_to(v);
	enable_apic(v->thread.fd, VECTOR, timer_ms);
	enable_interrupts(v->thread.fd);
	must(pin(0, 0));
}

void hold_interrupts(struct vcpu *v)
{
	go_to(v);
	enable_apic(v->thread.fd, VECTOR, 0);
	must(pin(0, 0));
}

void interrupt(struct vcpu *v)
{
	vcpu_thread_interrupt(&v->thread);
}

long long count(struct vm *vm, const char *name)
{
	return vm_number(getpid(), vm->fd, name);
}

void wait_count(struct vm *vm, const char *name, long long n)
{
	wait_vm_number(getpid(), vm->fd, name, n);
}

void set_budget(int per_mille)
{
	must_put(BUDGET, "%d", per_mille);
}
