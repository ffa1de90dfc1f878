// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts the WBINVD and CLFLUSH instructions an emulated host really executes.
 *
 * A QEMU TCG plugin: the emulated machine runs a host kernel with KVM in it,
 * and this is the one observer that neither that kernel nor its guests can
 * fool. It sees every WBINVD (0f 09) and WBNOINVD (f3 0f 09) as it is executed
 * and adds it to the count of the CPU that executed it.
 *
 * Host and guest. An instruction's callback runs *before* the instruction, and
 * also for a WBINVD in an SVM guest of the emulated host, which SVM intercepts
 * and which thus never reaches the caches. The two are told apart by following
 * each CPU into and out of guest mode:
 *
 *   - VMRUN (0f 01 d8) executed outside guest mode enters it. A VMRUN that a
 *     guest hypervisor executes is itself intercepted and changes nothing.
 *   - #VMEXIT always resumes the host behind its VMRUN, so executing *that*
 *     instruction leaves guest mode. It is known by its virtual address and by
 *     the host memory it lies in, hence a guest running the same kernel at the
 *     same addresses is not mistaken for the host, nor is a guest hypervisor
 *     that goes on behind a VMRUN of its own.
 *
 * As a second test a host WBINVD must lie in the kernel's half of the address
 * space. That drops the real-mode trampoline, in which a starting CPU executes
 * one before it has any cache worth writing back. The guests of wbinvd_test
 * run at low addresses, so there both tests give the same answer; only the
 * first one works for a guest that has a kernel of its own. A nested guest is a
 * guest like any other here.
 *
 * No instruction is counted twice: interrupts are taken between translation
 * blocks and faults of the fetch happen during translation, both before the
 * callback; WBINVD itself cannot fault in ring 0 and needs no I/O, so nothing
 * makes QEMU rewind and execute it again. An intercepted guest WBINVD is
 * skipped by KVM, not restarted.
 *
 * Phases. User space of the emulated host marks them by a long NOP,
 * `nopl imm32(%rax)`, with 0x4b56 in the upper half of the displacement and the
 * phase's number in the lower half. Each mark ends the phase before it, and
 * appends one line to the output file:
 *
 *	wbinvd-counts 1 cpus 4
 *	phase 0 by - host 9 3 3 3 guest 0 0 0 0
 *	phase 17 by 0 host 0 1 1 0 guest 0 0 1 0
 *	exit 2 by 0 host 0 0 0 0 guest 0 0 0 0
 *
 * Phase 0 is everything before the first mark, `by` the CPU that executed the
 * mark which began the phase, `host` the WBINVDs executed by the host kernel,
 * `guest` those that guests tried to execute. The last line, written when QEMU
 * exits, says `exit`: without it the record is incomplete.
 *
 * CLFLUSH (0f ae /7) and CLFLUSHOPT (66 0f ae /7) of the host's kernel are counted as
 * well, on all CPUs together. A phase that has any, or an event, has a second line:
 *
 *	clflush 17 128 at 1:64-64 4:128-128
 *
 * 128 in phase 17. An event is a mark, too, that the kernel executes: a fixture
 * (tests/fixtures/mark.c) puts it where a function is called. Its displacement has
 * 0x4b57 in the upper half and the event's number in the lower one. It ends no phase, but
 * notes how many CLFLUSHs of the phase were executed before it: 64 when event 1 came
 * first and when it came last, 128 for event 4.
 *
 * Build:	gcc -O2 -Wall -shared -fPIC -DPLUGIN_API=1 -o wbinvd.so wbinvd.c
 * Use:		qemu-system-x86_64 -accel tcg -plugin wbinvd.so,out=PATH ...
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "qemu-plugin.h"

#define MAX_CPUS	256
#define MAX_VMRUNS	256	/* of all guest hypervisors, too */

#define KERNEL_HALF	0xffff800000000000ULL
#define MARK_MAGIC	0x4b56
#define EVENT_MAGIC	0x4b57
#define MAX_EVENTS	8

int qemu_plugin_version = PLUGIN_API;

static struct cpu {
	uint64_t host;
	uint64_t guest;
	uint64_t clflush;
	/* The VMRUN it is in guest mode by, counted from 1; only its thread touches it. */
	unsigned int in_guest;
} cpus[MAX_CPUS];

static unsigned int n_cpus;
static FILE *out;

/*
 * Where the host goes on after a guest: the instruction behind each VMRUN.
 * Read without the lock, so an entry is complete before it is counted.
 */
static struct {
	uint64_t vaddr;
	const char *haddr;
} resume_at[MAX_VMRUNS];
static unsigned int n_resume;

/*
 * Marks and translations may come from several CPU threads at once. Both are
 * rare and short; a spin lock needs no library.
 */
static char lock_word;

static void lock(void)
{
	while (__atomic_test_and_set(&lock_word, __ATOMIC_ACQUIRE))
		;
}

static void unlock(void)
{
	__atomic_clear(&lock_word, __ATOMIC_RELEASE);
}

