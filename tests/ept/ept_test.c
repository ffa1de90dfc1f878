// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which memory type does EPT give to a guest's pages, and since when?
 *
 * Runs in the vmx lab, with vfio_testdev.ko beside it for the VFIO groups.
 * Drives small KVM guests and judges by the kernel's own tracepoints:
 * kvmmmu:kvm_tdp_mmu_spte_changed tells of each entry that appears in or
 * vanishes from the EPT tables, kvmmmu:kvm_mmu_set_spte of each one that a
 * fault installs. Neither belongs to the code under test. With the argument
 * "legacy", KVM is loaded anew without its TDP MMU and has only the latter: that
 * a change has removed an entry is then told by the fault of the next access.
 *
 * What must hold of a VM:
 *
 *  - Coherent: RAM is WB, and the guest's PAT is ignored (IPAT).
 *  - Non-coherent: IPAT is clear. Up to Linux 6.9 the type is what the guest's
 *    MTRRs say, and a change of them takes effect at once; with CR0.CD set it
 *    is WB (UC without KVM_X86_QUIRK_CD_NW_CLEARED), with IPAT. From 6.10 on
 *    KVM looks at neither, and RAM is WB.
 *  - The host's MMIO is always UC without IPAT; where there is no memory, every
 *    access leaves the guest.
 *  - When a call that makes the VM coherent or non-coherent returns, no entry
 *    with the type of before is left, and the next access faults: seen with a
 *    vCPU that keeps reading a 4 KiB and a 2 MiB page during the call.
 *  - Such a call waits for nothing that user space can hold up: seen with a vCPU
 *    in a page fault that userfaultfd has not resolved.
 *  - WBINVD, which makes the guest exit here: skipped while coherent, else executed
 *    on the CPUs the vCPU has used. Where there is no such exit, which the fixture
 *    no_wbinvd_exit_vmx.ko pretends, each CPU that the vCPU leaves executes one. When
 *    the VM becomes non-coherent, all CPUs used do, when nobody can dirty them through
 *    an old entry any more. With the TDP MMU that is when the vCPU has left its old
 *    root, whose entries go later: it has left the guest before the first flush, and
 *    no fault installs an old type after it. Without, the last old entry is gone.
 *    Bochs counts none, so a kprobe on the very instruction does, CPU by CPU.
 *
 * With the argument "roots" it runs the cases of ept_roots.c instead.
 *
 * Output: KTAP. Build: cc -O2 -static -pthread -o ept_test ept_test.c ept_roots.c
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ept.h"

#define TRACING		"/sys/kernel/tracing/"
#define DEBUGFS		"/sys/kernel/debug/"

#define MSR_MTRR_BASE(n)	(0x200 + 2 * (n))
#define MSR_MTRR_MASK(n)	(0x201 + 2 * (n))
#define MSR_MTRR_FIX16K_A0000	0x259
#define MSR_MTRR_DEF_TYPE	0x2ff
#define MTRR_ENABLE		0x800
#define MTRR_ENABLE_FIXED	0x400
#define MTRR_MASK_VALID		0x800

#define CR0_CD		0x40000000u

#ifndef KVM_DEV_VFIO_STATE
#define KVM_DEV_VFIO_STATE	0x1000
#define KVM_DEV_VFIO_STATE_VM	1
#endif
#ifndef KVM_X86_QUIRK_CD_NW_CLEARED
#define KVM_X86_QUIRK_CD_NW_CLEARED	(1 << 1)
#endif
#ifndef KVM_X86_QUIRK_IGNORE_GUEST_PAT
#define KVM_X86_QUIRK_IGNORE_GUEST_PAT	(1 << 9)
#endif

/* Does this base's KVM look at the guest's MTRRs and CR0.CD? */
static bool honours_mtrrs;
/* Without the TDP MMU nothing tells of entries that vanish. */
static bool legacy;

/* ---- failing ------------------------------------------------------------- */

jmp_buf test_end;
char variant[60];
static char reason[200];

void end_test(int how, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(reason, sizeof(reason), format, args);
	va_end(args);
	longjmp(test_end, how);
}

/* ---- what the tracepoints tell ------------------------------------------- */

struct event {
	enum { CHANGED, SET, FLUSH, LEAVE, ENTRY, EXIT, WBINVD_EXIT, MARK } kind;
	uint64_t gfn, old, new;
	int level;
	int cpu;
};

static struct event events[100000];
static int event_count;
static int trace_pipe = -1, trace_marker = -1;

/* arch/x86/kvm/mmu/spte.h and the SDM's format of EPT entries */
static bool is_leaf(uint64_t spte, int level)
{
	return spte & (1 << 11) && (level == 1 || spte & (1 << 7));
}

static int type_of(uint64_t spte)
{
	return (spte >> 3 & 7) | (spte & (1 << 6) ? IPAT : 0);
}

static const char *type_name(int type)
{
	static const char *const names[] = {
		[UC] = "UC", [WC] = "WC", [WT] = "WT", [WP] = "WP", [WB] = "WB",
		[UC | IPAT] = "UC+IPAT", [WC | IPAT] = "WC+IPAT",
		[WT | IPAT] = "WT+IPAT", [WP | IPAT] = "WP+IPAT",
		[WB | IPAT] = "WB+IPAT", [15] = NULL,
	};

	return names[type] ? names[type] : "a reserved type";
}

static void record(const char *line)
{
	struct event event = { 0 };
	unsigned long long gfn, old, new;
	const char *change = strstr(line, "kvm_tdp_mmu_spte_changed: ");
	const char *set = strstr(line, "kvm_mmu_set_spte: ");
	const char *cpu;
	int level;

	if (change &&
	    sscanf(change, "%*s as id %*d gfn %llx level %d old_spte %llx new_spte %llx",
		   &gfn, &level, &old, &new) == 4)
		event = (struct event){ CHANGED, gfn, old, new, level, 0 };
	else if (set &&
		 sscanf(set, "%*s gfn %llx spte %llx %*s level %d",
			&gfn, &new, &level) == 3)
		event = (struct event){ SET, gfn, 0, new, level, 0 };
	else if (strstr(line, "wbinvd: (") && (cpu = strchr(line, '[')))
		event = (struct event){ .kind = FLUSH, .cpu = atoi(cpu + 1) };
	else if (strstr(line, "leave: ("))
		event.kind = LEAVE;
	else if (strstr(line, "kvm_exit: "))
		event.kind = strstr(line, "reason WBINVD") ? WBINVD_EXIT : EXIT;
	else if (strstr(line, "kvm_entry: "))
		event.kind = ENTRY;
	else if (strstr(line, "tracing_mark_write: "))
		event.kind = MARK;
	else if (strstr(line, "LOST"))
		fail("the trace lost events: %s", line);
	else
		return;
	if (event_count == ARRAY_SIZE(events))
		fail("more events than the test expects");
	events[event_count++] = event;
}

/* Take in what has been traced since. */
static void read_trace(void)
{
	static char buffer[65536 + 1];
	static size_t kept;
	char *line, *end;
	ssize_t got;

	while ((got = read(trace_pipe, buffer + kept, sizeof(buffer) - 1 - kept)) > 0) {
		buffer[kept + got] = '\0';
		for (line = buffer; (end = strchr(line, '\n')); line = end + 1) {
			*end = '\0';
			record(line);
		}
		kept = strlen(line);
		memmove(buffer, line, kept);
	}
}

/* The number of the next event: all before it happened before this call. */
int mark(void)
{
	int i = event_count;

	must(write(trace_marker, "mark", 4));
	for (;;) {
		read_trace();
		/* A vCPU that runs meanwhile may have added events after it. */
		for (; i < event_count; i++)
			if (events[i].kind == MARK)
				return i + 1;
		usleep(1000);
	}
}

static bool maps(const struct event *event, uint64_t gpa)
{
	uint64_t pages = event->level == 1 ? 1 : 512;

	return event->level <= 2 &&
	       gpa >> 12 >= event->gfn && gpa >> 12 < event->gfn + pages;
}

/* Without the TDP MMU: what a fault has installed last, be it still there or not. */
static struct entries entry_set_last(uint64_t gpa, int end)
{
	struct entries found = { 0 };

	while (end--) {
		const struct event *event = &events[end];

		if (event->kind != SET || !maps(event, gpa) ||
		    !is_leaf(event->new, event->level))
			continue;
		found.count[type_of(event->new)] = 1;
		found.level = event->level;
		break;
	}
	return found;
}

struct entries entries_at(uint64_t gpa, int end)
{
	struct entries found = { 0 };
	int i;

	if (legacy)
		return entry_set_last(gpa, end);
	for (i = 0; i < end; i++) {
		const struct event *event = &events[i];

		if (event->kind != CHANGED || !maps(event, gpa))
			continue;
		if (is_leaf(event->old, event->level))
			found.count[type_of(event->old)]--;
		if (is_leaf(event->new, event->level)) {
			found.count[type_of(event->new)]++;
			found.level = event->level;
		}
	}
	return found;
}

/* Whether a fault installed an entry for GPA between two events. */
static bool faulted_between(uint64_t gpa, int begin, int end, int type)
{
	for (; begin < end; begin++)
		if (events[begin].kind == SET && maps(&events[begin], gpa) &&
		    type_of(events[begin].new) == type)
			return true;
	return false;
}

/* Whether an entry for GPA vanished between two events. */
static bool removed_between(uint64_t gpa, int begin, int end)
{
	for (; begin < end; begin++)
		if (events[begin].kind == CHANGED && maps(&events[begin], gpa) &&
		    is_leaf(events[begin].old, events[begin].level) &&
		    !is_leaf(events[begin].new, events[begin].level))
			return true;
	return false;
}

static int count_between(int kind, int cpu, int begin, int end)
{
	int count = 0;

	for (; begin < end; begin++)
		count += events[begin].kind == (typeof(events->kind))kind &&
			 events[begin].cpu == cpu;
	return count;
}

/* GPA is mapped, with TYPE and with nothing else. */
void expect(uint64_t gpa, int type)
{
	struct entries found = entries_at(gpa, mark());
	int i;

	for (i = 0; i < 16; i++)
		if (i != type && found.count[i] > 0)
			fail("%#llx is %s instead of %s", (unsigned long long)gpa,
			     type_name(i), type_name(type));
	if (found.count[type] <= 0)
		fail("%#llx is not mapped", (unsigned long long)gpa);
}

static void expect_level(uint64_t gpa, int level)
{
	int found = entries_at(gpa, mark()).level;

	if (found != level)
		fail("%#llx is mapped at level %d instead of %d",
		     (unsigned long long)gpa, found, level);
}

