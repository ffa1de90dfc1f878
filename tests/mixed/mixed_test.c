// SPDX-License-Identifier: GPL-2.0-only
/*
 * Coherent and non-coherent devices in one VM, in one container, in one group.
 *
 * Runs in the svm lab without its IOMMU, with vfio_testdev.ko beside it, whose
 * devices are coherent or not as asked, join a group and leave it; and with hold.ko,
 * which holds a thread on the second CPU. Every step is done for real and in a model;
 * after each one, all of this has to agree:
 *
 *  - the result of the system call,
 *  - each VM's flag: whether a guest's WBINVD reaches the CPU, which a kprobe in
 *    KVM counts,
 *  - what can be read back from each VM's device, of the VM and of every file, and
 *    from debugfs,
 *  - each container's VFIO_DMA_CC_IOMMU: all its domains enforce coherency,
 *  - which VM the driver of a device is told of when it is opened.
 *
 * The model knows nothing but the devices, and these rules:
 *
 *  - A file is attached while its group is in a container that has its IOMMU, and
 *    the file of a device while it is open. No other file is non-coherent.
 *  - A group's domain enforces coherency if the group had only coherent devices when
 *    it was attached, bound to VFIO or not. What joins a group later must fit into
 *    its domain and changes nothing, and nor does what leaves it.
 *  - A file may be tracked for any number of VMs, once for each. A driver is told of
 *    the one whose ADD of the group's file was the last, of those that still track it.
 *
 * A device's coherency is changed at any time on 6.1, where it counts from the next
 * attachment on. On 6.12 VFIO relies on it not to change while it matters, so that
 * is done while the device is not bound, or its group not attached.
 *
 * Output: KTAP. Usage: mixed_test [SEED [STEPS]], of the random walk; or mixed_test
 * iommufd, which has cases of its own, and no model.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "mixed.h"

/* ---- from case to case --------------------------------------------------- */

static void set_up(const struct test *test __attribute__((unused)))
{
	int i;

	walked = NONE;
	memset(files, 0, sizeof(files));
	next_id = 0;
	groups = 0;
	begin("set-up");
	for (i = 0; i < CONTAINERS; i++) {
		containers[i].fd = must(open_container());
		containers[i].iommu = false;
	}
	for (i = 0; i < VMS; i++)
		vms[i].device = must(create_device(i));
	readable = !kvm_vfio_attr(vms[0].device, KVM_HAS_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				  KVM_DEV_VFIO_STATE_VM, NULL);
}

static void *destroy_all(void *unused)
{
	put(TESTDEV "destroy", "all");
	return NULL;
}

/* Whatever the case has left. */
static void tear_down(void)
{
	pthread_t destroyer;
	int i;

	tear_down_held();
	for (i = 0; i < VMS; i++)
		close_fd(&vms[i].device);
	for (i = 0; i < FILES; i++)
		if (files[i].used)
			close_fd(&files[i].fd);
	for (i = 0; i < CONTAINERS; i++)
		close_fd(&containers[i].fd);
	if (leaving.started)
		must_join(leaving.thread, "unbinding a device that is closed");
	leaving.started = false;
	if (pthread_create(&destroyer, NULL, destroy_all, NULL))
		never_ends("destroying all devices, which has no thread");
	must_join(destroyer, "destroying all devices, which are closed");
}

/* ---- cases --------------------------------------------------------------- */

void test_readable(void)
{
	long flag = debugfs_flag(0);

	if (!readable)
		fail("the KVM device does not have KVM_DEV_VFIO_STATE");
	if (flag)
		fail("debugfs says %ld of a VM without devices", flag);
}

/* A device that is in the group all the time is given to VFIO, and taken away. */
static void test_bind_into_coherent(void)
{
	int a = plug(true, NONE), b = plug(false, devices[a].group);

	unbind_device(b);
	track(devices[a].group, 0);
	expect_noncoherent(0, true);
	bind_device(b);
	expect_noncoherent(0, true);
	unbind_device(b);
	expect_noncoherent(0, true);
	unplug(b);
	expect_noncoherent(0, true);
}

