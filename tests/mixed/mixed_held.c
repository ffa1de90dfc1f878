// SPDX-License-Identifier: GPL-2.0-only
/* Cases of mixed_test in which a thread is held by hold.ko on the second CPU */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hold.h"
#include "mixed_held.h"

/* Who opens one of the fixture's devices takes kvm->lock. */
#define KVM_LOCK	"/sys/module/vfio_testdev/parameters/take_kvm_lock"
#define BEFORE_KVM_LOCK	"/sys/module/vfio_testdev/parameters/before_kvm_lock"

/* ---- a thread that is held, and who comes meanwhile ---------------------- */

struct caller held = { .cpu = 1 }, follower = { .cpu = 0 };
int their_device, their_file, their_fd = NONE;
struct waiter waiters[2];

static void *caller_main(void *arg)
{
	struct caller *caller = arg;

	caller->tid = gettid();
	caller->result = call(pin(0, caller->cpu));
	if (!caller->result)
		caller->result = caller->call();
	caller->ended = true;
	return NULL;
}

void start(struct caller *caller, int (*their_call)(void))
{
	caller->tid = 0;
	caller->call = their_call;
	caller->ended = false;
	if (pthread_create(&caller->thread, NULL, caller_main, caller))
		fail("no thread");
	caller->started = true;
}

void join_caller(struct caller *caller)
{
	if (caller->started)
		must_join(caller->thread, "the call of another thread");
	caller->started = false;
}

static bool follower_drains(void)
{
	return sleeps_in(follower.tid, "drain");
}

/* For kvm_vfio.files_lock */
static bool follower_waits_for_call(void)
{
	return sleeps_in(follower.tid, "kvm_vfio_");
}

/* For the lock of the external slot */
static bool follower_waits_for_slot(void)
{
	return sleeps_in(follower.tid, "vfio_external_user_del");
}

/* For kvm_vfio.coherency_lock */
static bool follower_waits_for_its_turn(void)
{
	return sleeps_in(follower.tid, "kvm_vfio_coherency_changed");
}

bool follower_has_ended(void)
{
	return follower.ended;
}

void hold_with(int (*their_call)(void), const char *function, const char *options)
{
	hold_at(function, options);
	start(&held, their_call);
	wait_until(somebody_is_held, "somebody is held");
}

void hold(int (*their_call)(void), const char *function)
{
	hold_with(their_call, function, "");
}

void goes_on(void)
{
	let_go();
	join_caller(&held);
	unload("hold");
}

static int be_waiter(void *arg)
{
	struct waiter *waiter = arg;

	waiter->result = waiter->call();
	return 0;
}

bool waits_in(const struct waiter *waiter, const char *function)
{
	char path[60], is[100];

	snprintf(path, sizeof(path), "/proc/%d/wchan", waiter->pid);
	return !get_text(path, is, sizeof(is)) && strstr(is, function);
}

void start_waiter(struct waiter *waiter, int (*their_call)(void), const char *function)
{
	int tries;

	waiter->call = their_call;
	waiter->pid = must(clone(be_waiter, waiter->stack + sizeof(waiter->stack),
				 CLONE_VM | SIGCHLD, waiter));
	for (tries = 0; tries < 5000; tries++) {
		if (waits_in(waiter, function))
			return;
		usleep(1000);
	}
	fail("it does not wait in %s%s", function,
	     somebody_is_held() ? "" : ", and nobody is held any more");
}

static int call_pause(void)
{
	return call(pause());
}

void start_sleeper(struct waiter *waiter)
{
	start_waiter(waiter, call_pause, "pause");
}

int end_of_waiter(struct waiter *waiter)
{
	int tries, status;

	for (tries = 0; tries < 5000; tries++) {
		if (waitpid(waiter->pid, &status, WNOHANG) == waiter->pid) {
			waiter->pid = 0;
			return status;
		}
		usleep(1000);
	}
	fail("who waits does not end");
}