void start_trace(void)
{
	char scrap[4096];

	must_put(TRACING "current_tracer", "nop");
	must_put(TRACING "events/enable", "0");
	must_put(TRACING "events/kvmmmu/kvm_mmu_set_spte/enable", "1");
	must_put(TRACING "events/kvmmmu/kvm_tdp_mmu_spte_changed/enable", "1");
	must_put(TRACING "events/kvm/kvm_exit/enable", "1");
	must_put(TRACING "events/kvm/kvm_entry/enable", "1");
	must_put(TRACING "events/lab/wbinvd/enable", "1");
	must_put(TRACING "events/lab/leave/enable", "1");
	must_put(TRACING "tracing_on", "1");
	trace_marker = must(open(TRACING "trace_marker", O_WRONLY | O_CLOEXEC));
	trace_pipe = must(open(TRACING "trace_pipe",
			       O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	while (read(trace_pipe, scrap, sizeof(scrap)) > 0)
		;
	event_count = 0;
}

void stop_trace(void)
{
	put(TRACING "events/enable", "0");
	if (trace_pipe >= 0)
		close(trace_pipe);
	if (trace_marker >= 0)
		close(trace_marker);
	trace_pipe = trace_marker = -1;
}

/* ---- where WBINVD is executed, and old entries put out of use ------------- */

bool kernel_has(const char *function)
{
	FILE *symbols = fopen("/proc/kallsyms", "re");
	char line[200], name[100];
	bool found = false;

	while (symbols && !found && fgets(line, sizeof(line), symbols))
		found = sscanf(line, "%*s %*s %99s", name) == 1 && !strcmp(name, function);
	if (symbols)
		fclose(symbols);
	return found;
}

/* The function that puts the old entries out of use; stock has another one for that. */
static const char *leave_function(void)
{
	return kernel_has("kvm_mmu_leave_sptes") ? "kvm_mmu_leave_sptes" : "kvm_zap_gfn_range";
}

/* Whether the kernel's memory could be read there. */
static bool read_kernel(uint64_t address, void *to, size_t size)
{
	int kcore = must(open("/proc/kcore", O_RDONLY | O_CLOEXEC)), i;
	Elf64_Ehdr head;
	Elf64_Phdr part;
	bool done = false;

	if (pread(kcore, &head, sizeof(head), 0) != sizeof(head))
		head.e_phnum = 0;
	for (i = 0; i < head.e_phnum && !done; i++) {
		if (pread(kcore, &part, sizeof(part), head.e_phoff + i * sizeof(part)) !=
		    sizeof(part))
			break;
		if (part.p_type == PT_LOAD && address >= part.p_vaddr &&
		    address - part.p_vaddr + size <= part.p_memsz)
			done = pread(kcore, to, size, part.p_offset + address - part.p_vaddr) ==
			       (ssize_t)size;
	}
	close(kcore);
	return done;
}

static bool is_wbinvd(const uint8_t *code)
{
	return code[0] == 0x0f && code[1] == 0x09;
}

/* Whether a function begins with WBINVD, perhaps after ENDBR64. */
static bool begins_with_wbinvd(uint64_t function)
{
	static const uint8_t endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa };
	uint8_t code[6];

	if (!read_kernel(function, code, sizeof(code)))
		return false;
	return is_wbinvd(memcmp(code, endbr64, 4) ? code : code + 4);
}

/*
 * The offset of WBINVD in the function, or, where the kernel has not patched it in,
 * of the call of a function that begins with it and may itself not be probed.
 */
static int wbinvd_in(uint64_t function)
{
	uint8_t code[32];
	int32_t distance;
	unsigned int i;

	if (!read_kernel(function, code, sizeof(code)))
		fail("/proc/kcore does not have wbinvd_ipi()");
	for (i = 0; i + 5 <= sizeof(code); i++) {
		memcpy(&distance, code + i + 1, sizeof(distance));
		if (is_wbinvd(code + i) ||
		    (code[i] == 0xe8 && begins_with_wbinvd(function + i + 5 + distance)))
			return i;
	}
	fail("wbinvd_ipi() does not execute WBINVD");
}

/* Where the function is that has a probe, which may stand behind an ENDBR64. */
static uint64_t address_of_probed(const char *function)
{
	FILE *list = fopen(DEBUGFS "kprobes/list", "re");
	unsigned long long address;
	unsigned int offset;
	char line[200], *at;
	uint64_t found = 0;

	while (list && fgets(line, sizeof(line), list)) {
		at = strstr(line, function);
		if (at && sscanf(at + strlen(function), "+%x", &offset) == 1 &&
		    sscanf(line, "%llx", &address) == 1)
			found = address - offset;
	}
	if (list)
		fclose(list);
	if (!found)
		fail(DEBUGFS "kprobes/list does not have %s()", function);
	return found;
}

/*
 * Make lab/wbinvd the event that a CPU executes WBINVD for a guest, and lab/leave that
 * somebody begins to put old entries out of use.
 */
static void place_probes(void)
{
	char offset[16];

	must_put(TRACING "kprobe_events", "p:lab/wbinvd kvm:wbinvd_ipi");
	snprintf(offset, sizeof(offset), "%d", wbinvd_in(address_of_probed("wbinvd_ipi")));
	/* In place of the first one: opening the file to write empties it. */
	must_put(TRACING "kprobe_events", "p:lab/wbinvd kvm:wbinvd_ipi+%s\np:lab/leave kvm:%s",
		 offset, leave_function());
}

/* ---- the guest ----------------------------------------------------------- */

asm(".pushsection .rodata\n"
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
    "guest_code_end:\n"
    ".code64\n"
    ".popsection\n");

extern const char guest_code[], guest_code_end[], guest_write[], guest_read[],
		  guest_spin[], guest_wrmsr[], guest_cr0[], guest_wbinvd[];

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

static void add_slot(int slot, uint64_t gpa, size_t size, void *memory)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = gpa, .memory_size = size,
		.userspace_addr = (uintptr_t)memory,
	};

	must(ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region));
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
		if (cpuid.entries[i].function == 0x80000008)
			vm.physical_bits = cpuid.entries[i].eax & 0xff;
	must(ioctl(vm.vcpu, KVM_SET_CPUID2, &cpuid));
}

static void set_msr(uint32_t index, uint64_t value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = { { .nmsrs = 1 }, { .index = index, .data = value } };

	if (must(ioctl(vm.vcpu, KVM_SET_MSRS, &msrs)) != 1)
		fail("MSR %#x cannot be set to %#llx", index, (unsigned long long)value);
}

/* A VM with one vCPU whose MTRRs say WB everywhere, as a BIOS leaves RAM. */
void make_vm(void)
{
	vm.fd = must(ioctl(kvm, KVM_CREATE_VM, 0));
	vm.low = ram(MIB, MADV_NOHUGEPAGE);
	vm.huge = ram(4 * MIB, MADV_HUGEPAGE);
	vm.small = ram(MIB, MADV_NOHUGEPAGE);
	add_slot(0, LOW, MIB, vm.low);
	add_slot(1, HUGE, 4 * MIB, vm.huge);
	add_slot(2, SMALL, MIB, vm.small);
	memcpy(vm.low + CODE, guest_code, guest_code_end - guest_code);
	vm.shared = vm.low + DATA;
	vm.vcpu = must(ioctl(vm.fd, KVM_CREATE_VCPU, 0));
	vm.run = map_vcpu(kvm, vm.vcpu, &vm.run_size);
	set_cpuid();
	set_protected_mode(vm.vcpu);
	set_msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLE | WB);
}

static void load_guest(const char *entry, struct kvm_regs regs)
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

static void guest(const char *entry, struct kvm_regs regs)
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

#define guest_sets_cr0(value)	guest(guest_cr0, (struct kvm_regs){ .rbx = (value) })

static void guest_writes_msr(uint32_t index, uint64_t value)
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

/* Wait until the vCPU has gone round its loop once more, from the start. */
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

/* CPU 0 or 1; -1 is both. */
static cpu_set_t cpus(int cpu)
{
	cpu_set_t set;
	int i;

	CPU_ZERO(&set);
	for (i = 0; i < 2; i++)
		if (cpu < 0 || cpu == i)
			CPU_SET(i, &set);
	return set;
}

void run_on(int cpu)
{
	cpu_set_t set = cpus(cpu);

	must(sched_setaffinity(0, sizeof(set), &set));
}

static void spin_on(int cpu)
{
	cpu_set_t set = cpus(cpu);

	if (pthread_setaffinity_np(vm.thread, sizeof(set), &set))
		fail("the vCPU's thread cannot be moved to CPU %d", cpu);
}

pthread_t thread_on(int cpu, void *(*run)(void *))
{
	cpu_set_t set = cpus(cpu);
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
	if (pthread_create(&thread, &attr, run, NULL))
		fail("no thread for CPU %d", cpu);
	pthread_attr_destroy(&attr);
	return thread;
}

/* On CPU 1, while the test itself runs on CPU 0. */
static void start_reading(uint32_t gpa1, uint32_t gpa2)
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

/*
 * The pages that a test watches: the first BUSY ones are read all the time by
 * a spinning vCPU, the others lie idle. Types and levels are those in a coherent
 * VM and in one that is not.
 */
enum { BUSY = 2 };

static struct page {
	uint32_t gpa;
	int type[2], level[2];
} pages[12];
static int page_count;

/* ---- VFIO ---------------------------------------------------------------- */

int group[DEVICES], container[2];

void set_up_vfio(void)
{
	int id;

	for (id = 0; id < DEVICES; id++)
		group[id] = must_open_group(testdev_group_number(id));
	container[0] = must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
	container[1] = must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
}

/* Attach a group; the first one of a container chooses its IOMMU. */
void join(int id, int c)
{
	must(ioctl(group[id], VFIO_GROUP_SET_CONTAINER, &container[c]));
}

