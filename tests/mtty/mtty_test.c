// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mediated devices: what a VM hears of a device that does no DMA of its own.
 *
 * Runs in the svm lab with the kernel's own sample of a mediated device, mtty.ko,
 * beside it. No IOMMU domain says anything of such a device, so VFIO's word is the
 * base's own, as documented: on Linux 6.1 it is enforced, from then on it is the
 * capability of the device, which has none, so it is not enforced.
 *
 * After each step the VM's flag (whether a guest's WBINVD reaches the CPU, which a
 * kprobe in KVM counts) and what can be read back of the file have to agree with that.
 * Stock modules have nothing to read back: they are judged by WBINVD alone.
 *
 * Output: KTAP.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/ioctl.h>

#include "files.h"
#include "vfio.h"
#include "vm.h"

#define MDEVS		"/sys/bus/mdev/devices/"
#define MTTY_CREATE	"/sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create"

/* ---- mediated devices ---------------------------------------------------- */

#define DEVICES		2

static const char *const uuids[DEVICES] = {
	"5d9f2c1e-0000-4000-8000-000000000001",
	"5d9f2c1e-0000-4000-8000-000000000002",
};

/* What one test uses; ended by tear_down(), however the test ends. */
static bool created[DEVICES];
static int groups[DEVICES] = { -1, -1 };
static int container = -1, device = -1, kvm_device = -1;

static void remove_mdev(int i)
{
	char path[100];

	snprintf(path, sizeof(path), MDEVS "%s/remove", uuids[i]);
	created[i] = false;
	must_put(path, "1");
}

static void create_mdev(int i)
{
	char path[100];

	must_put(MTTY_CREATE, "%s", uuids[i]);
	created[i] = true;
	snprintf(path, sizeof(path), MDEVS "%s", uuids[i]);
	groups[i] = must_open_group(group_number_of(path));
}

static void join_container(int i)
{
	if (container < 0)
		container = must(open_container());
	must(group_join(groups[i], container));
}

static void attach(int i)
{
	join_container(i);
	must(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU));
}

static void open_device(int i)
{
	device = must(ioctl(groups[i], VFIO_GROUP_GET_DEVICE_FD, uuids[i]));
}

/* ---- the VM -------------------------------------------------------------- */

static struct wbinvd_vm vm;
static bool readable;

/* 0 or -errno */
static int add(int fd)
{
	return kvm_vfio_add(kvm_device, fd) ? -errno : 0;
}

static int del(int fd)
{
	return kvm_vfio_del(kvm_device, fd) ? -errno : 0;
}

static void must_be(const char *what, int result, int expected)
{
	if (result != expected)
		fail("%s: %s instead of %s", what, result ? strerrorname_np(-result) : "success",
		     expected ? strerrorname_np(-expected) : "success");
}

static void create_kvm_device(void)
{
	kvm_device = must(kvm_vfio_create(vm.fd));
	readable = !kvm_vfio_attr(kvm_device, KVM_HAS_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				  KVM_DEV_VFIO_STATE_VM, NULL);
}

/* ---- what has to be ------------------------------------------------------ */

static const char *const names[] = {
	[KVM_VFIO_FILE_NOT_ATTACHED] = "not attached",
	[KVM_VFIO_FILE_ENFORCED] = "enforced",
	[KVM_VFIO_FILE_NOT_ENFORCED] = "not enforced",
};

/* What the base says of an emulated device that is attached. */
static int verdict(void)
{
	return kernel_before(6, 2) ? KVM_VFIO_FILE_ENFORCED : KVM_VFIO_FILE_NOT_ENFORCED;
}

static void expect_vm(const char *when, bool noncoherent)
{
	if (wbinvd_is_executed(&vm) != noncoherent)
		fail("%s the VM is %scoherent", when, noncoherent ? "" : "non-");
}