static unsigned int phase;
static int phase_cpu = -1;

/* CLFLUSHs of the phase before the event's first and last time; protected by lock() */
static struct event {
	bool seen;
	uint64_t first;
	uint64_t last;
} events[MAX_EVENTS];

static uint64_t clflushes(bool clear)
{
	uint64_t sum = 0;
	unsigned int i;

	for (i = 0; i < n_cpus; i++)
		sum += clear ? __atomic_exchange_n(&cpus[i].clflush, 0, __ATOMIC_SEQ_CST) :
			       __atomic_load_n(&cpus[i].clflush, __ATOMIC_SEQ_CST);
	return sum;
}

static void print_clflushes(void)
{
	uint64_t sum = clflushes(true);
	bool any = sum;
	unsigned int i;

	for (i = 0; i < MAX_EVENTS; i++)
		any |= events[i].seen;
	if (!any)
		return;
	fprintf(out, "clflush %u %llu at", phase, (unsigned long long)sum);
	for (i = 0; i < MAX_EVENTS; i++)
		if (events[i].seen)
			fprintf(out, " %u:%llu-%llu", i, (unsigned long long)events[i].first,
				(unsigned long long)events[i].last);
	fputc('\n', out);
	memset(events, 0, sizeof(events));
}

static void print_counts(const char *who, size_t offset)
{
	unsigned int i;

	fprintf(out, " %s", who);
	for (i = 0; i < n_cpus; i++) {
		uint64_t *count = (uint64_t *)((char *)&cpus[i] + offset);

		fprintf(out, " %llu", (unsigned long long)
			__atomic_exchange_n(count, 0, __ATOMIC_SEQ_CST));
	}
}

static void end_phase(const char *word)
{
	fprintf(out, "%s %u by ", word, phase);
	if (phase_cpu < 0)
		fputc('-', out);
	else
		fprintf(out, "%d", phase_cpu);
	print_counts("host", offsetof(struct cpu, host));
	print_counts("guest", offsetof(struct cpu, guest));
	fputc('\n', out);
	print_clflushes();
	/* The emulator may be killed; what was measured must be there. */
	fflush(out);
}

static void on_mark(unsigned int cpu, void *number)
{
	/* A guest's long NOP means nothing. */
	if (cpu < n_cpus && cpus[cpu].in_guest)
		return;

	lock();
	end_phase("phase");
	phase = (uintptr_t)number;
	phase_cpu = cpu;
	unlock();
}

static void on_event(unsigned int cpu, void *number)
{
	struct event *event = &events[(uintptr_t)number];

	if (cpu < n_cpus && cpus[cpu].in_guest)
		return;

	lock();
	event->last = clflushes(false);
	if (!event->seen)
		event->first = event->last;
	event->seen = true;
	unlock();
}

static void on_clflush(unsigned int cpu, void *unused)
{
	if (cpu < n_cpus && !cpus[cpu].in_guest)
		__atomic_fetch_add(&cpus[cpu].clflush, 1, __ATOMIC_RELAXED);
}

static void on_vmrun(unsigned int cpu, void *which)
{
	if (cpu < n_cpus && !cpus[cpu].in_guest)
		cpus[cpu].in_guest = (uintptr_t)which;
}

static void on_resume(unsigned int cpu, void *which)
{
	if (cpu < n_cpus && cpus[cpu].in_guest == (uintptr_t)which)
		cpus[cpu].in_guest = 0;
}

static void on_wbinvd(unsigned int cpu, void *in_kernel_half)
{
	if (cpu >= n_cpus)
		return;
	if (cpus[cpu].in_guest)
		__atomic_fetch_add(&cpus[cpu].guest, 1, __ATOMIC_SEQ_CST);
	else if (in_kernel_half)
		__atomic_fetch_add(&cpus[cpu].host, 1, __ATOMIC_SEQ_CST);
}

static bool is_prefix(uint8_t byte)
{
	switch (byte) {
	case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65:
	case 0x66: case 0x67: case 0xf2: case 0xf3:
		return true;
	}
	return false;
}

/*
 * WBINVD, with any prefixes: REP makes it WBNOINVD, the others are ignored.
 * REX (40..4f) stands last; outside 64-bit mode such a byte is an instruction
 * of its own, hence never part of this one.
 */
static bool is_wbinvd(const uint8_t *code, size_t size)
{
	while (size && is_prefix(*code)) {
		code++;
		size--;
	}
	if (size && (*code & 0xf0) == 0x40) {
		code++;
		size--;
	}
	return size == 2 && code[0] == 0x0f && code[1] == 0x09;
}

static bool is_vmrun(const uint8_t *code, size_t size)
{
	return size == 3 && !memcmp(code, "\x0f\x01\xd8", 3);
}

static bool is_mark(const uint8_t *code, size_t size, int magic)
{
	return size == 7 && !memcmp(code, "\x0f\x1f\x80", 3) &&
	       (code[5] | code[6] << 8) == magic;
}