static void set_iommu(int c)
{
	must(ioctl(container[c], VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
}

void attach(int id, int c)
{
	join(id, c);
	set_iommu(c);
}

static void leave(int id)
{
	must(ioctl(group[id], VFIO_GROUP_UNSET_CONTAINER));
}

int device_attr(int attr, int id)
{
	struct kvm_device_attr request = {
		.group = KVM_DEV_VFIO_GROUP, .attr = attr,
		.addr = (uintptr_t)&group[id],
	};

	return ioctl(vm.device, KVM_SET_DEVICE_ATTR, &request);
}

void make_device(void)
{
	struct kvm_create_device request = { .type = KVM_DEV_TYPE_VFIO };

	must(ioctl(vm.fd, KVM_CREATE_DEVICE, &request));
	vm.device = request.fd;
}

void add(int id)
{
	must(device_attr(KVM_DEV_VFIO_GROUP_ADD, id));
}

void del(int id)
{
	must(device_attr(KVM_DEV_VFIO_GROUP_DEL, id));
}

static void close_device(void)
{
	close(vm.device);
	vm.device = -1;
}

static void unbind(int id)
{
	must_put(DRIVER "unbind", "vfio_testdev.%d", id);
}

/* ---- from test to test --------------------------------------------------- */

void unload(const char *name)
{
	if (syscall(SYS_delete_module, name, O_NONBLOCK))
		fail("the module %s does not unload: %s", name, strerror(errno));
}

/* The modules are where lab/inside/init took them from. */
void load_kvm(const char *options)
{
	struct utsname name;
	char path[200];

	uname(&name);
	snprintf(path, sizeof(path), "/lib/modules/%s/kvm.ko", name.release);
	load(path, options);
	snprintf(path, sizeof(path), "/lib/modules/%s/kvm_intel.ko", name.release);
	load(path, "");
}

/* Does the processor exit on WBINVD, as far as KVM knows? */
static void set_wbinvd_exit(bool wanted)
{
	static bool taken;

	if (wanted == !taken)
		return;
	if (wanted)
		unload("no_wbinvd_exit_vmx");
	else
		load("no_wbinvd_exit_vmx.ko", "");
	taken = !wanted;
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
	WRITE(change.tid, syscall(SYS_gettid));
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

bool somebody_is_held(void)
{
	return get_number(HOLD "held") == 1;
}

bool change_has_ended(void)
{
	return READ(change.done);
}

bool held_or_change_ended(void)
{
	return READ(change.done) || somebody_is_held();
}

void wait_until(bool (*condition)(void), const char *what)
{
	int i;

	for (i = 0; !condition(); i++) {
		if (i == 8000)
			fail("it never comes to that: %s", what);
		usleep(1000);
	}
}

/* Let go, which is too late if nobody is held any more. */
void end_change(void)
{
	if (!somebody_is_held())
		fail("nobody is held until the test has done its part");
	must_put(HOLD "go", "1");
	wait_until(change_has_ended, "the call returns");
	pthread_join(change.thread, NULL);
	change.started = false;
	if (change.error)
		fail("the call of the other thread: %s", strerror(change.error));
}

/* After a test that has left it there; fails if there is none. */
static void tear_down_hold(void)
{
	put(HOLD "go", "1");
	if (change.started)
		pthread_join(change.thread, NULL);
	change.started = false;
}

static int uffd = -1;
/* A second VM, without vCPUs */
static struct {
	int fd, device;
} other = { -1, -1 };

/* A vCPU by its descriptor, before its creation has returned that */
static struct {
	int fd;
	struct kvm_run *run;
	size_t run_size;
	bool made, done;
	pid_t tid;
	const char *trouble;
} guessed;

static void forget_vm(void)
{
	memset(group, -1, sizeof(group));
	memset(container, -1, sizeof(container));
	memset(&vm, 0, sizeof(vm));
	vm.fd = vm.vcpu = vm.device = -1;
	page_count = 0;
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
	syscall(SYS_delete_module, "hold", O_NONBLOCK);
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
		put(DRIVER "bind", "vfio_testdev.%d", id);	/* fails if it is bound */
	forget_vm();
}

/* ---- the types ----------------------------------------------------------- */

static void noncoherent_vm(void)
{
	attach(NONCOHERENT, 0);
	add(NONCOHERENT);
}

static void coherent_vm(void)
{
	attach(COHERENT, 0);
	add(COHERENT);
}

static void test_no_device(void)
{
	guest_touches(SMALL);
	expect(SMALL, WB | IPAT);
	guest_touches(HUGE);
	expect(HUGE, WB | IPAT);
}

static void test_coherent_small(void)
{
	coherent_vm();
	guest_touches(SMALL);
	expect(SMALL, WB | IPAT);
	expect_level(SMALL, 1);
}

static void test_coherent_huge(void)
{
	coherent_vm();
	guest_touches(HUGE);
	expect(HUGE, WB | IPAT);
	expect_level(HUGE, 2);
}

static void test_noncoherent_small(void)
{
	noncoherent_vm();
	guest_touches(SMALL);
	expect(SMALL, WB);
	expect_level(SMALL, 1);
}

static void test_noncoherent_huge(void)
{
	noncoherent_vm();
	guest_touches(HUGE);
	expect(HUGE, WB);
	expect_level(HUGE, 2);
}

/*
 * One variable MTRR; SIZE a power of two. The mask comes first: stock 6.1 warns
 * when asked to zap the range of a base whose mask is still 0.
 */
static void set_mtrr(int n, uint64_t base, uint64_t size, int type)
{
	uint64_t addresses = (1ull << vm.physical_bits) - 1;

	set_msr(MSR_MTRR_MASK(n), (addresses & -size) | MTRR_MASK_VALID);
	set_msr(MSR_MTRR_BASE(n), base | type);
}

/* What a MTRR of that type comes to on this base. */
static int by_mtrr(int type)
{
	return honours_mtrrs ? type : WB;
}

static void test_variable_mtrrs(void)
{
	static const int types[] = { UC, WC, WT, WP };
	unsigned int i;

	noncoherent_vm();
	for (i = 0; i < ARRAY_SIZE(types); i++)
		set_mtrr(i, SMALL + i * 4096, 4096, types[i]);
	for (i = 0; i < ARRAY_SIZE(types); i++) {
		guest_touches(SMALL + i * 4096);
		expect(SMALL + i * 4096, by_mtrr(types[i]));
	}
	guest_touches(SMALL + i * 4096);
	expect(SMALL + i * 4096, WB);
}

static void test_huge_mtrr(void)
{
	noncoherent_vm();
	set_mtrr(0, HUGE, 2 * MIB, WT);
	guest_touches(HUGE);
	expect(HUGE, by_mtrr(WT));
	expect_level(HUGE, 2);
	guest_touches(HUGE + 2 * MIB);
	expect(HUGE + 2 * MIB, WB);
}

/* Two types within 2 MiB: they cannot be one entry. */
static void test_split_mtrr(void)
{
	noncoherent_vm();
	set_mtrr(0, HUGE, MIB, WC);
	guest_touches(HUGE);
	expect(HUGE, by_mtrr(WC));
	guest_touches(HUGE + MIB);
	expect(HUGE + MIB, WB);
	expect_level(HUGE + MIB, honours_mtrrs ? 1 : 2);
}

static void test_fixed_mtrr(void)
{
	noncoherent_vm();
	set_msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_ENABLE_FIXED | WB);
	/* The other fixed ones are 0, UC: the guest's code runs uncached. */
	set_msr(MSR_MTRR_FIX16K_A0000, 0x0101010101010406);
	guest_touches(0xa0000);
	expect(0xa0000, WB);
	guest_touches(0xa4000);
	expect(0xa4000, by_mtrr(WT));
	guest_touches(0xa8000);
	expect(0xa8000, by_mtrr(WC));
	guest_touches(0x80000);
	expect(0x80000, by_mtrr(UC));
}

static void test_disabled_mtrrs(void)
{
	noncoherent_vm();
	set_msr(MSR_MTRR_DEF_TYPE, WB);
	guest_touches(SMALL);
	expect(SMALL, by_mtrr(UC));
}

static void test_ignored_mtrrs(void)
{
	coherent_vm();
	set_mtrr(0, SMALL, 4096, UC);
	guest_touches(SMALL);
	expect(SMALL, WB | IPAT);
	set_msr(MSR_MTRR_DEF_TYPE, WB);
	guest_touches(SMALL + 4096);
	expect(SMALL + 4096, WB | IPAT);
}

static void test_changed_mtrr(void)
{
	noncoherent_vm();
	set_mtrr(0, SMALL, 4096, WC);
	guest_touches(SMALL);
	expect(SMALL, by_mtrr(WC));
	guest_writes_msr(MSR_MTRR_BASE(0), SMALL | WT);
	guest_touches(SMALL);
	expect(SMALL, by_mtrr(WT));
	guest_writes_msr(MSR_MTRR_DEF_TYPE, 0);
	guest_touches(SMALL);
	expect(SMALL, by_mtrr(UC));
}

static void test_cache_disable_quirk(void)
{
	noncoherent_vm();
	guest_sets_cr0(0x31 | CR0_CD);
	guest_touches(SMALL);
	expect(SMALL, honours_mtrrs ? WB | IPAT : WB);
}

static void disable_quirk(uint64_t quirk)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DISABLE_QUIRKS2, .args[0] = quirk };

	must(ioctl(vm.fd, KVM_ENABLE_CAP, &cap));
}

static void test_cache_disable(void)
{
	disable_quirk(KVM_X86_QUIRK_CD_NW_CLEARED);
	noncoherent_vm();
	guest_touches(SMALL);
	expect(SMALL, WB);
	guest_sets_cr0(0x31 | CR0_CD);
	guest_touches(SMALL);
	expect(SMALL, honours_mtrrs ? UC | IPAT : WB);
	guest_sets_cr0(0x31);
	guest_touches(SMALL);
	expect(SMALL, WB);
}

static void test_ignored_cache_disable(void)
{
	disable_quirk(KVM_X86_QUIRK_CD_NW_CLEARED);
	coherent_vm();
	guest_sets_cr0(0x31 | CR0_CD);
	guest_touches(SMALL);
	expect(SMALL, WB | IPAT);
}

/* Any memory BAR of the emulated host that may be read without harm: VGA's. */
static void add_host_mmio(void)
{
	char path[300];
	struct dirent *entry;
	DIR *dir = opendir("/sys/bus/pci/devices");
	int fd = -1;

	while (dir && fd < 0 && (entry = readdir(dir))) {
		char class[16] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/class", entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(class, sizeof(class), file) && !strncmp(class, "0x03", 4)) {
			snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource0",
				 entry->d_name);
			fd = open(path, O_RDWR | O_CLOEXEC);
		}
		fclose(file);
	}
	if (dir)
		closedir(dir);
	if (fd < 0)
		fail("the host has no display adapter to map");
	vm.mmio = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (vm.mmio == MAP_FAILED) {
		vm.mmio = NULL;
		fail("mmap of the display adapter: %s", strerror(errno));
	}
	add_slot(3, HOST_MMIO, 4096, vm.mmio);
}

static void test_host_mmio(void)
{
	add_host_mmio();
	coherent_vm();
	guest_reads(HOST_MMIO);
	expect(HOST_MMIO, UC);
	attach(NONCOHERENT, 1);
	add(NONCOHERENT);
	guest_reads(HOST_MMIO);
	expect(HOST_MMIO, UC);
	del(NONCOHERENT);
	guest_reads(HOST_MMIO);
	expect(HOST_MMIO, UC);
}

static void read_hole(void)
{
	struct entries found;
	int i;

	vm.mmio_exits = 0;
	guest_reads(HOLE);
	if (vm.mmio_exits != 1)
		fail("a read of nothing left the guest %d times", vm.mmio_exits);
	found = entries_at(HOLE, mark());
	for (i = 0; i < 16; i++)
		if (found.count[i] > 0)
			fail("nothing is mapped as %s", type_name(i));
}

