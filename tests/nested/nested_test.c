// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does a nested guest's WBINVD reach the caches, and does its memory stay what
 * it is, while its VM becomes non-coherent and coherent again?
 *
 * Runs in the svm lab with four CPUs and two edu devices. L0 is the emulated
 * host's KVM; in a VM of it, L1 is a small hypervisor that runs an L2 with
 * nested SVM, made of the kernel's own KVM selftest library. VFIO groups of that
 * VM come and go before L2 runs, between two runs of it, and while it runs. How
 * often WBINVD must be executed on each CPU, and who finds out, is described in
 * wbinvd_phase.h.
 *
 * What must hold, with snoop control off:
 *
 *  - L1 does not intercept WBINVD: L2's is executed on every CPU noted for the
 *    vCPU while the VM is non-coherent and skipped while it is not, as L1's is.
 *  - L1 intercepts WBINVD: L2's makes L1 see SVM_EXIT_WBINVD, once, and executes
 *    nothing; what L1 executes on its behalf is an L1's WBINVD as any other.
 *  - CPUs that the vCPU used with L2 active are noted as others are, and the
 *    flush owed when the VM becomes non-coherent is executed on them, whether
 *    L2 is running at that moment, or has been left in the middle of KVM_RUN.
 *  - Nothing of that disturbs L2 or the memory of L1 and L2.
 *  - With "limited" as its argument: an L2's WBINVD that is not intercepted waits for
 *    the VM's limit as an L1's does, and is executed once when it may.  Signals end
 *    the wait, and so does what is for L1, which then runs.  What L1 intercepts does
 *    not wait.
 *
 * With snoop control on, every group is coherent: the same phases execute none.
 *
 * Memory. L1 and L2 go round for ever, each checking the pattern that it wrote
 * to its pages in its last round and writing the next one. Both use the same
 * virtual addresses when L1 uses nested paging, which then lets L2's lie in
 * other physical pages. Each page also belongs to the test, which reads and
 * replaces both patterns whenever the vCPU is stopped.
 *
 * What this cannot show: memory types, of which SVM's nested page tables have
 * none of their own and TCG none at all; and a stale line of a cache, for which
 * the count of WBINVDs on each CPU stands.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>

#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "svm_util.h"

#include "hold.h"
#include "vm.h"
#include "wbinvd_phase.h"

/* What the library of older kernels has under another name */
#ifndef HAVE_GVA_T
typedef vm_vaddr_t gva_t;
#define vm_alloc_pages	vm_vaddr_alloc_pages
#define vm_alloc_page	vm_vaddr_alloc_page
#define setup_l2(svm, rip, stack)	generic_svm_setup(svm, rip, stack)
#define enable_nested_paging(control)	((control)->nested_ctl = SVM_NESTED_CTL_NP_ENABLE)
#else
/* It has a stack of its own. */
#define setup_l2(svm, rip, stack)	((void)(stack), generic_svm_setup(svm, rip))
#define enable_nested_paging(control)	((control)->misc_ctl |= SVM_MISC_ENABLE_NP)
#endif

#define PAGES		4	/* with a pattern, of each level */
#define WORDS		(PAGES * 512)
#define STOP_PORT	0x4b

enum { L1, L2, LEVELS };

enum { CMD_NONE, CMD_WBINVD, CMD_STOP, CMD_SWITCH };

/*
 * What the levels and the test share. The test accesses what a running guest
 * may change by READ() and WRITE() only.
 */
struct box {
	struct level {
		uint32_t cmd;
		uint32_t todo;		/* WBINVDs to execute */
		uint32_t done;		/* WBINVDs executed, ever */
		uint32_t rounds;
		uint32_t errors;	/* words that were not what they should be */
		uint32_t generation;	/* of the pattern that is there */
		uint64_t *words;
	} level[LEVELS];

	/* How L1 runs L2 */
	uint32_t nested_paging;
	uint64_t nested_cr3;
	uint32_t intercept;		/* WBINVD */
	uint32_t forward;		/* execute what was intercepted */
	uint32_t alternate;		/* L1 and L2, after each round */

	/* What L1 saw */
	uint32_t wbinvd_exits;
	uint32_t nmi_exits;		/* with L2 at a WBINVD */
	uint32_t nmis;
	uint32_t strange_exit;
};