static void kill_reader(struct waiter *reader)
{
	kill(reader->pid, SIGKILL);
	end_of_waiter(reader);
}

void tear_down_held(void)
{
	size_t i;

	release_held();
	release_answer();
	must_put(KVM_LOCK, "0");
	join_caller(&held);
	join_caller(&follower);
	for (i = 0; i < ARRAY_SIZE(waiters); i++) {
		if (waiters[i].pid > 0)
			must_die(waiters[i].pid, "a process that is killed");
		waiters[i].pid = 0;
	}
	forget_hold();
	close_fd(&their_fd);
	tear_down_iommufd();
}

/* ---- while somebody is held ---------------------------------------------- */

int call_set_iommu(void)
{
	return call(container_set_iommu(containers[0].fd));
}

int call_set_another_iommu(void)
{
	return call(container_set_iommu(containers[1].fd));
}

int call_leave(void)
{
	return call(group_leave(files[their_file].fd));
}

static int call_close_kvm_device(void)
{
	return call(close(vms[0].device));
}

int call_open_device(void)
{
	char name[40];

	snprintf(name, sizeof(name), "vfio_testdev.%d", their_device);
	their_fd = call(ioctl(files[their_file].fd, VFIO_GROUP_GET_DEVICE_FD, name));
	return their_fd < 0 ? their_fd : 0;
}

int call_add(void)
{
	return call(kvm_vfio_add(vms[0].device, files[their_file].fd));
}

int call_del(void)
{
	return call(kvm_vfio_del(vms[0].device, files[their_file].fd));
}

int read_vm_state(void)
{
	struct kvm_vfio_vm_state state;

	return call(kvm_vfio_attr(vms[0].device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				  KVM_DEV_VFIO_STATE_VM, &state));
}

int read_file_state(void)
{
	struct kvm_vfio_file_state state = { .fd = files[their_file].fd };

	return call(kvm_vfio_attr(vms[0].device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				  KVM_DEV_VFIO_STATE_FILE, &state));
}

int read_fdinfo(void)
{
	char path[60], text[200];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", vms[0].device);
	return get_text(path, text, sizeof(text));
}

const struct pair pairs[] = {
	{ read_file_state, read_vm_state, "vfio_external" },
	{ read_vm_state, read_file_state, "kvm_vfio" },
	{ read_fdinfo, read_fdinfo, "kvm_vfio" },
};

void start_pair(const struct pair *pair)
{
	start_waiter(&waiters[0], pair->first, pair->waits_in);
	start_waiter(&waiters[1], pair->second, "kvm_vfio");
}

/*
 * A change takes long. Whoever wants to know the state waits for it, or for somebody
 * who does, and can be killed.
 */
static void test_readers_are_killed(void)
{
	int id = plug(false, NONE);
	size_t i;

	test_readable();
	their_file = open_group(devices[id].group);
	add(0, their_file);
	for (i = 0; i < ARRAY_SIZE(pairs); i++) {
		join(their_file, 0);
		begin("SET_IOMMU is held while the VM becomes non-coherent");
		hold(call_set_iommu, "kvm:kvm_arch_register_noncoherent_dma");
		begin("pair %zu reads meanwhile", i);
		start_pair(&pairs[i]);
		begin("the second of pair %zu", i);
		kill_reader(&waiters[1]);
		begin("the first of pair %zu", i);
		kill_reader(&waiters[0]);
		goes_on();
		begin("SET_IOMMU goes on");
		expect_result(held.result, 0);
		model_set_iommu(0);
		expect_noncoherent(0, true);
		leave(their_file);
	}
}

static int call_map(void)
{
	return call(container_map(containers[0].fd, vms[0].vm.memory, 0, 4096));
}

