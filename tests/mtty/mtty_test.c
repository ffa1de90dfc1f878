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
#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <linux/vfio.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

/* An extension that no distribution's headers have. */
#ifndef KVM_DEV_VFIO_STATE
#define KVM_DEV_VFIO_STATE		0x1000
#define KVM_DEV_VFIO_STATE_VM		1
#define KVM_DEV_VFIO_STATE_FILE		2

struct kvm_vfio_file_state {
	__s32 fd;
	__u32 coherency;
};

#define KVM_VFIO_FILE_NOT_ATTACHED	0
#define KVM_VFIO_FILE_ENFORCED		1
#define KVM_VFIO_FILE_NOT_ENFORCED	2
#endif

#define MDEVS		"/sys/bus/mdev/devices/"
#define MTTY_CREATE	"/sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create"
#define KPROBE_TYPE	"/sys/bus/event_source/devices/kprobe/type"
#define GUEST_ENTRY	0x1000

static jmp_buf test_end;
static char reason[300];

/* End the test that is running. */
static void __attribute__((noreturn, format(printf, 1, 2)))
fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(reason, sizeof(reason), format, args);
	va_end(args);
	longjmp(test_end, 1);
}

#include "testdev.h"

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
		container = must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
	must(ioctl(groups[i], VFIO_GROUP_SET_CONTAINER, &container));
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

static int vm, vcpu, probe;
static struct kvm_run *run;
static bool readable;

/* wbinvd; hlt; jmp to the start */
static const uint8_t guest_code[] = { 0x0f, 0x09, 0xf4, 0xeb, 0xfb };

static void make_vm(void)
{
	struct kvm_userspace_memory_region slot = {
		.guest_phys_addr = GUEST_ENTRY, .memory_size = 4096,
	};
	struct kvm_regs regs = { .rip = GUEST_ENTRY, .rflags = 2 };
	int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC));
	struct kvm_sregs sregs;
	size_t size;
	char *mem;

	vm = must(ioctl(kvm, KVM_CREATE_VM, 0));
	mem = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		fail("no memory for a guest");
	memcpy(mem, guest_code, sizeof(guest_code));
	slot.userspace_addr = (uintptr_t)mem;
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));
	vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0));
	run = map_vcpu(kvm, vcpu, &size);
	close(kvm);
	must(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.selector = 0;
	sregs.cs.base = 0;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs));
	must(ioctl(vcpu, KVM_SET_REGS, &regs));
}

/* Counts wbinvd_ipi() on the CPU that we run on. */
static void count_flushes(void)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr),
		.kprobe_func = (uintptr_t)"kvm:wbinvd_ipi",
	};
	cpu_set_t set;

	attr.type = must(get_number(KPROBE_TYPE));
	CPU_ZERO(&set);
	CPU_SET(0, &set);
	must(sched_setaffinity(0, sizeof(set), &set));
	probe = must(syscall(SYS_perf_event_open, &attr, -1, 0, -1, PERF_FLAG_FD_CLOEXEC));
}

static uint64_t flushes(void)
{
	uint64_t count;

	if (read(probe, &count, sizeof(count)) != sizeof(count))
		fail("the kprobe does not count");
	return count;
}

/* Does a WBINVD of the guest reach the CPU? */
static bool is_noncoherent(void)
{
	uint64_t before = flushes();
	int ret;

	do {
		ret = ioctl(vcpu, KVM_RUN, 0);
	} while (ret && errno == EINTR);
	if (ret || run->exit_reason != KVM_EXIT_HLT)
		fail("the guest left with %d, exit %u", ret, run->exit_reason);
	return flushes() > before;
}

/* 0 or -errno */
static int device_attr(unsigned long op, int group, int attr, void *addr)
{
	struct kvm_device_attr request = {
		.group = group, .attr = attr, .addr = (uintptr_t)addr,
	};

	return ioctl(kvm_device, op, &request) ? -errno : 0;
}

static int add(int fd)
{
	return device_attr(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, &fd);
}

static int del(int fd)
{
	return device_attr(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_DEL, &fd);
}

static void must_be(const char *what, int result, int expected)
{
	if (result != expected)
		fail("%s: %s instead of %s", what, result ? strerrorname_np(-result) : "success",
		     expected ? strerrorname_np(-expected) : "success");
}

static void create_kvm_device(void)
{
	struct kvm_create_device request = { .type = KVM_DEV_TYPE_VFIO };

	must(ioctl(vm, KVM_CREATE_DEVICE, &request));
	kvm_device = request.fd;
	readable = !device_attr(KVM_HAS_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
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
	if (is_noncoherent() != noncoherent)
		fail("%s the VM is %scoherent", when, noncoherent ? "" : "non-");
}

/* The only tracked file that may make the VM non-coherent is FD. */
static void expect(const char *when, int fd, int coherency)
{
	struct kvm_vfio_file_state state = { .fd = fd, .coherency = ~0u };

	if (readable) {
		must_be("reading the state of a file",
			device_attr(KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_STATE,
				    KVM_DEV_VFIO_STATE_FILE, &state), 0);
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
	must(ioctl(groups[0], VFIO_GROUP_UNSET_CONTAINER));
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
	must(ioctl(groups[1], VFIO_GROUP_UNSET_CONTAINER));
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

static const struct test {
	const char *name;
	void (*run)(void);
} tests[] = {
	{ "attached, then added", test_attached_first },
	{ "added, then attached and detached", test_added_first },
	{ "the second in a container", test_second },
	{ "the file of a device", test_device_file },
	{ "removed while it is tracked", test_removed },
};

static bool run_test(void (*test)(void))
{
	if (setjmp(test_end))
		return false;
	test();
	return true;
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
	struct utsname name;
	char path[150];

	uname(&name);
	snprintf(path, sizeof(path), "/lib/modules/%s/mdev.ko", name.release);
	load(path, "");
	load("mtty.ko", "");
	count_flushes();
	make_vm();
}

int main(void)
{
	int failures = 0;
	unsigned int i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("KTAP version 1\n1..%zu\n", ARRAY_SIZE(tests));
	if (!run_test(prepare)) {
		printf("Bail out! %s\n", reason);
		return 1;
	}
	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		bool passed = run_test(tests[i].run);

		if (!run_test(tear_down)) {
			printf("Bail out! %s\n", reason);
			return 1;
		}
		if (!passed)
			printf("# %s\n", reason);
		printf("%s %u %s\n", passed ? "ok" : "not ok", i + 1, tests[i].name);
		failures += !passed;
	}
	printf("# %d of %zu failed\n", failures, ARRAY_SIZE(tests));
	return failures ? 1 : 0;
}