static inline uint64_t pattern(int level, uint32_t generation, int i)
{
	return ((uint64_t)generation << 32 | (level + 1) << 16 | i) *
	       0x9e3779b97f4a7c15ULL;
}

/* ---- L1 and L2 ----------------------------------------------------------- */

/* L1 and L2 share the vector registers, so neither may use them. */
#define GUEST __attribute__((target("general-regs-only")))

static struct box *guest_box;

static GUEST void guest_round(int level)
{
	struct level *l = &guest_box->level[level];
	uint32_t generation = l->generation;
	int i;

	for (i = 0; i < WORDS; i++)
		if (l->words[i] != pattern(level, generation, i))
			l->errors++;
	for (i = 0; i < WORDS; i++)
		l->words[i] = pattern(level, generation + 1, i);
	l->generation = generation + 1;
	WRITE(l->rounds, l->rounds + 1);
}

static GUEST void guest_stop(void)
{
	asm volatile("outb %%al, %0" : : "i"(STOP_PORT) : "memory");
}

/* Go round until the other level is wanted. */
static GUEST void guest_serve(int level)
{
	struct level *l = &guest_box->level[level];

	do {
		guest_round(level);
		switch (READ(l->cmd)) {
		case CMD_WBINVD:
			while (l->todo) {
				asm volatile("wbinvd" : : : "memory");
				l->todo--;
				WRITE(l->done, l->done + 1);
			}
			WRITE(l->cmd, CMD_NONE);
			break;
		case CMD_STOP:
			WRITE(l->cmd, CMD_NONE);
			guest_stop();
			break;
		case CMD_SWITCH:
			WRITE(l->cmd, CMD_NONE);
			return;
		}
	} while (!READ(guest_box->alternate));
}

static GUEST void l2_main(void)
{
	for (;;) {
		guest_serve(L2);
		asm volatile("vmmcall" : : : "memory");
	}
}

static GUEST void l1_on_nmi(struct ex_regs *regs)
{
	(void)regs;
	WRITE(guest_box->nmis, guest_box->nmis + 1);
}

static GUEST bool is_at_wbinvd(struct svm_test_data *svm)
{
	return *(uint16_t *)svm->vmcb->save.rip == 0x090f;
}

/* Until L2 gives up. */
static GUEST void l1_run_l2(struct svm_test_data *svm)
{
	struct vmcb_control_area *control = &svm->vmcb->control;

	for (;;) {
		control->intercept &= ~(1ULL << INTERCEPT_WBINVD);
		if (READ(guest_box->intercept))
			control->intercept |= 1ULL << INTERCEPT_WBINVD;
		run_guest(svm->vmcb, svm->vmcb_gpa);
		switch (control->exit_code) {
		case SVM_EXIT_VMMCALL:
			svm->vmcb->save.rip += 3;
			return;
		case SVM_EXIT_WBINVD:
			svm->vmcb->save.rip += 2;
			guest_round(L1);
			if (READ(guest_box->forward))
				asm volatile("wbinvd" : : : "memory");
			WRITE(guest_box->wbinvd_exits, guest_box->wbinvd_exits + 1);
			break;
		case SVM_EXIT_NMI:
			guest_round(L1);
			if (is_at_wbinvd(svm))
				WRITE(guest_box->nmi_exits, guest_box->nmi_exits + 1);
			/* It stays pending until L1 takes it. */
			asm volatile("stgi; clgi" : : : "memory");
			break;
		default:
			WRITE(guest_box->strange_exit, control->exit_code);
			guest_stop();
		}
	}
}

static GUEST void l1_main(struct svm_test_data *svm, struct box *box)
{
	unsigned long stack[512];

	guest_box = box;
	setup_l2(svm, l2_main, &stack[ARRAY_SIZE(stack) - 1]);
	svm->vmcb->control.intercept |= 1ULL << INTERCEPT_NMI;
	if (box->nested_paging) {
		enable_nested_paging(&svm->vmcb->control);
		svm->vmcb->control.nested_cr3 = box->nested_cr3;
	}
	for (;;) {
		guest_serve(L1);
		l1_run_l2(svm);
	}
}

/* ---- the VM -------------------------------------------------------------- */

struct vm {
	struct vcpu_thread thread;	/* the first, for vm_setup() */
	struct kvm_vm *kvm;
	int dev;			/* the KVM-VFIO device */
	int cpu;			/* the vCPU is pinned to */
	int level;			/* that runs */
	struct box *box;
	uint64_t *pages[LEVELS][PAGES];
};