/* No memory can be mapped for DMA before the VM is non-coherent. */
static void test_no_dma_before(void)
{
	int id = plug(false, NONE), file = open_group(devices[id].group);

	test_readable();
	join(file, 0);
	add(0, file);
	begin("VFIO_IOMMU_MAP_DMA before SET_IOMMU");
	expect_result(call_map(), -EINVAL);
	begin("SET_IOMMU is held before the VM is non-coherent");
	hold(call_set_iommu, "kvm:kvm_arch_register_noncoherent_dma");
	begin("VFIO_IOMMU_MAP_DMA before the VM is non-coherent");
	expect_result(call_map(), -EINVAL);
	goes_on();
	begin("SET_IOMMU goes on");
	expect_result(held.result, 0);
	model_set_iommu(0);
	begin("VFIO_IOMMU_MAP_DMA after SET_IOMMU");
	expect_result(call_map(), 0);
	expect_noncoherent(0, true);
}

static void del_goes_on(void)
{
	begin("DEL goes on");
	join_caller(&follower);
	expect_result(follower.result, 0);
	files[their_file].owners = 0;
	expect_noncoherent(0, false);
}

/*
 * A driver is about to refer to the VM. On 6.1 nobody has a reference for it yet, so DEL
 * waits; who does something else with the KVM device does not.
 */
static void test_del_while_opened(void)
{
	their_device = plug(false, NONE);
	their_file = track(devices[their_device].group, 0);
	begin("GET_DEVICE_FD is held in the driver");
	hold(call_open_device, "vfio_testdev:testdev_open_device");
	begin("DEL while a device is opened");
	start(&follower, call_del);
	if (old_vfio)
		wait_until(follower_drains, "DEL waits for the driver");
	else
		wait_until(follower_has_ended, "DEL returns");
	begin("the VM's state is read while a device is opened");
	expect_result(read_vm_state(), 0);
	goes_on();
	begin("GET_DEVICE_FD goes on");
	expect_result(held.result, 0);
	close_fd(&their_fd);
	del_goes_on();
}

/*
 * On 6.12 a driver has its own reference when it is told of the VM: it must have it
 * before the VM's DEL returns.
 */
static void test_del_while_referenced(void)
{
	test_readable();
	if (old_vfio)
		skip("Linux before 6.2 gives drivers no reference to a VM");
	their_device = plug(false, NONE);
	their_file = track(devices[their_device].group, 0);
	begin("GET_DEVICE_FD is held before it has a reference to the VM");
	hold(call_open_device, "kvm_get_kvm_safe");
	begin("DEL meanwhile");
	start(&follower, call_del);
	wait_until(follower_waits_for_slot, "DEL waits for the reference");
	goes_on();
	begin("GET_DEVICE_FD goes on");
	expect_result(held.result, 0);
	close_fd(&their_fd);
	del_goes_on();
}

/* A file's user is told, and nobody takes it away meanwhile. */
static void test_del_while_told(void)
{
	int id = plug(false, NONE);

	test_readable();
	their_file = open_group(devices[id].group);
	add(0, their_file);
	join(their_file, 0);
	begin("SET_IOMMU is held while it tells the VM");
	hold(call_set_iommu, "kvm_arch_register_noncoherent_dma");
	begin("DEL meanwhile");
	start(&follower, call_del);
	wait_until(follower_waits_for_slot, "DEL waits for who tells the VM");
	goes_on();
	begin("SET_IOMMU goes on");
	expect_result(held.result, 0);
	model_set_iommu(0);
	del_goes_on();
}

/* What user space does with one KVM device */
static void test_calls_in_turn(void)
{
	int id = plug(false, NONE);

	test_readable();
	their_file = open_group(devices[id].group);
	join(their_file, 0);
	set_iommu(0);
	begin("ADD is held before the VM is non-coherent");
	hold(call_add, "kvm_arch_register_noncoherent_dma");
	begin("DEL meanwhile");
	start(&follower, call_del);
	wait_until(follower_waits_for_call, "DEL waits for ADD");
	goes_on();
	begin("ADD goes on");
	expect_result(held.result, 0);
	del_goes_on();
}

