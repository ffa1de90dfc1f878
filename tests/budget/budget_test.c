// SPDX-License-Identifier: GPL-2.0-only
/*
 * A budget for a guest's WBINVDs: wbinvd_budget and KVM_CAP_X86_WBINVD_LIMIT
 *
 * Runs in the svm lab with four CPUs and two edu devices, snoop control off; what is
 * seen and how is described in wbinvd_phase.h.
 *
 * What must hold of a non-coherent VM with a budget:
 *
 *  - While the bucket is empty, its WBINVD neither flushes nor ends.
 *  - Once there is something in it, or no limit any more, the WBINVD is executed on
 *    every CPU noted for the vCPU, once; all that wait then share that.
 *  - Signals, immediate_exit, events for the guest, death, changes of memslots and of
 *    the device do not wait for the bucket, and neither does the owed flush.
 *  - A vCPU that waits sleeps. How long, and how that ended, is told and counted.
 *
 * The emulator has no caches, and a WBINVD costs nothing. So hold.ko makes the first one
 * take SPENT_MS, and at 1 per mille the next has to wait a thousand times that: longer
 * than any test runs, so that what comes of a wait does not depend on how fast this is.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>

#include "budget.h"
#include "hold.h"
#include "vm.h"

#define SPENT_MS	"for_ms=500"

static struct vm vm, other;

/* A non-coherent VM whose vCPU on CPU 1 has used up what both limits allow */
static struct vcpu *spent(int budget, int limit)
{
	struct vcpu *v = vm_create(&vm, 1);

	set_budget(budget);
	if (limit)
		set_wbinvd_limit(vm.fd, limit);
	hold_at(wbinvd_function(), SPENT_MS);
	phase("a WBINVD uses up the budget");
	begin(v, 1);
	expected.guest[1] = 1;
	expect_flush(1);
	end(v);
	phase_end();
	unload("hold");
	return v;
}

/* As spent(), and the next WBINVD waits. */
static struct vcpu *waiting(int budget, int limit)
{
	struct vcpu *v = spent(budget, limit);

	phase("the next one waits");
	begin(v, 1);
	wait_count(&vm, "wbinvd_delays", 1);
	expected.guest[1] = 1;
	phase_end();
	return v;
}

/* For 0.3 s, of which its thread needs next to nothing to look how things are. */
static void must_wait_still(struct vcpu *v, const char *why)
{
	double cpu = vcpu_thread_cpu_time(&v->thread), start = now();
	int value;

	sleep_ms(300);
	cpu = vcpu_thread_cpu_time(&v->thread) - cpu;
	if (cpu > (now() - start) / 2)
		fail("for %.3f of %.3f s the WBINVD does not sleep: %s", cpu, now() - start, why);
	sem_getvalue(&v->thread.stopped, &value);
	if (value || READ(v->box->done) != 1)
		fail("the WBINVD does not wait any more: %s", why);
}

/* The @n-th wait of the VM is the one that @v is in. */
static void wait_begun(struct vcpu *v, int n)
{
	wait_count(&vm, "wbinvd_delays", n);
	v->wait.begun = now();
}

/* What is traced is the last wait of @v, by what this test could see of it. */
static void must_be_wait_of(struct vcpu *v, const struct delay *delay, const char *end)
{
	double least = v->wait.ending - v->wait.begun, most = v->wait.left - v->wait.entered;
	double s = delay->ns / 1e9;

	if (delay->vcpu != v->id || strcmp(delay->end, end))
		fail("vCPU %d is traced, %s; not vCPU %d, %s", delay->vcpu, delay->end, v->id, end);
	if (s < least || s > most)
		fail("%.6f s are traced of a wait of %.6f to %.6f s", s, least, most);
}

/* The one WBINVD that @v waits with is executed, on CPU 1 alone. */
static void phase_released(struct vcpu *v, int budget)
{
	phase("without a limit it is executed");
	set_budget(budget);
	end(v);
	expect_flush(1);
	phase_end();
	if (READ(v->box->done) != 2)
		fail("%u WBINVDs are done", READ(v->box->done));
}