/*
 * With any prefixes but REP and REPNE, which make it something else: the kernel has
 * CLFLUSH behind a 3e where CLFLUSHOPT is not. A register instead of an address is SFENCE.
 */
static bool is_clflush(const uint8_t *code, size_t size)
{
	while (size && is_prefix(*code)) {
		if (*code == 0xf2 || *code == 0xf3)
			return false;
		code++;
		size--;
	}
	if (size && (*code & 0xf0) == 0x40) {
		code++;
		size--;
	}
	return size >= 3 && code[0] == 0x0f && code[1] == 0xae &&
	       (code[2] & 0x38) == 0x38 && (code[2] & 0xc0) != 0xc0;
}

/* The VMRUN behind which this instruction stands, counted from 1, or 0. */
static uintptr_t known_resume(uint64_t vaddr, const char *haddr)
{
	unsigned int i, n = __atomic_load_n(&n_resume, __ATOMIC_ACQUIRE);

	for (i = 0; i < n; i++)
		if (resume_at[i].vaddr == vaddr && resume_at[i].haddr == haddr)
			return i + 1;
	return 0;
}

/*
 * VMRUN ends its translation block and what follows it is reached by #VMEXIT
 * only, so it is translated after this was noted.
 */
static uintptr_t note_vmrun(uint64_t vaddr, const char *haddr)
{
	uintptr_t which;

	lock();
	which = known_resume(vaddr + 3, haddr + 3);
	if (!which && n_resume < MAX_VMRUNS) {
		resume_at[n_resume].vaddr = vaddr + 3;
		resume_at[n_resume].haddr = haddr + 3;
		which = n_resume + 1;
		__atomic_store_n(&n_resume, n_resume + 1, __ATOMIC_RELEASE);
	}
	if (!which)
		fprintf(out, "overflow: more than %d VMRUN instructions\n", MAX_VMRUNS);
	unlock();
	return which;
}

static void translate_insn(struct qemu_plugin_insn *insn)
{
	uint8_t code[INSN_MAX];
	size_t size = insn_code(insn, code);
	uint64_t vaddr = qemu_plugin_insn_vaddr(insn);
	const char *haddr = qemu_plugin_insn_haddr(insn);
	uintptr_t resumes = known_resume(vaddr, haddr);
	qemu_plugin_vcpu_udata_cb_t callback = NULL;
	void *data = NULL;

	/*
	 * First the callback that leaves guest mode, so that whatever stands
	 * behind a VMRUN is counted as the host's.
	 */
	if (resumes)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, on_resume,
						       QEMU_PLUGIN_CB_NO_REGS,
						       (void *)resumes);

	if (is_wbinvd(code, size)) {
		callback = on_wbinvd;
		data = (void *)(uintptr_t)(vaddr >= KERNEL_HALF);
	} else if (is_vmrun(code, size)) {
		callback = on_vmrun;
		data = (void *)note_vmrun(vaddr, haddr);
	} else if (is_mark(code, size, MARK_MAGIC)) {
		callback = on_mark;
		data = (void *)(uintptr_t)(code[3] | code[4] << 8);
	} else if (is_mark(code, size, EVENT_MAGIC) && code[3] < MAX_EVENTS && !code[4]) {
		callback = on_event;
		data = (void *)(uintptr_t)code[3];
	} else if (vaddr >= KERNEL_HALF && is_clflush(code, size)) {
		callback = on_clflush;
	}
	if (callback)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, callback,
						       QEMU_PLUGIN_CB_NO_REGS, data);
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t i, n = qemu_plugin_tb_n_insns(tb);

	for (i = 0; i < n; i++)
		translate_insn(qemu_plugin_tb_get_insn(tb, i));
}

static void at_exit(qemu_plugin_id_t id, void *unused)
{
	lock();
	end_phase("exit");
	unlock();
}

__attribute__((visibility("default")))
int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_plugin_info *info,
			int argc, char **argv)
{
	const char *path = NULL;
	int i;

	for (i = 0; i < argc; i++) {
		if (strncmp(argv[i], "out=", 4)) {
			fprintf(stderr, "wbinvd plugin: unknown argument \"%s\"\n",
				argv[i]);
			return -1;
		}
		path = argv[i] + 4;
	}
	if (!path) {
		fprintf(stderr, "wbinvd plugin: no output file given, add out=PATH\n");
		return -1;
	}
	if (strcmp(info->target_name, "x86_64") || !info->system_emulation ||
	    info->max_vcpus > MAX_CPUS) {
		fprintf(stderr, "wbinvd plugin: needs qemu-system-x86_64 with at most %d CPUs\n",
			MAX_CPUS);
		return -1;
	}
	out = fopen(path, "w");
	if (!out) {
		fprintf(stderr, "wbinvd plugin: cannot write \"%s\": %m\n", path);
		return -1;
	}

	n_cpus = info->max_vcpus;
	fprintf(out, "wbinvd-counts 1 cpus %u\n", n_cpus);
	fflush(out);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
	qemu_plugin_register_atexit_cb(id, at_exit, NULL);
	return 0;
}