/* The only tracked file that may make the VM non-coherent is FD. */
static void expect(const char *when, int fd, int coherency)
{
	struct kvm_vfio_file_state state = { .fd = fd, .coherency = ~0u };

	if (readable) {
		must(kvm_vfio_attr(kvm_device, KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				   KVM_DEV_VFIO_STATE_FILE, &state));
		if (state.coherency >= ARRAY_SIZE(names))
			fail("%s the file is %u", when, state.coherency);
		if ((int)state.coherency != coherency)
			fail("%s the file is %s, not %s", when, names[state.coherency],
			     names[coherency]);
	}
	expect_vm(when, coherency == KVM_VFIO_FILE_NOT_ENFORCED);
}

/* ---- the tests ----------------------------------------------------------- */

/* As most monitors do it */
static void test_attached_first(void)
{
	create_mdev(0);
	attach(0);
	create_kvm_device();
	must_be("ADD", add(groups[0]), 0);
	expect("when it is added", groups[0], verdict());
	open_device(0);
	expect("when its device is open", groups[0], verdict());
	must_be("DEL", del(groups[0]), 0);
	expect_vm("when it is deleted", false);
}

static void test_added_first(void)
{
	create_mdev(0);
	create_kvm_device();
	must_be("ADD", add(groups[0]), 0);
	expect("when it is added", groups[0], KVM_VFIO_FILE_NOT_ATTACHED);
	join_container(0);
	expect("in a container without an IOMMU", groups[0], KVM_VFIO_FILE_NOT_ATTACHED);
	must(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU));
	expect("when it is attached", groups[0], verdict());
	must(group_leave(groups[0]));
	expect("when it is detached", groups[0], KVM_VFIO_FILE_NOT_ATTACHED);
}

/* It joins a container that has its IOMMU, and leaves it. */
static void test_second(void)
{
	create_mdev(0);
	attach(0);
	create_mdev(1);
	create_kvm_device();
	must_be("ADD", add(groups[1]), 0);
	expect("when it is added", groups[1], KVM_VFIO_FILE_NOT_ATTACHED);
	join_container(1);
	expect("when it joins", groups[1], verdict());
	must(group_leave(groups[1]));
	expect("when it leaves", groups[1], KVM_VFIO_FILE_NOT_ATTACHED);
}

/* The file of a device that a group gave, which is no VFIO file on Linux 6.1 */
static void test_device_file(void)
{
	create_mdev(0);
	attach(0);
	open_device(0);
	create_kvm_device();
	if (kernel_before(6, 2)) {
		must_be("ADD of the device", add(device), -EINVAL);
		expect_vm("when it is not added", false);
		return;
	}
	must_be("ADD of the device", add(device), 0);
	expect("when it is added", device, verdict());
	must_be("DEL of the device", del(device), 0);
	expect_vm("when it is deleted", false);
}

static void test_removed(void)
{
	create_mdev(0);
	attach(0);
	create_kvm_device();
	must_be("ADD", add(groups[0]), 0);
	expect("when it is added", groups[0], verdict());
	remove_mdev(0);
	expect("when its device is gone", groups[0], KVM_VFIO_FILE_NOT_ATTACHED);
	must_be("DEL", del(groups[0]), 0);
	expect_vm("when it is deleted", false);
}

static const struct test tests[] = {
	{ "attached, then added", test_attached_first },
	{ "added, then attached and detached", test_added_first },
	{ "the second in a container", test_second },
	{ "the file of a device", test_device_file },
	{ "removed while it is tracked", test_removed },
};

static const struct suite suite = SUITE(tests);

static void set_up(const struct test *test __attribute__((unused)))
{
}

static void tear_down(void)
{
	int i;

	close_fd(&kvm_device);
	close_fd(&device);
	for (i = 0; i < DEVICES; i++)
		close_fd(&groups[i]);
	close_fd(&container);
	for (i = 0; i < DEVICES; i++)
		if (created[i])
			remove_mdev(i);
}

static void prepare(void)
{
	load_kernels("mdev", "");
	load("mtty.ko", "");
	count_flushes();
	make_wbinvd_vm(&vm);
}

int main(void)
{
	static const struct program program = { prepare, set_up, tear_down };
	static const struct suite *const suites[] = { &suite };

	return run_tests(&program, suites, ARRAY_SIZE(suites), "");
}
