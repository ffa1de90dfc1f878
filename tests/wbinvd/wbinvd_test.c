// SPDX-License-Identifier: GPL-2.0-only
/*
 * When does a guest's WBINVD reach the caches, and which CPUs' caches?
 *
 * Runs in the svm lab with four CPUs and two edu devices; what is seen and how
 * is described in wbinvd_phase.h.
 *
 * What must hold of a VM (snoop control off, so that VT-d's DMA is non-coherent
 * for any group attached to a container):
 *
 *  - While no attached group is tracked, its WBINVDs are skipped, without IPI.
 *  - When the VM becomes non-coherent, the flush owed for those is executed on
 *    every CPU that one of its vCPUs was loaded on since its last flush, before
 *    the ioctl that caused it returns. It leaves those CPUs noted.
 *  - From then on a vCPU's WBINVD is executed on every CPU noted for the vCPU,
 *    of which only the one it runs on stays noted.
 *  - Once the last such group has left, they are skipped again.
 *  - WBINVDs of a coherent VM, and of a vCPU that never left its CPU, interrupt
 *    no other CPU.
 *
 * With snoop control on, every group is coherent, and the same phases must see
 * none at all.
 *
 * What lies between two phases may not execute any WBINVD either. Two more
 * things execute WBINVD in the host kernel and have phases of their own: a CPU
 * that goes offline, and one that comes online, on that CPU while its MTRRs are
 * set. The first does it twice: for KVM, before others no longer find it online,
 * and by itself, on its way to the last HLT.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "wbinvd_phase.h"

/* ---- CPUs ---------------------------------------------------------------- */

static void cpu2_offline(void)
{
	phase("CPU 2 goes offline: KVM's WBINVD on it and the kernel's own");
	set_cpu2_online(false);
	expect_unrelated(2, 2, 2);
	phase_end();
}

static void cpu2_online(void)
{
	phase("CPU 2 comes online: only the kernel's own WBINVDs on it");
	set_cpu2_online(true);
	expect_unrelated(2, 0, -1);
	phase_end();
}

/* The CPUs on which nothing of the test runs, but for which a vCPU may be noted. */
#define OTHER_CPUS	"1 and 2"

/*
 * Call-function interrupts of OTHER_CPUS so far. The file stays open: closing it
 * would start an RCU grace period, with interrupts of its own.
 */
static long call_interrupts(void)
{
	static int fd = -1;
	char text[16384], *line;
	long one, two;
	int size = 0, n;

	if (fd < 0)
		fd = CHECK(open("/proc/interrupts", O_RDONLY | O_CLOEXEC));
	while ((n = CHECK(pread(fd, text + size, sizeof(text) - 1 - size, size))))
		size += n;
	text[size] = 0;
	line = strstr(text, "CAL:");
	if (!line || sscanf(line, "CAL: %*d %ld %ld", &one, &two) != 2)
		die("/proc/interrupts has no CAL line");
	return one + two;
}

/* ---- guests -------------------------------------------------------------- */

#define GUEST_MEM	0x10000
#define GUEST_CODE	0x1000
#define GUEST_BOX	0x2000	/* one page a vCPU */
#define MAX_VCPUS	2

enum { CMD_NONE, CMD_WBINVD, CMD_STOP };

/*
 * What a vCPU and the test share, the guest finding it at DS:0. Accessed by
 * READ() and WRITE() only.
 */
struct box {
	uint32_t cmd;
	uint32_t todo;		/* WBINVDs to execute */
	uint32_t done;		/* WBINVDs executed, ever */
	uint32_t beat;		/* counts while the guest runs, and dirties a line */
};

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

struct vm {
	int fd;
	int dev;		/* the KVM-VFIO device */
	char *mem;
	int n_vcpus;
	struct vcpu {
		struct vcpu_thread thread;	/* the first, for vcpu_setup() */
		struct vm *vm;
		int id;
		struct box *box;
	} vcpus[MAX_VCPUS];
};

static void vm_create(struct vm *vm)
{
	struct kvm_userspace_memory_region region = { .memory_size = GUEST_MEM };
	int kvm = CHECK(open("/dev/kvm", O_RDWR | O_CLOEXEC));

	memset(vm, 0, sizeof(*vm));
	vm->fd = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
	close(kvm);
	vm->dev = -1;
	vm->mem = mmap(NULL, GUEST_MEM, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (vm->mem == MAP_FAILED)
		die("no memory for a guest");
	memcpy(vm->mem + GUEST_CODE, guest_code, sizeof(guest_code));
	region.userspace_addr = (uintptr_t)vm->mem;
	CHECK(ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region));
}

