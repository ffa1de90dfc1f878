// SPDX-License-Identifier: GPL-2.0-only
/* The guest of ept_test, its VM, its VFIO groups, threads that are held */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ept.h"

/* ---- the guest ----------------------------------------------------------- */

asm(".pushsection .rodata\n"
    ".globl guest_code, guest_spin, guest_wrmsr, guest_cr0, guest_wbinvd\n"
    ".globl guest_wbnoinvd, guest_wbinvd66\n"
    ".code32\n"
    "guest_code:\n"
    "guest_write:\n"			/* without changing it */
    "	movl	(%ebx), %eax\n"
    "	movl	%eax, (%ebx)\n"
    "	outb	%al, $0x80\n"
    "guest_read:\n"
    "	movl	(%ebx), %eax\n"
    "	outb	%al, $0x80\n"
    "guest_spin:\n"			/* on two pages, until told to stop */
    "	movl	(%ebx), %eax\n"
    "	movl	(%ecx), %eax\n"
    "	incl	(%edi)\n"
    "	cmpl	$0, 4(%edi)\n"
    "	je	guest_spin\n"
    "	outb	%al, $0x80\n"
    "guest_wrmsr:\n"
    "	wrmsr\n"
    "	outb	%al, $0x80\n"
    "guest_cr0:\n"
    "	movl	%ebx, %cr0\n"
    "	outb	%al, $0x80\n"
    "guest_wbinvd:\n"
    "	wbinvd\n"
    "	outb	%al, $0x80\n"
    "guest_wbnoinvd:\n"
    "	.byte	0xf3, 0x0f, 0x09\n"
    "	outb	%al, $0x80\n"
    "guest_wbinvd66:\n"			/* with a prefix that means nothing */
    "	.byte	0x66, 0x0f, 0x09\n"
    "	outb	%al, $0x80\n"
    "guest_code_end:\n"
    ".code64\n"
    ".popsection\n");

extern const char guest_code_end[], guest_write[], guest_read[];

int kvm = -1;
struct vm vm;

static void *ram(size_t size, int advice)
{
	size_t align = 2 * MIB;
	char *raw = mmap(NULL, size + align, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *start;

	if (raw == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	start = (char *)(((uintptr_t)raw + align - 1) & -align);
	if (start > raw)
		munmap(raw, start - raw);
	if (start < raw + align)
		munmap(start + size, raw + align - start);
	madvise(start, size, advice);
	memset(start, 0x5a, size);	/* so that a read fault maps it writable */
	return start;
}

static void set_cpuid(void)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[200];
	} cpuid = { .head.nent = 200 };
	unsigned int i;

	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid));
	for (i = 0; i < cpuid.head.nent; i++)
		if (cpuid.entries[i].function == 0x80000008) {
			vm.physical_bits = cpuid.entries[i].eax & 0xff;
			vm.has_wbnoinvd = cpuid.entries[i].ebx & 1 << 9;
		}
	must(ioctl(vm.vcpu, KVM_SET_CPUID2, &cpuid));
}

void set_msr(uint32_t index, uint64_t value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = { { .nmsrs = 1 }, { .index = index, .data = value } };

	if (must(ioctl(vm.vcpu, KVM_SET_MSRS, &msrs)) != 1)
		fail("MSR %#x cannot be set to %#llx", index, (unsigned long long)value);
}

void make_vm(void)
{
	vm.fd = must(ioctl(kvm, KVM_CREATE_VM, 0));
	vm.low = ram(MIB, MADV_NOHUGEPAGE);
	vm.huge = ram(4 * MIB, MADV_HUGEPAGE);
	vm.small = ram(MIB, MADV_NOHUGEPAGE);
	add_memory(vm.fd, 0, LOW, MIB, vm.low);
	add_memory(vm.fd, 1, HUGE, 4 * MIB, vm.huge);
	add_memory(vm.fd, 2, SMALL, MIB, vm.small);
	memcpy(vm.low + CODE, guest_code, guest_code_end - guest_code);
	vm.shared = vm.low + DATA;
	vm.vcpu = must(ioctl(vm.fd, KVM_CREATE_VCPU, 0));
	vm.run = map_vcpu(vm.vcpu, &vm.run_size);
	set_cpuid();
	set_protected_mode(vm.vcpu);
	set_msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLE | WB);
}

