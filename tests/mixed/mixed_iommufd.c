// SPDX-License-Identifier: GPL-2.0-only
/*
 * Cases of mixed_test with iommufd: a thread is held by hold.ko on the second CPU while it
 * attaches a device, or takes it off.  What VM 0 is then is in debugfs.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hold.h"
#include "iommufd.h"
#include "mixed.h"

/* The fixture's IOMMU driver attaches a device, of which DMA is possible from then on. */
#define ATTACHES	"vfio_testdev:testdev_attach_dev"
#define ATTACHES_PASID	"vfio_testdev:testdev_set_dev_pasid"

#define MAY		"/sys/module/vfio/parameters/noncoherent"

static int uffd = NONE, iommufd = NONE, opened[3] = { NONE, NONE, NONE };

/* What the calls are about that other threads make */
static int their_file = NONE;
static uint32_t their_pt;

static int call_attach(void)
{
	return call(device_file_attach(their_file, &their_pt));
}

static int call_detach(void)
{
	return call(device_file_detach(their_file));
}

static int call_bind(void)
{
	return call(device_file_bind(opened[2], iommufd));
}

static int call_close(void)
{
	int file = opened[0];

	opened[0] = NONE;
	return call(close(file));
}

void release_answer(void)
{
	close_fd(&uffd);
}

void tear_down_iommufd(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(opened); i++)
		close_fd(&opened[i]);
	close_fd(&iommufd);
	put(LAX, "0");
	put(MAY, "allow");
}

/* Nothing remaps interrupts, of which these devices have none. */
static void begin_with_iommufd(void)
{
	test_readable();
	begin("opening an iommufd");
	must_put("/sys/module/iommufd/parameters/allow_unsafe_interrupts", "1");
	iommufd = open_iommufd();
}

static int open_bound(int place, int id)
{
	opened[place] = device_file(id);
	must(device_file_bind(opened[place], iommufd));
	return opened[place];
}

static void track_theirs(int file)
{
	their_file = file;
	must(kvm_vfio_add(vms[0].device, file));
}

/* OPTIONS say whether the driver has been called, or has returned. */
static void held_while(int (*their_call)(void), const char *function, const char *options,
		       bool noncoherent, bool then)
{
	hold_with(their_call, function, options);
	if (debugfs_flag(0) != noncoherent)
		fail("the VM is %scoherent", noncoherent ? "" : "non-");
	goes_on();
	expect_result(held.result, 0);
	if (debugfs_flag(0) != then)
		fail("the VM is %scoherent when the call has returned", then ? "" : "non-");
}

static void test_attached(void)
{
	int id = plug(false, NONE);

	begin_with_iommufd();
	their_pt = new_ioas(iommufd);
	track_theirs(open_bound(0, id));
	begin("a device is about to be attached");
	held_while(call_attach, ATTACHES, "", true, true);
	begin("a device is about to be detached");
	held_while(call_detach, ATTACHES, "", true, false);
}

/* By its group's file, to the IOAS of the container that an iommufd is */
static int call_open_device(void)
{
	char name[40];

	snprintf(name, sizeof(name), "vfio_testdev.%d", their_file);
	opened[1] = call(ioctl(opened[0], VFIO_GROUP_GET_DEVICE_FD, name));
	return opened[1] < 0 ? opened[1] : 0;
}

static void test_opened_by_group(void)
{
	int id = plug(false, NONE);

	begin_with_iommufd();
	opened[0] = must_open_group(testdev_group_number(id));
	must(group_join(opened[0], iommufd));
	must(container_set_iommu(iommufd));
	must(kvm_vfio_add(vms[0].device, opened[0]));
	their_file = id;
	begin("a device that is opened is about to be attached");
	held_while(call_open_device, ATTACHES, "skip=1", true, true);
}

/* Its own page table enforces coherency, the other one's does not. */
static void test_replaced(void)
{
	int good = plug(true, NONE), bad = plug(false, NONE);
	uint32_t own, other;

	begin_with_iommufd();
	own = new_ioas(iommufd);
	other = new_ioas(iommufd);
	must(device_file_attach(open_bound(1, bad), &other));
	track_theirs(open_bound(0, good));
	their_pt = own;
	expect_result(call_attach(), 0);
	if (debugfs_flag(0))
		fail("the device is not coherent");
	begin("a page table that enforces nothing is about to be attached");
	their_pt = other;
	held_while(call_attach, ATTACHES, "", true, true);
	begin("one that enforces coherency has been attached");
	their_pt = own;
	held_while(call_attach, ATTACHES, "at_return=1", true, false);
}