/* When the domain was chosen, all devices of the group were coherent. */
static void test_changed_then_bound(void)
{
	int a = plug(true, NONE), b = plug(true, devices[a].group), file;

	unbind_device(b);
	file = track(devices[a].group, 0);
	expect_noncoherent(0, false);
	set_coherent(b, false);
	expect_noncoherent(0, false);
	bind_device(b);
	expect_noncoherent(0, false);
	leave(file);
	expect_noncoherent(0, false);
	join(file, 0);
	set_iommu(0);
	expect_noncoherent(0, true);
	unbind_device(b);
	expect_noncoherent(0, true);
}

static void test_plug(void)
{
	int a = plug(true, NONE), group = devices[a].group, b, c, file;

	file = track(group, 0);
	expect_noncoherent(0, false);
	/* Its domain enforces coherency: no non-coherent device can come in. */
	if (plug(false, group) != NONE)
		fail("the IOMMU took it");
	expect_noncoherent(0, false);
	b = plug(true, group);
	expect_noncoherent(0, false);
	leave(file);
	c = plug(false, group);
	expect_noncoherent(0, false);
	join(file, 0);
	set_iommu(0);
	expect_noncoherent(0, true);
	if (plug(false, group) == NONE)
		fail("the IOMMU did not take it");
	expect_noncoherent(0, true);
	unplug(next_id - 1);
	expect_noncoherent(0, true);
	unplug(c);
	expect_noncoherent(0, true);
	unplug(b);
	unplug(a);
	expect_noncoherent(0, false);
}

/* All devices go: the group goes with them, its file stays. */
static void test_no_device_left(void)
{
	int a = plug(false, NONE), b = plug(true, devices[a].group);
	int file = track(devices[a].group, 0), i;

	expect_noncoherent(0, true);
	unbind_device(b);
	expect_noncoherent(0, true);
	unbind_device(a);
	expect_noncoherent(0, false);
	/* Twice: tracked from before, and tracked as a dead one. */
	for (i = 0; i < 2; i++) {
		add(0, file);
		add(1, file);
		join(file, 0);
		leave(file);
		set_iommu(0);
		open_group(devices[a].group);
		open_device(file, a);
		del(1, file);
		expect_noncoherent(0, false);
		del(0, file);
		expect_noncoherent(0, false);
		add(0, file);
		expect_noncoherent(0, false);
	}
	close_file(file);
	expect_noncoherent(0, false);
	reset(0);
	expect_noncoherent(0, false);
}

/* The group comes back, with a file of its own; the old one is tracked all the time. */
static void test_dead_and_new(void)
{
	int a = plug(false, NONE), old = track(devices[a].group, 0), new;

	unbind_device(a);
	expect_noncoherent(0, false);
	bind_device(a);
	expect_noncoherent(0, false);
	join(old, 0);
	new = open_group(devices[a].group);
	add(0, new);
	add(1, new);
	expect_noncoherent(0, false);
	join(new, 0);
	set_iommu(0);
	expect_noncoherent(0, true);
	del(0, old);
	expect_noncoherent(0, true);
	add(1, old);
	expect_noncoherent(1, true);
	del(0, new);
	expect_noncoherent(0, false);
	expect_noncoherent(1, true);
	close_file(old);
	expect_noncoherent(1, true);
	unbind_device(a);
	expect_noncoherent(1, false);
	bind_device(a);
	expect_noncoherent(0, track(devices[a].group, 1) != NONE);
}

/* A device is told to leave, and another one comes, while the first is still open. */
static void test_joins_while_one_leaves(void)
{
	int a = plug(false, NONE), b = plug(true, devices[a].group);
	int file, device, second;

	unbind_device(b);
	file = track(devices[a].group, 0);
	device = open_device(file, a);
	second = open_device(file, a);
	expect_noncoherent(0, true);
	begin_to_unbind(a);
	expect_noncoherent(0, true);
	close_file(device);
	expect_noncoherent(0, true);
	bind_device(b);
	expect_noncoherent(0, true);
	close_file(second);
	end_to_unbind();
	expect_noncoherent(0, true);
}