#define PT_FLAGS	7ULL		/* present, writable, user */
#define PT_LARGE	0x80ULL

static uint64_t *page_table(struct vm *vm, uint64_t *entry)
{
	if (!*entry)
		*entry = vm_alloc_page_table(vm->kvm) | PT_FLAGS;
	return addr_gpa2hva(vm->kvm, *entry & ~0xfffULL);
}

/* L1's nested page tables: let @gpa of L2 be @to of L1. */
static void nested_map(struct vm *vm, uint64_t *pml4, uint64_t gpa, uint64_t to)
{
	uint64_t *directory = page_table(vm, page_table(vm, pml4)), *table;
	uint64_t *entry = &directory[gpa >> 21];
	uint64_t large = *entry;
	int i;

	if (large & PT_LARGE)
		*entry = 0;
	table = page_table(vm, entry);
	for (i = 0; i < 512 && (large & PT_LARGE); i++)
		table[i] = (large & ~PT_LARGE) + i * 0x1000;
	table[gpa >> 12 & 511] = to | PT_FLAGS;
}

/* The first GiB is L1's, but for the pages with L2's pattern, in reverse order. */
static void make_nested_paging(struct vm *vm, gva_t words, gva_t l2_pages)
{
	uint64_t cr3 = vm_alloc_page_table(vm->kvm), i;
	uint64_t *pml4 = addr_gpa2hva(vm->kvm, cr3);
	uint64_t *directory = page_table(vm, page_table(vm, pml4));

	for (i = 0; i < 512; i++)
		directory[i] = i << 21 | PT_LARGE | PT_FLAGS;
	for (i = 0; i < PAGES; i++)
		nested_map(vm, pml4, addr_gva2gpa(vm->kvm, words + i * 0x1000),
			   addr_gva2gpa(vm->kvm, l2_pages + (PAGES - 1 - i) * 0x1000));
	vm->box->nested_paging = true;
	vm->box->nested_cr3 = cr3;
}

static uint64_t *word(struct vm *vm, int level, int i)
{
	return &vm->pages[level][i / 512][i % 512];
}

/* While the guest does not run: replace the patterns, whatever they are. */
static void write_patterns(struct vm *vm)
{
	int level, i;

	for (level = L1; level < LEVELS; level++) {
		vm->box->level[level].generation += 1000;
		for (i = 0; i < WORDS; i++)
			*word(vm, level, i) =
				pattern(level, vm->box->level[level].generation, i);
	}
}

static void make_patterns(struct vm *vm)
{
	bool nested_paging = scenario->variant;
	gva_t gva[LEVELS];
	int level, i;

	for (level = L1; level < LEVELS; level++)
		gva[level] = vm_alloc_pages(vm->kvm, PAGES);
	for (i = 0; i < PAGES; i++) {
		vm->pages[L1][i] = addr_gva2hva(vm->kvm, gva[L1] + i * 0x1000);
		vm->pages[L2][nested_paging ? PAGES - 1 - i : i] =
			addr_gva2hva(vm->kvm, gva[L2] + i * 0x1000);
	}
	if (nested_paging) {
		make_nested_paging(vm, gva[L1], gva[L2]);
		gva[L2] = gva[L1];
	}
	for (level = L1; level < LEVELS; level++)
		vm->box->level[level].words = (void *)gva[level];
	write_patterns(vm);
}

/* In the vCPU's thread. */
static void vm_setup(struct vcpu_thread *t)
{
	struct vm *vm = (struct vm *)t;
	gva_t svm, box;
	struct kvm_vcpu *vcpu;

	vm->kvm = vm_create_with_one_vcpu(&vcpu, l1_main);
	t->fd = vcpu->fd;
	t->run = vcpu->run;
	t->stop_reason = KVM_EXIT_IO;
#ifdef HAVE_DESCRIPTOR_TABLES
	vm_init_descriptor_tables(vm->kvm);
	vcpu_init_descriptor_tables(vcpu);
#endif
	set_lapic(vcpu->fd);
	vm_install_exception_handler(vm->kvm, NMI_VECTOR, l1_on_nmi);
	vcpu_alloc_svm(vm->kvm, &svm);
	box = vm_alloc_page(vm->kvm);
	vm->box = addr_gva2hva(vm->kvm, box);
	make_patterns(vm);
	vcpu_args_set(vcpu, 2, svm, box);
}