static void vcpu_setup(struct vcpu_thread *t)
{
	struct vcpu *v = (struct vcpu *)t;
	struct kvm_regs regs = { .rip = GUEST_CODE, .rflags = 2 };
	struct kvm_sregs sregs;

	t->fd = CHECK(ioctl(v->vm->fd, KVM_CREATE_VCPU, v->id));
	t->stop_reason = KVM_EXIT_HLT;
	t->run = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);
	if (t->run == MAP_FAILED)
		die("mmap of a vCPU: %s", strerror(errno));
	CHECK(ioctl(t->fd, KVM_GET_SREGS, &sregs));
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	sregs.ds.base = GUEST_BOX + v->id * 0x1000;
	sregs.ds.selector = sregs.ds.base >> 4;
	CHECK(ioctl(t->fd, KVM_SET_SREGS, &sregs));
	CHECK(ioctl(t->fd, KVM_SET_REGS, &regs));
}

static struct vcpu *vcpu_create(struct vm *vm, int cpu)
{
	struct vcpu *v = &vm->vcpus[vm->n_vcpus];

	v->vm = vm;
	v->id = vm->n_vcpus++;
	v->box = (void *)(vm->mem + GUEST_BOX + v->id * 0x1000);
	vcpu_thread_create(&v->thread, cpu, vcpu_setup);
	return v;
}

/* Wait until the guest has gone round its loop for some time, dirtying. */
static void vcpu_wait_beats(struct vcpu *v)
{
	uint32_t start = READ(v->box->beat);
	double limit = now() + SCENARIO_LIMIT / 2;

	while (READ(v->box->beat) - start < 1000) {
		if (now() > limit)
			die("vCPU %d does not run", v->id);
		sleep_ms(1);
	}
}

/* Let the guest run until vcpu_leave(), on the CPU the vCPU is pinned to. */
static void vcpu_enter(struct vcpu *v)
{
	vcpu_thread_go(&v->thread);
	vcpu_wait_beats(v);
}

static void vcpu_leave(struct vcpu *v)
{
	WRITE(v->box->cmd, CMD_STOP);
	vcpu_thread_wait(&v->thread);
}

/* From now on the vCPU runs on @cpu, whether it runs now or not. */
static void vcpu_move(struct vcpu *v, int cpu)
{
	pin(v->thread.tid, cpu);
}

static void vcpu_run_on(struct vcpu *v, int cpu)
{
	vcpu_move(v, cpu);
	vcpu_enter(v);
	vcpu_leave(v);
}

/* @n WBINVDs in a guest that runs on @cpu. */
static void vcpu_wbinvds(struct vcpu *v, int cpu, int n)
{
	uint32_t goal = READ(v->box->done) + n;
	double limit = now() + SCENARIO_LIMIT / 2;

	expected.guest[cpu] += n;
	WRITE(v->box->todo, n);
	WRITE(v->box->cmd, CMD_WBINVD);
	while (READ(v->box->done) != goal || READ(v->box->cmd) != CMD_NONE) {
		if (now() > limit)
			die("vCPU %d does not finish its WBINVDs", v->id);
		sleep_ms(1);
	}
}

static void vcpu_wbinvd(struct vcpu *v, int cpu)
{
	vcpu_wbinvds(v, cpu, 1);
}

/* A phase in which a stopped vCPU runs on @cpu and its WBINVDs are skipped. */
static void phase_skipped(struct vcpu *v, int cpu, const char *why)
{
	phase("WBINVDs on CPU %d are skipped, %s", cpu, why);
	vcpu_move(v, cpu);
	vcpu_enter(v);
	vcpu_wbinvds(v, cpu, 5);
	vcpu_leave(v);
	phase_end();
}

/* A phase in which a stopped vCPU, only @cpu noted, runs there: all are executed. */
static void phase_executed(struct vcpu *v, int cpu, const char *why)
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

static void device_create(struct vm *vm)
{
	vm->dev = kvm_vfio_create(vm->fd);
}

static void file_add(struct vm *vm, int fd)
{
	if (vm->dev < 0)
		device_create(vm);
	kvm_vfio_add(vm->dev, fd);
}

static void file_del(struct vm *vm, int fd)
{
	kvm_vfio_del(vm->dev, fd);
}

/* ---- scenarios ----------------------------------------------------------- */

/* Without this the rest would prove nothing: CPU numbers here and there agree. */
static void marks_name_cpus(void)
{
	int cpu;

	for (cpu = 0; cpu < CPUS; cpu++) {
		pin(0, cpu);
		phase("a mark on CPU %d", cpu);
		expected.by = cpu;
		phase_end();
	}
	pin(0, 0);
}