void load_guest(const char *entry, struct kvm_regs regs)
{
	regs.rip = CODE + (entry - guest_code);
	/* IF: without it, Bochs also withholds the host's interrupts. */
	regs.rflags = 0x202;
	must(ioctl(vm.vcpu, KVM_SET_REGS, &regs));
}

/* Run until the guest's OUT; NULL or what went wrong. Runs in both threads. */
static const char *run_guest(void)
{
	for (;;) {
		if (ioctl(vm.vcpu, KVM_RUN, 0)) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			return strerror(errno);
		}
		switch (vm.run->exit_reason) {
		case KVM_EXIT_IO:
			return NULL;
		case KVM_EXIT_MMIO:
			vm.mmio_exits++;
			continue;
		default:
			snprintf(vm.trouble, sizeof(vm.trouble),
				 "unexpected exit %d of the guest", vm.run->exit_reason);
			return vm.trouble;
		}
	}
}

void guest(const char *entry, struct kvm_regs regs)
{
	const char *trouble;

	load_guest(entry, regs);
	trouble = run_guest();
	if (trouble)
		fail("the guest: %s", trouble);
}

void guest_touches(uint32_t gpa)
{
	guest(guest_write, (struct kvm_regs){ .rbx = gpa });
}

void guest_reads(uint32_t gpa)
{
	guest(guest_read, (struct kvm_regs){ .rbx = gpa });
}

void guest_writes_msr(uint32_t index, uint64_t value)
{
	guest(guest_wrmsr, (struct kvm_regs){
		.rcx = index, .rax = (uint32_t)value, .rdx = value >> 32 });
}

void *spin(void *unused __attribute__((unused)))
{
	const char *trouble = run_guest();

	if (trouble)
		snprintf(vm.trouble, sizeof(vm.trouble), "%s", trouble);
	return NULL;
}

void let_it_spin(void)
{
	uint32_t before = READ(vm.shared->loops);
	int i;

	for (i = 0; READ(vm.shared->loops) - before < 3; i++) {
		if (i == 30000)
			fail("the vCPU does not go on");
		usleep(1000);
	}
}

void run_on(int cpu)
{
	must(pin(0, cpu));
}

void start_reading(uint32_t gpa1, uint32_t gpa2)
{
	WRITE(vm.shared->loops, 0);
	WRITE(vm.shared->stop, 0);
	load_guest(guest_spin, (struct kvm_regs){ .rbx = gpa1, .rcx = gpa2, .rdi = DATA });
	vm.thread = thread_on(1, spin);
	vm.spinning = true;
}

void start_spinning(void)
{
	start_reading(SMALL, HUGE);
	let_it_spin();
}

void stop_spinning(void)
{
	if (!vm.spinning)
		return;
	WRITE(vm.shared->stop, 1);
	pthread_join(vm.thread, NULL);
	vm.spinning = false;
	if (vm.trouble[0])
		fail("the vCPU: %s", vm.trouble);
}

/* ---- VFIO ---------------------------------------------------------------- */

int group[DEVICES], container[2];

void set_up_vfio(void)
{
	int id;

	for (id = 0; id < DEVICES; id++)
		group[id] = must_open_group(testdev_group_number(id));
	container[0] = must(open_container());
	container[1] = must(open_container());
}

/* Attach a group; the first one of a container chooses its IOMMU. */
void join(int id, int c)
{
	must(group_join(group[id], container[c]));
}

void set_iommu(int c)
{
	must(container_set_iommu(container[c]));
}

void attach(int id, int c)
{
	join(id, c);
	set_iommu(c);
}

void leave(int id)
{
	must(group_leave(group[id]));
}