/* ---- limits -------------------------------------------------------------- */

#define MANY	50

static void unlimited(void)
{
	struct vcpu *v = vm_create(&vm, 1);
	long long budget = get_number(BUDGET);

	if (budget != 0 && budget != -ENOENT)
		fail("wbinvd_budget is %lld", budget);
	phase("%d WBINVDs without a limit", MANY);
	begin(v, MANY);
	end(v);
	expected.guest[1] = MANY;
	expect_flushes(1, MANY);
	phase_end();
}

static void arguments(void)
{
	static const struct {
		uint32_t flags;
		uint64_t args[4];
	} bad[] = {
		{ 1, { 1 } }, { 0, { 1001 } }, { 0, { 1ULL << 32 } }, { 0, { -1ULL } },
		{ 0, { 1, 1 } }, { 0, { 1, 0, 1 } }, { 0, { 1, 0, 0, 1 } }, { 0, { 0, 1 } },
	};
	static const int good[] = { 0, 1, 1000, 10, 0 };
	static const char * const no_budget[] = { "-1", "1001", "x", " ", "4294967296", "1 2" };
	unsigned int i;
	long has;

	vm_create(&vm, 1);
	has = must(ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_X86_WBINVD_LIMIT));
	if (has != 1)
		fail("KVM_CHECK_EXTENSION returns %ld", has);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		int ret = try_wbinvd_limit(vm.fd, bad[i].flags, bad[i].args[0],
					   bad[i].args[1], bad[i].args[2], bad[i].args[3]);

		if (ret != -EINVAL)
			fail("bad argument %u: %s", i, strerror(-ret));
	}
	for (i = 0; i < ARRAY_SIZE(good); i++) {
		set_wbinvd_limit(vm.fd, good[i]);
		set_budget(good[i]);
		if (get_number(BUDGET) != good[i])
			fail("wbinvd_budget is not what was written");
	}
	for (i = 0; i < ARRAY_SIZE(no_budget); i++)
		if (put(BUDGET, "%s", no_budget[i]) >= 0)
			fail("wbinvd_budget takes \"%s\"", no_budget[i]);
	if (put(BUDGET, "1001") != -EINVAL)
		fail("1001 is not EINVAL");
	if (get_number(BUDGET) != 0)
		fail("wbinvd_budget changed");
}

static void by_parameter(void)
{
	struct vcpu *v = waiting(1, 0);

	must_wait_still(v, "nothing happened");
	phase_released(v, 0);
}

static void by_capability(void)
{
	struct vcpu *v = waiting(0, 1);

	phase("without a limit of its own it is executed");
	set_wbinvd_limit(vm.fd, 0);
	end(v);
	expect_flush(1);
	phase_end();
}

/* Whichever is lower */
static void lower_limit_counts(void)
{
	struct vcpu *v = waiting(1000, 1);

	set_budget(0);
	must_wait_still(v, "a limit of its own is left");
	set_budget(1);
	set_wbinvd_limit(vm.fd, 1000);
	must_wait_still(v, "wbinvd_budget is lower");
	set_wbinvd_limit(vm.fd, 0);
	must_wait_still(v, "wbinvd_budget is left");
	phase_released(v, 0);
}

/*
 * A tenth of the time, so a second saves 100 ms, and what is used up beyond that is paid
 * back in ten times as much time: half a second here, or more if the first one took longer.
 * Returns whether the second one began soon after that, which depends on the machine, too.
 */