#define MANY	20
#define ROUNDS	15

/*
 * WBINVDs that interrupt nobody. The kernel's own business causes a call-function
 * interrupt now and then, even on an idle CPU (one that is busy asks one that is
 * not to balance the load), but rarely within the few milliseconds of a round; an
 * IPI of a WBINVD, even if only a round's first one sends it, comes in all rounds.
 */
static void wbinvds_without_ipi(struct vcpu *v, void (*before)(struct vcpu *v),
				bool executed, const char *why)
{
	long ipis = 1;
	int round;

	for (round = 0; ipis && round < ROUNDS; round++) {
		before(v);
		call_interrupts();
		/* What all that has set going comes to rest. */
		sleep_ms(100 * patience);
		phase("%d WBINVDs without an IPI, %s", MANY, why);
		ipis = call_interrupts();
		vcpu_wbinvds(v, 3, MANY);
		ipis = call_interrupts() - ipis;
		if (executed)
			expect_flushes(3, MANY);
		phase_end();
		vcpu_leave(v);
		printf("# %ld call-function interrupts of CPUs " OTHER_CPUS "\n", ipis);
	}
	if (ipis)
		die("WBINVDs on CPU 3 interrupt CPUs " OTHER_CPUS ", %s", why);
}

/* All CPUs have dirty lines of a vCPU that is in its guest on CPU 3. */
static void dirty_every_cpu(struct vcpu *v)
{
	vcpu_run_on(v, 1);
	vcpu_run_on(v, 2);
	vcpu_move(v, 3);
	vcpu_enter(v);
}

static void coherent_vm(void)
{
	struct vm vm;
	struct vcpu *v;

	vm_create(&vm);
	v = vcpu_create(&vm, 1);
	wbinvds_without_ipi(v, dirty_every_cpu, false, "a VM without the device");
	device_create(&vm);
	wbinvds_without_ipi(v, dirty_every_cpu, false, "a VM that tracks nothing");
	file_add(&vm, group_open(0));
	wbinvds_without_ipi(v, dirty_every_cpu, false,
			    "a VM that tracks a group attached to nothing");
}

static void vcpu_on_one_cpu(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	group_attach(group);
	file_add(&vm, group);
	v = vcpu_create(&vm, 3);
	wbinvds_without_ipi(v, vcpu_enter, true, "a vCPU that never left its CPU");
}

/* A vCPU that has run on CPUs 1 and 2, its WBINVDs skipped. */
static struct vcpu *vcpu_with_debt(struct vm *vm)
{
	struct vcpu *v;

	vm_create(vm);
	v = vcpu_create(vm, 1);
	phase_skipped(v, 1, "nothing tracked yet");
	phase_skipped(v, 2, "nothing tracked yet");
	return v;
}

/* What follows a change paid for on CPUs 1 and 2; both are still noted. */
static void after_the_change(struct vcpu *v)
{
	phase("the first WBINVD after the change flushes CPUs 1 and 2");
	vcpu_move(v, 2);
	vcpu_enter(v);
	vcpu_wbinvd(v, 2);
	expect_flush(1);
	expect_flush(2);
	phase_end();

	phase("the second one CPU 2 only");
	vcpu_wbinvd(v, 2);
	expect_flush(2);
	phase_end();
	vcpu_leave(v);
}

static void attach_then_add(void)
{
	struct vm vm;
	struct vcpu *v = vcpu_with_debt(&vm);
	int group = group_open(0);

	phase("attaching a group that no VM tracks flushes nothing");
	group_attach(group);
	device_create(&vm);
	phase_end();

	phase("ADD of the attached group pays the owed flush on CPUs 1 and 2");
	file_add(&vm, group);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	after_the_change(v);
}

static void add_then_attach(void)
{
	struct vm vm;
	struct vcpu *v = vcpu_with_debt(&vm);
	int group = group_open(0), container = container_open();

	phase("ADD and SET_CONTAINER, no IOMMU yet: nothing is flushed");
	file_add(&vm, group);
	set_container(group, container);
	phase_end();
	phase_skipped(v, 2, "a container without an IOMMU");

	phase("SET_IOMMU pays the owed flush on CPUs 1 and 2");
	set_iommu(container);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	after_the_change(v);
}

static void join_a_container(void)
{
	struct vm vm;
	struct vcpu *v = vcpu_with_debt(&vm);
	int group = group_open(0), other = group_open(1);
	int container = group_attach(other);

	phase("ADD of an unattached group while another one is attached: nothing");
	file_add(&vm, group);
	phase_end();
	phase_skipped(v, 2, "only the other group, which is not tracked, is attached");

	phase("joining the other's container pays the owed flush on CPUs 1 and 2");
	set_container(group, container);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	after_the_change(v);
}