static void check_strange(struct vm *vm)
{
	uint32_t code = READ(vm->box->strange_exit);

	if (code)
		fail("L1 does not know L2's exit %#x", code);
}

#define wait_until(vm, condition, what)					\
do {									\
	double limit = now() + SCENARIO_LIMIT / 2;			\
									\
	while (!(condition)) {						\
		check_strange(vm);					\
		if (now() > limit)					\
			fail("L%d does not %s", (vm)->level + 1, what);	\
		sleep_ms(1);						\
	}								\
} while (0)

static void check_errors(struct vm *vm)
{
	int level;

	for (level = L1; level < LEVELS; level++)
		if (READ(vm->box->level[level].errors))
			fail("L%d found %u words of its memory wrong", level + 1,
			    READ(vm->box->level[level].errors));
}

/* The level that should run does, and both find their memory right. */
static void check_running(struct vm *vm)
{
	struct level *l = &vm->box->level[vm->level];
	uint32_t start = READ(l->rounds);

	/* A round that begins now is over when the second one is. */
	wait_until(vm, READ(l->rounds) - start >= 3, "run");
	check_errors(vm);
}

/* While the guest does not run. */
static void check_memory(struct vm *vm)
{
	int level, i;

	check_strange(vm);
	check_errors(vm);
	for (level = L1; level < LEVELS; level++)
		for (i = 0; i < WORDS; i++)
			if (*word(vm, level, i) !=
			    pattern(level, vm->box->level[level].generation, i))
				fail("word %d of L%d's memory is wrong", i, level + 1);
	write_patterns(vm);
}

/* L1 runs on @cpu when this returns. */
static void vm_start(struct vm *vm, int cpu)
{
	memset(vm, 0, sizeof(*vm));
	vm->dev = -1;
	vm->cpu = cpu;
	vcpu_thread_create(&vm->thread, cpu, vm_setup);
	vcpu_thread_go(&vm->thread);
	check_running(vm);
}

/* Whichever level runs: leave KVM_RUN, and enter it again. */
static void vm_stop(struct vm *vm)
{
	WRITE(vm->box->level[vm->level].cmd, CMD_STOP);
	vcpu_thread_wait(&vm->thread);
	check_memory(vm);
}

static void vm_continue(struct vm *vm)
{
	vcpu_thread_go(&vm->thread);
	check_running(vm);
}

/* From L1 to L2, or back. */
static void switch_to(struct vm *vm, int level)
{
	WRITE(vm->box->level[vm->level].cmd, CMD_SWITCH);
	vm->level = level;
	check_running(vm);
}

/* The scheduler moves the running vCPU to @cpu. */
static void move(struct vm *vm, int cpu)
{
	vm->cpu = cpu;
	must(pin(vm->thread.tid, cpu));
	check_running(vm);
}

/* Where the stopped vCPU is to go on. */
static void move_stopped(struct vm *vm, int cpu)
{
	vm->cpu = cpu;
	must(pin(vm->thread.tid, cpu));
}

static void begin_wbinvds(struct vm *vm, int n)
{
	struct level *l = &vm->box->level[vm->level];

	expected.guest[vm->cpu] += n;
	WRITE(l->todo, n);
	WRITE(l->cmd, CMD_WBINVD);
}

static void finish_wbinvds(struct vm *vm)
{
	struct level *l = &vm->box->level[vm->level];

	wait_until(vm, READ(l->cmd) == CMD_NONE, "finish its WBINVDs");
}

/* @n WBINVDs of the level that runs. */
static void wbinvds(struct vm *vm, int n)
{
	struct level *l = &vm->box->level[vm->level];
	uint32_t goal = READ(l->done) + n, exits = READ(vm->box->wbinvd_exits);
	bool intercepted = vm->level == L2 && READ(vm->box->intercept);

	if (intercepted && vm->box->forward)
		expected.guest[vm->cpu] += n;
	begin_wbinvds(vm, n);
	finish_wbinvds(vm);
	if (READ(l->done) != goal)
		fail("L%d executed %d WBINVDs too few", vm->level + 1,
		    (int)(goal - READ(l->done)));
	if (READ(vm->box->wbinvd_exits) - exits != (intercepted ? n : 0))
		fail("L1 saw %d exits for %d WBINVDs",
		    READ(vm->box->wbinvd_exits) - exits, n);
}