static void test_hole(void)
{
	coherent_vm();
	read_hole();
	attach(NONCOHERENT, 1);
	add(NONCOHERENT);
	read_hole();
	del(NONCOHERENT);
	read_hole();
}

/* ---- the changes --------------------------------------------------------- */

static void watch(struct page page)
{
	if (page_count == ARRAY_SIZE(pages))
		fail("more pages than the test expects");
	pages[page_count++] = page;
}

/* RAM for which no MTRR has a word of its own. */
static void watch_ram(int coherent, int noncoherent)
{
	static const uint32_t ram[][2] = {
		{ SMALL, 1 }, { HUGE, 2 }, { SMALL + 4096, 1 }, { HUGE + 2 * MIB, 2 },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ram); i++)
		watch((struct page){ ram[i][0], { coherent, noncoherent },
				     { ram[i][1], ram[i][1] } });
}

static void touch(const struct page *page)
{
	if (page->gpa == HOST_MMIO)
		guest_reads(page->gpa);
	else
		guest_touches(page->gpa);
}

static void expect_page(const struct page *page, bool noncoherent)
{
	expect(page->gpa, page->type[noncoherent]);
	expect_level(page->gpa, page->level[noncoherent]);
}

/* None of the entries that a page had is left when the call returns. */
static void expect_removed(const struct page *page, bool noncoherent, int begin, int end)
{
	struct entries left = entries_at(page->gpa, end);
	int old = page->type[!noncoherent], i;

	if (page < &pages[BUSY] && old != page->type[noncoherent]) {
		if (left.count[old] > 0)
			fail("the busy page %#x is still %s when the call returns",
			     page->gpa, type_name(old));
	} else if (page < &pages[BUSY]) {
		if (!removed_between(page->gpa, begin, end))
			fail("the busy page %#x is not unmapped", page->gpa);
	} else {
		for (i = 0; i < 16; i++)
			if (left.count[i] > 0)
				fail("the idle page %#x is still %s when the call returns",
				     page->gpa, type_name(i));
	}
}

/* Whether the vCPU is in the guest when event END happens. */
static bool in_guest_at(int end)
{
	while (end--) {
		if (events[end].kind == ENTRY)
			return true;
		if (events[end].kind == EXIT || events[end].kind == WBINVD_EXIT)
			return false;
	}
	return false;
}

static int first_between(int kind, int begin, int end)
{
	while (begin < end && events[begin].kind != (typeof(events->kind))kind)
		begin++;
	return begin;
}

/*
 * A vCPU that is in the guest when its old root is put out of use has left it before
 * anybody's caches are written back, and before the call returns. An exit of before
 * does not count: the vCPU may have come back with the old root.
 */
static void expect_left(int begin, int end)
{
	int leave = first_between(LEAVE, begin, end);
	int flush = first_between(FLUSH, begin, end);
	int i;

	if (leave == end)
		fail("the call returns without putting the old entries out of use");
	if (flush < leave)
		fail("CPU %d is flushed before the old entries are put out of use",
		     events[flush].cpu);
	if (legacy || !in_guest_at(leave))
		return;
	for (i = leave; i < flush; i++)
		if (events[i].kind == EXIT || events[i].kind == WBINVD_EXIT)
			return;
	if (flush < end)
		fail("CPU %d is flushed while the vCPU has not left the old root",
		     events[flush].cpu);
	fail("the vCPU has not left the old root when the call returns");
}

/*
 * CPUs write their caches back when nobody can dirty them through an old entry
 * any more. And not on the way back.
 */
static void expect_flushes_last(int old, int new, bool noncoherent, int begin, int end)
{
	bool flushed = false;
	int i;

	for (i = begin; i < end; i++) {
		const struct event *event = &events[i];
		bool removes = legacy && event->kind == CHANGED &&
			       is_leaf(event->old, event->level) &&
			       !is_leaf(event->new, event->level) &&
			       type_of(event->old) == old;
		bool installs = event->kind == SET && old != new &&
				type_of(event->new) == old;

		flushed |= event->kind == FLUSH;
		if (flushed && !noncoherent)
			fail("CPU %d is flushed although the VM becomes coherent", event->cpu);
		if (flushed && (removes || installs))
			fail("an old entry of frame %#llx is %s after a flush",
			     (unsigned long long)event->gfn, removes ? "removed" : "made");
	}
}

/* What the change that is being judged makes of the VM */
static bool now_noncoherent;

static bool old_entries_are_removed(void)
{
	int i, type, end = mark();

	for (i = 0; i < page_count; i++) {
		struct entries left = entries_at(pages[i].gpa, end);

		for (type = 0; type < 16; type++)
			if (left.count[type] > 0 &&
			    (i >= BUSY || type == pages[i].type[!now_noncoherent]))
				return false;
	}
	return true;
}

/*
 * CHANGE makes the VM (non-)coherent, and so turns all pages watched from one type
 * into another. Even an entry that is to have the same type again is removed: when
 * the call returns or, BY_WORKER, some time after the vCPU has left it.
 */
static void judge_change(void (*change)(void), bool noncoherent, bool by_worker)
{
	int i, begin, end, removed;

	if (!page_count)
		watch_ram(WB | IPAT, WB);
	for (i = BUSY; i < page_count; i++)
		touch(&pages[i]);
	start_spinning();
	for (i = 0; i < page_count; i++)
		expect_page(&pages[i], !noncoherent);
	begin = mark();
	change();
	removed = end = mark();
	if (by_worker) {
		now_noncoherent = noncoherent;
		wait_until(old_entries_are_removed, "a worker removes the old entries");
		removed = mark();
	}
	for (i = 0; i < page_count && !legacy; i++)
		expect_removed(&pages[i], noncoherent, begin, removed);
	expect_left(begin, end);
	expect_flushes_last(pages[0].type[!noncoherent], pages[0].type[noncoherent],
			    noncoherent, begin, end);
	let_it_spin();
	for (i = 0; i < BUSY; i++)
		expect_page(&pages[i], noncoherent);
	stop_spinning();
	for (i = BUSY; i < page_count; i++) {
		touch(&pages[i]);
		expect_page(&pages[i], noncoherent);
	}
	for (i = 0; i < page_count; i++)
		if (!faulted_between(pages[i].gpa, begin, event_count,
				     pages[i].type[noncoherent]))
			fail("no fault mapped %#x anew", pages[i].gpa);
}

void changes(void (*change)(void), bool noncoherent)
{
	judge_change(change, noncoherent, false);
}

void changes_by_worker(void (*change)(void), bool noncoherent)
{
	judge_change(change, noncoherent, true);
}

static void expect_flushes(int begin, int cpu0, int cpu1, const char *when)
{
	int end = mark();
	int found0 = count_between(FLUSH, 0, begin, end);
	int found1 = count_between(FLUSH, 1, begin, end);

	if (found0 != cpu0 || found1 != cpu1)
		fail("%d flushes of CPU 0 and %d of CPU 1 instead of %d and %d %s",
		     found0, found1, cpu0, cpu1, when);
}

/* CHANGE leaves the mappings alone: no entry vanishes, and no access faults. */
static void keeps_mappings(void (*change)(void), int type)
{
	int i, begin, end;

	start_spinning();
	expect(SMALL, type);
	begin = mark();
	change();
	let_it_spin();
	end = mark();
	for (i = begin; i < end; i++)
		if (events[i].kind == CHANGED || events[i].kind == SET)
			fail("the entry of frame %#llx is %s although nothing has changed",
			     (unsigned long long)events[i].gfn,
			     events[i].kind == SET ? "made anew" : "changed");
	expect(SMALL, type);
	expect(HUGE, type);
	stop_spinning();
}

/* CHANGE has nothing to change. */
static void stays(void (*change)(void), int type)
{
	int begin = mark();

	keeps_mappings(change, type);
	expect_flushes(begin, 0, 0, "although nothing has changed");
}

static void add_coherent(void)		{ add(COHERENT); }
static void add_noncoherent(void)	{ add(NONCOHERENT); }
static void add_noncoherent2(void)	{ add(NONCOHERENT2); }
static void del_coherent(void)		{ del(COHERENT); }
static void del_noncoherent(void)	{ del(NONCOHERENT); }
static void del_noncoherent2(void)	{ del(NONCOHERENT2); }
static void set_iommu_0(void)		{ set_iommu(0); }
static void join_0(void)		{ join(NONCOHERENT, 0); }
static void leave_noncoherent(void)	{ leave(NONCOHERENT); }
static void unbind_noncoherent(void)	{ unbind(NONCOHERENT); }

static void test_add(void)
{
	attach(NONCOHERENT, 0);
	becomes_noncoherent(add_noncoherent);
}

static void test_set_iommu(void)
{
	join(NONCOHERENT, 0);
	add(NONCOHERENT);
	becomes_noncoherent(set_iommu_0);
}

/* The container has its IOMMU by another group, which this VM does not use. */
static void test_set_container(void)
{
	attach(COHERENT, 0);
	add(NONCOHERENT);
	becomes_noncoherent(join_0);
}

/* The group that joins is not tracked, but the one beside it is. */
static void test_neighbour_joins(void)
{
	coherent_vm();
	stays(join_0, WB | IPAT);
}

static void test_neighbour_leaves(void)
{
	coherent_vm();
	join(NONCOHERENT, 0);
	stays(leave_noncoherent, WB | IPAT);
}

static void test_del(void)
{
	noncoherent_vm();
	becomes_coherent(del_noncoherent);
}

static void test_unset_container(void)
{
	noncoherent_vm();
	becomes_coherent(leave_noncoherent);
}

static void test_close_device(void)
{
	noncoherent_vm();
	becomes_coherent(close_device);
}

static void test_unbind(void)
{
	noncoherent_vm();
	becomes_coherent(unbind_noncoherent);
}

static void test_last_of_two(void)
{
	coherent_vm();
	attach(NONCOHERENT, 1);
	join(NONCOHERENT2, 1);
	leave(NONCOHERENT2);
	add(NONCOHERENT);
	join(NONCOHERENT2, 1);
	add(NONCOHERENT2);
	stays(del_noncoherent2, WB);
	stays(del_coherent, WB);
	becomes_coherent(del_noncoherent);
}

static void test_coherent_comes_and_goes(void)
{
	attach(COHERENT, 0);
	stays(add_coherent, WB | IPAT);
	stays(del_coherent, WB | IPAT);
}

static void test_there_and_back(void)
{
	int i;

	attach(NONCOHERENT, 0);
	for (i = 0; i < 3; i++) {
		becomes_noncoherent(add_noncoherent);
		becomes_coherent(del_noncoherent);
	}
}

/* To the other state, back, and there again, with what the test watches. */
static void changes_and_back(void)
{
	attach(NONCOHERENT, 0);
	becomes_noncoherent(add_noncoherent);
	becomes_coherent(del_noncoherent);
	becomes_noncoherent(add_noncoherent);
}