/* The group's only device has left its list, and is still open, when another one comes. */
static void test_joins_emptied_group(void)
{
	int a = plug(true, NONE), b = plug(true, devices[a].group), file, device;

	unbind_device(b);
	file = track(devices[a].group, 0);
	set_coherent(b, false);
	device = open_device(file, a);
	expect_noncoherent(0, false);
	begin_to_unbind(a);
	expect_noncoherent(0, false);
	bind_device(b);
	expect_noncoherent(0, false);
	close_file(device);
	end_to_unbind();
	expect_noncoherent(0, false);
	unbind_device(b);
	expect_noncoherent(0, false);
}

/* Device files of one group: all pass the group's domain, whose verdict counts. */
static void test_device_files(void)
{
	int a = plug(true, NONE), b = plug(false, devices[a].group);
	int file = track(devices[a].group, 0), coherent, noncoherent;

	coherent = open_device(file, a);
	noncoherent = open_device(file, b);
	expect_noncoherent(0, true);
	del(0, file);
	add(0, coherent);
	expect_noncoherent(0, !old_vfio);
	add(1, noncoherent);
	expect_noncoherent(1, !old_vfio);
	close_file(noncoherent);
	expect_noncoherent(1, !old_vfio);
	leave(file);
	reset(1);
	expect_noncoherent(1, false);
	leave(file);
	close_file(coherent);
	expect_noncoherent(0, !old_vfio);
	reset(0);
	leave(file);
	expect_noncoherent(0, false);
}

/* Each group is what its own domain is, whatever else is in the container. */
static void test_container_mixed(void)
{
	int a = plug(true, NONE), b = plug(false, NONE), file;

	track(devices[a].group, 0);
	file = open_group(devices[b].group);
	expect_noncoherent(0, false);
	join(file, 0);
	expect_noncoherent(0, false);
	add(1, file);
	expect_noncoherent(1, true);
	unbind_device(b);
	expect_noncoherent(0, false);
	expect_noncoherent(1, false);
}

/* The driver of device ID, opened from file F, is told of VM V or, for NONE, of none. */
static void expect_told(int f, int id, int v)
{
	int file = open_device(f, id), i;
	char path[100];
	long creator;

	snprintf(path, sizeof(path), TESTDEV "vfio_testdev.%d/kvm", id);
	creator = get_number(path);
	close_file(file);
	for (i = 0; i < VMS && vms[i].vm.creator != creator; i++)
		;
	if (i < VMS ? i != v : v != NONE || creator)
		fail("the driver is told of VM %d (%ld) instead of %d", i < VMS ? i : NONE,
		     creator, v);
}

/* Both orders of ADD, of letting go, and both ways to do that. */
static void test_told(void)
{
	int id = plug(true, NONE), file = open_group(devices[id].group), way;

	join(file, 0);
	set_iommu(0);
	expect_told(file, id, NONE);
	for (way = 0; way < 16; way++) {
		int one = way & 1, other = !one, first = way >> 1 & 1;

		add(one, file);
		expect_told(file, id, one);
		add(other, file);
		expect_told(file, id, other);
		/* One that fails does not make it the last. */
		add(one, file);
		expect_told(file, id, other);
		if (way & 4)
			del(first, file);
		else
			reset(first);
		expect_told(file, id, !first);
		if (way & 8)
			del(!first, file);
		else
			reset(!first);
		expect_told(file, id, NONE);
	}
	check();
}

/* A VM that tracks the file alone, and lets it go while the device is open. */
static void test_told_when_opened(void)
{
	int id = plug(false, NONE), file = open_group(devices[id].group), device;

	join(file, 0);
	set_iommu(0);
	device = open_device(file, id);
	add(0, file);
	close_file(device);
	expect_told(file, id, 0);
	device = open_device(file, id);
	add(1, file);
	del(0, file);
	close_file(device);
	expect_told(file, id, 1);
	device = open_device(file, id);
	del(1, file);
	close_file(device);
	expect_told(file, id, NONE);
	check();
}

/* ---- putting it together ------------------------------------------------- */