static bool is_paid_in_time(struct vcpu *v, int nth)
{
	double before = count(&vm, "wbinvd_flush_ns") / 1e9, paid, price;
	struct delay delay;

	hold_at(wbinvd_function(), "for_ms=150");
	phase("a WBINVD uses up the budget, the next waits until time has paid for it");
	begin(v, 2);
	wait_begun(v, nth);
	price = count(&vm, "wbinvd_flush_ns") / 1e9 - before;
	if (count(&vm, "wbinvd_flushes") != 2 * nth - 1)
		price = 0;		/* the second one is in it: this test was slow */
	v->wait.ending = v->wait.begun;
	end(v);
	expected.guest[1] = 2;
	expect_flushes(1, 2);
	phase_end();
	unload("hold");
	read_delays(&vm, &delay, 1);
	must_be_wait_of(v, &delay, "executed");
	if (!price)
		return false;

	if (price < 0.15)
		fail("the flush took %.6f s, it is said", price);
	paid = v->wait.entered + price + (price - 0.1) * 10;
	if (v->wait.left < paid)
		fail("the second one has ended %.6f s too early", paid - v->wait.left);
	if (delay.ns / 1e9 < paid - v->wait.begun)
		fail("%.6f s are traced, %.6f s too few", delay.ns / 1e9,
		     paid - v->wait.begun - delay.ns / 1e9);
	return delay.ns / 1e9 < (price - 0.1) * 50;
}

static void wait_ends(void)
{
	struct vcpu *v = vm_create(&vm, 1);

	set_budget(100);
	trace_delays();
	if (is_paid_in_time(v, 1))
		return;
	/* Was it the machine? Here no more can be saved than is. */
	sleep_ms(1500);
	if (!is_paid_in_time(v, 2))
		fail("what has been used up is paid back in far more time than it should");
}

/* A limit that is never reached: nothing is delayed, and nothing left out. */
static void within_the_limit(void)
{
	struct vcpu *v = vm_create(&vm, 1);

	set_budget(1000);
	phase("%d WBINVDs with all time allowed", MANY);
	begin(v, MANY);
	end(v);
	expected.guest[1] = MANY;
	expect_flushes(1, MANY);
	phase_end();
	if (count(&vm, "wbinvd_delays") || !count(&vm, "wbinvd_flush_ns"))
		fail("%lld were delayed, their flushes took %lld ns",
		     count(&vm, "wbinvd_delays"), count(&vm, "wbinvd_flush_ns"));
}

/* One VM's budget is not another's. */
static void another_vm(void)
{
	struct vcpu *v = waiting(1, 0), *w;
	int cpu;

	memset(&other, 0, sizeof(other));
	other.fd = create_vm();
	other.mem = vm.mem;
	must(ioctl(other.fd, KVM_CREATE_IRQCHIP, 0));
	add_memory(other.fd, 0, 0, 0x10000, other.mem);
	other.n_vcpus = 1;		/* a box of its own */
	other.dev = must(kvm_vfio_create(other.fd));
	must(kvm_vfio_add(other.dev, vm.group));
	w = vcpu_create(&other, 2);
	/* It tracks the group that the first one tracks, and may go on with its guest. */
	phase("another VM's WBINVD is executed, the first one on all CPUs");
	begin(w, 1);
	end(w);
	expected.guest[2] = 1;
	for (cpu = 0; cpu < CPUS; cpu++)
		expect_flush(cpu);
	phase_end();
	phase("the second one where its vCPU runs");
	begin(w, 1);
	end(w);
	expected.guest[2] = 1;
	expect_flush(2);
	phase_end();
	must_wait_still(v, "another VM's was executed");
	phase_released(v, 0);
}

/* ---- what does not wait for the bucket ----------------------------------- */

#define SIGNALS	3

