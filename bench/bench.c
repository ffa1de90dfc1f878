// SPDX-License-Identifier: GPL-2.0-only
/*
 * What do the KVM-VFIO device, and what follows from it, cost?
 *
 *	bench [--transitions[=MIB]] [--ktap] [--symbols] [N]
 *
 * Measures N groups (128): the lab's edu devices, and where it has none the
 * fixture's; 0 leaves out what is a function of their number, and --transitions
 * adds what is one of the size of the guest, of MIB at most (1024). --ktap makes the
 * rows comments of a test: was all of it measured? bench/gate judges the counts.
 *
 * Runs in the lab, with the TSC counting instructions: on QEMU with -icount (see
 * lab/run), on Bochs as it is. Each result is one row on standard output,
 *
 *	row GROUPS DMA METRIC N LEAST MOST HOW
 *
 * GROUPS	edu: real devices behind the emulated VT-d; fixture: vfio_testdev;
 *		none: no VFIO group takes part
 * DMA		coherent or noncoherent: what the IOMMU does with that of the groups
 * N		what the cost is a function of: which group, how many are tracked, MiB
 * LEAST	instructions, of all repetitions the one with the fewest
 * MOST		and the one with the most
 * HOW		tsc: the TSC's difference, a few instructions of this program included;
 *		cpu: the thread's CPU time, because it slept; waiting is not in it
 *
 * Of "map" and "unmap", N is the number of 4 KiB pages; they are called ..._flushed where
 * the device's DMA is not coherent.
 * Of "beside_...", N is the number of files that another VM tracks, 0 without one.
 * A METRIC named ..._flag says instead whether the VM is non-coherent after what
 * its name begins with: 1 or 0. One named ..._later is what the thread does when
 * that system call is over, before it is back in user space: see struct parts.
 *
 * bench/report makes tables and pictures of the rows of several runs.
 *
 * Repeatability. The emulated CPU executes the same instructions in the same
 * order each time, but its timer ticks every four million of them, and a tick
 * (and the softirqs and threads it wakes) must not be counted. So each
 * measurement waits for a tick, and for it to be over, whenever the time to the
 * next one might not suffice. What is left are differences of state: a slab that
 * is full, the first call of all. That is what LEAST and MOST tell apart.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TRACING		"/sys/kernel/tracing/"
#define FLAG_EVENT	TRACING "events/kvm_vfio/kvm_vfio_coherency/"
#define WBINVD_BUDGET	"/sys/module/kvm/parameters/wbinvd_budget"
#define EXIT_EVENT	TRACING "events/raw_syscalls/sys_exit/"

#define MAX_GROUPS	1024
#define MAX_USERS	8

#include "files.h"
#include "vfio.h"
#include "vm.h"

/* ---- the clock ----------------------------------------------------------- */