/* Phases of the level that runs. */
static void phase_skipped(struct vm *vm, const char *why)
{
	phase("WBINVDs of L%d on CPU %d are skipped, %s", vm->level + 1, vm->cpu, why);
	wbinvds(vm, 5);
	phase_end();
	check_running(vm);
}

/* Only the CPU it runs on is noted. */
static void phase_executed(struct vm *vm, const char *why)
{
	phase("WBINVDs of L%d on CPU %d are executed there, %s", vm->level + 1,
	      vm->cpu, why);
	wbinvds(vm, 5);
	expect_flushes(vm->cpu, 5);
	phase_end();
	check_running(vm);
}

/* Two CPUs are noted, of which the level runs on the second one. */
static void phase_both(struct vm *vm, int first, int second)
{
	phase("WBINVD of L%d on CPU %d flushes CPUs %d and %d, the next one only its own",
	      vm->level + 1, second, first, second);
	wbinvds(vm, 2);
	expect_flush(first);
	expect_flushes(second, 2);
	phase_end();
	check_running(vm);
}

static void file_add(struct vm *vm, int group)
{
	if (vm->dev < 0)
		vm->dev = must(kvm_vfio_create(vm->kvm->fd));
	must(kvm_vfio_add(vm->dev, group));
}

static void file_del(struct vm *vm, int group)
{
	must(kvm_vfio_del(vm->dev, group));
}

/* ---- scenarios ----------------------------------------------------------- */

static void change_before(void)
{
	int group = group_open(0);
	struct vm vm;

	vm_start(&vm, 1);
	phase_skipped(&vm, "nothing tracked");
	move(&vm, 2);

	group_attach(group);
	phase("ADD before L2 ever ran pays the owed flush on CPUs 1 and 2");
	file_add(&vm, group);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	check_running(&vm);

	switch_to(&vm, L2);
	phase_both(&vm, 1, 2);
	move(&vm, 3);
	phase_both(&vm, 2, 3);
	switch_to(&vm, L1);
	phase_executed(&vm, "L2 flushed all others");

	phase("DEL after L2 ran flushes nothing");
	file_del(&vm, group);
	phase_end();
	check_running(&vm);
	phase_skipped(&vm, "nothing tracked");
	switch_to(&vm, L2);
	phase_skipped(&vm, "nothing tracked");
	vm_stop(&vm);
}

static void change_between(void)
{
	int group = group_open(0);
	struct vm vm;

	vm_start(&vm, 1);
	file_add(&vm, group);
	switch_to(&vm, L2);
	phase_skipped(&vm, "the group is attached to nothing");
	move(&vm, 2);
	switch_to(&vm, L1);

	phase("attaching between two runs of L2 pays the owed flush on CPUs 1 and 2");
	group_attach(group);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	check_running(&vm);
	switch_to(&vm, L2);
	phase_both(&vm, 1, 2);
	switch_to(&vm, L1);

	phase("UNSET_CONTAINER between two runs of L2 flushes nothing");
	must(group_leave(group));
	phase_end();
	check_running(&vm);
	switch_to(&vm, L2);
	phase_skipped(&vm, "the group is attached to nothing again");
	switch_to(&vm, L1);
	phase_skipped(&vm, "the group is attached to nothing again");
	vm_stop(&vm);
}

/* L2 never stops, and L1 never runs. */
static void change_while_running(void)
{
	int group = group_open(0), other = group_open(1);
	struct vm vm;

	vm_start(&vm, 1);
	file_add(&vm, group);
	switch_to(&vm, L2);
	phase_skipped(&vm, "the group is attached to nothing");
	move(&vm, 2);

	phase("attaching while L2 runs pays the owed flush on CPUs 1 and 2");
	group_attach(group);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	check_running(&vm);
	phase_both(&vm, 1, 2);

	group_attach(other);
	phase("ADD of a second and UNSET_CONTAINER of the first group flush nothing");
	file_add(&vm, other);
	must(group_leave(group));
	phase_end();
	check_running(&vm);
	phase_executed(&vm, "the second group is still attached");

	phase("DEL of the last attached group while L2 runs flushes nothing");
	file_del(&vm, other);
	phase_end();
	check_running(&vm);
	move(&vm, 3);
	phase_skipped(&vm, "the last attached group left by DEL");

	phase("ADD while L2 runs pays the flush owed since, on CPUs 2 and 3");
	file_add(&vm, other);
	expect_flush(2);
	expect_flush(3);
	phase_end();
	check_running(&vm);
	phase_both(&vm, 2, 3);

	phase("closing the device while L2 runs flushes nothing");
	close(vm.dev);
	phase_end();
	check_running(&vm);
	phase_skipped(&vm, "the device was closed");

	switch_to(&vm, L1);
	phase_skipped(&vm, "the device was closed");
	vm_stop(&vm);
}