static void signals(void)
{
	struct vcpu *v = spent(1, 0);
	struct delay delay;
	int i;

	trace_delays();
	WRITE(v->box->todo, 1);
	for (i = 1; i <= SIGNALS; i++) {
		phase("a signal ends KVM_RUN before the WBINVD, which has waited");
		resume(v);
		wait_begun(v, i);
		sleep_ms(50);
		v->wait.ending = now();
		interrupt(v);
		end_interrupted(v, WBINVD_AT);
		expected.guest[1] = 1;
		phase_end();
		read_delays(&vm, &delay, 1);
		must_be_wait_of(v, &delay, "interrupted");
	}
	phase("it waits again");
	resume(v);
	wait_begun(v, i);
	expected.guest[1] = 1;
	phase_end();
	must_wait_still(v, "it was interrupted");
	v->wait.ending = now();
	phase_released(v, 0);
	read_delays(&vm, &delay, 1);
	must_be_wait_of(v, &delay, "executed");
	/* Each time that the guest has begun with it, and what has come of it */
	if (count(&vm, "wbinvd_exits") != 1 + SIGNALS + 1 || count(&vm, "wbinvd_flushes") != 2)
		fail("%lld exits and %lld flushes", count(&vm, "wbinvd_exits"),
		     count(&vm, "wbinvd_flushes"));
}

static void immediate_exit(void)
{
	struct vcpu *v = waiting(1, 0);

	phase("immediate_exit and a signal end KVM_RUN, and it does not begin again");
	v->thread.run->immediate_exit = 1;
	interrupt(v);
	end_interrupted(v, WBINVD_AT);
	resume(v);
	end_interrupted(v, WBINVD_AT);
	phase_end();

	phase("without it the WBINVD waits again");
	v->thread.run->immediate_exit = 0;
	resume(v);
	wait_count(&vm, "wbinvd_delays", 2);
	expected.guest[1] = 1;
	phase_end();
	phase_released(v, 0);
}

/* User space may have gone elsewhere: nothing of the wait is left. */
static void elsewhere_after_a_signal(void)
{
	struct vcpu *v = waiting(1, 0);
	struct kvm_regs regs;

	phase("what is executed after the interruption is not the WBINVD");
	interrupt(v);
	end_interrupted(v, WBINVD_AT);
	must(ioctl(v->thread.fd, KVM_GET_REGS, &regs));
	regs.rip = WBINVD_AT + 2;
	must(ioctl(v->thread.fd, KVM_SET_REGS, &regs));
	resume(v);
	end(v);
	phase_end();
	if (READ(v->box->done) != 2)
		fail("the guest did not go on where it was told");
}

static void nmis(void)
{
	struct vcpu *v = waiting(1, 0);
	double limit = now() + SCENARIO_LIMIT / 2;
	uint32_t n;

	for (n = 1; n <= 3; n++) {
		phase("an NMI is served, and the WBINVD begins again");
		send_msi(vm.fd, MSI_NMI);
		while (READ(v->box->nmis) != n)
			if (now() > limit)
				fail("the NMI waits for the budget");
		wait_count(&vm, "wbinvd_delays", 1 + n);
		expected.guest[1] = 1;
		phase_end();
	}
	must_wait_still(v, "there were NMIs");
	phase_released(v, 0);
}

static void wait_interrupts(struct vcpu *v, uint32_t n, const char *what)
{
	double limit = now() + SCENARIO_LIMIT / 2;

	while (READ(v->box->interrupts) < n) {
		if (now() > limit)
			fail("%s waits for the budget", what);
		sleep_ms(1);
	}
}

static void interrupts(void)
{
	struct vcpu *v = spent(1, 0);
	int n;

	take_interrupts(v, 0);
	phase("one that can be interrupted waits");
	begin(v, 1);
	wait_count(&vm, "wbinvd_delays", 1);
	expected.guest[1] = 1;
	phase_end();
	for (n = 1; n <= 3; n++) {
		phase("an interrupt is served, and the WBINVD begins again");
		send_msi(vm.fd, VECTOR);
		wait_interrupts(v, n, "an interrupt");
		wait_count(&vm, "wbinvd_delays", 1 + n);
		expected.guest[1] = 1;
		phase_end();
	}
	must_wait_still(v, "there were interrupts");
	phase_released(v, 0);
}

