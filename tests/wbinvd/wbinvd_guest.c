// SPDX-License-Identifier: GPL-2.0-only
/* The guest of wbinvd_test: it dirties its cache and executes WBINVDs as it is told. */
#define _GNU_SOURCE
#include <sys/ioctl.h>

#include "vm.h"
#include "wbinvd.h"

#define GUEST_MEM	0x10000
#define GUEST_CODE	0x1000
#define GUEST_BOX	0x2000	/* one page a vCPU */

/* The guest: real mode, below 64 KiB, no interrupts. */
static const uint8_t guest_code[] = {
	0x66, 0xff, 0x06, 12, 0,	/* next:   incl box.beat */
	0xa0, 0, 0,			/*         movb box.cmd, %al */
	0x3c, CMD_WBINVD,		/*         cmpb $CMD_WBINVD, %al */
	0x74, 6,			/*         je flush */
	0x3c, CMD_STOP,			/*         cmpb $CMD_STOP, %al */
	0x74, 23,			/*         je stop */
	0xeb, 0xee,			/*         jmp next */
	0x0f, 0x09,			/* flush:  wbinvd */
	0x66, 0xff, 0x06, 8, 0,		/*         incl box.done */
	0x66, 0xff, 0x0e, 4, 0,		/*         decl box.todo */
	0x75, 0xf2,			/*         jnz flush */
	0xc6, 0x06, 0, 0, CMD_NONE,	/*         movb $CMD_NONE, box.cmd */
	0xeb, 0xd9,			/*         jmp next */
	0xc6, 0x06, 0, 0, CMD_NONE,	/* stop:   movb $CMD_NONE, box.cmd */
	0xf4,				/*         hlt */
	0xeb, 0xd1,			/*         jmp next */
};

void vm_create(struct vm *vm)
{
	memset(vm, 0, sizeof(*vm));
	vm->fd = create_vm();
	vm->dev = -1;
	vm->mem = shared_memory(GUEST_MEM);
	memcpy(vm->mem + GUEST_CODE, guest_code, sizeof(guest_code));
	add_memory(vm->fd, 0, 0, GUEST_MEM, vm->mem);
}

static void vcpu_setup(struct vcpu_thread *t)
{
	struct vcpu *v = (struct vcpu *)t;
	size_t run_size;

	t->fd = must(ioctl(v->vm->fd, KVM_CREATE_VCPU, v->id));
	t->stop_reason = KVM_EXIT_HLT;
	t->run = map_vcpu(t->fd, &run_size);
	start_real_mode(t->fd, GUEST_CODE, GUEST_BOX + v->id * 0x1000);
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

void vcpu_wait_beats(struct vcpu *v)
{
	uint32_t start = READ(v->box->beat);
	double limit = now() + SCENARIO_LIMIT / 2;

	while (READ(v->box->beat) - start < 1000) {
		if (now() > limit)
			fail("vCPU %d does not run", v->id);
		sleep_ms(1);
	}
}

void vcpu_enter(struct vcpu *v)
{
	vcpu_thread_go(&v->thread);
	vcpu_wait_beats(v);
}

void vcpu_leave(struct vcpu *v)
{
	WRITE(v->box->cmd, CMD_STOP);
	vcpu_thread_wait(&v->thread);
}

void vcpu_move(struct vcpu *v, int cpu)
{
	must(pin(v->thread.tid, cpu));
}

void vcpu_run_on(struct vcpu *v, int cpu)
{
	vcpu_move(v, cpu);
	vcpu_enter(v);
	vcpu_leave(v);
}

void vcpu_begin_wbinvds(struct vcpu *v, int cpu, int n)
{
	v->goal = READ(v->box->done) + n;
	expected.guest[cpu] += n;
	WRITE(v->box->todo, n);
	WRITE(v->box->cmd, CMD_WBINVD);
}

void vcpu_end_wbinvds(struct vcpu *v)
{
	double limit = now() + SCENARIO_LIMIT / 2;

	while (READ(v->box->done) != v->goal || READ(v->box->cmd) != CMD_NONE) {
		if (now() > limit)
			fail("vCPU %d does not finish its WBINVDs", v->id);
		sleep_ms(1);
	}
}

void vcpu_wbinvds(struct vcpu *v, int cpu, int n)
{
	vcpu_begin_wbinvds(v, cpu, n);
	vcpu_end_wbinvds(v);
}

void vcpu_wbinvd(struct vcpu *v, int cpu)
{
	vcpu_wbinvds(v, cpu, 1);
}

void phase_skipped(struct vcpu *v, int cpu, const char *why)
{
	phase("WBINVDs on CPU %d are skipped, %s", cpu, why);
	vcpu_move(v, cpu);
	vcpu_enter(v);
	vcpu_wbinvds(v, cpu, 5);
	vcpu_leave(v);
	phase_end();
}

void phase_executed(struct vcpu *v, int cpu, const char *why)
{
	phase("WBINVDs on CPU %d are executed there, %s", cpu, why);
	vcpu_move(v, cpu);
	vcpu_enter(v);
	vcpu_wbinvds(v, cpu, 5);
	expect_flushes(cpu, 5);
	vcpu_leave(v);
	phase_end();
}

/* ---- VFIO ---------------------------------------------------------------- */

void device_create(struct vm *vm)
{
	vm->dev = must(kvm_vfio_create(vm->fd));
}

void file_add(struct vm *vm, int fd)
{
	if (vm->dev < 0)
		device_create(vm);
	must(kvm_vfio_add(vm->dev, fd));
}

void file_del(struct vm *vm, int fd)
{
	must(kvm_vfio_del(vm->dev, fd));
}

struct vcpu *noncoherent_vm(struct vm *vm, int group, int cpu)
{
	vm_create(vm);
	group_attach(group);
	file_add(vm, group);
	return vcpu_create(vm, cpu);
}