/* Its driver can access memory as soon as it is told. */
static void test_emulated(void)
{
	int id = get_number(TESTDEV "create");

	test_readable();
	must_put(TESTDEV "create", "1 emulated");
	iommufd = open_iommufd();
	their_pt = new_ioas(iommufd);
	track_theirs(open_bound(0, id));
	begin("an emulated device is about to be attached");
	held_while(call_attach, "vfio:vfio_iommufd_emulated_attach_ioas", "", true, true);
	begin("an emulated device is about to be detached");
	held_while(call_detach, "vfio:vfio_iommufd_emulated_detach_ioas", "", true, false);
}

static bool follower_waits_for_watchers(void)
{
	return sleeps_in(follower.tid, "iommufd_");
}

/* Three devices of a group: attaching the second is held while VM 0 is told. */
static void hold_attaching_after(void (*prepared)(void))
{
	int a = plug(false, NONE), b = plug(false, devices[a].group);
	int c = plug(false, devices[a].group);

	begin_with_iommufd();
	their_pt = new_ioas(iommufd);
	open_bound(0, a);
	track_theirs(open_bound(1, b));
	opened[2] = device_file(c);
	prepared();
	begin("attaching is held while it tells the VM");
	hold(call_attach, "kvm_arch_register_noncoherent_dma");
}

static void nothing(void)
{
}

static void hold_attaching(void)
{
	hold_attaching_after(nothing);
}

/* And another one ... */
static void hold_second(int (*meanwhile)(void))
{
	hold_attaching();
	begin("another device of the group meanwhile");
	start(&follower, meanwhile);
	wait_until(follower_waits_for_watchers, "it waits until the VM has been told");
	goes_on();
	begin("attaching goes on");
	expect_result(held.result, 0);
	join_caller(&follower);
	begin("another device of the group goes on");
	expect_result(follower.result, 0);
	if (debugfs_flag(0) != 1)
		fail("the VM is coherent");
}

static void test_closed(void)	{ hold_second(call_close); }
static void test_bound(void)	{ hold_second(call_bind); }

/* VM 0 tracks nothing any more. */
static void let_go_of_all(void)
{
	int id;

	tear_down_iommufd();
	for (id = 0; id < next_id; id++)
		if (devices[id].exists)
			unplug(id);
	expect_no_references();
}

/* The same by another process, which gets a signal while it waits */
static void test_bound_by_signalled(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(signals_to_waiters); i++) {
		before_signals();
		hold_attaching();
		start_waiter(&waiters[0], call_bind, "iommufd_");
		begin("signal %d to who binds it", signals_to_waiters[i]);
		signal_waiter(&waiters[0], signals_to_waiters[i], "iommufd_");
		goes_on();
		begin("attaching goes on");
		expect_result(held.result, 0);
		begin("binding goes on after signal %d", signals_to_waiters[i]);
		expect_end_by(&waiters[0], signals_to_waiters[i]);
		if (debugfs_flag(0) != 1)
			fail("the VM is coherent");
		begin("the device is bound, and can be attached");
		their_file = opened[2];
		expect_result(call_attach(), 0);
		must(kvm_vfio_del(vms[0].device, opened[1]));
		if (debugfs_flag(0))
			fail("the VM is non-coherent");
		let_go_of_all();
	}
}

/* Binding a device is held while VM 0 is told: its group is attached already, and now is not. */
static void test_detached_by_signalled(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(signals_to_waiters); i++) {
		int a, b;

		before_signals();
		a = plug(false, NONE);
		b = plug(false, devices[a].group);
		begin_with_iommufd();
		their_pt = new_ioas(iommufd);
		opened[2] = device_file(b);
		track_theirs(opened[2]);
		their_file = open_bound(0, a);
		expect_result(call_attach(), 0);
		begin("binding a device is held while it tells the VM");
		hold(call_bind, "kvm_arch_register_noncoherent_dma");
		begin("another device of the group is detached");
		start_waiter(&waiters[0], call_detach, "iommufd_");
		begin("signal %d to who detaches it", signals_to_waiters[i]);
		signal_waiter(&waiters[0], signals_to_waiters[i], "iommufd_");
		goes_on();
		begin("binding goes on");
		expect_result(held.result, 0);
		begin("detaching goes on after signal %d", signals_to_waiters[i]);
		expect_end_by(&waiters[0], signals_to_waiters[i]);
		if (debugfs_flag(0))
			fail("the VM is non-coherent");
		must(kvm_vfio_del(vms[0].device, opened[2]));
		let_go_of_all();
	}
}