/* Two files of VM 0, or one of each VM: SET_IOMMU of the first is held, and ... */
static void hold_one_of_two(int other)
{
	int a = plug(false, NONE), b = plug(false, NONE), file;

	test_readable();
	file = open_group(devices[a].group);
	add(0, file);
	join(file, 0);
	file = open_group(devices[b].group);
	add(other, file);
	join(file, 1);
	begin("SET_IOMMU is held before VM 0 is non-coherent");
	hold(call_set_iommu, "kvm_arch_register_noncoherent_dma");
	begin("SET_IOMMU of another container");
	start(&follower, call_set_another_iommu);
}

static void both_are_set(void)
{
	begin("SET_IOMMU goes on");
	expect_result(held.result, 0);
	join_caller(&follower);
	expect_result(follower.result, 0);
	model_set_iommu(0);
	model_set_iommu(1);
}

/* The second one does not make the VM non-coherent, but must not return before it is. */
static void test_files_in_turn(void)
{
	hold_one_of_two(0);
	wait_until(follower_waits_for_its_turn, "it waits until VM 0 is non-coherent");
	goes_on();
	both_are_set();
	expect_noncoherent(0, true);
}

static void test_vms_apart(void)
{
	hold_one_of_two(1);
	wait_until(follower_has_ended, "it does not wait for VM 0");
	goes_on();
	both_are_set();
	expect_noncoherent(0, true);
	expect_noncoherent(1, true);
}

/* VM 1 is told first. What is said of VM 0's file is what it is going to be told. */
static void test_read_by_another(void)
{
	int id = plug(false, NONE), file = open_group(devices[id].group);
	char path[60], text[400];

	test_readable();
	join(file, 0);
	add(0, file);
	add(1, file);
	begin("SET_IOMMU is held while it tells VM 1");
	hold(call_set_iommu, "kvm_arch_register_noncoherent_dma");
	begin("fdinfo of VM 0");
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", vms[0].device);
	expect_result(get_text(path, text, sizeof(text)), 0);
	if (!strstr(text, "\nnoncoherent:\t0\n") || !strstr(text, " not-enforced\n"))
		fail("it says: %s", text);
	goes_on();
	begin("SET_IOMMU goes on");
	expect_result(held.result, 0);
	model_set_iommu(0);
	expect_noncoherent(0, true);
	expect_noncoherent(1, true);
}

/* Until it is detached the group's devices may do DMA. */
static void test_detached_first(void)
{
	int id = plug(false, NONE);

	test_readable();
	their_file = track(devices[id].group, 0);
	begin("UNSET_CONTAINER is held, the group detached");
	hold_with(call_leave, "vfio_iommu_type1:vfio_iommu_type1_detach_group", "at_return=1");
	if (debugfs_flag(0) != 1)
		fail("the VM was coherent before");
	goes_on();
	begin("UNSET_CONTAINER goes on");
	expect_result(held.result, 0);
	files[their_file].container = NONE;
	containers[0].iommu = false;
	expect_noncoherent(0, false);
}

/* There is one device until it has let go of all. */
static void test_closed_first(void)
{
	int id = plug(false, NONE);

	test_readable();
	their_file = track(devices[id].group, 0);
	begin("closing the KVM device is held before the VM is coherent");
	hold(call_close_kvm_device, "kvm_arch_unregister_noncoherent_dma");
	begin("KVM_CREATE_DEVICE meanwhile");
	expect_result(create_device(0), -EBUSY);
	goes_on();
	begin("closing the KVM device goes on");
	expect_result(held.result, 0);
	vms[0].device = create_device(0);
	expect_result(vms[0].device, 0);
	files[their_file].owners = 0;
	expect_noncoherent(0, false);
}

static bool driver_is_before_kvm_lock(void)
{
	return get_number(BEFORE_KVM_LOCK) == 1 || held.ended;
}

static bool follower_is_through_or_waits(void)
{
	return follower.ended || sleeps_in(follower.tid, "drain") ||
	       sleeps_in(follower.tid, "vfio");
}