static void test_mtrrs_across(void)
{
	static const int types[] = { UC, WC, WT };
	unsigned int i;

	watch_ram(WB | IPAT, WB);
	for (i = 0; i < ARRAY_SIZE(types); i++) {
		uint32_t gpa = SMALL + (16 + i) * 4096;

		set_mtrr(i, gpa, 4096, types[i]);
		watch((struct page){ gpa, { WB | IPAT, by_mtrr(types[i]) }, { 1, 1 } });
	}
	changes_and_back();
}

static void test_disabled_mtrrs_across(void)
{
	set_msr(MSR_MTRR_DEF_TYPE, WB);
	watch_ram(WB | IPAT, by_mtrr(UC));
	changes_and_back();
}

static void test_cache_disable_quirk_across(void)
{
	guest_sets_cr0(0x31 | CR0_CD);
	watch_ram(WB | IPAT, honours_mtrrs ? WB | IPAT : WB);
	changes_and_back();
}

static void test_cache_disable_across(void)
{
	disable_quirk(KVM_X86_QUIRK_CD_NW_CLEARED);
	guest_sets_cr0(0x31 | CR0_CD);
	watch_ram(WB | IPAT, honours_mtrrs ? UC | IPAT : WB);
	changes_and_back();
}

static void test_split_mtrr_across(void)
{
	int level = honours_mtrrs ? 1 : 2;

	watch((struct page){ SMALL, { WB | IPAT, WB }, { 1, 1 } });
	watch((struct page){ HUGE, { WB | IPAT, WB }, { 2, 2 } });
	set_mtrr(0, HUGE + 2 * MIB, MIB, WC);
	watch((struct page){ HUGE + 2 * MIB, { WB | IPAT, by_mtrr(WC) }, { 2, level } });
	watch((struct page){ HUGE + 3 * MIB, { WB | IPAT, WB }, { 2, level } });
	changes_and_back();
}

static void test_host_mmio_across(void)
{
	add_host_mmio();
	watch_ram(WB | IPAT, WB);
	watch((struct page){ HOST_MMIO, { UC, UC }, { 1, 1 } });
	changes_and_back();
}

/*
 * A page fault that has chosen 2 MiB by what the VM was, and is held before it takes
 * any lock. Who makes the VM non-coherent does not wait for it, and yet no page of
 * two types may become one entry.
 */
static void add_behind_fault(void)
{
	char options[80];

	/* The memslot is looked up right after the level is chosen. */
	snprintf(options, sizeof(options), "function=kvm:kvm_vcpu_gfn_to_memslot second=%u",
		 HUGE >> 12);
	load("hold.ko", options);
	start_reading(HUGE, HUGE);
	wait_until(somebody_is_held, "the vCPU's page fault is held");
	start_change(KVM_DEV_VFIO_GROUP_ADD);
	wait_until(change_has_ended, "ADD returns, without waiting for the page fault");
	end_change();
	let_it_spin();
	stop_spinning();
	guest_touches(HUGE);
	expect(HUGE, by_mtrr(WC));
	expect_level(HUGE, honours_mtrrs ? 1 : 2);
}

static void test_fault_before(void)
{
	set_mtrr(0, HUGE, MIB, WC);
	attach(NONCOHERENT, 0);
	add_behind_fault();
}

/* Hold who puts the old entries out of use; stock has another function for that. */
void load_hold_at_zap(bool at_return)
{
	char options[80];

	snprintf(options, sizeof(options), "function=kvm:%s at_return=%d", leave_function(),
		 at_return);
	load("hold.ko", options);
}

/*
 * A page fault right before or right after the zap: the flag has to be the new one by
 * then. The thread that changes it is held on CPU 0, and the vCPU runs on the other.
 */
static void faults_around_zap(int attr, int old, int new, bool behind)
{
	int begin;

	run_on(1);
	guest_touches(SMALL);
	expect(SMALL, old);
	load_hold_at_zap(behind);
	start_change(attr);
	wait_until(held_or_change_ended, "the call comes to the zap");
	if (change_has_ended())
		fail("the call returns without zapping");
	begin = mark();
	guest_touches(SMALL);
	guest_touches(SMALL + 4096);
	if (faulted_between(SMALL + 4096, begin, mark(), old))
		fail("a fault that comes after the flag goes by the old one");
	end_change();
	guest_touches(SMALL);
	expect(SMALL, new);
	guest_touches(SMALL + 4096);
	expect(SMALL + 4096, new);
}

static void test_fault_behind_add(void)
{
	attach(NONCOHERENT, 0);
	faults_around_zap(KVM_DEV_VFIO_GROUP_ADD, WB | IPAT, WB, true);
}

static void test_fault_ahead_of_add(void)
{
	attach(NONCOHERENT, 0);
	faults_around_zap(KVM_DEV_VFIO_GROUP_ADD, WB | IPAT, WB, false);
}

static void test_fault_behind_del(void)
{
	noncoherent_vm();
	faults_around_zap(KVM_DEV_VFIO_GROUP_DEL, WB, WB | IPAT, true);
}

static void test_fault_ahead_of_del(void)
{
	noncoherent_vm();
	faults_around_zap(KVM_DEV_VFIO_GROUP_DEL, WB, WB | IPAT, false);
}

/* ---- nothing waits for user space ---------------------------------------- */

static pid_t blocked_tid;

static void *read_blocked(void *unused)
{
	WRITE(blocked_tid, syscall(SYS_gettid));
	return spin(unused);
}

bool sleeps_in(pid_t tid, const char *function)
{
	char where[60];

	return tid && !get_wchan(tid, where, sizeof(where)) && strstr(where, function);
}

static bool vcpu_is_blocked(void)
{
	return sleeps_in(READ(blocked_tid), "handle_userfault");
}