static void disabled_interrupts(void)
{
	struct vcpu *v = spent(1, 0);

	hold_interrupts(v);
	phase("one that cannot be interrupted waits, with an interrupt pending");
	begin(v, 1);
	wait_count(&vm, "wbinvd_delays", 1);
	send_msi(vm.fd, VECTOR);
	must_wait_still(v, "the guest takes no interrupt");
	expected.guest[1] = 1;
	phase_end();
	phase_released(v, 0);
	if (count(&vm, "wbinvd_delays") != 1 || READ(v->box->interrupts))
		fail("%lld waits, %u interrupts", count(&vm, "wbinvd_delays"),
		     READ(v->box->interrupts));
}

/* Each tick ends the wait, and the guest begins the WBINVD again. */
static void apic_timer(void)
{
	struct vcpu *v = spent(1, 0);
	long long exits = count(&vm, "wbinvd_exits");

	take_interrupts(v, 50);
	phase("a WBINVD waits, its guest has ticks meanwhile, and in the end it is executed once");
	begin(v, 1);
	wait_interrupts(v, 3, "the timer's interrupt");
	must_wait_still(v, "there were ticks");
	wait_interrupts(v, READ(v->box->interrupts) + 3, "one more of the timer");
	set_budget(0);
	end(v);
	exits = count(&vm, "wbinvd_exits") - exits;
	expected.guest[1] = exits;
	expect_flush(1);
	phase_end();
	if (READ(v->box->done) != 2)
		fail("%u WBINVDs are done", READ(v->box->done));
}

static void init(void)
{
	struct vcpu *v = waiting(1, 0);

	phase("INIT does not wait for the budget");
	send_msi(vm.fd, MSI_INIT);
	wait_sem(&v->thread.stopped, "INIT");
	if (v->thread.error || v->thread.run->exit_reason != KVM_EXIT_IO || v->thread.run->io.port != 0x81)
		fail("after INIT the vCPU stops with %s, exit reason %u",
		     strerror(v->thread.error), v->thread.run->exit_reason);
	phase_end();
}

/* Without the phases: only the process that counts them may have any. */
static void wait_unobserved(void)
{
	struct vcpu *v = vm_create(&vm, 1);

	set_budget(1);
	begin(v, 2);
	wait_count(&vm, "wbinvd_delays", 1);
}

static void killed(void)
{
	pid_t pid;

	hold_at(wbinvd_function(), SPENT_MS);
	phase("a process with a waiting vCPU is killed");
	pid = fork_doomed(wait_unobserved);
	kill(pid, SIGKILL);
	must_die(pid, "a process whose vCPU waits");
	expected.guest[1] = 2;
	expect_flush(1);
	phase_end();
	unload("hold");
}

static sem_t returned;

static void *delete_memslot(void *unused __attribute__((unused)))
{
	add_memory(vm.fd, 1, 0, 0, NULL);
	sem_post(&returned);
	return NULL;
}

/* It waits for all who hold kvm->srcu. */
static void memslots(void)
{
	struct vcpu *v = waiting(1, 0);

	phase("deleting a memslot does not wait for the budget");
	sem_init(&returned, 0, 0);
	thread_on(0, delete_memslot);
	wait_sem(&returned, "deleting a memslot");
	phase_end();
	must_wait_still(v, "a memslot was deleted");
	phase_released(v, 0);
}

static void device_calls(void)
{
	struct vcpu *v = waiting(1, 0);
	char path[64], text[4096];
	int second = group_open(1);

	phase("fdinfo, ADD and DEL do not wait for the budget");
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", vm.dev);
	if (get_text(path, text, sizeof(text)))
		fail("no fdinfo");
	must(kvm_vfio_add(vm.dev, second));
	must(kvm_vfio_del(vm.dev, second));
	phase_end();
	must_wait_still(v, "other files came and went");

	phase("when the VM becomes coherent, the WBINVD is skipped");
	must(kvm_vfio_del(vm.dev, vm.group));
	end(v);
	phase_end();
}

static void closing(void)
{
	struct vcpu *v = waiting(1, 0);

	phase("closing the device makes the VM coherent: the WBINVD is skipped");
	close(vm.dev);
	end(v);
	phase_end();
}