static void executed_on_the_mask(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	phase("a VM without vCPUs owes nothing");
	vm_create(&vm);
	group_attach(group);
	file_add(&vm, group);
	phase_end();

	v = vcpu_create(&vm, 1);
	phase("50 WBINVDs are executed on CPU 1");
	vcpu_enter(v);
	vcpu_wbinvds(v, 1, 50);
	expect_flushes(1, 50);
	vcpu_leave(v);
	phase_end();

	phase("running on CPUs 2 and 3 flushes nothing");
	vcpu_run_on(v, 2);
	vcpu_run_on(v, 3);
	phase_end();

	phase("the next WBINVD flushes CPUs 1, 2 and 3");
	vcpu_enter(v);
	vcpu_wbinvd(v, 3);
	expect_flush(1);
	expect_flush(2);
	expect_flush(3);
	vcpu_leave(v);
	phase_end();
	phase_executed(v, 3, "the others are clean");
}

/* The vCPU never leaves KVM_RUN: it is migrated by the scheduler alone. */
static void migration(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	group_attach(group);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	vcpu_enter(v);

	phase("WBINVD on CPU 1");
	vcpu_wbinvd(v, 1);
	expect_flush(1);
	phase_end();

	phase("dirtying on CPU 1, then on CPU 2, flushes nothing");
	vcpu_wait_beats(v);
	vcpu_move(v, 2);
	vcpu_wait_beats(v);
	phase_end();

	phase("WBINVD on CPU 2 flushes CPUs 1 and 2");
	vcpu_wbinvd(v, 2);
	expect_flush(1);
	expect_flush(2);
	phase_end();

	phase("the next one CPU 2 only");
	vcpu_wbinvd(v, 2);
	expect_flush(2);
	phase_end();
	vcpu_leave(v);
}

static void running_during_the_change(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	vcpu_enter(v);
	phase("WBINVD is skipped on CPU 1");
	vcpu_wbinvd(v, 1);
	phase_end();

	phase("attaching pays the owed flush on CPU 1, on which the vCPU runs");
	group_attach(group);
	expect_flush(1);
	phase_end();

	/* It went on dirtying CPU 1 after that flush. */
	vcpu_wait_beats(v);
	vcpu_move(v, 2);
	vcpu_wait_beats(v);
	phase("WBINVD on CPU 2 flushes CPUs 1 and 2");
	vcpu_wbinvd(v, 2);
	expect_flush(1);
	expect_flush(2);
	phase_end();

	phase("UNSET_CONTAINER flushes nothing");
	unset_container(group);
	phase_end();
	phase("WBINVD is skipped on CPU 2");
	vcpu_wbinvd(v, 2);
	phase_end();
	vcpu_leave(v);
}

static void two_vcpus(void)
{
	struct vm vm;
	struct vcpu *a, *b;
	int group = group_open(0);

	vm_create(&vm);
	a = vcpu_create(&vm, 1);
	b = vcpu_create(&vm, 2);
	phase_skipped(a, 1, "first vCPU, nothing tracked");
	phase_skipped(b, 2, "second vCPU, nothing tracked");
	group_attach(group);

	phase("ADD pays the owed flush of both vCPUs, on CPUs 1 and 2");
	file_add(&vm, group);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	phase_executed(a, 1, "the first vCPU's");
	phase_executed(b, 2, "the second vCPU's");

	phase("the second one on CPU 3: CPUs 2 and 3, not the first one's");
	vcpu_move(b, 3);
	vcpu_enter(b);
	vcpu_wbinvd(b, 3);
	expect_flush(2);
	expect_flush(3);
	vcpu_leave(b);
	phase_end();
}

static void second_vm(void)
{
	struct vm vm, other;
	struct vcpu *v, *w;
	int group = group_open(0);

	vm_create(&vm);
	vm_create(&other);
	v = vcpu_create(&vm, 1);
	w = vcpu_create(&other, 3);
	file_add(&other, group_open(1));
	phase_skipped(v, 1, "nothing tracked");
	phase_skipped(w, 3, "the second VM's only group is attached to nothing");

	phase("the first VM's owed flush spares the CPU of the second VM");
	group_attach(group);
	file_add(&vm, group);
	expect_flush(1);
	phase_end();
	phase_skipped(w, 3, "the second VM is still coherent");
	phase_executed(v, 1, "the first VM's");
}