/* The vCPU on CPU 1 waits for a page that only this test can bring. */
void block_vcpu(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { (uintptr_t)vm.small, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	uffd = must(syscall(SYS_userfaultfd, O_CLOEXEC));
	must(ioctl(uffd, UFFDIO_API, &api));
	must(madvise(vm.small, 4096, MADV_DONTNEED));
	must(ioctl(uffd, UFFDIO_REGISTER, &range));
	WRITE(blocked_tid, 0);
	WRITE(vm.shared->loops, 0);
	WRITE(vm.shared->stop, 0);
	load_guest(guest_spin, (struct kvm_regs){ .rbx = SMALL, .rcx = SMALL, .rdi = DATA });
	vm.thread = thread_on(1, read_blocked);
	vm.spinning = true;
	wait_until(vcpu_is_blocked, "the vCPU waits for its page");
}

void unblock_vcpu(void)
{
	struct uffdio_zeropage page = { .range = { (uintptr_t)vm.small, 4096 } };

	if (!vcpu_is_blocked())
		fail("the vCPU's page fault has ended too early");
	must(ioctl(uffd, UFFDIO_ZEROPAGE, &page));
	let_it_spin();
	stop_spinning();
}

/* A call by a thread of its own, on CPU 0 */
static struct {
	bool done;
	void (*run)(void);
	pthread_t thread;
	pid_t tid;
} call;

int call_error;

static void *make_call(void *unused __attribute__((unused)))
{
	WRITE(call.tid, syscall(SYS_gettid));
	call.run();
	WRITE(call.done, true);
	return NULL;
}

void start_call(void (*run)(void))
{
	call.run = run;
	call.done = false;
	call_error = 0;
	call.tid = 0;
	call.thread = thread_on(0, make_call);
}

bool call_has_ended(void)
{
	return READ(call.done);
}

void end_call(const char *what)
{
	wait_until(call_has_ended, what);
	pthread_join(call.thread, NULL);
	if (call_error)
		fail("%s: %s", what, strerror(call_error));
}

#define returns(run)							\
do {									\
	start_call(run);						\
	end_call(#run " returns");					\
} while (0)

/* Not by must(), which is for the main thread. */
static void called(int ret)
{
	if (ret)
		call_error = errno;
}

static void call_add(void)	{ called(device_attr(KVM_DEV_VFIO_GROUP_ADD, NONCOHERENT)); }
static void call_del(void)	{ called(device_attr(KVM_DEV_VFIO_GROUP_DEL, NONCOHERENT)); }

static void call_set_iommu(void)
{
	called(ioctl(container[0], VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
}

static void call_unset(void)
{
	called(ioctl(group[NONCOHERENT], VFIO_GROUP_UNSET_CONTAINER));
}

static void call_unbind(void)
{
	int ret = put(DRIVER "unbind", "vfio_testdev.%d", NONCOHERENT2);

	call_error = -ret;
}

static int other_attr(int attr, int id)
{
	struct kvm_device_attr request = {
		.group = KVM_DEV_VFIO_GROUP, .attr = attr, .addr = (uintptr_t)&group[id],
	};

	return ioctl(other.device, KVM_SET_DEVICE_ATTR, &request);
}

static void call_others(void)
{
	called(other_attr(KVM_DEV_VFIO_GROUP_ADD, COHERENT + 1));
	called(other_attr(KVM_DEV_VFIO_GROUP_DEL, COHERENT + 1));
}

/* What a reader sees; stock has neither, and returns at once, too. */
static void call_reads(void)
{
	uint32_t state[4];		/* struct kvm_vfio_vm_state */
	struct kvm_device_attr request = {
		.group = KVM_DEV_VFIO_STATE, .attr = KVM_DEV_VFIO_STATE_VM,
		.addr = (uintptr_t)state,
	};
	char path[40], text[400];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", vm.device);
	call_error = -get_text(path, text, sizeof(text));
	ioctl(vm.device, KVM_GET_DEVICE_ATTR, &request);
}

static void make_other(void)
{
	struct kvm_create_device request = { .type = KVM_DEV_TYPE_VFIO };

	other.fd = must(ioctl(kvm, KVM_CREATE_VM, 0));
	must(ioctl(other.fd, KVM_CREATE_DEVICE, &request));
	other.device = request.fd;
}

static void test_nothing_waits(void)
{
	make_other();
	join(NONCOHERENT, 0);
	add(COHERENT);
	attach(NONCOHERENT2, 1);
	add(NONCOHERENT);
	block_vcpu();
	returns(call_set_iommu);
	returns(call_reads);
	returns(call_del);
	returns(call_add);
	returns(call_unset);
	add(NONCOHERENT2);
	returns(call_unbind);
	returns(call_others);
	returns(call_reads);
	unblock_vcpu();
	guest_touches(SMALL);
	expect(SMALL, WB | IPAT);
}

/* Somebody takes the memory away that HUGE is, with the vCPU in its page fault. */
static struct {
	pthread_t thread;
	pid_t tid;
	bool done;
} deletion;

static void *delete_slot(void *unused __attribute__((unused)))
{
	struct kvm_userspace_memory_region region = { .slot = 1, .guest_phys_addr = HUGE };

	WRITE(deletion.tid, syscall(SYS_gettid));
	ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region);
	WRITE(deletion.done, true);
	return NULL;
}

static bool deletion_waits(void)
{
	return sleeps_in(READ(deletion.tid), "synchronize_srcu");
}

static bool deletion_has_ended(void)
{
	return READ(deletion.done);
}

/* It holds slots_lock meanwhile, which is needed to give the old roots' pages back. */
static void test_nothing_waits_for_slots(void)
{
	attach(NONCOHERENT, 0);
	guest_touches(HUGE);
	block_vcpu();
	memset(&deletion, 0, sizeof(deletion));
	deletion.thread = thread_on(0, delete_slot);
	wait_until(deletion_waits, "the deletion waits for the vCPU");
	returns(call_add);
	returns(call_reads);
	returns(call_del);
	returns(call_add);
	if (deletion_has_ended())
		fail("the deletion has not waited");
	unblock_vcpu();
	wait_until(deletion_has_ended, "the deletion ends");
	pthread_join(deletion.thread, NULL);
	guest_touches(SMALL);
	expect(SMALL, WB);
}

#define LOGGED		0x02000000u	/* a page of RAM whose writes are logged */

struct dirty_log dirty_log;

static void *get_dirty_log(void *unused __attribute__((unused)))
{
	struct kvm_dirty_log request = { .slot = 9, .dirty_bitmap = dirty_log.bitmap };

	WRITE(dirty_log.tid, syscall(SYS_gettid));
	ioctl(vm.fd, KVM_GET_DIRTY_LOG, &request);
	WRITE(dirty_log.done, true);
	return NULL;
}

static bool dirty_log_waits(void)
{
	return sleeps_in(READ(dirty_log.tid), "handle_userfault");
}

bool dirty_log_has_ended(void)
{
	return READ(dirty_log.done);
}

void hold_slots_lock(int cpu)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { .len = 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct kvm_userspace_memory_region region = {
		.slot = 9, .flags = KVM_MEM_LOG_DIRTY_PAGES, .guest_phys_addr = LOGGED,
		.memory_size = 4096, .userspace_addr = (uintptr_t)vm.small,
	};

	must(ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region));
	memset(&dirty_log, 0, sizeof(dirty_log));
	dirty_log.bitmap = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (uintptr_t)dirty_log.bitmap;
	uffd = must(syscall(SYS_userfaultfd, O_CLOEXEC));
	must(ioctl(uffd, UFFDIO_API, &api));
	must(ioctl(uffd, UFFDIO_REGISTER, &range));
	dirty_log.thread = thread_on(cpu, get_dirty_log);
	wait_until(dirty_log_waits, "somebody waits with slots_lock held");
}

void give_page_for_dirty_log(void)
{
	struct uffdio_zeropage page = { .range = { (uintptr_t)dirty_log.bitmap, 4096 } };

	if (!dirty_log_waits())
		fail("slots_lock has not been held all the time");
	must(ioctl(uffd, UFFDIO_ZEROPAGE, &page));
}

void dirty_log_ends(const char *what)
{
	wait_until(dirty_log_has_ended, what);
	pthread_join(dirty_log.thread, NULL);
	munmap(dirty_log.bitmap, 4096);
}

static void release_slots_lock(void)
{
	give_page_for_dirty_log();
	dirty_log_ends("slots_lock is free");
}

/* An entry that is there has that bit; another one need not be 0. */
static bool is_present(uint64_t spte)
{
	return spte & (1 << 11);
}

/* Roots that came into use, or whose pages were given back: their first entry */
static int count_roots(bool made, int begin, int end)
{
	int count = 0;

	for (; begin < end; begin++) {
		const struct event *event = &events[begin];

		count += event->kind == CHANGED && event->level >= 4 && !event->gfn &&
			 is_present(event->old) == !made &&
			 is_present(event->new) == made;
	}
	return count;
}

static int count_removed(uint64_t gpa, int begin, int end)
{
	int count = 0;

	for (; begin < end; begin++)
		count += removed_between(gpa, begin, begin + 1);
	return count;
}

static int roots_begin, roots_made;

static bool old_roots_are_gone(void)
{
	return count_roots(false, roots_begin, mark()) >= roots_made - 1;
}

/* A change and what the guest does then, which must not remove more than it had. */
static void change_and_touch(bool noncoherent, int type)
{
	int begin = mark(), removed;

	if (noncoherent)
		returns(call_add);
	else
		returns(call_del);
	removed = count_removed(SMALL, begin, mark());
	if (removed > 1)
		fail("%d entries of a page are removed by one change", removed);
	begin = mark();
	guest_touches(SMALL);
	if (!faulted_between(SMALL, begin, mark(), type))
		fail("no fault makes the page %s after a change", type_name(type));
}

/*
 * Changes in a loop, while nothing can be given back. Few roots are waiting for that
 * then, see KVM_ROOTS_TO_TEAR_DOWN; and each change has its effect all the same.
 */
static void test_roots_do_not_pile_up(void)
{
	int i;

	set_mtrr(0, HUGE, MIB, WC);
	attach(NONCOHERENT, 0);
	hold_slots_lock(0);
	roots_begin = mark();
	guest_touches(SMALL);
	for (i = 0; i < 20; i++) {
		change_and_touch(true, WB);
		change_and_touch(false, WB | IPAT);
	}
	roots_made = count_roots(true, roots_begin, mark());
	if (!legacy && !roots_made)
		fail("no root is seen");
	if (roots_made > 17)
		fail("%d roots for 40 changes", roots_made);
	/* There is no other root than that of the fault by now. */
	add_behind_fault();
	release_slots_lock();
	if (roots_made > 1)
		wait_until(old_roots_are_gone, "the pages of the old roots are given back");
	guest_touches(SMALL);
	expect(SMALL, WB);
}

/* ---- another process changes it, and does not come back -------------------- */

static bool vm_has_ended(void)
{
	char path[80];

	snprintf(path, sizeof(path), DEBUGFS "kvm/%d-%d", getpid(), vm.fd);
	return access(path, F_OK);
}

/*
 * A process that has nothing to do with the VM unbinds one of its devices, and does
 * not return. Who unbinds more than one may have to wait for the monitor of the next.
 */
#define STAY		"/sys/module/vfio_testdev/parameters/stay"

/* As far as anybody can tell: stock has no such file. */
static bool is_coherent(void)
{
	char path[80];

	snprintf(path, sizeof(path), DEBUGFS "kvm/%d-%d/noncoherent_dma", getpid(), vm.fd);
	return get_number(path) <= 0;
}

static void test_changed_by_another_process(void)
{
	int status;
	pid_t child;

	noncoherent_vm();
	guest_touches(SMALL);
	must_put(STAY, "1");
	child = must(fork());
	if (!child) {
		munmap(vm.run, vm.run_size);
		syscall(SYS_close_range, 3, ~0u, 0);
		_exit(put(DRIVER "unbind", "vfio_testdev.%d", NONCOHERENT) ? 1 : 0);
	}
	wait_until(is_coherent, "the other process makes the VM coherent");
	close_device();
	munmap(vm.run, vm.run_size);
	vm.run = NULL;
	close_fd(&vm.vcpu);
	close(vm.fd);
	wait_until(vm_has_ended, "the VM ends without the other process");
	vm.fd = -1;
	if (waitpid(child, &status, WNOHANG))
		fail("the other process has returned");
	must_put(STAY, "0");
	waitpid(child, &status, 0);
	if (status)
		fail("the other process has not unbound the device");
}

/* ---- a vCPU that is run before its creation has returned ------------------ */

static void *create_vcpu(void *unused __attribute__((unused)))
{
	guessed.made = ioctl(vm.fd, KVM_CREATE_VCPU, 1) == guessed.fd;
	return NULL;
}

/* The guest's code at CODE in real mode would need a segment: WBINVD; OUT; at 0. */
static void *run_guessed(void *unused __attribute__((unused)))
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rflags = 0x202 };
	struct kvm_run *run;

	WRITE(guessed.tid, syscall(SYS_gettid));
	run = mmap(NULL, guessed.run_size, PROT_READ, MAP_SHARED, guessed.fd, 0);
	if (run == MAP_FAILED)
		guessed.trouble = "mmap";
	else
		guessed.run = run;
	if (ioctl(guessed.fd, KVM_GET_SREGS, &sregs))
		guessed.trouble = "KVM_GET_SREGS";
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(guessed.fd, KVM_SET_SREGS, &sregs) ||
	    ioctl(guessed.fd, KVM_SET_REGS, &regs))
		guessed.trouble = "setting its registers";
	while (!guessed.trouble && ioctl(guessed.fd, KVM_RUN, 0))
		if (errno != EINTR && errno != EAGAIN)
			guessed.trouble = "KVM_RUN";
	/* The exit is the guest's OUT, which comes behind its WBINVD. */
	if (!guessed.trouble &&
	    (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x80))
		guessed.trouble = "another exit than its OUT";
	WRITE(guessed.done, true);
	return NULL;
}

/* Without opening a file, which would take the number that has been guessed */
static int held_fd = -1;

static bool creation_is_held(void)
{
	char held;

	return pread(held_fd, &held, 1, 0) == 1 && held == '1';
}

static bool guessed_ran_or_waits(void)
{
	return READ(guessed.done) || sleeps_in(READ(guessed.tid), "kvm_vcpu_ioctl");
}

static bool guessed_has_ended(void)
{
	return READ(guessed.done);
}

static void test_vcpu_being_created(void)
{
	static const uint8_t code[] = { 0x0f, 0x09, 0xe6, 0x80 };	/* WBINVD; OUT */
	pthread_t creator, runner;
	int begin, end, exits;

	memcpy(vm.low, code, sizeof(code));
	memset(&guessed, 0, sizeof(guessed));
	guessed.run_size = vm.run_size;
	attach(NONCOHERENT, 0);
	run_on(1);
	begin = mark();
	load("hold.ko", "function=anon_inode_getfd at_return=1");
	held_fd = must(open(HOLD "held", O_RDONLY | O_CLOEXEC));
	/* The descriptor that is going to be the next one */
	guessed.fd = must(fcntl(vm.fd, F_DUPFD_CLOEXEC, 0));
	close(guessed.fd);
	creator = thread_on(0, create_vcpu);
	wait_until(creation_is_held, "the creation of a vCPU is held");
	close_fd(&held_fd);
	runner = thread_on(1, run_guessed);
	wait_until(guessed_ran_or_waits, "the vCPU runs, or waits until it may");
	if (guessed.trouble)
		fail("the vCPU by its guessed descriptor: %s", guessed.trouble);
	end = mark();
	exits = count_between(WBINVD_EXIT, 0, begin, end);
	add(NONCOHERENT);
	/* Its WBINVD was skipped, if there was one: that is owed now. */
	expect_flushes(begin, exits, exits, "when the VM becomes non-coherent");
	if (!somebody_is_held())
		fail("nobody is held until the test has done its part");
	must_put(HOLD "go", "1");
	pthread_join(creator, NULL);
	wait_until(guessed_has_ended, "the vCPU runs");
	pthread_join(runner, NULL);
	if (guessed.trouble)
		fail("the vCPU by its guessed descriptor: %s", guessed.trouble);
	/* It was loaded on CPU 0 when it was created. */
	expect_flushes(begin, 1, 1, "after the one WBINVD of the guest");
}