static void start_closer(void)
{
	start_sleeper(&waiters[0]);
	close_fd(&opened[0]);
}

static bool end_waits_for_watchers(void)
{
	return waits_in(&waiters[0], "iommufd_");
}

/* By the end of a process that has been killed, and that had it alone */
static void test_closed_by_killed(void)
{
	before_signals();
	hold_attaching_after(start_closer);
	begin("who has another device of the group is killed");
	must(kill(waiters[0].pid, SIGKILL));
	wait_until(end_waits_for_watchers, "its end waits until the VM has been told");
	begin("it is killed once more");
	signal_waiter(&waiters[0], SIGKILL, "iommufd_");
	goes_on();
	begin("attaching goes on");
	expect_result(held.result, 0);
	begin("its end goes on");
	expect_end_by(&waiters[0], SIGKILL);
	if (debugfs_flag(0) != 1)
		fail("the VM is coherent");
	must(kvm_vfio_del(vms[0].device, opened[1]));
	if (debugfs_flag(0))
		fail("the VM is non-coherent");
	let_go_of_all();
}

static void need_lax(void)
{
	if (!access(LAX, F_OK))
		return;
	if (!kernel_before(7, 3))
		fail("the fixture has no " LAX);
	skip("Linux before 7.3 has neither such groups nor PASIDs");
}

/*
 * From Linux 7.3 on an IOMMU may attach a device that is not coherent with its group, and
 * that takes coherency away from all of it.  Make two of a group: GOOD, and one in OPENED[2].
 */
static void coherent_one_and_other(int *good)
{
	*good = plug(true, NONE);
	begin_with_iommufd();
	need_lax();
	must_put(LAX, "1");
	opened[2] = device_file(plug(false, devices[*good].group));
	their_pt = new_ioas(iommufd);
}

static void test_refused_meanwhile(void)
{
	int good;

	coherent_one_and_other(&good);
	must_put(MAY, "refuse");
	begin("binding a device that is not coherent is held");
	hold_with(call_bind, "iommu_device_claim_dma_owner", "at_return=1");
	track_theirs(open_bound(0, good));
	begin("a coherent device of its group is attached meanwhile");
	expect_result(call_attach(), 0);
	if (debugfs_flag(0))
		fail("the VM is non-coherent");
	goes_on();
	begin("binding goes on");
	expect_result(held.result, -EPERM);
	if (debugfs_flag(0))
		fail("the VM is non-coherent");
}

/* The one that is attached has been told nothing since: who binds the other one tells. */
static void test_bound_while_attached(void)
{
	int good;

	coherent_one_and_other(&good);
	track_theirs(open_bound(0, good));
	begin("a coherent device has just been attached");
	hold_with(call_attach, "iommu_attach_group_handle", "at_return=1");
	begin("a device of its group that is not coherent is bound meanwhile");
	expect_result(call_bind(), 0);
	if (debugfs_flag(0) != 1)
		fail("the VM is coherent");
	goes_on();
	begin("attaching goes on");
	expect_result(held.result, 0);
	if (debugfs_flag(0) != 1)
		fail("the VM is coherent");
}

static struct attach_pt *request;

static int call_attach_with_request(void)
{
	return call(ioctl(their_file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, request));
}

static bool answer_waits(void)
{
	return sleeps_in(held.tid, "handle_userfault");
}