/* A non-coherent VM with one vCPU that has run on CPU 1 only. */
static struct vcpu *noncoherent_vcpu(struct vm *vm, int group)
{
	struct vcpu *v;

	vm_create(vm);
	group_attach(group);
	file_add(vm, group);
	v = vcpu_create(vm, 1);
	phase_executed(v, 1, "an attached group is tracked");
	return v;
}

static void leave_by_del(void)
{
	struct vm vm;
	int group = group_open(0), other = group_open(1);
	struct vcpu *v = noncoherent_vcpu(&vm, group);

	group_attach(other);
	phase("ADD of a second and DEL of the first attached group flush nothing");
	file_add(&vm, other);
	file_del(&vm, group);
	phase_end();
	phase_executed(v, 1, "the second attached group is still tracked");

	phase("DEL of the last attached group flushes nothing");
	file_del(&vm, other);
	phase_end();
	phase_skipped(v, 1, "the last attached group left by DEL");

	phase("ADD pays the flush owed since, on CPU 1");
	file_add(&vm, group);
	expect_flush(1);
	phase_end();
}

static void leave_by_unset(void)
{
	struct vm vm;
	int group = group_open(0);
	struct vcpu *v = noncoherent_vcpu(&vm, group);

	phase("UNSET_CONTAINER flushes nothing");
	unset_container(group);
	phase_end();
	phase_skipped(v, 1, "the last attached group left by UNSET_CONTAINER");

	phase("attaching it again pays the flush owed since, on CPU 1");
	group_attach(group);
	expect_flush(1);
	phase_end();
}

static void leave_by_close(void)
{
	struct vm vm;
	int group = group_open(0);
	struct vcpu *v = noncoherent_vcpu(&vm, group);

	phase("closing the device flushes nothing");
	close(vm.dev);
	vm.dev = -1;
	phase_end();
	phase_skipped(v, 1, "the device was closed");

	phase("ADD to a new device pays the flush owed since, on CPU 1");
	file_add(&vm, group);
	expect_flush(1);
	phase_end();
}

/* A VM, running and non-coherent, whose process is killed. */
static void run_noncoherent_vm(void)
{
	/* Its vCPU runs on after this. */
	static struct vm vm;

	vcpu_enter(noncoherent_vcpu(&vm, group_open(0)));
}

static void leave_by_death(void)
{
	struct vm vm;
	struct vcpu *v;
	pid_t pid = fork_doomed(run_noncoherent_vm);
	int group;

	vm_create(&vm);
	v = vcpu_create(&vm, 2);
	phase_skipped(v, 2, "it is the other process's VM that is non-coherent");

	phase("death of a process with a running non-coherent VM flushes nothing");
	kill(pid, SIGKILL);
	wait_for_death(pid);
	phase_end();
	phase_skipped(v, 2, "after the other process's death");

	phase("its group is free: ADD to this VM pays what this VM owes, on CPU 2");
	group = group_open(0);
	group_attach(group);
	file_add(&vm, group);
	expect_flush(2);
	phase_end();
	phase_executed(v, 2, "the group of the dead process is tracked");
}

/* Whoever attaches, the VM pays; and as long as the file lives it is attached. */
static void attached_by_another_process(void)
{
	struct vm vm;
	struct vcpu *v = vcpu_with_debt(&vm);
	int group = group_open(0);
	pid_t pid;

	file_add(&vm, group);
	pid = fork_child();
	if (!pid) {
		phase("another process attaches the group: flush on CPUs 1 and 2");
		group_attach(group);
		expect_flush(1);
		expect_flush(2);
		phase_end();
		fflush(stdout);
		_exit(0);
	}
	wait_for_death(pid);
	after_the_change(v);

	phase("closing the group's last fd flushes nothing");
	close(group);
	phase_end();
	phase_executed(v, 2, "the device keeps the closed group attached");

	phase("closing the device flushes nothing");
	close(vm.dev);
	phase_end();
	phase_skipped(v, 2, "the device was closed, and the group with it");
}

/* ---- preemption ---------------------------------------------------------- */

#define MOVES	400

/* Let the guest execute WBINVDs, how many is seen later, until vcpu_stop_wbinvds(). */
static void vcpu_start_wbinvds(struct vcpu *v)
{
	WRITE(v->box->todo, INT_MAX);
	WRITE(v->box->cmd, CMD_WBINVD);
}

static void vcpu_stop_wbinvds(struct vcpu *v)
{
	double limit = now() + SCENARIO_LIMIT / 2;

	/* The guest may just be counting down, and not see it. */
	do {
		WRITE(v->box->todo, 1);
		if (now() > limit)
			die("vCPU %d does not stop its WBINVDs", v->id);
		sleep_ms(1);
	} while (READ(v->box->cmd) != CMD_NONE);
}