static long vendor_users(void)
{
	long users = get_number("/sys/module/kvm_amd/refcnt");

	if (users < 0)
		fail("kvm_amd: %s", strerror(-users));
	return users;
}

static long users_wanted;

static bool vendor_is_used_as_before(void)
{
	return vendor_users() == users_wanted;
}

/* A VM that VFIO alone has: when the device is closed, the vendor's code ends it. */
static void test_vendor_is_held(void)
{
	int id = plug(false, NONE), file = open_group(devices[id].group), device, vm, kvm_vfio;

	/* Linux 6.1's VFIO refers to the VM and does not hold it. */
	if (old_vfio)
		return;
	join(file, 0);
	set_iommu(0);
	users_wanted = vendor_users();
	vm = create_vm();
	kvm_vfio = must(kvm_vfio_create(vm));
	must(kvm_vfio_add(kvm_vfio, files[file].fd));
	device = open_device(file, id);
	close(kvm_vfio);
	close(vm);
	begin("a VM whose files are closed, and which a device's driver has");
	if (vendor_users() <= users_wanted)
		fail("kvm_amd can be unloaded");
	close_file(device);
	begin("that device is closed");
	wait_until(vendor_is_used_as_before, "kvm_amd is let go");
}

/* Their file holds the VM, and of the modules only kvm.ko. */
static void test_statistics_hold_vendor(void)
{
	int vm, statistics;

	users_wanted = vendor_users();
	vm = create_vm();
	statistics = must(ioctl(vm, KVM_GET_STATS_FD, NULL));
	close(vm);
	begin("a VM whose files are closed, but that of its statistics");
	if (vendor_users() <= users_wanted)
		fail("kvm_amd can be unloaded");
	close(statistics);
	begin("that file is closed");
	wait_until(vendor_is_used_as_before, "kvm_amd is let go");
}

static const struct test tests[] = {
	{ "the state can be read back", test_readable },
	{ "a non-coherent device is bound into a coherent group", test_bind_into_coherent },
	{ "a device becomes non-coherent, and is bound then", test_changed_then_bound },
	{ "devices are plugged into a tracked group", test_plug },
	{ "a tracked group without any device", test_no_device_left },
	{ "a tracked dead group, and the new one of the same device", test_dead_and_new },
	{ "a device joins while another one waits to leave", test_joins_while_one_leaves },
	{ "a non-coherent device joins a group whose last one leaves", test_joins_emptied_group },
	{ "files of devices of one group", test_device_files },
	{ "a coherent and a non-coherent group in one container", test_container_mixed },
	{ "a driver is told of the VM that tracked the group last", test_told },
	{ "a driver is told when its device is opened", test_told_when_opened },
	{ "a VM that only a driver has keeps the vendor's module", test_vendor_is_held },
	{ "a VM that only its statistics have keeps the vendor's module", test_statistics_hold_vendor },
};
static const struct suite suite = SUITE(tests);

static void prepare(void)
{
	int i;

	begin("preparing");
	old_vfio = kernel_before(6, 2);
	if (access(TESTDEV, F_OK))
		load_testdev("");
	else
		must_put(TESTDEV "destroy", "all");
	count_flushes();
	for (i = 0; i < VMS; i++) {
		make_wbinvd_vm(&vms[i].vm);
		vms[i].device = -1;
	}
}

int main(int argc, char **argv)
{
	static const struct program program = { prepare, set_up, tear_down };
	static const struct suite *const suites[] = {
		&suite, &last_suite, &held_suite, &signals_suite, &walk_suite,
	}, *const iommufd_suites[] = { &iommufd_suite }, *const memcg_suites[] = { &memcg_suite };

	if (argc > 1 && !strcmp(argv[1], "iommufd"))
		return run_tests(&program, iommufd_suites, ARRAY_SIZE(iommufd_suites), "");
	if (argc > 1 && !strcmp(argv[1], "memcg"))
		return run_tests(&program, memcg_suites, ARRAY_SIZE(memcg_suites), "");
	choose_walk(argc, argv);
	return run_tests(&program, suites, ARRAY_SIZE(suites), "");
}