/* Who attaches a device waits for where the answer goes to, and nobody for him. */
static void test_answer_waits(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	struct uffdio_register range = {
		.range.len = 4096, .mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect protect = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int id = plug(false, NONE);

	begin_with_iommufd();
	track_theirs(open_bound(0, id));
	/* Private: shared memory can be protected in some kernels only. */
	request = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (request == MAP_FAILED)
		fail("no memory");
	*request = (struct attach_pt){ sizeof(*request), 0, new_ioas(iommufd) };
	range.range.start = (uintptr_t)request;
	protect.range = range.range;
	uffd = must(syscall(SYS_userfaultfd, O_CLOEXEC));
	must(ioctl(uffd, UFFDIO_API, &api));
	must(ioctl(uffd, UFFDIO_REGISTER, &range));
	must(ioctl(uffd, UFFDIO_WRITEPROTECT, &protect));
	begin("attaching a device, with its answer write-protected");
	start(&held, call_attach_with_request);
	wait_until(answer_waits, "the answer waits");
	begin("detaching it meanwhile");
	start(&follower, call_detach);
	wait_until(follower_has_ended, "that does not wait");
	expect_result(follower.result, 0);
	if (debugfs_flag(0))
		fail("the VM is non-coherent");
	protect.mode = 0;
	must(ioctl(uffd, UFFDIO_WRITEPROTECT, &protect));
	begin("attaching goes on");
	join_caller(&held);
	expect_result(held.result, 0);
	if (debugfs_flag(0) != 1)
		fail("the VM is coherent");
}

/* A device refers to the VM that it was bound for, and to none that it could not be bound for. */
static void test_bound_twice(void)
{
	static const char references[] = "/sys/module/kvm/refcnt";
	int id = plug(false, NONE), i;
	long before;

	begin_with_iommufd();
	before = get_number(references);
	for (i = 0; i < 2; i++) {
		opened[i] = device_file(id);
		must(kvm_vfio_add(vms[i].device, opened[i]));
	}
	must(device_file_bind(opened[0], iommufd));
	if (get_number(references) != before + 1)
		fail("the device does not refer to its VM");
	begin("binding another file of a device that is bound");
	expect_result(call(device_file_bind(opened[1], iommufd)), -EINVAL);
	for (i = 0; i < 2; i++) {
		must(kvm_vfio_del(vms[i].device, opened[i]));
		close_fd(&opened[i]);
	}
	if (get_number(references) != before)
		fail("a VM is referred to for ever");
}

/* What a device is attached to without a PASID stays so.  Linux 7.3 has PASIDs, as it has LAX. */
static void test_pasid_untold(void)
{
	int id = plug(false, NONE), answer;

	begin_with_iommufd();
	need_lax();
	their_pt = new_pasid_table(iommufd, id, new_ioas(iommufd));
	track_theirs(open_bound(0, id));
	expect_result(call_attach(), 0);
	answer = must(memfd_create("answer", MFD_CLOEXEC));
	must(ftruncate(answer, 4096));
	request = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, answer, 0);
	if (request == MAP_FAILED)
		fail("no memory");
	*request = (struct attach_pt){ sizeof(*request), 1, their_pt, 1 };
	begin("attaching a device by a PASID, and its page table's ID cannot be written any more");
	hold(call_attach_with_request, ATTACHES_PASID);
	must(ftruncate(answer, 0));
	close(answer);
	goes_on();
	expect_result(held.result, -EFAULT);
	if (debugfs_flag(0) != 1)
		fail("it is attached to nothing any more");
	expect_result(call_detach(), 0);
	if (debugfs_flag(0))
		fail("it is attached by the PASID");
}

static const struct test tests[] = {
	{ "iommufd: a VM is told before, and after its device is detached", test_attached },
	{ "iommufd: the same of a device that is opened by its group", test_opened_by_group },
	{ "iommufd: a VM is told before a page table is replaced, or after", test_replaced },
	{ "iommufd: the same of an emulated device", test_emulated },
	{ "iommufd: a device is refused whose group is being attached", test_refused_meanwhile },
	{ "iommufd: one that is not coherent is bound while its group is attached",
	  test_bound_while_attached },
	{ "iommufd: nobody waits for where an answer goes to", test_answer_waits },
	{ "iommufd: a device that is bound is bound by another of its files", test_bound_twice },
	{ "iommufd: who attaches by a PASID cannot be told to what", test_pasid_untold },
	{ "iommufd: a device is closed while the VM of another one is told", test_closed },
	{ "iommufd: a device is bound while the VM of another one is told", test_bound },
	{ "iommufd: who binds it meanwhile gets a signal", test_bound_by_signalled },
	{ "iommufd: who has it is killed meanwhile", test_closed_by_killed },
	{ "iommufd: who detaches one meanwhile gets a signal", test_detached_by_signalled },
};

const struct suite iommufd_suite = SUITE(tests);
