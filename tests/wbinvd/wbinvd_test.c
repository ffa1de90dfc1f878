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
 *  - A VM that tracks a group which another VM tracks may go on with its guest: all
 *    CPUs are noted for each of its vCPUs.
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
#include <signal.h>

#include "wbinvd.h"

/* ---- IPIs ---------------------------------------------------------------- */

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
		fd = must(open("/proc/interrupts", O_RDONLY | O_CLOEXEC));
	while ((n = must(pread(fd, text + size, sizeof(text) - 1 - size, size))))
		size += n;
	text[size] = 0;
	line = strstr(text, "CAL:");
	if (!line || sscanf(line, "CAL: %*d %ld %ld", &one, &two) != 2)
		fail("/proc/interrupts has no CAL line");
	return one + two;
}

/* ---- scenarios ----------------------------------------------------------- */

/* Without this the rest would prove nothing: CPU numbers here and there agree. */
void marks_name_cpus(void)
{
	int cpu;

	for (cpu = 0; cpu < CPUS; cpu++) {
		must(pin(0, cpu));
		phase("a mark on CPU %d", cpu);
		expected.by = cpu;
		phase_end();
	}
	must(pin(0, 0));
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
		fail("WBINVDs on CPU 3 interrupt CPUs " OTHER_CPUS ", %s", why);
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

	v = noncoherent_vm(&vm, group, 3);
	wbinvds_without_ipi(v, vcpu_enter, true, "a vCPU that never left its CPU");
}

struct vcpu *vcpu_with_debt(struct vm *vm)
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
	int group = group_open(0), container = must(open_container());

	phase("ADD and SET_CONTAINER, no IOMMU yet: nothing is flushed");
	file_add(&vm, group);
	must(group_join(group, container));
	phase_end();
	phase_skipped(v, 2, "a container without an IOMMU");

	phase("SET_IOMMU pays the owed flush on CPUs 1 and 2");
	must(container_set_iommu(container));
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
	must(group_join(group, container));
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
	must(group_leave(group));
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

static void first_wbinvd_reaches_all(struct vcpu *v, int cpu, const char *which)
{
	int i;

	phase("%s's first WBINVD reaches all CPUs", which);
	vcpu_enter(v);
	vcpu_wbinvd(v, cpu);
	for (i = 0; i < CPUS; i++)
		expect_flush(i);
	vcpu_leave(v);
	phase_end();
	phase_executed(v, cpu, which);
}

/* A VM whose vCPU has skipped a WBINVD on @cpu, and which tracks the attached group then */
static struct vcpu *next_vm(struct vm *vm, int group, int cpu)
{
	struct vcpu *v;

	vm_create(vm);
	device_create(vm);
	v = vcpu_create(vm, cpu);
	phase_skipped(v, cpu, "the next VM tracks nothing yet");
	phase("ADD by the next VM pays what that VM owes, on CPU %d", cpu);
	file_add(vm, group);
	expect_flush(cpu);
	phase_end();
	return v;
}

/* A monitor replaces itself: the guest stops in one VM and goes on in another one. */
static void handed_over(void)
{
	struct vm old, new;
	struct vcpu *v, *w, *later;
	int group = group_open(0);

	v = noncoherent_vm(&old, group, 1);
	w = next_vm(&new, group, 2);

	phase("the guest goes on in the old VM, on CPU 3, and is stopped: no flush");
	vcpu_run_on(v, 3);
	phase_end();
	first_wbinvd_reaches_all(w, 2, "the new VM's vCPU");

	phase("the old VM lets go: no flush");
	file_del(&old, group);
	phase_end();
	phase_executed(w, 2, "of the new VM");
	later = vcpu_create(&new, 3);
	first_wbinvd_reaches_all(later, 3, "a vCPU that comes later");
}

/* The old VM lets go before the new one is there: the monitor executes the new one. */
static void handed_over_later(void)
{
	struct vm old, new, last;
	struct vcpu *v, *w, *x;
	int group = group_open(0);

	v = noncoherent_vm(&old, group, 1);
	phase("the guest has run on CPU 3, and its VM lets go: no flush");
	vcpu_run_on(v, 3);
	close(old.dev);
	old.dev = -1;
	phase_end();

	w = next_vm(&new, group, 2);
	first_wbinvd_reaches_all(w, 2, "the new VM's vCPU");

	phase("the new VM lets go, and tracks it again: what it owes is on CPU 2");
	file_del(&new, group);
	file_add(&new, group);
	expect_flush(2);
	phase_end();
	phase_executed(w, 2, "of the same VM");

	file_del(&new, group);
	must(group_leave(group));
	group_attach(group);
	/* It was detached meanwhile. */
	x = next_vm(&last, group, 1);
	phase_executed(x, 1, "of a VM that inherits nothing");
}

/* A non-coherent VM with one vCPU that has run on CPU 1 only. */
static struct vcpu *noncoherent_vcpu(struct vm *vm, int group)
{
	struct vcpu *v = noncoherent_vm(vm, group, 1);

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
	must(group_leave(group));
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
	{ "change during a WBINVD", changed_during_a_wbinvd },
	{ "change while running", running_during_the_change },
	{ "two vCPUs", two_vcpus },
	{ "a second VM", second_vm },
	{ "handed over to a new VM", handed_over },
	{ "handed over to a VM that comes later", handed_over_later },
	{ "the last group leaves by DEL", leave_by_del },
	{ "the last group leaves by UNSET_CONTAINER", leave_by_unset },
	{ "the last group leaves by closing the device", leave_by_close },
	{ "the last group leaves by process death", leave_by_death },
	{ "attached by another process", attached_by_another_process },
	{ "hot-unplug of a CPU used before", unplug_a_noted_cpu },
	{ "change with a CPU offline", change_with_a_cpu_offline },
	{ "hot-unplug under a running vCPU", unplug_under_a_running_vcpu },
	{ "WBINVD while a CPU is on its way down", unplug_held_halfway },
};

/* Its argument: a module as above, or preempt=full as the kernel has it. */
int main(int argc, char **argv)
{
	if (argc == 1)
		return run_scenarios(scenarios + 1, (int)ARRAY_SIZE(scenarios) - 1, NULL);
	if (!strcmp(argv[1], "preempt=full"))
		return run_scenarios(scenarios, (int)ARRAY_SIZE(scenarios), NULL);
	load(argv[1], "");
	return run_scenarios(no_exit_scenarios, no_exit_count, NULL);
}