/* The vCPU is left with L2 active, which is the only one that used CPUs 2 and 3. */
static void change_while_stopped(void)
{
	int group = group_open(0);
	struct vm vm;

	vm_start(&vm, 1);
	file_add(&vm, group);
	switch_to(&vm, L2);
	move(&vm, 2);
	vm_stop(&vm);
	move_stopped(&vm, 3);
	vm_continue(&vm);
	phase_skipped(&vm, "the group is attached to nothing");
	vm_stop(&vm);

	phase("attaching while the vCPU is stopped in L2: flush on CPUs 1, 2 and 3");
	group_attach(group);
	expect_flush(1);
	expect_flush(2);
	expect_flush(3);
	phase_end();
	check_memory(&vm);

	phase("L2 goes on, and its first WBINVD flushes CPUs 1, 2 and 3");
	vm_continue(&vm);
	wbinvds(&vm, 1);
	expect_flush(1);
	expect_flush(2);
	expect_flush(3);
	phase_end();
	check_running(&vm);
	phase_executed(&vm, "the others are clean");

	vm_stop(&vm);
	phase("UNSET_CONTAINER while the vCPU is stopped in L2 flushes nothing");
	must(group_leave(group));
	phase_end();
	check_memory(&vm);
	vm_continue(&vm);
	phase_skipped(&vm, "the group is attached to nothing again");
	switch_to(&vm, L1);
	phase_skipped(&vm, "the group is attached to nothing again");
	vm_stop(&vm);
}

static void phase_intercepted(struct vm *vm, const char *why)
{
	phase("WBINVDs of L2 on CPU %d go to L1 and execute nothing, %s", vm->cpu, why);
	wbinvds(vm, 5);
	phase_end();
	check_running(vm);
}

static void l1_intercepts(void)
{
	int group = group_open(0);
	struct vm vm;

	vm_start(&vm, 1);
	file_add(&vm, group);
	vm.box->intercept = true;
	switch_to(&vm, L2);
	phase_intercepted(&vm, "coherent");

	phase("attaching while L2 runs pays the owed flush on CPU 1");
	group_attach(group);
	expect_flush(1);
	phase_end();
	check_running(&vm);
	phase_intercepted(&vm, "non-coherent");
	move(&vm, 2);
	phase_intercepted(&vm, "non-coherent");

	WRITE(vm.box->forward, true);
	phase("L1 executes L2's intercepted WBINVD: CPUs 1 and 2, then 2 only");
	wbinvds(&vm, 2);
	expect_flush(1);
	expect_flushes(2, 2);
	phase_end();
	check_running(&vm);

	WRITE(vm.box->forward, false);
	move(&vm, 3);
	phase_intercepted(&vm, "non-coherent, CPUs 2 and 3 noted");
	switch_to(&vm, L1);
	phase("WBINVD of L1 itself flushes the CPUs that L2 used, 2 and 3");
	wbinvds(&vm, 1);
	expect_flush(2);
	expect_flush(3);
	phase_end();
	check_running(&vm);

	vm.box->intercept = false;
	switch_to(&vm, L2);
	phase_executed(&vm, "L1 no longer intercepts");
	switch_to(&vm, L1);
	vm.box->intercept = true;
	switch_to(&vm, L2);
	phase_intercepted(&vm, "L1 intercepts again");

	phase("UNSET_CONTAINER while L2 runs flushes nothing");
	must(group_leave(group));
	phase_end();
	check_running(&vm);
	WRITE(vm.box->forward, true);
	phase("L1 executes L2's intercepted WBINVDs: skipped, coherent");
	wbinvds(&vm, 5);
	phase_end();
	check_running(&vm);
	vm_stop(&vm);
}

#define CHANGES		12
#define MANY		2000

static long long number_of(struct vm *vm, const char *name)
{
	return vm_number(vm->thread.tid, vm->kvm->fd, name);
}