/* Wait for WBINVDs of which one begins after this was called. */
static void vcpu_wait_wbinvd(struct vcpu *v)
{
	uint32_t start = READ(v->box->done);
	double limit = now() + SCENARIO_LIMIT / 2;

	while (READ(v->box->done) - start < 2)
		if (now() > limit)
			die("vCPU %d executes no WBINVD", v->id);
}

/* A counter of the time that the vCPU's thread has run on @cpu */
static int open_clock(struct vcpu *v, int cpu)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_TASK_CLOCK,
	};

	return CHECK(syscall(SYS_perf_event_open, &attr, v->thread.tid, cpu, -1,
			     PERF_FLAG_FD_CLOEXEC));
}

static uint64_t read_clock(int clock)
{
	uint64_t ns;

	CHECK(read(clock, &ns, sizeof(ns)));
	return ns;
}

/* As vcpu_move(), but when this returns the vCPU has been loaded there. */
static void vcpu_move_and_load(struct vcpu *v, int cpu, int clock)
{
	uint64_t before = read_clock(clock);
	double limit = now() + SCENARIO_LIMIT / 2;

	vcpu_move(v, cpu);
	while (read_clock(clock) == before)
		if (now() > limit)
			die("vCPU %d does not get to CPU %d", v->id, cpu);
}

/* Not to move the vCPU at the same point of each WBINVD */
static void spin(int n)
{
	volatile int i;

	for (i = 0; i < n; i++)
		;
}

/*
 * Where the kernel can be preempted, that may be between any two steps of
 * executing a WBINVD. Whatever the step, the CPU that the vCPU leaves keeps dirty
 * lines, which the next WBINVD, or the one that was interrupted, must write back
 * there: one flush more for each move, neither lost nor doubled.
 */
static void moved_during_wbinvds(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0), cpu = 1, clock[CPUS], i;
	uint32_t first;

	vm_create(&vm);
	group_attach(group);
	file_add(&vm, group);
	v = vcpu_create(&vm, cpu);
	for (i = 1; i < CPUS; i++)
		clock[i] = open_clock(v, i);
	vcpu_enter(v);
	first = READ(v->box->done);
	phase("each of %d moves during WBINVDs costs one flush more", MOVES);
	vcpu_start_wbinvds(v);
	for (i = 0; i < MOVES; i++) {
		/*
		 * In pairs, so that the second move may hit the WBINVD that
		 * pays for the first. A third one would go back to where the
		 * first began, and there would be nothing more to pay for.
		 */
		if (i % 2 == 0)
			vcpu_wait_wbinvd(v);
		spin(i * 97 % 1000 * (i % 2 ? 1 : 10));
		cpu = 1 + cpu % 3;
		vcpu_move_and_load(v, cpu, clock[cpu]);
	}
	vcpu_wait_wbinvd(v);
	vcpu_stop_wbinvds(v);
	expect_total(READ(v->box->done) - first, MOVES);
	phase_end();

	phase("then one on CPU %d flushes that one only", cpu);
	vcpu_wbinvd(v, cpu);
	expect_flush(cpu);
	phase_end();

	phase("and one after another move both");
	vcpu_move(v, 1 + cpu % 3);
	vcpu_wait_beats(v);
	vcpu_wbinvd(v, 1 + cpu % 3);
	expect_flush(cpu);
	expect_flush(1 + cpu % 3);
	phase_end();
	vcpu_leave(v);
}

/* Of a run with that on the kernel's command line */
static void fully_preemptible(void)
{
	char text[64] = "";
	int fd = CHECK(open("/sys/kernel/debug/sched/preempt", O_RDONLY | O_CLOEXEC));

	CHECK(read(fd, text, sizeof(text) - 1));
	close(fd);
	if (!strstr(text, "(full)"))
		die("the kernel's preemption is %s", text);
}

/* ---- CPUs that go -------------------------------------------------------- */

static void unplug_a_noted_cpu(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	group_attach(group);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	phase("running on CPUs 2 and 1 flushes nothing");
	vcpu_run_on(v, 2);
	vcpu_run_on(v, 1);
	phase_end();

	cpu2_offline();
	phase("WBINVD flushes CPU 1 only, CPU 2 is offline");
	vcpu_enter(v);
	vcpu_wbinvd(v, 1);
	expect_flush(1);
	phase_end();

	cpu2_online();
	vcpu_move(v, 2);
	vcpu_wait_beats(v);
	phase("back on CPU 2, WBINVD flushes CPUs 1 and 2");
	vcpu_wbinvd(v, 2);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	vcpu_leave(v);
}