static void owed_flush(void)
{
	struct vcpu *v = spent(1, 0);

	phase("DEL flushes nothing, and ADD pays what is owed, the budget being used up");
	must(kvm_vfio_del(vm.dev, vm.group));
	must(kvm_vfio_add(vm.dev, vm.group));
	expect_flush(1);
	phase_end();
	if (count(&vm, "wbinvd_delays"))
		fail("the owed flush was delayed");

	phase("the guest's next one waits");
	begin(v, 1);
	wait_count(&vm, "wbinvd_delays", 1);
	expected.guest[1] = 1;
	phase_end();
	phase_released(v, 0);
}

/* ---- which CPUs ---------------------------------------------------------- */

static void moved_while_waiting(void)
{
	struct vcpu *v = waiting(1, 0);

	must(pin(v->thread.tid, 2));
	must_wait_still(v, "it was moved");
	phase("executed where it was dirtied and where it is now");
	set_budget(0);
	end(v);
	expect_flush(1);
	expect_flush(2);
	phase_end();

	phase("then only where it is now");
	begin(v, 1);
	end(v);
	expected.guest[2] = 1;
	expect_flush(2);
	phase_end();
}

/* Their WBINVDs, which wait for the same flush */
static void begin_both(struct vcpu *v, struct vcpu *w)
{
	begin(v, 1);
	wait_begun(v, 1);
	begin(w, 1);
	wait_begun(w, 2);
}

/* One has executed the flush, whichever looked first. */
static void must_have_shared(struct vcpu *v, struct vcpu *w)
{
	struct delay delays[2];
	int of_v;

	read_delays(&vm, delays, 2);
	of_v = delays[0].vcpu != v->id;
	if (!strcmp(delays[of_v].end, "executed")) {
		must_be_wait_of(v, &delays[of_v], "executed");
		must_be_wait_of(w, &delays[!of_v], "shared");
	} else {
		must_be_wait_of(v, &delays[of_v], "shared");
		must_be_wait_of(w, &delays[!of_v], "executed");
	}
}

static void shared_flush(void)
{
	struct vcpu *v = spent(1, 0), *w = vcpu_create(&vm, 2);

	/* One is noted for CPUs 1 and 3, the other for CPU 2. */
	must(pin(v->thread.tid, 3));
	trace_delays();
	phase("two vCPUs wait");
	begin_both(v, w);
	expected.guest[3] = 1;
	expected.guest[2] = 1;
	phase_end();

	phase("and share a flush on all of their CPUs");
	v->wait.ending = w->wait.ending = now();
	set_budget(0);
	end(v);
	end(w);
	expect_flush(1);
	expect_flush(2);
	expect_flush(3);
	phase_end();
	if (count(&vm, "wbinvd_shared") != 1 || count(&vm, "wbinvd_flushes") != 2)
		fail("%lld flushes, %lld shared", count(&vm, "wbinvd_flushes"),
		     count(&vm, "wbinvd_shared"));
	must_have_shared(v, w);

	phase("after it each is noted for its own CPU, wherever it goes");
	must(pin(v->thread.tid, 1));
	begin(v, 1);
	end(v);
	expected.guest[1] = 1;
	must(pin(w->thread.tid, 3));
	begin(w, 1);
	end(w);
	expected.guest[3] = 1;
	expect_flush(1);
	expect_flush(2);
	expect_flushes(3, 2);
	phase_end();

	phase("and for no other");
	begin(v, 1);
	end(v);
	expected.guest[1] = 1;
	expect_flush(1);
	begin(w, 1);
	end(w);
	expected.guest[3] = 1;
	expect_flush(3);
	phase_end();
}