/* A new state and a new CPU each time; the vCPU changes level all the time. */
static void many_changes(void)
{
	int i, group = group_open(0), cpu = 1, next;
	long long owed, executed;
	struct vm vm;

	vm_start(&vm, cpu);
	file_add(&vm, group);
	switch_to(&vm, L2);
	WRITE(vm.box->alternate, true);
	phase("%d times: move, attach, WBINVD of L2, detach, WBINVD of L2", CHANGES);
	for (i = 0; i < CHANGES; i++) {
		next = cpu % 3 + 1;
		move(&vm, next);
		/* The owed flush, then L2's, each on the CPUs of before and now. */
		group_attach(group);
		wbinvds(&vm, 1);
		expect_flushes(cpu, 2);
		expect_flushes(next, 2);
		must(group_leave(group));
		wbinvds(&vm, 1);
		check_running(&vm);
		cpu = next;
	}
	phase_end();

	phase("attach and detach during %d WBINVDs of L2: each flush owed is executed",
	      MANY);
	owed = number_of(&vm, "noncoherent_dma_flushes");
	executed = number_of(&vm, "wbinvd_flushes");
	begin_wbinvds(&vm, MANY);
	for (i = 0; i < CHANGES || READ(vm.box->level[L2].cmd) != CMD_NONE; i++) {
		close(group_attach(group));
		must(group_leave(group));
	}
	finish_wbinvds(&vm);
	/* Which state L2's own met only the kernel knows; with the other ones they are all. */
	owed = number_of(&vm, "noncoherent_dma_flushes") - owed;
	executed = number_of(&vm, "wbinvd_flushes") - executed;
	if (!is_stock() && owed != (noncoherent_host ? i : 0))
		fail("%lld flushes were owed after %d changes", owed, i);
	expect_flushes(cpu, owed + executed);
	phase_end();
	printf("# %d changes each way during %d WBINVDs\n", i, MANY);
	check_running(&vm);
	vm.level = L1;
	check_running(&vm);
	vm_stop(&vm);
}

static void run_l2_and_add(void)
{
	int group = group_open(0);
	/* Its vCPU runs on after this. */
	static struct vm vm;

	vm_start(&vm, 1);
	group_attach(group);
	switch_to(&vm, L2);
	phase("ADD while L2 runs in the process to be killed: flush on CPU 1");
	file_add(&vm, group);
	expect_flush(1);
	phase_end();
	phase_executed(&vm, "in the process to be killed");
}

static void die_in_l2(void)
{
	pid_t pid = fork_doomed(run_l2_and_add);

	phase("death of the process while its L2 runs flushes nothing");
	kill(pid, SIGKILL);
	wait_for_death(pid);
	phase_end();
	/* The group is free. */
	group_attach(group_open(0));
}

/* ---- limited ------------------------------------------------------------- */

/*
 * A non-coherent VM whose L2 runs on CPU 1 and has used up what the limit allows, for
 * longer than any test runs: budget_test.c says how.
 */
static void vm_start_spent(struct vm *vm)
{
	int group = group_open(0);

	vm_start(vm, 1);
	group_attach(group);
	phase("ADD pays the owed flush on CPU 1");
	file_add(vm, group);
	expect_flush(1);
	phase_end();
	switch_to(vm, L2);
	set_wbinvd_limit(vm->kvm->fd, 1);
	hold_at(wbinvd_function(), "for_ms=500");
	phase("a WBINVD of L2 uses up what the limit allows");
	wbinvds(vm, 1);
	expect_flush(1);
	phase_end();
	forget_hold();
	check_running(vm);
}

static void wait_delays(struct vm *vm, int n)
{
	wait_vm_number(vm->thread.tid, vm->kvm->fd, "wbinvd_delays", n);
}

/* The @n-th wait of the level's one WBINVD has begun, and does not end by itself. */
static void must_wait(struct vm *vm, int n)
{
	struct level *l = &vm->box->level[vm->level];
	uint32_t done = READ(l->done);

	wait_delays(vm, n);
	sleep_ms(300);
	wait_delays(vm, n);
	if (READ(l->done) != done || READ(l->cmd) != CMD_WBINVD)
		fail("L%d's WBINVD has not waited", vm->level + 1);
}