static void change_with_a_cpu_offline(void)
{
	struct vm vm;
	struct vcpu *v = vcpu_with_debt(&vm);
	int group = group_open(0);

	vcpu_move(v, 1);
	file_add(&vm, group);
	cpu2_offline();
	phase("attaching pays the owed flush on CPU 1, CPU 2 is offline");
	group_attach(group);
	expect_flush(1);
	phase_end();

	cpu2_online();
	/* Going offline cleaned CPU 2, so it may have been forgotten or not. */
	phase("WBINVD flushes CPU 1, perhaps CPU 2");
	vcpu_enter(v);
	vcpu_wbinvd(v, 1);
	expect_flush(1);
	expect_unrelated(2, 0, noncoherent_host);
	vcpu_leave(v);
	phase_end();
}

static void unplug_under_a_running_vcpu(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);
	cpu_set_t set;

	vm_create(&vm);
	group_attach(group);
	file_add(&vm, group);
	v = vcpu_create(&vm, 2);
	phase("WBINVD on CPU 2");
	vcpu_enter(v);
	vcpu_wbinvd(v, 2);
	expect_flush(2);
	phase_end();

	/* Where to go when CPU 2 goes. */
	CPU_ZERO(&set);
	CPU_SET(2, &set);
	CPU_SET(3, &set);
	CHECK(sched_setaffinity(v->thread.tid, sizeof(set), &set));
	cpu2_offline();
	vcpu_wait_beats(v);
	phase("WBINVD flushes CPU 3, to which the vCPU was moved");
	vcpu_wbinvd(v, 3);
	expect_flush(3);
	phase_end();
	vcpu_leave(v);
	cpu2_online();
}

/* ---- a processor without the WBINVD exit --------------------------------- */

/*
 * There a guest's WBINVD reaches the CPU that it runs on and no other, so the
 * vCPU has each CPU it leaves written back. These are run with an argument, the
 * module that makes KVM believe it runs on such a processor.
 */
static void leaves_clean_cpus(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	group_attach(group);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	phase("running on CPU 1 flushes nothing");
	vcpu_run_on(v, 1);
	phase_end();

	phase("moving to CPU 2 flushes CPU 1");
	vcpu_run_on(v, 2);
	expect_flush(1);
	phase_end();

	phase("moving on to CPU 3 flushes CPU 2 only");
	vcpu_run_on(v, 3);
	expect_flush(2);
	phase_end();

	phase("coming back to CPU 3 flushes nothing");
	vcpu_run_on(v, 3);
	phase_end();
}

static void leaves_clean_cpus_while_running(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	group_attach(group);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	vcpu_enter(v);
	phase("being moved from CPU 1 to CPU 2 flushes CPU 1");
	vcpu_move(v, 2);
	vcpu_wait_beats(v);
	expect_flush(1);
	phase_end();
	vcpu_leave(v);
}

/* A vCPU of a coherent VM with a tracked group, which is attached then */
static void owe_on_cpus_1_and_2(struct vcpu *v, int group, const char *moving)
{
	phase(moving);
	vcpu_run_on(v, 1);
	vcpu_run_on(v, 2);
	phase_end();

	phase("attaching pays the owed flush on CPUs 1 and 2");
	group_attach(group);
	expect_flush(1);
	expect_flush(2);
	phase_end();
}

static void coherent_leaves_cpus(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	owe_on_cpus_1_and_2(v, group, "a coherent VM's vCPU moves without a flush");

	phase("moving to CPU 3 flushes both, since then noted");
	vcpu_run_on(v, 3);
	expect_flush(1);
	expect_flush(2);
	phase_end();

	phase("coherent again, it moves without a flush");
	unset_container(group);
	vcpu_run_on(v, 1);
	phase_end();
}

/* What a coherent VM owed is paid on both, and both stay noted. */
static void owed_then_back(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	owe_on_cpus_1_and_2(v, group,
			    "running on CPU 1, then on CPU 2, while coherent flushes nothing");

	phase("moving back to CPU 1 flushes CPU 2 only");
	vcpu_run_on(v, 1);
	expect_flush(2);
	phase_end();

	phase("moving on to CPU 3 flushes CPU 1 only");
	vcpu_run_on(v, 3);
	expect_flush(1);
	phase_end();
}