int device_attr(int attr, int id)
{
	return kvm_vfio_attr(vm.device, KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP, attr,
			     &group[id]);
}

void make_device(void)
{
	vm.device = must(kvm_vfio_create(vm.fd));
}

void add(int id)
{
	must(device_attr(KVM_DEV_VFIO_GROUP_ADD, id));
}

void del(int id)
{
	must(device_attr(KVM_DEV_VFIO_GROUP_DEL, id));
}

void close_device(void)
{
	close(vm.device);
	vm.device = -1;
}

void unbind(int id)
{
	int ret = unbind_testdev(id);

	if (ret)
		fail("unbinding device %d: %s", id, strerror(-ret));
}

/* ---- one thread held, another one on its way ----------------------------- */

/* An ADD or DEL of NONCOHERENT by another thread */
static struct {
	bool started, done;
	pthread_t thread;
	pid_t tid;
	int attr;
	int error;
} change;

static void *make_change(void *unused __attribute__((unused)))
{
	WRITE(change.tid, gettid());
	change.error = device_attr(change.attr, NONCOHERENT) ? errno : 0;
	WRITE(change.done, true);
	return NULL;
}

void start_change_on(int cpu, int attr)
{
	change.attr = attr;
	change.done = false;
	change.tid = 0;
	change.thread = thread_on(cpu, make_change);
	change.started = true;
}

void start_change(int attr)
{
	start_change_on(0, attr);
}

bool change_has_ended(void)
{
	return READ(change.done);
}

bool held_or_change_ended(void)
{
	return READ(change.done) || somebody_is_held();
}

/* Let go, which is too late if nobody is held any more. */
void end_change(void)
{
	let_go();
	wait_until(change_has_ended, "the call returns");
	pthread_join(change.thread, NULL);
	change.started = false;
	if (change.error)
		fail("the call of the other thread: %s", strerror(change.error));
}

/* After a test that has left it there; fails if there is none. */
static void tear_down_hold(void)
{
	release_held();
	if (change.started)
		pthread_join(change.thread, NULL);
	change.started = false;
}

int uffd = -1;
struct other other = { -1, -1 };
struct guessed guessed;

static void forget_vm(void)
{
	memset(group, -1, sizeof(group));
	memset(container, -1, sizeof(container));
	memset(&vm, 0, sizeof(vm));
	vm.fd = vm.vcpu = vm.device = -1;
	watch_nothing();
}

void set_up(void)
{
	forget_vm();
	run_on(0);
	start_trace();
	set_up_vfio();
	make_vm();
	make_device();
}

void tear_down(void)
{
	int id;

	tear_down_hold();
	tear_down_roots();
	put("/sys/module/vfio_testdev/parameters/stay", "0");
	if (vm.spinning)
		WRITE(vm.shared->stop, 1);
	close_fd(&uffd);		/* lets go whoever waits for it */
	if (vm.spinning)
		pthread_join(vm.thread, NULL);
	forget_hold();
	run_on(-1);
	if (guessed.run)
		munmap(guessed.run, guessed.run_size);
	if (guessed.made)
		close(guessed.fd);
	memset(&guessed, 0, sizeof(guessed));
	close_fd(&other.device);
	close_fd(&other.fd);
	close_fd(&vm.device);
	if (vm.run)
		munmap(vm.run, vm.run_size);
	close_fd(&vm.vcpu);
	close_fd(&vm.fd);
	if (vm.low)
		munmap(vm.low, MIB);
	if (vm.huge)
		munmap(vm.huge, 4 * MIB);
	if (vm.small)
		munmap(vm.small, MIB);
	if (vm.mmio)
		munmap(vm.mmio, 4096);
	for (id = 0; id < DEVICES; id++)
		close_fd(&group[id]);
	close_fd(&container[0]);
	close_fd(&container[1]);
	stop_trace();
	for (id = 0; id < DEVICES; id++)
		bind_testdev(id);	/* fails if it is bound */
	forget_vm();
}