/* The other one looks what there is, and finds it being executed. */
static void long_shared_flush(void)
{
	struct vcpu *v = spent(1, 0), *w = vcpu_create(&vm, 2);

	phase("two vCPUs wait");
	begin_both(v, w);
	expected.guest[1] = 1;
	expected.guest[2] = 1;
	phase_end();

	hold_at(wbinvd_function(), SPENT_MS);
	phase("and share one flush, though it takes long");
	set_budget(0);
	end(v);
	end(w);
	expect_flush(1);
	expect_flush(2);
	phase_end();
	unload("hold");
}

/* It may have written since, on a CPU that has been flushed by now. */
static void begins_during_a_flush(void)
{
	struct vcpu *v = vm_create(&vm, 1), *w = vcpu_create(&vm, 2);

	set_budget(1000);
	hold_at(wbinvd_function(), "");
	phase("one that begins during another one's flush has its own");
	begin(v, 1);
	wait_until(somebody_is_held, "a flush");
	begin(w, 1);
	wait_count(&vm, "wbinvd_delays", 1);
	let_go();
	end(v);
	end(w);
	expected.guest[1] = 1;
	expected.guest[2] = 1;
	expect_flush(1);
	expect_flush(2);
	phase_end();
	unload("hold");
}

/* What two of them waited for is skipped, and owed when the VM becomes non-coherent. */
static void shared_skip(void)
{
	struct vcpu *v = spent(1, 0), *w = vcpu_create(&vm, 2);

	must(pin(v->thread.tid, 3));
	phase("two vCPUs wait until the VM becomes coherent, and nothing is flushed");
	begin_both(v, w);
	must(kvm_vfio_del(vm.dev, vm.group));
	end(v);
	end(w);
	expected.guest[3] = 1;
	expected.guest[2] = 1;
	phase_end();

	phase("ADD pays what is owed on all of their CPUs");
	must(kvm_vfio_add(vm.dev, vm.group));
	expect_flush(1);
	expect_flush(2);
	expect_flush(3);
	phase_end();
}

/* One that has stopped waiting is not served by what the others do. */
static void not_shared_if_interrupted(void)
{
	struct vcpu *v = spent(1, 0), *w = vcpu_create(&vm, 2);

	phase("two vCPUs wait, and one is interrupted");
	begin_both(v, w);
	interrupt(w);
	end_interrupted(w, WBINVD_AT);
	expected.guest[1] = 1;
	expected.guest[2] = 1;
	phase_end();
	phase_released(v, 0);

	phase("it executes its own, on its CPU");
	resume(w);
	end(w);
	expected.guest[2] = 1;
	expect_flush(2);
	phase_end();
}

/* ---- the emulator -------------------------------------------------------- */

static void emulated(void)
{
	static const char force[] = "/sys/module/kvm/parameters/force_emulation_prefix";
	struct vcpu *v = spent(1, 0);

	must_put(force, "1");
	phase("one that is emulated waits");
	resume_at(v, EMULATED_WBINVD_AT - 5);
	wait_count(&vm, "wbinvd_delays", 1);
	phase_end();
	must_wait_still(v, "it is emulated");

	phase("a signal ends KVM_RUN before it");
	interrupt(v);
	end_interrupted(v, EMULATED_WBINVD_AT);
	phase_end();

	phase("emulated again, without a limit, it is executed");
	set_budget(0);
	run_at(v, EMULATED_WBINVD_AT - 5);
	expect_flush(1);
	phase_end();
	must_put(force, "0");
}

/* ---- what never ends a wait ---------------------------------------------- */

/* The WBINVD after the kick waits, once, and the kick is there for the HLT behind it. */
static void waits_once(struct vcpu *v)
{
	phase("one that was kicked waits");
	resume_at(v, KICKED_AT);
	wait_count(&vm, "wbinvd_delays", 1);
	must_wait_still(v, "a kick is for HLT");
	expected.guest[1] = 1;
	phase_end();
	if (count(&vm, "wbinvd_delays") != 1)
		fail("it began to wait %lld times", count(&vm, "wbinvd_delays"));
}

static void kicked(void)
{
	struct vcpu *v = spent(1, 0);

	waits_once(v);
	phase_released(v, 0);
}