/* KVM_RUN is left and entered once more. */
static void interrupt_wait(struct vm *vm, int n)
{
	vm->thread.any_stop = true;
	vcpu_thread_interrupt(&vm->thread);
	vcpu_thread_wait(&vm->thread);
	if (vm->thread.error != EINTR)
		fail("KVM_RUN was interrupted and returned %s", strerror(vm->thread.error));
	vm->thread.any_stop = false;
	vcpu_thread_go(&vm->thread);
	must_wait(vm, n);
	expected.guest[vm->cpu] = 1;
}

static void l2_waits(void)
{
	struct vm vm;

	vm_start_spent(&vm);
	phase("the next one of L2 waits");
	begin_wbinvds(&vm, 1);
	must_wait(&vm, 1);
	phase_end();

	phase("it does so again after a signal");
	interrupt_wait(&vm, 2);
	phase_end();

	phase("an NMI for L1 ends the wait, L1 runs, and it is begun again");
	send_msi(vm.kvm->fd, MSI_NMI);
	must_wait(&vm, 3);
	expected.guest[1] = 1;
	phase_end();
	if (READ(vm.box->nmi_exits) != 1 || READ(vm.box->nmis) != 1)
		fail("L1 saw %u exits at a WBINVD, and %u NMIs", READ(vm.box->nmi_exits),
		     READ(vm.box->nmis));

	phase("without a limit it is executed, on CPU 1, and on CPU 2 that it has slept on");
	move_stopped(&vm, 2);
	set_wbinvd_limit(vm.kvm->fd, 0);
	finish_wbinvds(&vm);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	check_running(&vm);
	phase_executed(&vm, "without a limit");
	switch_to(&vm, L1);
	vm_stop(&vm);
}

static void intercepted_does_not_wait(void)
{
	struct vm vm;

	vm_start_spent(&vm);
	switch_to(&vm, L1);
	vm.box->intercept = true;
	switch_to(&vm, L2);
	phase_intercepted(&vm, "though there is nothing left");
	wait_delays(&vm, 0);

	WRITE(vm.box->forward, true);
	phase("what L1 executes for L2 waits");
	WRITE(vm.box->level[L2].todo, 1);
	WRITE(vm.box->level[L2].cmd, CMD_WBINVD);
	must_wait(&vm, 1);
	expected.guest[1] = 2;		/* L2's, and L1's */
	phase_end();
	phase("without a limit it is executed");
	set_wbinvd_limit(vm.kvm->fd, 0);
	finish_wbinvds(&vm);
	expect_flush(1);
	phase_end();
	check_running(&vm);
	switch_to(&vm, L1);
	vm_stop(&vm);
}

/* ---- main ---------------------------------------------------------------- */

#define FLAT	", L1 without nested paging"
#define NESTED	", L1 with nested paging"

static const struct scenario scenarios[] = {
	{ "changes before and after L2 runs" FLAT, change_before, false },
	{ "changes before and after L2 runs" NESTED, change_before, true },
	{ "changes between two runs of L2" FLAT, change_between, false },
	{ "changes between two runs of L2" NESTED, change_between, true },
	{ "changes while L2 runs" FLAT, change_while_running, false },
	{ "changes while L2 runs" NESTED, change_while_running, true },
	{ "changes while the vCPU is stopped in L2" FLAT, change_while_stopped, false },
	{ "changes while the vCPU is stopped in L2" NESTED, change_while_stopped, true },
	{ "L1 intercepts WBINVD" FLAT, l1_intercepts, false },
	{ "L1 intercepts WBINVD" NESTED, l1_intercepts, true },
	{ "many changes" FLAT, many_changes, false },
	{ "many changes" NESTED, many_changes, true },
	{ "the process dies while L2 runs" FLAT, die_in_l2, false },
	{ "the process dies while L2 runs" NESTED, die_in_l2, true },
};

static const struct scenario limited[] = {
	{ "L2's WBINVD waits" FLAT, l2_waits, false },
	{ "L2's WBINVD waits" NESTED, l2_waits, true },
	{ "what L1 intercepts does not wait" FLAT, intercepted_does_not_wait, false },
	{ "what L1 intercepts does not wait" NESTED, intercepted_does_not_wait, true },
};

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "limited"))
		return run_scenarios(limited, ARRAY_SIZE(limited), NULL);
	return run_scenarios(scenarios, ARRAY_SIZE(scenarios),
			     "not shown, as the emulator has none: memory types, stale cache lines");
}