static void ignore_pat_no_more(void)
{
	disable_quirk(KVM_X86_QUIRK_IGNORE_GUEST_PAT);
	add_noncoherent();
}

/* From now on the guest's PAT counts always: not in the entries that there are. */
static void test_guest_pat(void)
{
	if (honours_mtrrs) {	/* and has no such quirk */
		struct kvm_enable_cap cap = {
			.cap = KVM_CAP_DISABLE_QUIRKS2,
			.args[0] = KVM_X86_QUIRK_IGNORE_GUEST_PAT,
		};

		if (!ioctl(vm.fd, KVM_ENABLE_CAP, &cap))
			fail("KVM knows a quirk that the test believes is of 6.12");
		return;
	}
	attach(NONCOHERENT, 0);
	becomes_noncoherent(ignore_pat_no_more);
	del(NONCOHERENT);
	guest_touches(SMALL);
	expect(SMALL, WB);
}

/* ---- groups of both kinds ------------------------------------------------ */

static void add_mixed(int coherent, int noncoherent)
{
	int i;

	for (i = 0; i < coherent; i++) {
		join(COHERENT + i, 0);
		if (!i)
			set_iommu(0);
		add(COHERENT + i);
	}
	for (i = 0; i < noncoherent; i++) {
		join(NONCOHERENT + i, 1);
		if (!i)
			set_iommu(1);
		add(NONCOHERENT + i);
	}
}

static void expect_mixed(bool noncoherent)
{
	guest_touches(SMALL);
	guest_touches(HUGE);
	expect(SMALL, noncoherent ? WB : WB | IPAT);
	expect(HUGE, noncoherent ? WB : WB | IPAT);
}

/* The VM is non-coherent until the last group that is leaves, one by one by GO. */
static void leave_mixed(void (*go)(int id), int count)
{
	int i, begin, end;

	expect_mixed(true);
	for (i = 0; i < count; i++) {
		bool last = i == count - 1;

		begin = mark();
		go(NONCOHERENT + i);
		end = mark();
		if (!legacy && removed_between(SMALL, begin, end) != last)
			fail("group %d of %d leaves, and the page is%s unmapped", i + 1, count,
			     last ? " not" : "");
		expect_mixed(!last);
		if (faulted_between(SMALL, begin, event_count, last ? WB | IPAT : WB) != last)
			fail("group %d of %d leaves, and then %s fault maps the page anew",
			     i + 1, count, last ? "no" : "a");
	}
}

/* RUN in a VM of its own for each number of groups of both kinds. */
static void for_each_mix(void (*run)(int coherent, int noncoherent, void (*go)(int id)),
			 void (*go)(int id))
{
	static const int mixes[][2] = {
		{ 0, 1 }, { 1, 1 }, { 3, 1 }, { 0, 2 }, { 1, 2 }, { 3, 2 },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(mixes); i++) {
		snprintf(variant, sizeof(variant), "%d coherent and %d non-coherent: ",
			 mixes[i][0], mixes[i][1]);
		if (i) {
			tear_down();
			set_up();
		}
		run(mixes[i][0], mixes[i][1], go);
	}
}

static void mixed(int coherent, int noncoherent, void (*go)(int id))
{
	add_mixed(coherent, noncoherent);
	leave_mixed(go, noncoherent);
}

/* All leave at once. */
static void mixed_close(int coherent, int noncoherent, void (*go)(int id))
{
	add_mixed(coherent, noncoherent);
	leave_mixed(go, 1);
}

static void go_by_close(int id __attribute__((unused)))
{
	close_device();
}

static void test_mixed_del(void)	{ for_each_mix(mixed, del); }
static void test_mixed_leave(void)	{ for_each_mix(mixed, leave); }
static void test_mixed_unbind(void)	{ for_each_mix(mixed, unbind); }
static void test_mixed_close(void)	{ for_each_mix(mixed_close, go_by_close); }

/* A process with a VM of that kind, ready when it has written to the pipe. */
static void __attribute__((noreturn))
other_process(int coherent, int noncoherent, int ready)
{
	if (setjmp(test_end))
		_exit(1);
	set_up_vfio();
	make_vm();
	make_device();
	add_mixed(coherent, noncoherent);
	guest_touches(SMALL);
	must(write(ready, "", 1));
	for (;;)
		pause();
}

/* It is killed: its groups are free for another VM, which they make what they did. */
static void mixed_kill(int coherent, int noncoherent,
		       void (*go)(int id) __attribute__((unused)))
{
	int ready[2], status;
	pid_t child;
	char byte;

	tear_down();
	must(pipe(ready));
	child = must(fork());
	if (!child)
		other_process(coherent, noncoherent, ready[1]);
	close(ready[1]);
	status = read(ready[0], &byte, 1);
	close(ready[0]);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	if (status != 1)
		fail("the other process has not made its VM");
	set_up();
	expect_mixed(false);
	add_mixed(coherent, noncoherent);
	leave_mixed(del, noncoherent);
}

static void test_mixed_kill(void)	{ for_each_mix(mixed_kill, NULL); }

/* ---- the statistics ------------------------------------------------------ */

static long long statistic(const char *name)
{
	char path[120], text[40] = "";
	FILE *file;

	snprintf(path, sizeof(path), DEBUGFS "kvm/%d-%d/%s", getpid(), vm.fd, name);
	file = fopen(path, "re");
	if (!file || !fgets(text, sizeof(text), file))
		fail("KVM does not count %s", name);
	fclose(file);
	return atoll(text);
}

struct statistics {
	long long changes, zaps, zap_ns, flushes;
};

static struct statistics statistics(void)
{
	return (struct statistics){
		statistic("noncoherent_dma_changes"), statistic("noncoherent_dma_zaps"),
		statistic("noncoherent_dma_zap_ns"), statistic("noncoherent_dma_flushes"),
	};
}

/* How far CHANGE makes the counters go. */
static void counts(void (*change)(void), int changed, int zaps, int flushes)
{
	struct statistics before = statistics(), after;

	change();
	after = statistics();
	if (after.changes - before.changes != changed)
		fail("%lld changes counted instead of %d",
		     after.changes - before.changes, changed);
	if (after.zaps - before.zaps != zaps)
		fail("%lld zaps counted instead of %d", after.zaps - before.zaps, zaps);
	if (after.flushes - before.flushes != flushes)
		fail("%lld flushes counted instead of %d",
		     after.flushes - before.flushes, flushes);
	if ((after.zap_ns > before.zap_ns) != (zaps > 0) || after.zap_ns < before.zap_ns)
		fail("zaps took %lld ns", after.zap_ns - before.zap_ns);
}

static void test_statistics(void)
{
	attach(COHERENT, 0);
	attach(NONCOHERENT, 1);
	join(NONCOHERENT2, 1);
	run_on(1);
	guest_touches(SMALL);
	run_on(0);
	guest_touches(SMALL);
	counts(add_coherent, 0, 0, 0);
	counts(add_noncoherent, 1, 1, 2);
	counts(add_noncoherent2, 0, 0, 0);
	counts(del_noncoherent, 0, 0, 0);
	counts(del_noncoherent2, 1, 1, 0);
	counts(add_noncoherent, 1, 1, 2);
	counts(close_device, 1, 1, 0);
}

/* Nobody knows since when the guest's PAT counts. */
static void test_statistics_guest_pat(void)
{
	if (!honours_mtrrs)
		disable_quirk(KVM_X86_QUIRK_IGNORE_GUEST_PAT);
	attach(NONCOHERENT, 1);
	guest_touches(SMALL);
	counts(add_noncoherent, 1, 1, 1);
	counts(del_noncoherent, 1, 1, 0);
}

/* ---- WBINVD, which exits on this processor ------------------------------- */

static void guest_wbinvds(int cpu)
{
	run_on(cpu);
	guest(guest_wbinvd, (struct kvm_regs){ 0 });
}

static void expect_exits(int begin, int expected)
{
	int found = count_between(WBINVD_EXIT, 0, begin, mark());

	if (found != expected)
		fail("%d WBINVDs left the guest instead of %d", found, expected);
}

/* A vCPU that has run on both CPUs, of a VM that tracks an unattached group. */
static void used_both_cpus(void)
{
	add(NONCOHERENT);
	guest_wbinvds(0);
	guest_wbinvds(1);
}

static void test_wbinvd_skipped(void)
{
	int begin;

	used_both_cpus();
	begin = mark();
	guest_wbinvds(0);
	guest_wbinvds(1);
	guest_wbinvds(1);
	expect_flushes(begin, 0, 0, "in a coherent VM");
	expect_exits(begin, 3);
}

static void test_wbinvd_owed(void)
{
	int begin;

	used_both_cpus();
	begin = mark();
	attach(NONCOHERENT, 0);
	expect_flushes(begin, 1, 1, "when the VM becomes non-coherent");
	begin = mark();
	leave(NONCOHERENT);
	expect_flushes(begin, 0, 0, "when it becomes coherent again");
}

/* The owed flush of a vCPU that runs comes last, which changes() looks at. */
static void test_wbinvd_owed_running(void)
{
	int begin = mark();

	attach(NONCOHERENT, 0);
	becomes_noncoherent(add_noncoherent);
	expect_flushes(begin, 1, 1, "when the VM becomes non-coherent");
	begin = mark();
	becomes_coherent(del_noncoherent);
	expect_flushes(begin, 0, 0, "when it becomes coherent again");
}

static void test_wbinvd_executed(void)
{
	int begin;

	used_both_cpus();
	attach(NONCOHERENT, 0);
	begin = mark();
	guest_wbinvds(1);
	expect_flushes(begin, 1, 1, "of a vCPU that has run on both CPUs");
	begin = mark();
	guest_wbinvds(1);
	expect_flushes(begin, 0, 1, "with the next one on the same CPU");
	begin = mark();
	guest_wbinvds(0);
	expect_flushes(begin, 1, 1, "with another one on the other CPU");
	leave(NONCOHERENT);
	begin = mark();
	guest_wbinvds(0);
	expect_flushes(begin, 0, 0, "with one more when the VM is coherent again");
}