static void hidden_registers(void)
{
	struct vcpu *v;

	load("protect.ko", "");
	v = spent(1, 0);
	waits_once(v);
	phase("an NMI does not end its wait");
	send_msi(vm.fd, MSI_NMI);
	must_wait_still(v, "there is an NMI");
	phase_end();
	phase("a signal ends its wait, and it is executed");
	interrupt(v);
	expect_flush(1);
	end_interrupted(v, KICKED_AT + 17);
	phase_end();
	resume(v);
	end(v);
	if (READ(v->box->nmis) != 1)
		fail("it has got %u NMIs", READ(v->box->nmis));
}

/* ---- main ---------------------------------------------------------------- */

SCENARIO(unlimited)
SCENARIO(arguments)
SCENARIO(by_parameter)
SCENARIO(by_capability)
SCENARIO(lower_limit_counts)
SCENARIO(wait_ends)
SCENARIO(within_the_limit)
SCENARIO(another_vm)
SCENARIO(signals)
SCENARIO(immediate_exit)
SCENARIO(elsewhere_after_a_signal)
SCENARIO(nmis)
SCENARIO(interrupts)
SCENARIO(disabled_interrupts)
SCENARIO(apic_timer)
SCENARIO(init)
SCENARIO(killed)
SCENARIO(memslots)
SCENARIO(device_calls)
SCENARIO(closing)
SCENARIO(owed_flush)
SCENARIO(moved_while_waiting)
SCENARIO(shared_flush)
SCENARIO(long_shared_flush)
SCENARIO(begins_during_a_flush)
SCENARIO(shared_skip)
SCENARIO(not_shared_if_interrupted)
SCENARIO(emulated)
SCENARIO(kicked)
SCENARIO(hidden_registers)

static const struct scenario scenarios[] = {
	{ "no limit by default", run_unlimited },
	{ "arguments", run_arguments },
	{ "limited by the parameter", run_by_parameter },
	{ "limited by the capability", run_by_capability },
	{ "the lower limit counts", run_lower_limit_counts },
	{ "a wait ends", run_wait_ends },
	{ "within the limit", run_within_the_limit },
	{ "another VM", run_another_vm },
	{ "signals", run_signals },
	{ "immediate_exit", run_immediate_exit },
	{ "elsewhere after a signal", run_elsewhere_after_a_signal },
	{ "NMIs", run_nmis },
	{ "interrupts", run_interrupts },
	{ "interrupts that are disabled", run_disabled_interrupts },
	{ "the APIC's timer", run_apic_timer },
	{ "INIT", run_init },
	{ "killed while it waits", run_killed },
	{ "memslots", run_memslots },
	{ "calls of the device", run_device_calls },
	{ "closing the device", run_closing },
	{ "the owed flush", run_owed_flush },
	{ "moved while it waits", run_moved_while_waiting },
	{ "a shared flush", run_shared_flush },
	{ "a shared flush that takes long", run_long_shared_flush },
	{ "begun during a flush", run_begins_during_a_flush },
	{ "skipped while two wait", run_shared_skip },
	{ "not shared if interrupted", run_not_shared_if_interrupted },
	{ "emulated", run_emulated },
	{ "kicked", run_kicked },
	{ "hidden registers", run_hidden_registers },
	{ "WBNOINVD", run_wbnoinvd },
	{ "WBNOINVD, with a budget", run_wbnoinvd_within_budget },
	{ "WBNOINVD, emulated", run_wbnoinvd_emulated },
	{ "WBNOINVD, handed over", run_wbnoinvd_inherited },
	{ "WBNOINVD in a guest without it", run_wbnoinvd_not_told },
	{ "WBINVD with other prefixes", run_other_prefixes },
	{ "WBNOINVD on a processor without it", run_no_wbnoinvd },
};

int main(void)
{
	return run_scenarios(scenarios, (int)ARRAY_SIZE(scenarios), NULL);
}