/*
 * A driver takes kvm->lock while VFIO has its own locks for it. So none of these may be
 * taken where KVM holds that one, as it does around some of a device's callbacks. Not
 * by hold.ko: closing waits for RCU on newer kernels, and so for who cannot be preempted.
 */
static void test_driver_takes_kvm_lock(void)
{
	their_device = plug(false, NONE);
	their_file = track(devices[their_device].group, 0);
	must_put(KVM_LOCK, "1");
	begin("GET_DEVICE_FD waits in the driver, before it takes kvm->lock");
	start(&held, call_open_device);
	wait_until(driver_is_before_kvm_lock, "the driver is there");
	begin("the KVM device is closed meanwhile");
	start(&follower, call_close_kvm_device);
	wait_until(follower_is_through_or_waits, "it is closed, or waits for the driver");
	must_put(KVM_LOCK, "2");
	join_caller(&held);
	begin("GET_DEVICE_FD goes on");
	expect_result(held.result, 0);
	close_fd(&their_fd);
	begin("closing goes on");
	join_caller(&follower);
	expect_result(follower.result, 0);
	files[their_file].owners = 0;
	vms[0].device = create_device(0);
	expect_result(vms[0].device, 0);
	expect_noncoherent(0, false);
}

static bool end_waits_for_driver(void)
{
	return waits_in(&waiters[0], "drain");
}

/*
 * The same by a process that is killed, and that had the last copy of the descriptor: on
 * 6.1 its end waits for the driver, and another signal does not change that.
 */
static void test_killed_while_opened(void)
{
	test_readable();
	their_device = plug(false, NONE);
	their_file = track(devices[their_device].group, 0);
	begin("another process has the KVM device");
	start_sleeper(&waiters[0]);
	close_fd(&vms[0].device);
	must_put(KVM_LOCK, "1");
	begin("GET_DEVICE_FD waits in the driver, before it takes kvm->lock");
	start(&held, call_open_device);
	wait_until(driver_is_before_kvm_lock, "the driver is there");
	begin("that process is killed meanwhile");
	must(kill(waiters[0].pid, SIGKILL));
	if (old_vfio) {
		wait_until(end_waits_for_driver, "it waits for the driver");
		must(kill(waiters[0].pid, SIGKILL));
		usleep(20000);
		if (!end_waits_for_driver())
			fail("it does not wait any more");
		expect_result(create_device(0), -EBUSY);
	} else {
		end_of_waiter(&waiters[0]);
	}
	must_put(KVM_LOCK, "2");
	join_caller(&held);
	begin("GET_DEVICE_FD goes on");
	expect_result(held.result, 0);
	close_fd(&their_fd);
	begin("the end of the process goes on");
	if (waiters[0].pid)
		end_of_waiter(&waiters[0]);
	files[their_file].owners = 0;
	vms[0].device = create_device(0);
	expect_result(vms[0].device, 0);
	expect_noncoherent(0, false);
}

static const struct test tests[] = {
	{ "who reads the state can be killed while it changes", test_readers_are_killed },
	{ "no memory is mapped for DMA before the VM is non-coherent", test_no_dma_before },
	{ "DEL while a driver opens a device of the file", test_del_while_opened },
	{ "a driver that takes kvm->lock, while the KVM device is closed",
	  test_driver_takes_kvm_lock },
	{ "a driver that takes kvm->lock, while who has the KVM device is killed",
	  test_killed_while_opened },
	{ "DEL while a driver gets its reference to the VM", test_del_while_referenced },
	{ "DEL while the VM is told of a change", test_del_while_told },
	{ "DEL while a file is being added", test_calls_in_turn },
	{ "two files make a VM non-coherent, one after the other", test_files_in_turn },
	{ "a VM does not wait for the change of another one", test_vms_apart },
	{ "a file's state while another VM is told of a change", test_read_by_another },
	{ "a VM is non-coherent until its group is detached", test_detached_first },
	{ "a second KVM device while the first one is being closed", test_closed_first },
};

const struct suite held_suite = SUITE(tests);