static inline uint64_t rdtsc(void)
{
	uint32_t low, high;

	asm volatile("rdtsc" : "=a" (low), "=d" (high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static uint64_t tick_period;		/* in TSC units, as everything here */
static uint64_t last_tick;
static uint64_t cpu_clock_cost;		/* what cpu_time() adds to itself */
static double tsc_per_ns;		/* of the clock that cpu_time() reads */

/* Two reads are that close unless something came in between. */
#define GAP		1500
/* After a tick so much time without another gap: what it woke has run. */
#define QUIET		40000

static uint64_t cpu_time(void)
{
	struct timespec t;

	/* Not the vDSO: it has no thread's time. */
	syscall(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static long switches(void)
{
	struct rusage usage;

	must(getrusage(RUSAGE_THREAD, &usage));
	return usage.ru_nvcsw + usage.ru_nivcsw;
}

static void wait_for_tick(void)
{
	uint64_t before = rdtsc(), now, gap = 0;

	for (;;) {
		now = rdtsc();
		if (now - before > GAP) {
			if (!gap)
				last_tick = now;
			gap = now;
		}
		if (gap && now - gap > QUIET)
			return;
		before = now;
	}
}

/* Return when there are @need instructions to the next tick. */
static void wait_for_room(uint64_t need)
{
	uint64_t phase = rdtsc() - last_tick;

	if (need > tick_period - 2 * QUIET)
		need = tick_period - 2 * QUIET;
	if (phase > tick_period || phase + need > tick_period - QUIET / 2)
		wait_for_tick();
}

/* After boot others still work, and what looks like a tick is none: wait for ten alike. */
static void find_tick_period(void)
{
	uint64_t first, period;
	int i, alike = 0;

	wait_for_tick();
	for (i = 0; alike < 10; i++) {
		if (i == 5000)
			fail("the timer tick does not become regular");
		first = last_tick;
		wait_for_tick();
		period = last_tick - first;
		if (period < tick_period - tick_period / 64 ||
		    period > tick_period + tick_period / 64)
			alike = 0;
		else
			alike++;
		tick_period = period;
	}
}

static void calibrate(void)
{
	uint64_t tsc, cpu, i;
	long switched;

	find_tick_period();
	/* Another thread's time is in the TSC, and not in cpu_time(). */
	do {
		switched = switches();
		cpu = cpu_time();
		tsc = rdtsc();
		while (rdtsc() - tsc < 20 * tick_period)
			;
		cpu = cpu_time() - cpu;
		tsc_per_ns = (double)(rdtsc() - tsc) / cpu;
	} while (switches() != switched);
	cpu_clock_cost = ~0ull;
	for (i = 0; i < 20; i++) {
		cpu = cpu_time();
		cpu = cpu_time() - cpu;
		if (cpu < cpu_clock_cost)
			cpu_clock_cost = cpu;
	}
	printf("# a tick every %llu instructions, %.4f a nanosecond\n",
	       (unsigned long long)tick_period, tsc_per_ns);
}

/* ---- samples ------------------------------------------------------------- */

struct cost {
	uint64_t least, most;
	bool slept;
	int samples;
};

static void sample(struct cost *cost, uint64_t value, bool slept)
{
	if (!cost->samples++)
		cost->least = cost->most = value;
	if (value < cost->least)
		cost->least = value;
	if (value > cost->most)
		cost->most = value;
	cost->slept |= slept;
}

/*
 * Measure CALL into the struct cost at COST. NEED is what it may take, so that no
 * tick comes into it; what takes longer than a tick's period has some in it.
 */
#define measure(cost, need, call)						\
do {										\
	uint64_t m_cpu, m_tsc;							\
	long m_switches;							\
										\
	wait_for_room(need);							\
	m_switches = switches();						\
	m_cpu = cpu_time();							\
	m_tsc = rdtsc();							\
	call;									\
	m_tsc = rdtsc() - m_tsc;						\
	m_cpu = cpu_time() - m_cpu - cpu_clock_cost;				\
	m_switches -= switches();						\
	sample(cost, m_switches ? (uint64_t)(m_cpu * tsc_per_ns) : m_tsc,	\
	       m_switches);							\
} while (0)

/* ---- the kernel's clock -------------------------------------------------- */

static void forget_traced(void)
{
	must_put(TRACING "trace", "\n");
}

/* The TSC of the last event whose line has @text. */
static uint64_t traced(const char *text)
{
	FILE *file = fopen(TRACING "trace", "r");
	unsigned long long stamp = 0;
	char line[256], *end;

	if (!file)
		fail(TRACING "trace: %s", strerror(errno));
	while (fgets(line, sizeof(line), file)) {
		/* TASK-PID [CPU] FLAGS STAMP: EVENT: ... */
		end = strstr(line, ": ");
		if (line[0] == '#' || !end || !strstr(end, text))
			continue;
		while (end > line && end[-1] >= '0' && end[-1] <= '9')
			end--;
		stamp = strtoull(end, NULL, 10);
	}
	fclose(file);
	if (!stamp)
		fail("there was no event \"%s\"", text);
	return stamp;
}

/*
 * A system call, and what the thread does between its end and user space. A change
 * of coherency leaves work to that time (task work): nobody but the thread itself
 * waits for it, and none of VFIO's locks is held. User space sees both as one.
 *
 * The tracepoint sys_exit lies between the two. The kernel comes to it when the
 * function of the system call has returned, and runs task work after it, and the
 * event says what the TSC was then.
 *
 * The tracepoint makes both parts longer, by what it does until it reads the TSC and
 * what it does then. bench_trace() measures how much, with a call that leaves nothing
 * to be done later, and that much is taken off: @call is what the whole system call
 * takes without the tracepoint, if nothing is left for later; @later is that.
 */
struct parts {
	struct cost call, later;
};

static struct cost floor_cost;		/* of the call that does nothing */
static uint64_t call_overhead, later_overhead;

static uint64_t without(uint64_t value, uint64_t part)
{
	return value > part ? value - part : 0;
}

/*
 * Measure CALL, an ioctl, into the struct parts at PARTS, like measure(). Other
 * threads get the CPU when there is a tick, and for the shorter part none was due:
 * their work is in the longer one, and taken off that.
 */
#define measure_parts(parts, need, call)					\
do {										\
	uint64_t p_cpu, p_start, p_end, p_others = 0;				\
	long p_switches;							\
										\
	forget_traced();							\
	wait_for_room(need);							\
	p_switches = switches();						\
	p_cpu = cpu_time();							\
	p_start = rdtsc();							\
	call;									\
	p_end = rdtsc();							\
	p_cpu = (cpu_time() - p_cpu - cpu_clock_cost) * tsc_per_ns;		\
	if (switches() != p_switches)						\
		p_others = without(p_end - p_start, p_cpu);			\
	sample_parts(parts, p_start, traced("sys_exit: "), p_end, p_others);	\
} while (0)

static void sample_parts(struct parts *parts, uint64_t start, uint64_t exit, uint64_t end,
			 uint64_t others)
{
	uint64_t call = exit - start, later = end - exit;
	bool call_is_longer = call > later;

	call = without(call, call_overhead + (call_is_longer ? others : 0));
	later = without(later, later_overhead + (call_is_longer ? 0 : others));
	sample(&parts->call, call, others && call_is_longer);
	sample(&parts->later, later, others && !call_is_longer);
}

/* Room for what was measured before, should it grow a bit. */
static uint64_t room(const struct cost *cost)
{
	return 20000 + cost->most + cost->most / 8;
}

static const char *row_prefix = "";

static void row(const char *groups, const char *dma, const char *metric, int n,
		const struct cost *cost)
{
	if (!cost->samples)
		fail("%s %s %s %d was not measured", groups, dma, metric, n);
	printf("%srow %s %s %s %d %llu %llu %s\n", row_prefix, groups, dma, metric, n,
	       (unsigned long long)cost->least, (unsigned long long)cost->most,
	       cost->slept ? "cpu" : "tsc");
}

static void rows_of_parts(const char *groups, const char *dma, const char *metric, int n,
			  const struct parts *parts)
{
	char later[64];

	snprintf(later, sizeof(later), "%s_later", metric);
	row(groups, dma, metric, n, &parts->call);
	row(groups, dma, later, n, &parts->later);
}

/* ---- groups -------------------------------------------------------------- */

static int noncoherent_base;		/* ID of the fixture's first one */

/* Groups of one kind, all in one container, as QEMU has them. */
static struct pool {
	const char *groups, *dma;
	int n;
	int fd[MAX_GROUPS];
	int container;
} pool;

static void open_edu(const char *list, int n)
{
	char device[96], bdf[32];
	int length;

	while (pool.n < n && sscanf(list, "%31s%n", bdf, &length) == 1) {
		snprintf(device, sizeof(device), "/sys/bus/pci/devices/%s", bdf);
		pool.fd[pool.n++] = must_open_group(group_number_of(device));
		list += length;
	}
}

static void open_testdevs(int first, int n)
{
	for (; pool.n < n; pool.n++)
		pool.fd[pool.n] = must_open_group(testdev_group_number(first + pool.n));
}

static void join(int group)
{
	must(ioctl(group, VFIO_GROUP_SET_CONTAINER, &pool.container));
}

static void leave(int group)
{
	must(ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
}

static int set_iommu(void)
{
	return ioctl(pool.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
}

static void attach_pool(void)
{
	int i;

	pool.container = must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
	join(pool.fd[0]);
	must(set_iommu());
	for (i = 1; i < pool.n; i++)
		join(pool.fd[i]);
}

static void close_pool(void)
{
	while (pool.n)
		close(pool.fd[--pool.n]);
	close(pool.container);
}

static void load_fixture(int coherent, int noncoherent)
{
	char options[64];

	snprintf(options, sizeof(options), "coherent=%d noncoherent=%d", coherent, noncoherent);
	noncoherent_base = coherent;
	load_testdev(options);
}

/* ---- the device ---------------------------------------------------------- */

static int kvm, vm, device;

static int device_ioctl(unsigned long request, uint64_t attr, const int *fd)
{
	struct kvm_device_attr a = {
		.group = KVM_DEV_VFIO_GROUP, .attr = attr, .addr = (uintptr_t)fd,
	};

	return ioctl(device, request, &a);
}

static int add(int i)
{
	return device_ioctl(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP_ADD, &pool.fd[i]);
}

static int del(int i)
{
	return device_ioctl(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP_DEL, &pool.fd[i]);
}

static int has_attr(void)
{
	return device_ioctl(KVM_HAS_DEVICE_ATTR, KVM_DEV_VFIO_GROUP_ADD, NULL);
}

static void make_device(void)
{
	struct kvm_create_device request = { .type = KVM_DEV_TYPE_VFIO };

	must(ioctl(vm, KVM_CREATE_DEVICE, &request));
	device = request.fd;
}

static void make_vm(void)
{
	vm = must(ioctl(kvm, KVM_CREATE_VM, 0));
	make_device();
}

static void close_vm(void)
{
	close(device);
	close(vm);
}

/* ---- ADD, DEL, close ----------------------------------------------------- */

static void bench_floor(void)
{
	int i, ret;

	make_vm();
	for (i = 0; i < 5; i++) {
		measure(&floor_cost, 20000, ret = has_attr());
		must(ret);
	}
	close_vm();
	row("none", "-", "has_attr", 0, &floor_cost);
}

/* For measure_parts(); each system call takes longer meanwhile. */
static void trace_calls(bool on)
{
	must_put(EXIT_EVENT "enable", "%d", on);
}

static void bench_trace(void)
{
	struct parts nothing = { 0 };
	int i, ret;

	must_put(TRACING "trace_clock", "x86-tsc");
	must_put(EXIT_EVENT "filter", "id == %d", SYS_ioctl);
	make_vm();
	trace_calls(true);
	for (i = 0; i < 5; i++) {
		measure_parts(&nothing, 20000, ret = has_attr());
		must(ret);
	}
	trace_calls(false);
	close_vm();
	call_overhead = without(nothing.call.least, floor_cost.least);
	later_overhead = nothing.later.least;
	printf("# tracing a call takes %llu instructions until it ends, and %llu then\n",
	       (unsigned long long)call_overhead, (unsigned long long)later_overhead);
}

enum order { FRONT, MIDDLE, BACK, ORDERS };
static const char *const del_metric[ORDERS] = { "del_front", "del_middle", "del_back" };

static struct cost add_cost[MAX_GROUPS], del_cost[ORDERS][MAX_GROUPS];
static struct cost all_cost, cold_cost;

/* Which of the @left tracked groups goes; the rest keeps its order. */
static int take(int *tracked, int left, enum order order)
{
	int at = order == FRONT ? 0 : order == BACK ? left - 1 : left / 2;
	int which = tracked[at];

	memmove(&tracked[at], &tracked[at + 1], (left - at - 1) * sizeof(*tracked));
	return which;
}

static void bench_add_del(enum order order)
{
	int tracked[MAX_GROUPS], i, left, ret;

	for (i = 0; i < pool.n; i++) {
		measure(&add_cost[i], room(&add_cost[i ? i - 1 : 0]), ret = add(i));
		must(ret);
		tracked[i] = i;
	}
	for (left = pool.n; left; left--) {
		int which = take(tracked, left, order);
		struct cost *cost = &del_cost[order][left - 1];

		measure(cost, room(&add_cost[left - 1]), ret = del(which));
		must(ret);
	}
}

/* Nothing waits for a tick here, so some are in it. */
static void bench_add_all(struct cost *cost)
{
	int i, failed = 0;

	measure(cost, 20000, for (i = 0; i < pool.n; i++) failed |= add(i));
	must(failed);
	for (i = 0; i < pool.n; i++)
		must(del(i));
}

static void add_groups(int n)
{
	int i;

	for (i = 0; i < n; i++)
		must(add(i));
}

static void bench_close(int n, int repeats)
{
	struct cost closing = { 0 }, ending = { 0 };
	int i;

	if (n > pool.n)
		return;
	for (i = 0; i < repeats; i++) {
		make_vm();
		add_groups(n);
		measure(&closing, ~0ull, close(device));
		close(vm);
	}
	row(pool.groups, pool.dma, "close", n, &closing);
	for (i = 0; i < repeats; i++) {
		make_vm();
		add_groups(n);
		close(vm);
		/* The device was the VM's last file. */
		measure(&ending, ~0ull, close(device));
	}
	row(pool.groups, pool.dma, "teardown", n, &ending);
}

/* All @users VMs let go of the file, in this order; the first one is measured. */
static void del_by_all(const int *devices, int users, bool newest_first, struct cost *cost)
{
	int i, ret;

	for (i = 0; i < users; i++) {
		device = devices[newest_first ? users - 1 - i : i];
		if (i) {
			must(del(0));
			continue;
		}
		measure(cost, ~0ull, ret = del(0));
		must(ret);
	}
}

/*
 * One file, and @users VMs that track it: what does the last ADD of it take, and what the
 * first DEL, of the VM that added it last, or first? Each VM tracks another file all the
 * time, so nothing else changes for it.
 */
static void bench_shared(int users)
{
	struct cost adding = { 0 }, newest = { 0 }, oldest = { 0 };
	int vms[MAX_USERS], devices[MAX_USERS], i, ret, repeats = 6;

	for (i = 0; i < users; i++) {
		make_vm();
		must(add(1));
		vms[i] = vm;
		devices[i] = device;
	}
	while (repeats--) {
		for (i = 0; i < users - 1; i++) {
			device = devices[i];
			must(add(0));
		}
		device = devices[users - 1];
		measure(&adding, ~0ull, ret = add(0));
		must(ret);
		del_by_all(devices, users, repeats % 2, repeats % 2 ? &newest : &oldest);
	}
	for (i = 0; i < users; i++) {
		close(devices[i]);
		close(vms[i]);
	}
	row(pool.groups, pool.dma, "shared_add", users, &adding);
	row(pool.groups, pool.dma, "shared_del_newest", users, &newest);
	row(pool.groups, pool.dma, "shared_del_oldest", users, &oldest);
}

static void bench_groups(int rounds)
{
	int order, i;

	memset(add_cost, 0, sizeof(add_cost));
	memset(del_cost, 0, sizeof(del_cost));
	memset(&all_cost, 0, sizeof(all_cost));
	memset(&cold_cost, 0, sizeof(cold_cost));
	make_vm();
	bench_add_all(&cold_cost);
	for (i = 0; i < rounds; i++)
		bench_add_all(&all_cost);
	while (rounds--)
		for (order = 0; order < ORDERS; order++)
			bench_add_del(order);
	close_vm();
	row(pool.groups, pool.dma, "add_all_cold", pool.n, &cold_cost);
	row(pool.groups, pool.dma, "add_all", pool.n, &all_cost);
	for (i = 0; i < pool.n; i++)
		row(pool.groups, pool.dma, "add", i + 1, &add_cost[i]);
	for (order = 0; order < ORDERS; order++)
		for (i = 0; i < pool.n; i++)
			if (i + 1 == pool.n || !(i & (i + 1)))
				row(pool.groups, pool.dma, del_metric[order], i + 1,
				    &del_cost[order][i]);
}

/* ---- a guest ------------------------------------------------------------- */

asm(".pushsection .rodata\n"
    ".code32\n"
    "guest_code:\n"
    /* What each access of %ecx pages from %ebx on takes, to the table at %edi */
    "guest_touch:\n"
    "1:	rdtsc\n"
    "	movl	%eax, %esi\n"
    "	movl	(%ebx), %edx\n"
    "	rdtsc\n"
    "	subl	%esi, %eax\n"
    "	movl	%eax, (%edi)\n"
    "	addl	$4, %edi\n"
    "	addl	$4096, %ebx\n"
    "	decl	%ecx\n"
    "	jnz	1b\n"
    "	hlt\n"
    /* What each of %ecx WBINVDs takes */
    "guest_wbinvd:\n"
    "1:	rdtsc\n"
    "	movl	%eax, %esi\n"
    "	wbinvd\n"
    "	rdtsc\n"
    "	subl	%esi, %eax\n"
    "	movl	%eax, (%edi)\n"
    "	addl	$4, %edi\n"
    "	decl	%ecx\n"
    "	jnz	1b\n"
    "	hlt\n"
    /* Just one access each %edx bytes, %ecx times */
    "guest_map:\n"
    "1:	movl	(%ebx), %eax\n"
    "	addl	%edx, %ebx\n"
    "	decl	%ecx\n"
    "	jnz	1b\n"
    "	hlt\n"
    /* WBINVD for ever */
    "guest_flush:\n"
    "1:	wbinvd\n"
    "	jmp	1b\n"
    "guest_code_end:\n"
    ".code64\n"
    ".popsection\n");

extern const char guest_code[], guest_code_end[], guest_touch[], guest_wbinvd[], guest_map[],
	guest_flush[];

/* Guest-physical addresses */
#define CODE		0x1000u
#define TABLE		0x10000u
#define PAGES		0x10000000u

#define TABLE_SIZE	512

#define VCPUS		32

static uint8_t *low;
static int vcpu;
static struct kvm_run *run;
static size_t run_size;

static void add_slot(int slot, uint64_t gpa, size_t size, void *memory)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = gpa, .memory_size = size,
		.userspace_addr = (uintptr_t)memory,
	};

	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
}

static void *anonymous(size_t size)
{
	uint8_t *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			      -1, 0);

	if (start == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	madvise(start, size, MADV_NOHUGEPAGE);
	memset(start, 0x5a, size);	/* so that a read fault maps it writable */
	return start;
}

static void make_guest(void)
{
	make_vm();
	low = anonymous(MIB);
	memcpy(low + CODE, guest_code, guest_code_end - guest_code);
	add_slot(0, 0, MIB, low);
	vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0));
	run = map_vcpu(vcpu, &run_size);
	set_protected_mode(vcpu);
}

static void close_guest(void)
{
	munmap(run, run_size);
	close(vcpu);
	close_vm();
	munmap(low, MIB);
}

/* From @entry to the guest's HLT. */
static void guest(const char *entry, struct kvm_regs regs)
{
	regs.rip = CODE + (entry - guest_code);
	/* IF: without it, Bochs also withholds the host's interrupts. */
	regs.rflags = 0x202;
	regs.rdi = TABLE;
	must(ioctl(vcpu, KVM_SET_REGS, &regs));
	while (ioctl(vcpu, KVM_RUN, 0))
		if (errno != EINTR && errno != EAGAIN)
			fail("KVM_RUN: %s", strerror(errno));
	if (run->exit_reason != KVM_EXIT_HLT)
		fail("unexpected exit %d of the guest", run->exit_reason);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(uint32_t *)a, y = *(uint32_t *)b;

	return x < y ? -1 : x > y;
}

/* The first one fills caches, and the last fourth has the ticks in it. */
static struct cost of_table(int n)
{
	uint32_t *table = (uint32_t *)(low + TABLE) + 1;
	struct cost cost = { .samples = --n };

	qsort(table, n, sizeof(*table), compare);
	cost.least = table[0];
	cost.most = table[n / 2];
	return cost;
}

static struct cost wbinvd_cost(void)
{
	guest(guest_wbinvd, (struct kvm_regs){ .rcx = 64 });
	guest(guest_wbinvd, (struct kvm_regs){ .rcx = TABLE_SIZE });
	return of_table(TABLE_SIZE);
}

/*
 * The same of the vCPU that pays least. What KVM copies from the guest's memory into
 * a vCPU's slab object, the kernel checks first, and how many instructions that
 * takes depends on which page of the slab the object lies in. With so many vCPUs
 * there is one in each, and the place is not what is compared.
 */
static struct cost least_wbinvd_cost(void)
{
	struct kvm_run *first_run = run;
	struct cost least = wbinvd_cost(), cost;
	int first = vcpu, id;

	for (id = 1; id < VCPUS; id++) {
		vcpu = must(ioctl(vm, KVM_CREATE_VCPU, id));
		run = map_vcpu(vcpu, &run_size);
		set_protected_mode(vcpu);
		cost = wbinvd_cost();
		if (cost.least < least.least)
			least = cost;
		munmap(run, run_size);
		close(vcpu);	/* It stays until the VM goes. */
	}
	vcpu = first;
	run = first_run;
	return least;
}

static struct cost fault_cost(void)
{
	uint8_t *memory = anonymous(4 * MIB), *start = memory;
	struct cost cost;

	/* One table of 4 KiB pages: what has to be allocated falls to its first. */
	while ((uintptr_t)start % (2 * MIB))
		start += 4096;
	add_slot(1, PAGES, 2 * MIB, start);
	guest(guest_touch, (struct kvm_regs){ .rbx = PAGES, .rcx = TABLE_SIZE });
	cost = of_table(TABLE_SIZE);
	add_slot(1, PAGES, 0, start);
	munmap(memory, 4 * MIB);
	return cost;
}

static void bench_guest_as(const char *dma)
{
	struct cost fault = fault_cost(), wbinvd = least_wbinvd_cost();

	row(pool.groups, dma, "wbinvd", 0, &wbinvd);
	row(pool.groups, dma, "fault", 0, &fault);
}

/* With a limit that is never reached, so that each flush is measured. Stock has none. */
static void bench_limited_wbinvd(void)
{
	struct cost cost;

	if (put(WBINVD_BUDGET, "1000"))
		return;
	cost = wbinvd_cost();
	must_put(WBINVD_BUDGET, "0");
	row(pool.groups, pool.dma, "wbinvd_limited", 0, &cost);
}

/*
 * From the beginning of VFIO_SET_IOMMU until KVM treats the VM as non-coherent, which
 * is the moment before the event says so. What the event takes is in it, and so is
 * the work of whom the call waits for. The stock modules have no such event.
 */
static void bench_attach_to_flag(void)
{
	struct cost cost = { 0 };
	uint64_t start;
	int i;

	if (put(FLAG_EVENT "enable", "1"))
		return;
	for (i = 0; i < 5; i++) {
		join(pool.fd[0]);
		forget_traced();
		wait_for_room(2000000);
		start = rdtsc();
		must(set_iommu());
		sample(&cost, traced(", vm non-coherent") - start, false);
		leave(pool.fd[0]);
	}
	must_put(FLAG_EVENT "enable", "0");
	row(pool.groups, pool.dma, "attach_to_flag", 1, &cost);
}

/* The pool is of non-coherent groups, not attached yet. */
static void bench_attach(void)
{
	struct cost cost = { 0 }, added = { 0 };
	struct parts attach = { 0 }, detach = { 0 };
	uint64_t coherent, noncoherent;
	int i, ret;

	make_guest();
	coherent = wbinvd_cost().least;
	pool.container = must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
	join(pool.fd[0]);
	must(set_iommu());
	must(add(0));
	noncoherent = wbinvd_cost().least;
	must(del(0));
	leave(pool.fd[0]);
	must(add(0));
	added = wbinvd_cost();
	added.most = added.least = added.least > (coherent + noncoherent) / 2;
	row(pool.groups, pool.dma, "add_unattached_flag", 1, &added);
	trace_calls(true);
	for (i = 0; i < 5; i++) {
		join(pool.fd[0]);
		measure_parts(&attach, 2000000, ret = set_iommu());
		must(ret);
		cost = wbinvd_cost();
		/* Nothing but the flag makes it cost as much. */
		cost.most = cost.least = cost.least > (coherent + noncoherent) / 2;
		measure_parts(&detach, 2000000, leave(pool.fd[0]));
	}
	trace_calls(false);
	rows_of_parts(pool.groups, pool.dma, "attach", 1, &attach);
	row(pool.groups, pool.dma, "attach_flag", 1, &cost);
	rows_of_parts(pool.groups, pool.dma, "detach", 1, &detach);
	cost = wbinvd_cost();
	cost.most = cost.least = cost.least > (coherent + noncoherent) / 2;
	row(pool.groups, pool.dma, "detach_flag", 1, &cost);
	bench_attach_to_flag();
	must(del(0));
	close(pool.container);
	close_guest();
}

/* ---- the transition ------------------------------------------------------ */

/*
 * Guest memory of @mib MiB. All of it is one 2 MiB page of the host, again and
 * again: what is mapped counts, not how much of it there is.
 */
static uint8_t *alias(int mib, bool huge)
{
	uint8_t *area = mmap(NULL, (mib + 2ul) * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0), *start = area;
	int fd, i;

	if (area == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	while ((uintptr_t)start % (2 * MIB))
		start += 4096;
	fd = must(memfd_create("guest", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0)));
	must(ftruncate(fd, 2 * MIB));
	for (i = 0; i < mib; i += 2) {
		if (mmap(start + (size_t)i * MIB, 2 * MIB, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED)
			fail("mmap of a %s page: %s", huge ? "2 MiB" : "4 KiB", strerror(errno));
	}
	close(fd);
	return start;
}

/* The calls that change a VM's coherency */
enum transition { ADD, DEL, ATTACH, DETACH, TRANSITIONS };
static const char *const transition_metric[TRANSITIONS] = {
	"to_noncoherent", "to_coherent", "attach", "detach",
};

/* The guest maps all of its memory, what was zapped comes back, and has WBINVD skipped. */
static void map_all(int mib, bool huge)
{
	struct kvm_regs regs = { .rbx = PAGES, .rdx = huge ? 2 * MIB : 4096 };

	regs.rcx = (uint64_t)mib * MIB / regs.rdx;
	if (mib)
		guest(guest_map, regs);
	guest(guest_wbinvd, (struct kvm_regs){ .rcx = 1 });
}

static void transition(struct parts *parts, enum transition transition, int mib, bool huge)
{
	int ret = 0;

	map_all(mib, huge);
	if (transition == ATTACH) {
		/*
		 * What an attachment allocates has just been freed, whatever the
		 * guest's page faults left of the CPU's pages.
		 */
		join(pool.fd[0]);
		must(set_iommu());
		leave(pool.fd[0]);
		must(add(0));
		join(pool.fd[0]);
	}
	switch (transition) {
	case ADD:
		measure_parts(&parts[ADD], 3000000, ret = add(0));
		break;
	case DEL:
		measure_parts(&parts[DEL], 3000000, ret = del(0));
		break;
	case ATTACH:
		measure_parts(&parts[ATTACH], 3000000, ret = set_iommu());
		break;
	default:
		measure_parts(&parts[DETACH], 3000000, leave(pool.fd[0]));
	}
	must(ret);
}

/* With @mib MiB mapped. The pool is of non-coherent groups, none of them attached. */
static void bench_transition(int mib, bool huge)
{
	struct parts parts[TRANSITIONS] = { 0 };
	uint8_t *memory = NULL;
	char metric[32];
	int i;

	make_guest();
	if (mib) {
		memory = alias(mib, huge);
		add_slot(1, PAGES, (size_t)mib * MIB, memory);
	}
	for (i = 0; i < (mib ? 1 : 3); i++) {
		transition(parts, ATTACH, mib, huge);
		transition(parts, DEL, mib, huge);
		transition(parts, ADD, mib, huge);
		transition(parts, DETACH, mib, huge);
		must(del(0));
	}
	/* It allocates most, so its cost depends most on what happens to be free. */
	for (i = 0; i < (mib ? 3 : 0); i++) {
		transition(parts, ATTACH, mib, huge);
		leave(pool.fd[0]);
		must(del(0));
	}
	for (i = 0; i < TRANSITIONS; i++) {
		snprintf(metric, sizeof(metric), "%s_%s", transition_metric[i], huge ? "2m" : "4k");
		rows_of_parts(pool.groups, pool.dma, metric, mib, &parts[i]);
	}
	close_guest();
	if (memory)
		munmap(memory, (size_t)mib * MIB);
}

static void bench_transitions(int most)
{
	static const int sizes[] = { 0, 256, 1024 };
	unsigned int i;

	must_put("/proc/sys/vm/nr_hugepages", "4");
	pool.container = must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
	trace_calls(true);
	for (i = 0; i < ARRAY_SIZE(sizes) && sizes[i] <= most; i++) {
		bench_transition(sizes[i], false);
		bench_transition(sizes[i], true);
	}
	trace_calls(false);
	close(pool.container);
}

static void bench_guests(int transitions)
{
	make_guest();
	bench_guest_as("coherent");
	close_guest();
	if (strcmp(pool.dma, "noncoherent"))
		return;
	bench_attach();
	if (transitions)
		bench_transitions(transitions);
	attach_pool();
	make_guest();
	must(add(0));
	bench_limited_wbinvd();
	bench_guest_as("noncoherent");
	close_guest();
}

/* ---- beside another VM --------------------------------------------------- */

/*
 * What a VM takes for its WBINVDs, its calls and a change of its coherency, alone and
 * beside another VM that does all that could make them dearer. Both have a process and a
 * container of their own. The one that is measured is the same in both cases: so are its
 * vCPU and where the slab allocator takes its objects from.
 *
 * The other one is made when the first has been measured alone, by a process that was
 * there before: fork() write-protects memory, guests' too. It is another process because
 * one of several threads pays more for each of its descriptors.
 */
#define BESIDE_REPEATS	6
#define BUSY_MIB	64
#define BUSY_LOGGED	0x20000000u	/* a page of RAM whose writes are logged */

/* With too few groups for it in the pool */
#define BESIDE_FILES	128

/* A thread that waits for a page which does not come, with the VM's slots_lock held */
static pid_t busy_waits;
static void *busy_bitmap;

static void *wait_with_slots_lock(void *unused __attribute__((unused)))
{
	struct kvm_dirty_log log = { .slot = 2, .dirty_bitmap = busy_bitmap };

	WRITE(busy_waits, gettid());
	ioctl(vm, KVM_GET_DIRTY_LOG, &log);
	fail("slots_lock is not held any more");
}

static bool slots_lock_is_held(void)
{
	return sleeps_in(READ(busy_waits), "handle_userfault");
}

/* Until the process ends. The pages of roots that the VM leaves stay where they are. */
static void hold_slots_lock(void)
{
	struct uffdio_register range = {
		.range = { .len = 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct kvm_userspace_memory_region region = {
		.slot = 2, .flags = KVM_MEM_LOG_DIRTY_PAGES, .guest_phys_addr = BUSY_LOGGED,
		.memory_size = 4096, .userspace_addr = (uintptr_t)anonymous(4096),
	};
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = must(syscall(SYS_userfaultfd, O_CLOEXEC));

	busy_bitmap = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
	range.range.start = (uintptr_t)busy_bitmap;
	must(ioctl(uffd, UFFDIO_API, &api));
	must(ioctl(uffd, UFFDIO_REGISTER, &range));
	thread_on(0, wait_with_slots_lock);
	wait_until(slots_lock_is_held, "somebody waits with slots_lock held");
}

/* It gets the CPU when nobody else wants it, so that no more than a timer is to be seen. */
static void *flush_for_ever(void *unused __attribute__((unused)))
{
	struct sched_param none = { 0 };

	must(sched_setscheduler(0, SCHED_IDLE, &none));
	guest(guest_flush, (struct kvm_regs){ 0 });
	return NULL;
}

static bool budget_is_used_up(void)
{
	return vm_number(getpid(), vm, "wbinvd_delays") > 0;
}

/* The stock modules have no limit. */
static void use_up_budget(void)
{
	if (try_wbinvd_limit(vm, 0, 1, 0, 0, 0))
		return;
	thread_on(0, flush_for_ever);
	wait_until(budget_is_used_up, "a WBINVD waits");
}

/* It tracks the pool's groups, which are attached and not coherent. */
static void be_busy(void)
{
	make_guest();
	add_slot(1, PAGES, (size_t)BUSY_MIB * MIB, alias(BUSY_MIB, false));
	map_all(BUSY_MIB, false);
	hold_slots_lock();
	add_groups(pool.n);
	/* Its old roots are pending now, and it maps all in new ones. */
	map_all(BUSY_MIB, false);
	use_up_budget();
}

static struct {
	pid_t pid;
	int begin, ready;
} busy;

static void fork_busy(void)
{
	int begin[2], ready[2];
	char byte;

	must(pipe2(begin, O_CLOEXEC));
	must(pipe2(ready, O_CLOEXEC));
	fflush(stdout);
	busy.pid = must(fork());
	if (!busy.pid) {
		close(begin[1]);
		close(ready[0]);
		/* Nothing comes if the other process has failed. */
		if (read(begin[0], &byte, 1) != 1)
			_exit(1);
		be_busy();
		must(write(ready[1], "", 1));
		for (;;)
			pause();
	}
	close(begin[0]);
	close(ready[1]);
	busy.begin = begin[1];
	busy.ready = ready[0];
}

static void begin_to_be_busy(void)
{
	char byte;

	must(write(busy.begin, "", 1));
	if (read(busy.ready, &byte, 1) != 1)
		fail("there is no other VM that is busy");
}

static void end_busy(void)
{
	must_die(busy.pid, "the busy VM");
	close(busy.begin);
	close(busy.ready);
}

/* Of a VM with a vCPU and without files. The pool is of two groups, none attached. */
static void measure_beside(int files)
{
	struct cost wbinvd = wbinvd_cost(), adding = { 0 }, deleting = { 0 };
	struct parts parts[TRANSITIONS] = { 0 };
	char metric[40];
	int i, ret;

	row(pool.groups, "coherent", "beside_wbinvd", files, &wbinvd);
	trace_calls(true);
	for (i = 0; i < BESIDE_REPEATS; i++) {
		transition(parts, ATTACH, 0, false);
		transition(parts, DEL, 0, false);
		transition(parts, ADD, 0, false);
		transition(parts, DETACH, 0, false);
		must(del(0));
	}
	trace_calls(false);
	for (i = 0; i < TRANSITIONS; i++) {
		snprintf(metric, sizeof(metric), "beside_%s", transition_metric[i]);
		rows_of_parts(pool.groups, pool.dma, metric, files, &parts[i]);
	}
	join(pool.fd[0]);
	must(set_iommu());
	join(pool.fd[1]);
	must(add(1));
	wbinvd = wbinvd_cost();
	row(pool.groups, pool.dma, "beside_wbinvd", files, &wbinvd);
	for (i = 0; i < BESIDE_REPEATS; i++) {
		measure(&adding, 20000, ret = add(0));
		must(ret);
		measure(&deleting, 20000, ret = del(0));
		must(ret);
	}
	row(pool.groups, pool.dma, "beside_add", files, &adding);
	row(pool.groups, pool.dma, "beside_del", files, &deleting);
	must(del(1));
	leave(pool.fd[1]);
	leave(pool.fd[0]);
}

/* More groups of the fixture for the pool, attached to nothing yet */
static void make_noncoherent(int n)
{
	int first = must(get_number(TESTDEV "create"));

	must_put(TESTDEV "create", "%d noncoherent", n);
	open_testdevs(first - pool.n, pool.n + n);
}

/* The pool is of the fixture's non-coherent groups, all attached. */
static void bench_beside(void)
{
	static struct pool others;
	int i = pool.n;

	if (i < BESIDE_FILES)
		make_noncoherent(BESIDE_FILES - i);
	for (; i < pool.n; i++)
		join(pool.fd[i]);
	fork_busy();
	others = pool;
	pool.n = 0;
	make_noncoherent(2);
	pool.container = must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
	make_guest();
	measure_beside(0);
	begin_to_be_busy();
	measure_beside(others.n);
	close_guest();
	close_pool();
	end_busy();
	pool = others;
}

/* ---- memory that is mapped for DMA --------------------------------------- */

#define DMA_ADDRESS	(4096ul * MIB)

/* The pool is attached. Of 2 MiB and more, each 2 MiB are one page. */
static void bench_map(void)
{
	static const int sizes[] = { 1, 512, 512 * 512 };
	const char *flushed = strcmp(pool.dma, "noncoherent") ? "" : "_flushed";
	char metric[32];
	unsigned int i;
	int j;

	must_put("/proc/sys/vm/nr_hugepages", "4");
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		int mib = sizes[i] / 256, repeats = sizes[i] < 100000 ? 8 : 2;
		uint8_t *memory = mib ? alias(mib, true) : anonymous(4096);
		struct cost mapping = { 0 }, unmapping = { 0 };
		size_t size = sizes[i] * 4096ul;
		long ret;

		for (j = 0; j < repeats; j++) {
			measure(&mapping, j ? room(&mapping) : ~0ull,
				ret = container_map(pool.container, memory, DMA_ADDRESS, size));
			must(ret);
			measure(&unmapping, j ? room(&unmapping) : ~0ull,
				ret = container_unmap(pool.container, DMA_ADDRESS, size));
			must(ret);
		}
		snprintf(metric, sizeof(metric), "map%s", flushed);
		row(pool.groups, pool.dma, metric, sizes[i], &mapping);
		snprintf(metric, sizeof(metric), "unmap%s", flushed);
		row(pool.groups, pool.dma, metric, sizes[i], &unmapping);
		munmap(memory, size);
	}
}

static void bench_pool(void)
{
	static const int sizes[] = { 1, 64, 128, 512 }, users[] = { 1, 2, MAX_USERS };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++)
		bench_close(sizes[i], 3);
	for (i = 0; i < ARRAY_SIZE(users) && pool.n > 1; i++)
		bench_shared(users[i]);
	/* The stock modules' time for it grows with the square of the number. */
	bench_groups(pool.n > 128 ? 1 : 2);
}

/* The real devices are all coherent or all non-coherent. */
static void bench_edu(const char *list, int n)
{
	const char *snoop = getenv("LAB_SNOOP");

	pool.groups = "edu";
	pool.dma = snoop && !strcmp(snoop, "off") ? "noncoherent" : "coherent";
	open_edu(list, n);
	if (!strcmp(pool.dma, "noncoherent"))
		bench_guests(0);
	else
		attach_pool();
	bench_pool();
	close_pool();
}

/* ---- putting it together ------------------------------------------------- */

static void bench_fixture_guests(int transitions)
{
	load_fixture(0, 1);
	pool.groups = "fixture";
	pool.dma = "noncoherent";
	open_testdevs(noncoherent_base, 1);
	bench_guests(transitions);
	bench_beside();
	close_pool();
}

static void bench_fixture(int n, int transitions)
{
	load_fixture(n, n);
	pool.groups = "fixture";
	pool.dma = "coherent";
	open_testdevs(0, n);
	attach_pool();
	bench_map();
	bench_pool();
	close_pool();
	pool.dma = "noncoherent";
	open_testdevs(noncoherent_base, n);
	bench_guests(transitions);
	bench_map();
	bench_pool();
	bench_beside();
	close_pool();
}

/* For bench/profile: the kernel's functions, and those of the modules this is about. */
static void print_symbols(void)
{
	FILE *file = fopen("/proc/kallsyms", "r");
	char line[600], name[512], module[64], type;
	unsigned long long address;

	if (!file)
		fail("/proc/kallsyms: %s", strerror(errno));
	while (fgets(line, sizeof(line), file)) {
		module[0] = '\0';
		if (sscanf(line, "%llx %c %511s [%63[^]]", &address, &type, name, module) < 3 ||
		    !strchr("tTwW", type))
			continue;
		if (!module[0] || !strncmp(module, "kvm", 3) || !strncmp(module, "vfio", 4))
			printf("symbol %llx %s %s\n", address, name, module);
	}
	fclose(file);
}

static void set_up(void)
{
	struct rlimit files = { 4096, 4096 };

	must(setrlimit(RLIMIT_NOFILE, &files));
	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC));
	/* The first VM makes KVM patch the kernel; this one stays. */
	must(ioctl(must(ioctl(kvm, KVM_CREATE_VM, 0)), KVM_CREATE_VCPU, 0));
	calibrate();
}

int main(int argc, char **argv)
{
	const char *edu = getenv("LAB_EDU"), *groups = "128";
	bool ktap = false;
	int i, transitions = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--ktap"))
			ktap = true;
		else if (!strcmp(argv[i], "--transitions"))
			transitions = 1024;
		else if (!strncmp(argv[i], "--transitions=", 14))
			transitions = atoi(argv[i] + 14);
		else if (!strcmp(argv[i], "--symbols"))
			print_symbols();
		else
			groups = argv[i];
	}
	if (atoi(groups) < 0 || atoi(groups) > MAX_GROUPS)
		fail("at most %d groups", MAX_GROUPS);
	if (ktap) {
		row_prefix = "# ";
		printf("KTAP version 1\n1..1\n");
	}
	set_up();
	bench_floor();
	bench_trace();
	if (!atoi(groups))
		bench_fixture_guests(transitions);
	else if (edu && *edu)
		bench_edu(edu, atoi(groups));
	else
		bench_fixture(atoi(groups), transitions);
	if (ktap)
		printf("ok 1 all was measured\n");
	return 0;
}