/* A statistic of the vCPUs of a VM, as its directory in debugfs has it */
static long vcpu_stat(struct vm *vm, const char *name)
{
	char path[128], text[32] = "";
	int fd;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/%s", getpid(), vm->fd, name);
	fd = checked(open(path, O_RDONLY | O_CLOEXEC), path);
	CHECK(read(fd, text, sizeof(text) - 1));
	close(fd);
	return atol(text);
}

static void expect_stats(struct vm *vm, long exits, long flushes, long ipis)
{
	long got[] = {
		vcpu_stat(vm, "wbinvd_exits"), vcpu_stat(vm, "wbinvd_flushes"),
		vcpu_stat(vm, "wbinvd_ipis"),
	};

	if (!noncoherent_host)
		flushes = ipis = 0;
	if (got[0] != exits || got[1] != flushes || got[2] != ipis)
		die("exits, flushes, ipis are %ld, %ld, %ld, not %ld, %ld, %ld: %s",
		    got[0], got[1], got[2], exits, flushes, ipis, expected.what);
}

/* A CPU that is left clean is interrupted for it, and no WBINVD was executed. */
static void statistics(void)
{
	struct vm vm;
	struct vcpu *v;
	int group = group_open(0);

	vm_create(&vm);
	file_add(&vm, group);
	v = vcpu_create(&vm, 1);
	phase_skipped(v, 1, "a coherent VM");
	phase_skipped(v, 2, "a coherent VM");
	expect_stats(&vm, 10, 0, 0);

	phase("attaching pays the owed flush on CPUs 1 and 2");
	group_attach(group);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	expect_stats(&vm, 10, 0, 0);

	phase("moving to CPU 3 flushes both, since then noted");
	vcpu_run_on(v, 3);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	expect_stats(&vm, 10, 0, 2);
	phase_executed(v, 3, "where it still exits");
	expect_stats(&vm, 15, 5, 2);

	phase("moving to CPU 1 flushes CPU 3");
	vcpu_run_on(v, 1);
	expect_flush(3);
	phase_end();
	expect_stats(&vm, 15, 5, 3);
}

static void load_module(const char *path)
{
	int fd = CHECK(open(path, O_RDONLY | O_CLOEXEC));

	CHECK(syscall(SYS_finit_module, fd, "", 0));
	close(fd);
}

/* ---- main ---------------------------------------------------------------- */

static const struct scenario scenarios[] = {
	/* Only if that was asked for */
	{ "the kernel is fully preemptible", fully_preemptible },
	{ "marks name the CPUs they are executed on", marks_name_cpus },
	{ "a coherent VM", coherent_vm },
	{ "a vCPU on one CPU", vcpu_on_one_cpu },
	{ "attach, then ADD", attach_then_add },
	{ "ADD, then attach", add_then_attach },
	{ "ADD, then join an attached container", join_a_container },
	{ "WBINVD is executed on every CPU used", executed_on_the_mask },
	{ "migration while running", migration },
	{ "migration during WBINVDs", moved_during_wbinvds },
	{ "change while running", running_during_the_change },
	{ "two vCPUs", two_vcpus },
	{ "a second VM", second_vm },
	{ "the last group leaves by DEL", leave_by_del },
	{ "the last group leaves by UNSET_CONTAINER", leave_by_unset },
	{ "the last group leaves by closing the device", leave_by_close },
	{ "the last group leaves by process death", leave_by_death },
	{ "attached by another process", attached_by_another_process },
	{ "hot-unplug of a CPU used before", unplug_a_noted_cpu },
	{ "change with a CPU offline", change_with_a_cpu_offline },
	{ "hot-unplug under a running vCPU", unplug_under_a_running_vcpu },
};

static const struct scenario no_exit_scenarios[] = {
	{ "marks name the CPUs they are executed on", marks_name_cpus },
	{ "without the exit: a vCPU leaves its CPUs clean", leaves_clean_cpus },
	{ "without the exit: so does one that is moved", leaves_clean_cpus_while_running },
	{ "without the exit: not one of a coherent VM", coherent_leaves_cpus },
	{ "without the exit: back to a CPU paid for", owed_then_back },
	{ "without the exit: statistics", statistics },
};

#define COUNT(array)	((int)(sizeof(array) / sizeof(*(array))))

/* Its argument: a module as above, or preempt=full as the kernel has it. */
int main(int argc, char **argv)
{
	if (argc == 1)
		return run_scenarios(scenarios + 1, COUNT(scenarios) - 1, NULL);
	if (!strcmp(argv[1], "preempt=full"))
		return run_scenarios(scenarios, COUNT(scenarios), NULL);
	load_module(argv[1]);
	return run_scenarios(no_exit_scenarios, COUNT(no_exit_scenarios), NULL);
}