/* Move a vCPU from CPU 1 to CPU 0 while its guest runs. */
static void moves_running(void)
{
	start_spinning();
	let_it_spin();
	spin_on(0);
	let_it_spin();
	stop_spinning();
}

static void test_wbinvd_moved_running(void)
{
	int begin;

	noncoherent_vm();
	guest_wbinvds(0);
	begin = mark();
	moves_running();
	expect_flushes(begin, 0, 0, "without WBINVD");
	guest_wbinvds(0);
	expect_flushes(begin, 1, 1, "of a vCPU that has moved while running");
}

/* ---- WBINVD where VMX does not exit on it -------------------------------- */

static void test_no_exit_coherent(void)
{
	int begin = mark();

	used_both_cpus();
	guest_wbinvds(1);
	guest_wbinvds(0);
	moves_running();
	expect_flushes(begin, 0, 0, "in a coherent VM");
	expect_exits(begin, 0);
}

static void test_no_exit_moved(void)
{
	int begin;

	noncoherent_vm();
	guest_wbinvds(0);
	begin = mark();
	guest_wbinvds(0);
	expect_flushes(begin, 0, 0, "of a vCPU that stays on its CPU");
	guest_wbinvds(1);
	expect_flushes(begin, 1, 0, "of a vCPU that leaves CPU 0");
	begin = mark();
	guest_wbinvds(1);
	expect_flushes(begin, 0, 0, "of a vCPU that stays on CPU 1");
	guest_wbinvds(0);
	expect_flushes(begin, 0, 1, "of a vCPU that leaves CPU 1");
	expect_exits(begin, 0);
}

static void test_no_exit_moved_running(void)
{
	int begin;

	noncoherent_vm();
	guest_wbinvds(1);
	begin = mark();
	moves_running();
	expect_flushes(begin, 0, 1, "of a vCPU that leaves CPU 1 while running");
}

static void test_no_exit_owed(void)
{
	int begin;

	used_both_cpus();
	begin = mark();
	attach(NONCOHERENT, 0);
	expect_flushes(begin, 1, 1, "when the VM becomes non-coherent");
	expect_exits(begin, 0);
}

/* What is flushed when left is not owed, what is left while coherent is. */
static void test_no_exit_owed_again(void)
{
	int begin;

	used_both_cpus();
	attach(NONCOHERENT, 0);
	guest_wbinvds(0);
	guest_wbinvds(1);
	leave(NONCOHERENT);
	begin = mark();
	attach(NONCOHERENT, 0);
	expect_flushes(begin, 0, 1, "of a vCPU that has left CPU 0 flushed");
	leave(NONCOHERENT);
	begin = mark();
	guest_wbinvds(0);
	expect_flushes(begin, 0, 0, "of a vCPU that leaves a CPU while coherent");
	attach(NONCOHERENT, 0);
	expect_flushes(begin, 1, 1, "when the VM becomes non-coherent once more");
}

static void test_no_exit_statistics(void)
{
	long long ipis;

	noncoherent_vm();
	guest_wbinvds(0);
	ipis = statistic("wbinvd_ipis");
	guest_wbinvds(1);
	guest_wbinvds(1);
	guest_wbinvds(0);
	ipis = statistic("wbinvd_ipis") - ipis;
	if (ipis != 2)
		fail("%lld IPIs counted instead of 2", ipis);
	if (statistic("wbinvd_exits") || statistic("wbinvd_flushes"))
		fail("WBINVDs counted that never left the guest");
}

/* ---- putting it together ------------------------------------------------- */

static const struct test type_tests[] = {
	{ "no VFIO device: RAM is WB, PAT ignored", test_no_device },
	{ "coherent: a 4 KiB page is WB, PAT ignored", test_coherent_small },
	{ "coherent: a 2 MiB page is WB, PAT ignored", test_coherent_huge },
	{ "non-coherent: a 4 KiB page is WB, PAT honoured", test_noncoherent_small },
	{ "non-coherent: a 2 MiB page is WB, PAT honoured", test_noncoherent_huge },
	{ "non-coherent: variable MTRRs of 4 KiB", test_variable_mtrrs },
	{ "non-coherent: a variable MTRR of 2 MiB", test_huge_mtrr },
	{ "non-coherent: two types within 2 MiB", test_split_mtrr },
	{ "non-coherent: fixed MTRRs", test_fixed_mtrr },
	{ "non-coherent: MTRRs disabled", test_disabled_mtrrs },
	{ "non-coherent: the guest changes an MTRR", test_changed_mtrr },
	{ "non-coherent: CR0.CD with the quirk", test_cache_disable_quirk },
	{ "non-coherent: CR0.CD without the quirk", test_cache_disable },
	{ "coherent: MTRRs are ignored", test_ignored_mtrrs },
	{ "coherent: CR0.CD is ignored", test_ignored_cache_disable },
	{ "host MMIO is UC whatever changes", test_host_mmio },
	{ "no memory: each access leaves the guest", test_hole },
	{ "becomes non-coherent: ADD of an attached group", test_add },
	{ "becomes non-coherent: VFIO_SET_IOMMU after ADD", test_set_iommu },
	{ "becomes non-coherent: SET_CONTAINER after ADD", test_set_container },
	{ "a non-coherent group joins the tracked one's container",
	  test_neighbour_joins },
	{ "that group leaves it", test_neighbour_leaves },
	{ "becomes coherent: DEL", test_del },
	{ "becomes coherent: UNSET_CONTAINER", test_unset_container },
	{ "becomes coherent: the KVM device is closed", test_close_device },
	{ "becomes coherent: the VFIO device is unbound", test_unbind },
	{ "becomes coherent: with the last of two", test_last_of_two },
	{ "stays coherent: a coherent group comes and goes",
	  test_coherent_comes_and_goes },
	{ "there and back, three times", test_there_and_back },
	{ "MTRRs of three types, across changes", test_mtrrs_across },
	{ "MTRRs disabled, across changes", test_disabled_mtrrs_across },
	{ "two types within 2 MiB, across changes", test_split_mtrr_across },
	{ "CR0.CD with the quirk, across changes", test_cache_disable_quirk_across },
	{ "CR0.CD without the quirk, across changes", test_cache_disable_across },
	{ "host MMIO, across changes", test_host_mmio_across },
	{ "a page fault that has chosen a level when ADD comes", test_fault_before },
	{ "a page fault right before ADD zaps", test_fault_ahead_of_add },
	{ "a page fault right before DEL zaps", test_fault_ahead_of_del },
	{ "a page fault right after ADD has zapped", test_fault_behind_add },
	{ "a page fault right after DEL has zapped", test_fault_behind_del },
	{ "nothing waits for a page fault that user space resolves", test_nothing_waits },
	{ "nothing waits for a memslot's deletion that does", test_nothing_waits_for_slots },
	{ "few roots wait for slots_lock, and changes do not", test_roots_do_not_pile_up },
	{ "another process that changes it does not keep the VM",
	  test_changed_by_another_process },
	{ "a vCPU run before its creation has returned", test_vcpu_being_created },
	{ "the guest's PAT is no longer ignored, then a change", test_guest_pat },
	{ "groups of both kinds leave by DEL", test_mixed_del },
	{ "groups of both kinds leave by UNSET_CONTAINER", test_mixed_leave },
	{ "groups of both kinds leave by unbind", test_mixed_unbind },
	{ "groups of both kinds leave by close of the KVM device", test_mixed_close },
	{ "groups of both kinds leave by death of the process", test_mixed_kill },
	{ "statistics: changes, zaps, flushes", test_statistics },
	{ "statistics: the same without the quirk of the PAT",
	  test_statistics_guest_pat },
	{ "WBINVD: skipped while coherent", test_wbinvd_skipped },
	{ "WBINVD: the owed flush on both CPUs used", test_wbinvd_owed },
	{ "WBINVD: the owed flush follows the last old entry", test_wbinvd_owed_running },
	{ "WBINVD: executed on the CPUs used while non-coherent", test_wbinvd_executed },
	{ "WBINVD: executed on the CPU that a running vCPU left",
	  test_wbinvd_moved_running },
	{ "no WBINVD exit: coherent, nothing is flushed", test_no_exit_coherent, true },
	{ "no WBINVD exit: the CPU that is left is flushed", test_no_exit_moved, true },
	{ "no WBINVD exit: so it is when a running vCPU leaves it",
	  test_no_exit_moved_running, true },
	{ "no WBINVD exit: the owed flush on both CPUs used", test_no_exit_owed, true },
	{ "no WBINVD exit: the flush owed after there and back",
	  test_no_exit_owed_again, true },
	{ "no WBINVD exit: statistics", test_no_exit_statistics, true },
};

static int run_test(const struct test *test)
{
	int how = setjmp(test_end);

	if (how == PASSED) {
		variant[0] = '\0';
		set_wbinvd_exit(!test->no_exit);
		set_up();
		test->run();
	}
	return how;
}

static void prepare(void)
{
	if (setjmp(test_end)) {
		printf("Bail out! %s\n", reason);
		exit(1);
	}
	honours_mtrrs = kernel_before(6, 10);
	if (legacy) {
		unload("kvm_intel");
		unload("kvm");
		load_kvm("tdp_mmu=0");
	}
	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC));
	/* Off by default on a machine as small as the lab's. */
	must_put("/sys/kernel/mm/transparent_hugepage/enabled", "madvise");
	if (access(TESTDEV, F_OK))
		load_testdev("coherent=3 noncoherent=2");
	/* Of events on different CPUs, too, it tells which came first. */
	must_put(TRACING "trace_clock", "counter");
	place_probes();
}

/* ept_test [legacy|roots [NAME]]: with NAME, only cases that have it in theirs */
int main(int argc, char **argv)
{
	bool roots = argc > 1 && !strcmp(argv[1], "roots");
	const struct test *tests = roots ? root_tests : type_tests;
	unsigned int count = roots ? root_test_count : ARRAY_SIZE(type_tests);
	const char *wanted = argc > 2 ? argv[2] : "";
	unsigned int i, planned = 0, done = 0, failures = 0;

	legacy = argc > 1 && !strcmp(argv[1], "legacy");
	for (i = 0; i < count; i++)
		planned += !!strstr(tests[i].name, wanted);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("KTAP version 1\n1..%u\n", planned);
	prepare();
	for (i = 0; i < count; i++) {
		int how;

		if (!strstr(tests[i].name, wanted))
			continue;
		how = run_test(&tests[i]);
		tear_down();
		if (how == FAILED)
			printf("# %s%s\n", variant, reason);
		printf("%sok %u %s", how == FAILED ? "not " : "", ++done, tests[i].name);
		if (how == SKIPPED)
			printf(" # SKIP %s", reason);
		printf("\n");
		failures += how == FAILED;
	}
	printf("# %u of %u failed\n", failures, planned);
	return failures ? 1 : 0;
}
