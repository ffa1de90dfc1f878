// SPDX-License-Identifier: GPL-2.0-only
/*
 * The KVM-VFIO pseudo device (KVM_DEV_TYPE_VFIO), seen from user space.
 *
 * What is tested, fixture by fixture:
 *
 *   create, known_attr, unknown_attr, bad_addr, bad_fd, file, two_vms, unchanged
 *	every row of the device's error table, and that a failed call changes
 *	nothing
 *   life, killed
 *	who keeps a VFIO file, and when it is given back
 *   live_update
 *	a VM is replaced by that of another process, and its device goes on
 *   coherency, walk, wbinvd, owed
 *	the VM is non-coherent exactly while one of its files is attached to an
 *	IOMMU domain that does not enforce coherency; the change is made, and
 *	the caches are written back, before the system call that caused it
 *	returns
 *   state, stats, trace
 *	what the device says of itself, and that it says the truth
 *   unbind, stress, module
 *	devices that go away, everything at once, and vfio.ko coming and going
 *
 * Nothing of the common ABI tells whether a VM is non-coherent, and what the
 * device says of itself is to be tested itself.  What it does is visible, though:
 * only in a non-coherent VM does the guest's WBINVD execute
 * wbinvd_ipi() of kvm.ko on a CPU.  So the tests let a guest execute WBINVD and
 * count the hits of a kprobe there, CPU by CPU, with perf_event_open(2).  The
 * IOMMU's part of the truth comes from VFIO_DMA_CC_IOMMU of an attached
 * container.
 *
 * Part of the kernel's selftests, and built alone by
 *
 *   gcc -O2 -Wall -static -pthread -I TREE/tools/testing/selftests \
 *	-o vfio_dev_test vfio_dev_test.c
 *
 * Needs root, /dev/kvm and devices bound to vfio-pci, each alone in its IOMMU
 * group: two of them and two CPUs for everything.  They are
 *
 *   VFIO_DEV_TEST_DEVS="0000:00:03.0 0000:00:04.0"	(or LAB_EDU), or
 *   VFIO_DEV_TEST_GROUPS="12 13"	VFIO groups of any kind of device, or
 *   every device bound to vfio-pci that nobody has open.
 *
 * What the host cannot show is skipped, and the reason given;
 * VFIO_DEV_TEST_STRICT=1 makes such a case fail.  VFIO_DEV_TEST_SEED=N starts
 * the random walk elsewhere.
 *
 * The module fixture unloads vfio.ko with all that uses it and loads it again.
 * It does so only if nothing else needs it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <ftw.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include <linux/sched.h>

#include "vfio_dev_test.h"

/* --- What the host itself says --- */

/* Has the VT-d unit above the device snoop control? -errno if it is not VT-d's. */
static int snoop_control(const char *bdf)
{
	char path[128], ecap[32];
	int ret;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%.31s/iommu/intel-iommu/ecap", bdf);
	ret = read_file(path, ecap, sizeof(ecap));
	return ret ? ret : strtoull(ecap, NULL, 16) >> 7 & 1;
}

TEST(host_has_all)
{
	const char *snoop = getenv("LAB_SNOOP");
	int i, control;

	REQUIRE(host.no_kvm);
	REQUIRE(no_groups(2));
	REQUIRE(no_cpus(2));
	REQUIRE(host.no_probe);
	/* The machine was made so, and the hardware says so: VFIO must agree. */
	if (snoop)
		EXPECT_EQ(!strcmp(snoop, "off"), host.noncoherent);
	for (i = 0; i < host.nr_groups; i++) {
		control = snoop_control(host.bdf[i]);
		if (control >= 0 || snoop)
			EXPECT_EQ(!host.noncoherent, control);
	}
}

/* --- Creation --- */

FIXTURE(create) {
	struct vm vm;
};

FIXTURE_SETUP(create)
{
	REQUIRE(host.no_kvm);
	ASSERT_EQ(0, vm_open(&self->vm));
	/* The tests make their own. */
	close_fd(&self->vm.dev);
}

FIXTURE_TEARDOWN(create)
{
	vm_close(&self->vm);
}

TEST_F(create, gives_descriptor)
{
	int dev = create_device(self->vm.fd, 0);

	ASSERT_LE(0, dev);
	EXPECT_EQ(0, has_attr(dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD));
}

TEST_F(create, descriptor_is_cloexec)
{
	int dev = create_device(self->vm.fd, 0);

	ASSERT_LE(0, dev);
	EXPECT_EQ(FD_CLOEXEC, fcntl(dev, F_GETFD));
}

TEST_F(create, test_flag_makes_none)
{
	EXPECT_EQ(0, test_device(self->vm.fd));
	EXPECT_EQ(0, test_device(self->vm.fd));
	EXPECT_LE(0, create_device(self->vm.fd, 0));
}

TEST_F(create, test_flag_beside_one)
{
	EXPECT_LE(0, create_device(self->vm.fd, 0));
	EXPECT_EQ(0, test_device(self->vm.fd));
}

TEST_F(create, second_is_ebusy)
{
	int dev = create_device(self->vm.fd, 0);

	ASSERT_LE(0, dev);
	EXPECT_EQ(-EBUSY, create_device(self->vm.fd, 0));
	/* The first one is still good, and still the only one. */
	EXPECT_EQ(0, has_attr(dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD));
	EXPECT_EQ(-EBUSY, create_device(self->vm.fd, 0));
}

TEST_F(create, again_after_close)
{
	int i, dev;

	for (i = 0; i < 10; i++) {
		dev = create_device(self->vm.fd, 0);
		ASSERT_LE(0, dev);
		close(dev);
	}
}

TEST_F(create, again_after_last_close_only)
{
	int dev = create_device(self->vm.fd, 0);
	int copy = dup(dev);

	ASSERT_LE(0, copy);
	close(dev);
	EXPECT_EQ(-EBUSY, create_device(self->vm.fd, 0));
	close(copy);
	EXPECT_LE(0, create_device(self->vm.fd, 0));
}

TEST_F(create, one_in_each_vm)
{
	struct vm other;

	EXPECT_LE(0, create_device(self->vm.fd, 0));
	EXPECT_EQ(0, vm_open(&other));
	vm_close(&other);
}

TEST_F(create, no_descriptor_left)
{
	struct rlimit limit, none;
	int dev;

	/* Made, but not handed out: it must be gone again. */
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	none = limit;
	none.rlim_cur = 0;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
	dev = create_device(self->vm.fd, 0);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	EXPECT_EQ(-EMFILE, dev);
	EXPECT_LE(0, create_device(self->vm.fd, 0));
}

TEST_F(create, other_ioctl_is_enotty)
{
	int dev = create_device(self->vm.fd, 0);

	ASSERT_LE(0, dev);
	EXPECT_EQ(-ENOTTY, call(ioctl(dev, KVM_GET_API_VERSION, 0)));
	EXPECT_EQ(-ENOTTY, call(ioctl(dev, VFIO_GROUP_GET_STATUS, 0)));
}

/* --- Attributes --- */

FIXTURE(known_attr) {
	struct vm vm;
};

FIXTURE_VARIANT(known_attr) {
	uint64_t attr;
};

FIXTURE_VARIANT_ADD(known_attr, file_add) {
	.attr = KVM_DEV_VFIO_FILE_ADD,
};

FIXTURE_VARIANT_ADD(known_attr, file_del) {
	.attr = KVM_DEV_VFIO_FILE_DEL,
};

FIXTURE_SETUP(known_attr)
{
	REQUIRE(host.no_kvm);
	ASSERT_EQ(0, vm_open(&self->vm));
}

FIXTURE_TEARDOWN(known_attr)
{
	vm_close(&self->vm);
}

TEST_F(known_attr, has)
{
	EXPECT_EQ(0, has_attr(self->vm.dev, KVM_DEV_VFIO_FILE, variant->attr));
}

/* What is not to be read. EPERM is KVM's answer where nothing at all is. */
static int unreadable(const struct vm *vm)
{
	return *no_state(vm) ? -EPERM : -ENXIO;
}

TEST_F(known_attr, get)
{
	int fd = -1;

	EXPECT_EQ(unreadable(&self->vm),
		  get_attr(self->vm.dev, KVM_DEV_VFIO_FILE, variant->attr, &fd));
	EXPECT_EQ(-1, fd);
}

FIXTURE(unknown_attr) {
	struct vm vm;
	int fd;
};

FIXTURE_VARIANT(unknown_attr) {
	uint32_t group;
	uint64_t attr;
};

FIXTURE_VARIANT_ADD(unknown_attr, group_0) {
	.group = 0,
	.attr = KVM_DEV_VFIO_FILE_ADD,
};

FIXTURE_VARIANT_ADD(unknown_attr, group_2) {
	.group = 2,
	.attr = KVM_DEV_VFIO_FILE_ADD,
};

FIXTURE_VARIANT_ADD(unknown_attr, group_2_del) {
	.group = 2,
	.attr = KVM_DEV_VFIO_FILE_DEL,
};

FIXTURE_VARIANT_ADD(unknown_attr, group_max) {
	.group = 0xffffffff,
	.attr = KVM_DEV_VFIO_FILE_ADD,
};

FIXTURE_VARIANT_ADD(unknown_attr, attr_0) {
	.group = KVM_DEV_VFIO_FILE,
	.attr = 0,
};

FIXTURE_VARIANT_ADD(unknown_attr, attr_4) {
	.group = KVM_DEV_VFIO_FILE,
	.attr = 4,
};

FIXTURE_VARIANT_ADD(unknown_attr, attr_max) {
	.group = KVM_DEV_VFIO_FILE,
	.attr = ~0ULL,
};

/* An attribute has 64 bits. */
FIXTURE_VARIANT_ADD(unknown_attr, attr_add_above_32_bits) {
	.group = KVM_DEV_VFIO_FILE,
	.attr = 1ULL << 32 | KVM_DEV_VFIO_FILE_ADD,
};

FIXTURE_VARIANT_ADD(unknown_attr, attr_del_above_32_bits) {
	.group = KVM_DEV_VFIO_FILE,
	.attr = 1ULL << 32 | KVM_DEV_VFIO_FILE_DEL,
};

/* Of ppc64 only. */
FIXTURE_VARIANT_ADD(unknown_attr, spapr_tce) {
	.group = KVM_DEV_VFIO_FILE,
	.attr = KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE,
};

FIXTURE_SETUP(unknown_attr)
{
	struct utsname u;

	REQUIRE(host.no_kvm);
	uname(&u);
	if (variant->attr == KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE && !strncmp(u.machine, "ppc64", 5))
		SKIP(longjmp(_metadata->env, 1), "known on ppc64");
	ASSERT_EQ(0, vm_open(&self->vm));
	/* With a group, what is refused is not refused for its argument. */
	self->fd = host.nr_groups ? need_group(0) : -1;
}

FIXTURE_TEARDOWN(unknown_attr)
{
	vm_close(&self->vm);
}

TEST_F(unknown_attr, has)
{
	EXPECT_EQ(-ENXIO, has_attr(self->vm.dev, variant->group, variant->attr));
}

TEST_F(unknown_attr, set)
{
	int32_t fd[2] = { self->fd, -1 };

	EXPECT_EQ(-ENXIO, set_attr(self->vm.dev, variant->group, variant->attr, fd));
	if (self->fd >= 0)
		EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, self->fd));
}

/* An unknown attribute has no argument that could be wrong. */
TEST_F(unknown_attr, set_at_null)
{
	EXPECT_EQ(-ENXIO, set_attr(self->vm.dev, variant->group, variant->attr, NULL));
}

TEST_F(unknown_attr, get)
{
	uint64_t value[2] = { 0, 0 };

	EXPECT_EQ(unreadable(&self->vm),
		  get_attr(self->vm.dev, variant->group, variant->attr, value));
	EXPECT_EQ(0, value[0] | value[1]);
}

/* --- Addresses --- */

enum addr_kind {
	ADDR_NULL,
	ADDR_ONE,
	ADDR_KERNEL,
	ADDR_NONCANONICAL,
	ADDR_LAST,
	ADDR_UNMAPPED,
	ADDR_PROT_NONE,
	ADDR_HALF,
};

FIXTURE(bad_addr) {
	struct vm vm;
	int fd;
	char *page;
};

FIXTURE_VARIANT(bad_addr) {
	enum addr_kind kind;
};

FIXTURE_VARIANT_ADD(bad_addr, null) { .kind = ADDR_NULL };
FIXTURE_VARIANT_ADD(bad_addr, one) { .kind = ADDR_ONE };
FIXTURE_VARIANT_ADD(bad_addr, kernel) { .kind = ADDR_KERNEL };
FIXTURE_VARIANT_ADD(bad_addr, noncanonical) { .kind = ADDR_NONCANONICAL };
FIXTURE_VARIANT_ADD(bad_addr, last_byte) { .kind = ADDR_LAST };
FIXTURE_VARIANT_ADD(bad_addr, unmapped_page) { .kind = ADDR_UNMAPPED };
FIXTURE_VARIANT_ADD(bad_addr, prot_none_page) { .kind = ADDR_PROT_NONE };
FIXTURE_VARIANT_ADD(bad_addr, half_across) { .kind = ADDR_HALF };

FIXTURE_SETUP(bad_addr)
{
	REQUIRE(host.no_kvm);
	ASSERT_EQ(0, vm_open(&self->vm));
	self->fd = -1;
	if (host.nr_groups) {
		self->fd = need_group(0);
		ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	}
	/* A good page, and a bad one behind it. */
	self->page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)self->page);
	memset(self->page, 0xff, 8192);
	ASSERT_EQ(0, variant->kind == ADDR_PROT_NONE ?
			mprotect(self->page + 4096, 4096, PROT_NONE) :
			munmap(self->page + 4096, 4096));
}

FIXTURE_TEARDOWN(bad_addr)
{
	vm_close(&self->vm);
}

static const void *bad_address(enum addr_kind kind, const char *page)
{
	switch (kind) {
	case ADDR_ONE:
		return (void *)1UL;
	case ADDR_KERNEL:
		return (void *)0xffffffff81000000UL;
	case ADDR_NONCANONICAL:
		return (void *)0x8000000000000000UL;
	case ADDR_LAST:
		return (void *)~0UL;
	case ADDR_UNMAPPED:
	case ADDR_PROT_NONE:
		return page + 4096;
	case ADDR_HALF:
		return page + 4094;
	default:
		return NULL;
	}
}

/* The tracked file is still tracked, and the address is what was wrong. */
static int set_bad_addr(struct vm *vm, uint64_t attr, enum addr_kind kind, const char *page)
{
	return set_attr(vm->dev, KVM_DEV_VFIO_FILE, attr, bad_address(kind, page));
}

TEST_F(bad_addr, add_is_efault)
{
	EXPECT_EQ(-EFAULT, set_bad_addr(&self->vm, KVM_DEV_VFIO_FILE_ADD, variant->kind,
					self->page));
	if (self->fd >= 0)
		EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
}

TEST_F(bad_addr, del_is_efault)
{
	EXPECT_EQ(-EFAULT, set_bad_addr(&self->vm, KVM_DEV_VFIO_FILE_DEL, variant->kind,
					self->page));
	if (self->fd >= 0)
		EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
}

/* --- Descriptors --- */

enum fd_kind {
	/* No file: EBADF. */
	FD_MINUS_ONE,
	FD_INT_MIN,
	FD_INT_MAX,
	FD_CLOSED,
	FD_BEYOND_LIMIT,
	FD_PATH,
	/* Not VFIO's: EINVAL for ADD, ENOENT for DEL. */
	FD_FILES,
	FD_REGULAR = FD_FILES,
	FD_DEV_NULL,
	FD_DIRECTORY,
	FD_PIPE,
	FD_SOCKET,
	FD_EVENTFD,
	FD_MEMFD,
	FD_KVM,
	FD_VM,
	FD_VCPU,
	FD_ITSELF,
	FD_OTHER_VFIO_DEV,
	FD_CONTAINER,
};

FIXTURE(bad_fd) {
	struct vm vm;
	struct vm other;
	int bad;
	int good;
};

FIXTURE_VARIANT(bad_fd) {
	enum fd_kind kind;
};

FIXTURE_VARIANT_ADD(bad_fd, minus_one) { .kind = FD_MINUS_ONE };
FIXTURE_VARIANT_ADD(bad_fd, int_min) { .kind = FD_INT_MIN };
FIXTURE_VARIANT_ADD(bad_fd, int_max) { .kind = FD_INT_MAX };
FIXTURE_VARIANT_ADD(bad_fd, closed) { .kind = FD_CLOSED };
FIXTURE_VARIANT_ADD(bad_fd, beyond_limit) { .kind = FD_BEYOND_LIMIT };
FIXTURE_VARIANT_ADD(bad_fd, path_only) { .kind = FD_PATH };
FIXTURE_VARIANT_ADD(bad_fd, regular_file) { .kind = FD_REGULAR };
FIXTURE_VARIANT_ADD(bad_fd, dev_null) { .kind = FD_DEV_NULL };
FIXTURE_VARIANT_ADD(bad_fd, directory) { .kind = FD_DIRECTORY };
FIXTURE_VARIANT_ADD(bad_fd, pipe) { .kind = FD_PIPE };
FIXTURE_VARIANT_ADD(bad_fd, socket) { .kind = FD_SOCKET };
FIXTURE_VARIANT_ADD(bad_fd, eventfd) { .kind = FD_EVENTFD };
FIXTURE_VARIANT_ADD(bad_fd, memfd) { .kind = FD_MEMFD };
FIXTURE_VARIANT_ADD(bad_fd, dev_kvm) { .kind = FD_KVM };
FIXTURE_VARIANT_ADD(bad_fd, vm) { .kind = FD_VM };
FIXTURE_VARIANT_ADD(bad_fd, vcpu) { .kind = FD_VCPU };
FIXTURE_VARIANT_ADD(bad_fd, the_device_itself) { .kind = FD_ITSELF };
FIXTURE_VARIANT_ADD(bad_fd, device_of_another_vm) { .kind = FD_OTHER_VFIO_DEV };
FIXTURE_VARIANT_ADD(bad_fd, vfio_container) { .kind = FD_CONTAINER };

static int closed_fd(void)
{
	int fd = dup(0);

	if (fd < 0)
		fd = open("/dev/null", O_RDONLY);
	close(fd);
	return fd;
}

static int beyond_limit(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	return limit.rlim_max < INT_MAX ? limit.rlim_max : INT_MAX;
}

static int one_of_two(int ret, const int fd[2])
{
	return ret < 0 ? -errno : fd[0];
}

static int bad_descriptor(enum fd_kind kind, struct vm *vm, struct vm *other)
{
	int fd[2];

	switch (kind) {
	case FD_INT_MIN:
		return INT_MIN;
	case FD_INT_MAX:
		return INT_MAX;
	case FD_CLOSED:
		return closed_fd();
	case FD_BEYOND_LIMIT:
		return beyond_limit();
	case FD_PATH:
		return open("/dev/kvm", O_PATH);
	case FD_REGULAR:
		return open("/proc/self/exe", O_RDONLY);
	case FD_DEV_NULL:
		return open("/dev/null", O_RDWR);
	case FD_DIRECTORY:
		return open("/", O_RDONLY | O_DIRECTORY);
	case FD_PIPE:
		return one_of_two(pipe(fd), fd);
	case FD_SOCKET:
		return one_of_two(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), fd);
	case FD_EVENTFD:
		return eventfd(0, 0);
	case FD_MEMFD:
		return syscall(SYS_memfd_create, "vfio_dev_test", 0);
	case FD_KVM:
		return open("/dev/kvm", O_RDWR);
	case FD_VM:
		return vm->fd;
	case FD_VCPU:
		return ioctl(vm->fd, KVM_CREATE_VCPU, 0UL);
	case FD_ITSELF:
		return vm->dev;
	case FD_OTHER_VFIO_DEV:
		return vm_open(other) ? -1 : other->dev;
	case FD_CONTAINER:
		return container_open();
	default:
		return -1;
	}
}

FIXTURE_SETUP(bad_fd)
{
	REQUIRE(host.no_kvm);
	if (variant->kind == FD_CONTAINER && access("/dev/vfio/vfio", F_OK))
		REQUIRE("no /dev/vfio/vfio");
	self->other = NO_VM;
	ASSERT_EQ(0, vm_open(&self->vm));
	self->good = -1;
	if (host.nr_groups) {
		self->good = need_group(0);
		ASSERT_EQ(0, dev_add(self->vm.dev, self->good));
	}
	self->bad = bad_descriptor(variant->kind, &self->vm, &self->other);
	if (variant->kind >= FD_FILES || variant->kind == FD_PATH)
		ASSERT_LE(0, self->bad);
}

FIXTURE_TEARDOWN(bad_fd)
{
	vm_close(&self->other);
	vm_close(&self->vm);
}

TEST_F(bad_fd, add)
{
	EXPECT_EQ(variant->kind < FD_FILES ? -EBADF : -EINVAL,
		  dev_add(self->vm.dev, self->bad));
	if (self->good >= 0)
		EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->good));
}

TEST_F(bad_fd, del)
{
	EXPECT_EQ(variant->kind < FD_FILES ? -EBADF : -ENOENT,
		  dev_del(self->vm.dev, self->bad));
	if (self->good >= 0)
		EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->good));
}

/* --- One file --- */

FIXTURE(file) {
	struct vm vm;
	int fd;
};

FIXTURE_SETUP(file)
{
	REQUIRE(no_groups(1));
	ASSERT_EQ(0, vm_open(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(file)
{
	vm_close(&self->vm);
}

TEST_F(file, add)
{
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
}

TEST_F(file, add_attached)
{
	ASSERT_EQ(0, group_attach(self->fd));
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
}

TEST_F(file, add_twice_is_eexist)
{
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
}

TEST_F(file, add_of_copy_is_eexist)
{
	int copy = dup(self->fd);

	ASSERT_LE(0, copy);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, copy));
}

TEST_F(file, del)
{
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
}

TEST_F(file, del_by_copy)
{
	int copy = dup(self->fd);

	ASSERT_LE(0, copy);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, copy));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, self->fd));
}

TEST_F(file, del_of_untracked_is_enoent)
{
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
}

TEST_F(file, del_twice_is_enoent)
{
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, self->fd));
}

TEST_F(file, del_of_other_group_is_enoent)
{
	int other;

	REQUIRE(no_groups(2));
	other = need_group(1);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, other));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
}

/* A function of kvm.ko, counted on the first CPU. Not everywhere is there such a function. */
static int open_kvm_probe(const char *function)
{
	char name[64];
	int probe;

	snprintf(name, sizeof(name), "kvm:%s", function);
	probe = open_probe(name, host.cpu[0]);
	return probe < 0 ? open_probe(function, host.cpu[0]) : probe;
}

/* Each tracked file is an assignment, by which KVM knows that the VM has devices. */
TEST_F(file, is_an_assignment)
{
	int begun, ended;

	REQUIRE(host.no_probe);
	pin(0);
	begun = open_kvm_probe("kvm_arch_start_assignment");
	ended = open_kvm_probe("kvm_arch_end_assignment");
	if (begun < 0 || ended < 0)
		REQUIRE("no kprobe on kvm_arch_start_assignment()");
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(1, probe_hits(begun));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(1, probe_hits(begun));
	EXPECT_EQ(0, probe_hits(ended));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_EQ(1, probe_hits(ended));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, self->fd));
	EXPECT_EQ(1, probe_hits(ended));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	close_fd(&self->vm.dev);
	EXPECT_EQ(2, probe_hits(begun));
	EXPECT_EQ(2, probe_hits(ended));
	pin(-1);
}

TEST_F(file, many_times)
{
	int i;

	for (i = 0; i < 100; i++) {
		ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
		ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	}
}

TEST_F(file, all_groups)
{
	int fd[MAX_GROUPS], i;

	REQUIRE(no_groups(2));
	fd[0] = self->fd;
	for (i = 1; i < host.nr_groups; i++)
		fd[i] = need_group(i);
	for (i = 0; i < host.nr_groups; i++)
		EXPECT_EQ(0, dev_add(self->vm.dev, fd[i]));
	for (i = 0; i < host.nr_groups; i++)
		EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, fd[i]));
	for (i = 0; i < host.nr_groups; i++)
		EXPECT_EQ(0, dev_del(self->vm.dev, fd[i]));
	for (i = 0; i < host.nr_groups; i++)
		EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, fd[i]));
}

/* The argument is only read, and need not be aligned. */
TEST_F(file, argument_is_read_only)
{
	int32_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, (void *)page);
	*page = self->fd;
	ASSERT_EQ(0, mprotect(page, 4096, PROT_READ));
	EXPECT_EQ(0, set_attr(self->vm.dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, page));
}

TEST_F(file, argument_is_unaligned)
{
	char bytes[8];

	memcpy(bytes + 1, &self->fd, sizeof(self->fd));
	EXPECT_EQ(0, set_attr(self->vm.dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD,
			      bytes + 1));
}

static bool kernel_tracks_device_files(void)
{
	struct utsname u;
	int major = 0, minor = 0;

	uname(&u);
	if (sscanf(u.release, "%d.%d", &major, &minor) != 2)
		return false;
	return major > 6 || (major == 6 && minor >= 6);
}

/* Before 6.6 a device's file is no VFIO file; later it may be one. */
TEST_F(file, device_descriptor)
{
	int dev, ret;

	REQUIRE(no_pci(0));
	ASSERT_EQ(0, group_attach(self->fd));
	dev = group_get_device(self->fd, 0);
	ASSERT_LE(0, dev);
	ret = dev_add(self->vm.dev, dev);
	if (!kernel_tracks_device_files() || ret) {
		EXPECT_EQ(-EINVAL, ret);
		EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, dev));
	} else {
		EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, dev));
		EXPECT_EQ(0, dev_del(self->vm.dev, dev));
	}
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
}

/* ADD, in which the NTH allocation fails; *FAILED tells whether there were so many. */
static int add_with_failure(struct vm *vm, int group, int control, int nth, bool *failed)
{
	char text[16];
	int ret, size;

	size = snprintf(text, sizeof(text), "%d", nth);
	if (pwrite(control, text, size, 0) != size)
		return -EIO;
	ret = dev_add(vm->dev, group);
	size = pread(control, text, sizeof(text) - 1, 0);
	if (size <= 0 || pwrite(control, "0", 1, 0) != 1)
		return -EIO;
	text[size] = 0;
	*failed = atoi(text) == 0;
	return ret;
}

/*
 * Let every allocation of ADD fail in turn: ENOMEM, and nothing has changed.
 * Only a kernel with fault injection can show it.
 */
TEST_F(file, enomem)
{
	int i, ret, control, seen = 0;
	bool failed = true;

	control = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	/* Not for the strict mode: it is the kernel's configuration, not the host. */
	if (control < 0 || write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N"))
		SKIP(return, "this kernel has no fault injection");
	/* No stack trace in the log for what is wanted. */
	write_file("/sys/kernel/debug/failslab/verbose", "0");
	for (i = 1; i < 100 && failed; i++) {
		ret = add_with_failure(&self->vm, self->fd, control, i, &failed);
		if (ret) {
			seen++;
			ASSERT_EQ(-ENOMEM, ret);
			ASSERT_EQ(-ENOENT, dev_del(self->vm.dev, self->fd));
		} else {
			ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
		}
	}
	EXPECT_LT(0, seen);
	EXPECT_FALSE(failed);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	close(self->fd);
	EXPECT_LE(0, group_open_soon(0));
}

/* --- Two VMs --- */

FIXTURE(two_vms) {
	struct vm a;
	struct vm b;
	int fd;
};

FIXTURE_SETUP(two_vms)
{
	REQUIRE(no_groups(1));
	self->b = NO_VM;
	ASSERT_EQ(0, vm_open(&self->a));
	ASSERT_EQ(0, vm_open(&self->b));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, dev_add(self->a.dev, self->fd));
}

FIXTURE_TEARDOWN(two_vms)
{
	vm_close(&self->a);
	vm_close(&self->b);
}

TEST_F(two_vms, both_track_it)
{
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->a.dev, self->fd));
}

TEST_F(two_vms, first_lets_go_first)
{
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->b.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->b.dev, self->fd));
}

TEST_F(two_vms, last_lets_go_first)
{
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->b.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->b.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->a.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->a.dev, self->fd));
}

/* A copy of the descriptor is the same file, for each of them. */
TEST_F(two_vms, copy_is_the_same)
{
	int copy = dup(self->fd);

	ASSERT_LE(0, copy);
	EXPECT_EQ(0, dev_add(self->b.dev, copy));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, copy));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, copy));
	EXPECT_EQ(0, dev_del(self->b.dev, self->fd));
}

/* The group stays open until the last of them has let go. */
TEST_F(two_vms, each_holds_the_file)
{
	ASSERT_EQ(0, dev_add(self->b.dev, self->fd));
	close_fd(&self->fd);
	EXPECT_EQ(-EBUSY, group_open(0));
	close_fd(&self->a.dev);
	EXPECT_EQ(-EBUSY, group_open(0));
	close_fd(&self->b.dev);
	EXPECT_LE(0, group_open_soon(0));
}

TEST_F(two_vms, del_of_the_other_is_enoent)
{
	EXPECT_EQ(-ENOENT, dev_del(self->b.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->a.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd));
}

TEST_F(two_vms, del_gives_it_free)
{
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_add(self->a.dev, self->fd));
}

TEST_F(two_vms, closed_device_gives_it_free)
{
	close_fd(&self->a.dev);
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
}

TEST_F(two_vms, closed_vm_gives_it_free)
{
	vm_close(&self->a);
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
}

TEST_F(two_vms, new_device_of_the_first_is_a_stranger)
{
	close_fd(&self->a.dev);
	EXPECT_EQ(0, dev_add(self->b.dev, self->fd));
	self->a.dev = create_device(self->a.fd, 0);
	ASSERT_LE(0, self->a.dev);
	EXPECT_EQ(-ENOENT, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(0, dev_add(self->a.dev, self->fd));
	close_fd(&self->a.dev);
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, self->fd));
}

/* QEMU resets a confidential VM so. */
TEST_F(two_vms, handed_over_and_back)
{
	int i;

	for (i = 0; i < 20; i++) {
		ASSERT_EQ(0, dev_del(self->a.dev, self->fd));
		ASSERT_EQ(0, dev_add(self->b.dev, self->fd));
		close_fd(&self->b.dev);
		ASSERT_EQ(0, dev_add(self->a.dev, self->fd));
		self->b.dev = create_device(self->b.fd, 0);
		ASSERT_LE(0, self->b.dev);
	}
}

TEST_F(two_vms, each_its_own_group)
{
	int other;

	REQUIRE(no_groups(2));
	other = need_group(1);
	EXPECT_EQ(0, dev_add(self->b.dev, other));
	EXPECT_EQ(-ENOENT, dev_del(self->a.dev, other));
	EXPECT_EQ(-ENOENT, dev_del(self->b.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, other));
}

/* The VMs hear together what happens to their file, and end one by one. */
FIXTURE(shared) {
	struct vm vm[64];
	int fd;
};

FIXTURE_SETUP(shared)
{
	int i;

	REQUIRE(no_groups(1));
	for (i = 0; i < 64; i++)
		self->vm[i] = NO_VM;
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	for (i = 0; i < 64; i++) {
		ASSERT_EQ(0, vm_open(&self->vm[i]));
		ASSERT_EQ(0, dev_add(self->vm[i].dev, self->fd));
	}
}

FIXTURE_TEARDOWN(shared)
{
	int i;

	for (i = 0; i < 64; i++)
		vm_close(&self->vm[i]);
}

/* All VMs that are not GONE track the file, whose state is STATE. */
static bool shared_by(const struct vm *vm, const bool *gone, int fd, int state)
{
	int i, noncoherent = state == KVM_VFIO_FILE_NOT_ENFORCED;

	for (i = 0; i < 64; i++) {
		if (!gone[i] && (!vm_state_is(&vm[i], 1, noncoherent) ||
				 !file_state_is(&vm[i], fd, state)))
			return false;
		if (gone[i] && vm[i].dev >= 0 && (!vm_state_is(&vm[i], 0, 0) ||
						  !file_state_is(&vm[i], fd, -ENOENT)))
			return false;
	}
	return true;
}

TEST_F(shared, all_follow_and_let_go)
{
	bool gone[64] = {};
	unsigned int random = 1;
	int i, j;

	EXPECT_TRUE(shared_by(self->vm, gone, self->fd, KVM_VFIO_FILE_NOT_ATTACHED));
	ASSERT_EQ(0, group_attach(self->fd));
	EXPECT_TRUE(shared_by(self->vm, gone, self->fd, attached_state()));
	ASSERT_EQ(0, group_leave(self->fd));
	EXPECT_TRUE(shared_by(self->vm, gone, self->fd, KVM_VFIO_FILE_NOT_ATTACHED));
	ASSERT_EQ(0, group_attach(self->fd));
	for (i = 0; i < 64; i++) {
		do
			j = next_random(&random) % 64;
		while (gone[j]);
		gone[j] = true;
		if (i % 2)
			close_fd(&self->vm[j].dev);
		else
			EXPECT_EQ(0, dev_del(self->vm[j].dev, self->fd));
		ASSERT_TRUE(shared_by(self->vm, gone, self->fd, attached_state()));
	}
}

/* The process that had it first is killed: the VM of another one goes on. */
TEST_F(shared, owner_is_killed)
{
	int ready[2], status, i;
	char byte;
	pid_t child;

	for (i = 1; i < 64; i++)
		vm_close(&self->vm[i]);
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, pipe(ready));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		struct vm vm;

		if (vm_open(&vm) || dev_add(vm.dev, self->fd) ||
		    !vm_state_is(&vm, 1, host.noncoherent) || write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	EXPECT_EQ(1, read(ready[0], &byte, 1));
	EXPECT_TRUE(vm_state_is(&self->vm[0], 1, host.noncoherent));
	kill(child, SIGKILL);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_TRUE(vm_state_is(&self->vm[0], 1, host.noncoherent));
	EXPECT_EQ(-EEXIST, dev_add(self->vm[0].dev, self->fd));
	ASSERT_EQ(0, group_leave(self->fd));
	EXPECT_TRUE(vm_state_is(&self->vm[0], 1, 0));
}

/* --- A failed call changes nothing --- */

enum failing {
	FAIL_ADD_NULL,
	FAIL_ADD_BADF,
	FAIL_ADD_NOT_VFIO,
	FAIL_ADD_AGAIN,
	FAIL_DEL_NULL,
	FAIL_DEL_BADF,
	FAIL_DEL_NOT_VFIO,
	FAIL_DEL_UNTRACKED,
	FAIL_DEL_OTHERS,
	FAIL_UNKNOWN_GROUP,
	FAIL_UNKNOWN_ATTR,
	FAIL_SECOND_DEVICE,
};

/* A tracks group 0, attached; B tracks group 1, attached; C has nothing. */
FIXTURE(unchanged) {
	struct vm a;
	struct vm b;
	struct vm c;
	int fd[2];
};

FIXTURE_VARIANT(unchanged) {
	enum failing call;
	int expected;
};

FIXTURE_VARIANT_ADD(unchanged, add_at_null) {
	.call = FAIL_ADD_NULL,
	.expected = -EFAULT,
};

FIXTURE_VARIANT_ADD(unchanged, add_of_no_file) {
	.call = FAIL_ADD_BADF,
	.expected = -EBADF,
};

FIXTURE_VARIANT_ADD(unchanged, add_of_foreign_file) {
	.call = FAIL_ADD_NOT_VFIO,
	.expected = -EINVAL,
};

FIXTURE_VARIANT_ADD(unchanged, add_again) {
	.call = FAIL_ADD_AGAIN,
	.expected = -EEXIST,
};

FIXTURE_VARIANT_ADD(unchanged, del_at_null) {
	.call = FAIL_DEL_NULL,
	.expected = -EFAULT,
};

FIXTURE_VARIANT_ADD(unchanged, del_of_no_file) {
	.call = FAIL_DEL_BADF,
	.expected = -EBADF,
};

FIXTURE_VARIANT_ADD(unchanged, del_of_foreign_file) {
	.call = FAIL_DEL_NOT_VFIO,
	.expected = -ENOENT,
};

FIXTURE_VARIANT_ADD(unchanged, del_of_untracked) {
	.call = FAIL_DEL_UNTRACKED,
	.expected = -ENOENT,
};

FIXTURE_VARIANT_ADD(unchanged, del_of_another_vms) {
	.call = FAIL_DEL_OTHERS,
	.expected = -ENOENT,
};

FIXTURE_VARIANT_ADD(unchanged, unknown_group) {
	.call = FAIL_UNKNOWN_GROUP,
	.expected = -ENXIO,
};

FIXTURE_VARIANT_ADD(unchanged, unknown_attr) {
	.call = FAIL_UNKNOWN_ATTR,
	.expected = -ENXIO,
};

FIXTURE_VARIANT_ADD(unchanged, second_device) {
	.call = FAIL_SECOND_DEVICE,
	.expected = -EBUSY,
};

FIXTURE_SETUP(unchanged)
{
	int i;

	REQUIRE(host.no_probe);
	REQUIRE(no_groups(2));
	self->b = NO_VM;
	self->c = NO_VM;
	ASSERT_EQ(0, vm_open_guest(&self->a));
	ASSERT_EQ(0, vm_open_guest(&self->b));
	ASSERT_EQ(0, vm_open_guest(&self->c));
	for (i = 0; i < 2; i++) {
		self->fd[i] = need_group(i);
		ASSERT_EQ(0, group_attach(self->fd[i]));
	}
	ASSERT_EQ(0, dev_add(self->a.dev, self->fd[0]));
	ASSERT_EQ(0, dev_add(self->b.dev, self->fd[1]));
}

FIXTURE_TEARDOWN(unchanged)
{
	vm_close(&self->a);
	vm_close(&self->b);
	vm_close(&self->c);
}

static int fail(enum failing what, struct vm *a, struct vm *c, const int fd[2])
{
	switch (what) {
	case FAIL_ADD_NULL:
		return set_attr(a->dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, NULL);
	case FAIL_ADD_BADF:
		return dev_add(a->dev, -1);
	case FAIL_ADD_NOT_VFIO:
		return dev_add(a->dev, a->fd);
	case FAIL_ADD_AGAIN:
		return dev_add(a->dev, fd[0]);
	case FAIL_DEL_NULL:
		return set_attr(a->dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_DEL, NULL);
	case FAIL_DEL_BADF:
		return dev_del(a->dev, -1);
	case FAIL_DEL_NOT_VFIO:
		return dev_del(a->dev, a->fd);
	case FAIL_DEL_UNTRACKED:
		return dev_del(c->dev, fd[0]);
	case FAIL_DEL_OTHERS:
		return dev_del(a->dev, fd[1]);
	case FAIL_UNKNOWN_GROUP:
		return set_attr(a->dev, 2, KVM_DEV_VFIO_FILE_DEL, &fd[0]);
	case FAIL_UNKNOWN_ATTR:
		return set_attr(a->dev, KVM_DEV_VFIO_FILE, 4, &fd[0]);
	default:
		return create_device(a->fd, 0);
	}
}

TEST_F(unchanged, flags)
{
	long before;

	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->a));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->b));
	EXPECT_EQ(0, vm_noncoherent(&self->c));
	before = hits();
	EXPECT_EQ(variant->expected, fail(variant->call, &self->a, &self->c, self->fd));
	EXPECT_EQ(before, hits());
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->a));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->b));
	EXPECT_EQ(0, vm_noncoherent(&self->c));
}

/*
 * The same after both groups have left their containers, whatever the flags are
 * then: a call that fails is no occasion to notice that.
 */
TEST_F(unchanged, flags_of_detached)
{
	int a, b, c;

	ASSERT_EQ(0, group_leave(self->fd[0]));
	ASSERT_EQ(0, group_leave(self->fd[1]));
	a = vm_noncoherent(&self->a);
	b = vm_noncoherent(&self->b);
	c = vm_noncoherent(&self->c);
	EXPECT_EQ(variant->expected, fail(variant->call, &self->a, &self->c, self->fd));
	EXPECT_EQ(a, vm_noncoherent(&self->a));
	EXPECT_EQ(b, vm_noncoherent(&self->b));
	EXPECT_EQ(c, vm_noncoherent(&self->c));
}

TEST_F(unchanged, files)
{
	EXPECT_EQ(variant->expected, fail(variant->call, &self->a, &self->c, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->c.dev, self->fd[0]));
	EXPECT_EQ(-ENOENT, dev_del(self->c.dev, self->fd[1]));
	EXPECT_EQ(-ENOENT, dev_del(self->a.dev, self->fd[1]));
	EXPECT_EQ(-ENOENT, dev_del(self->b.dev, self->fd[0]));
	EXPECT_EQ(-EEXIST, dev_add(self->a.dev, self->fd[0]));
	EXPECT_EQ(-EEXIST, dev_add(self->b.dev, self->fd[1]));
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd[0]));
	EXPECT_EQ(0, dev_del(self->b.dev, self->fd[1]));
}

/* A group opens only if nothing refers to the file it was opened as before. */
TEST_F(unchanged, references)
{
	int i;

	for (i = 0; i < 3; i++)
		EXPECT_EQ(variant->expected,
			  fail(variant->call, &self->a, &self->c, self->fd));
	EXPECT_EQ(0, dev_del(self->a.dev, self->fd[0]));
	EXPECT_EQ(0, dev_del(self->b.dev, self->fd[1]));
	close(self->fd[0]);
	close(self->fd[1]);
	EXPECT_LE(0, group_open(0));
	EXPECT_LE(0, group_open(1));
}

/* --- Who keeps a file, and for how long --- */

FIXTURE(life) {
	struct vm vm;
	struct vm other;
	int fd;
};

FIXTURE_SETUP(life)
{
	REQUIRE(no_groups(1));
	self->other = NO_VM;
	ASSERT_EQ(0, vm_open(&self->vm));
	ASSERT_EQ(0, vm_open(&self->other));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
}

FIXTURE_TEARDOWN(life)
{
	vm_close(&self->vm);
	vm_close(&self->other);
}

TEST_F(life, tracked_file_stays_open)
{
	close_fd(&self->fd);
	EXPECT_EQ(-EBUSY, group_open(0));
}

TEST_F(life, tracked_file_closes_with_the_device)
{
	close_fd(&self->fd);
	close_fd(&self->vm.dev);
	self->fd = group_open(0);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(0, dev_add(self->other.dev, self->fd));
}

TEST_F(life, tracked_file_closes_with_del)
{
	int copy = dup(self->fd);

	ASSERT_LE(0, copy);
	close_fd(&self->fd);
	EXPECT_EQ(-EBUSY, group_open(0));
	EXPECT_EQ(0, dev_del(self->vm.dev, copy));
	EXPECT_EQ(-EBUSY, group_open(0));
	close(copy);
	EXPECT_LE(0, group_open(0));
}

TEST_F(life, tracked_file_closes_with_the_vm)
{
	close_fd(&self->fd);
	vm_close(&self->vm);
	EXPECT_LE(0, group_open(0));
}

TEST_F(life, device_works_after_vm_close)
{
	close_fd(&self->vm.fd);
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
}

TEST_F(life, device_closed_after_the_vm)
{
	close_fd(&self->vm.fd);
	close_fd(&self->vm.dev);
	EXPECT_EQ(0, dev_add(self->other.dev, self->fd));
}

/* Its device is released with the descriptor, not with the VM. */
TEST_F(life, device_closed_before_the_vm)
{
	close_fd(&self->vm.dev);
	EXPECT_EQ(0, dev_add(self->other.dev, self->fd));
	EXPECT_LT(0, ioctl(self->vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS));
}

TEST_F(life, tracked_and_attached_file_detaches_at_last)
{
	ASSERT_EQ(0, group_attach(self->fd));
	close_fd(&self->fd);
	EXPECT_EQ(-EBUSY, group_open(0));
	close_fd(&self->vm.dev);
	self->fd = group_open(0);
	ASSERT_LE(0, self->fd);
	/* In no container any more. */
	EXPECT_EQ(0, group_attach(self->fd));
}

TEST_F(life, works_again_after_everything)
{
	int i;

	for (i = 0; i < 10; i++) {
		vm_close(&self->vm);
		close_fd(&self->fd);
		ASSERT_EQ(0, vm_open(&self->vm));
		self->fd = group_open(0);
		ASSERT_LE(0, self->fd);
		ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	}
}

/* Runs what must hold in a child; 0, or the number of the check that failed. */
#define in_child(...) ({							\
	int child_status_ = -1;							\
	pid_t child_ = fork();							\
										\
	if (!child_) {								\
		__VA_ARGS__;							\
		_exit(0);							\
	}									\
	waitpid(child_, &child_status_, 0);					\
	WIFEXITED(child_status_) ? WEXITSTATUS(child_status_) : -1;		\
})

#define child_check(nr, condition) do {						\
	if (!(condition))							\
		_exit(nr);							\
} while (0)

TEST_F(life, child_gets_eio)
{
	EXPECT_EQ(0, in_child({
		child_check(1, dev_add(self->vm.dev, self->fd) == -EIO);
		child_check(2, dev_del(self->vm.dev, self->fd) == -EIO);
		child_check(3, has_attr(self->vm.dev, KVM_DEV_VFIO_FILE,
					KVM_DEV_VFIO_FILE_ADD) == -EIO);
		child_check(4, dev_add(self->vm.dev, -1) == -EIO);
		child_check(5, create_device(self->vm.fd, 0) == -EIO);
	}));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
}

TEST_F(life, child_that_closes_gives_nothing_free)
{
	EXPECT_EQ(0, in_child({
		close(self->vm.dev);
		close(self->vm.fd);
		close(self->fd);
	}));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
}

/* The device's file is the child's, too: its last close is what counts. */
TEST_F(life, child_keeps_the_device)
{
	int go[2];
	pid_t child;
	char byte;

	ASSERT_EQ(0, pipe(go));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		close(go[1]);
		/* Ends when the parent closes the pipe. */
		_exit(read(go[0], &byte, 1) != 0);
	}
	close_fd(&self->vm.dev);
	EXPECT_EQ(-EBUSY, create_device(self->vm.fd, 0));
	close(go[1]);
	waitpid(child, NULL, 0);
	self->vm.dev = create_device(self->vm.fd, 0);
	EXPECT_LE(0, self->vm.dev);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
}

/* A group opened here may be tracked for the VM of another process, too. */
TEST_F(life, other_process_is_another_vm)
{
	EXPECT_EQ(0, in_child({
		struct vm vm;

		child_check(1, vm_open(&vm) == 0);
		child_check(2, dev_add(vm.dev, self->fd) == 0);
		child_check(3, dev_add(vm.dev, self->fd) == -EEXIST);
	}));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_EQ(0, in_child({
		struct vm vm;

		child_check(1, vm_open(&vm) == 0);
		child_check(2, dev_add(vm.dev, self->fd) == 0);
	}));
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
}

/* --- A process killed between any two steps --- */

enum step {
	STEP_VM,
	STEP_OPEN,
	STEP_ADD,
	STEP_JOIN,
	STEP_IOMMU,
	STEP_RUN,
	STEP_DEVICE,
	STEP_CLOSE_GROUP,
};

FIXTURE(killed) {
};

FIXTURE_VARIANT(killed) {
	enum step last;
};

FIXTURE_VARIANT_ADD(killed, after_create) { .last = STEP_VM };
FIXTURE_VARIANT_ADD(killed, after_open) { .last = STEP_OPEN };
FIXTURE_VARIANT_ADD(killed, after_add) { .last = STEP_ADD };
FIXTURE_VARIANT_ADD(killed, after_set_container) { .last = STEP_JOIN };
FIXTURE_VARIANT_ADD(killed, after_set_iommu) { .last = STEP_IOMMU };
FIXTURE_VARIANT_ADD(killed, after_run) { .last = STEP_RUN };
FIXTURE_VARIANT_ADD(killed, after_device_open) { .last = STEP_DEVICE };
FIXTURE_VARIANT_ADD(killed, after_group_close) { .last = STEP_CLOSE_GROUP };

FIXTURE_SETUP(killed)
{
	REQUIRE(no_groups(1));
	if (variant->last >= STEP_RUN)
		REQUIRE(no_guest);
	if (variant->last >= STEP_DEVICE)
		REQUIRE(no_pci(0));
}

FIXTURE_TEARDOWN(killed)
{
}

/* 0, or what went wrong in the step. */
static int do_step(enum step step, struct vm *vm, int *group, int *container)
{
	int ret;

	switch (step) {
	case STEP_VM:
		return vm_open(vm);
	case STEP_OPEN:
		*group = group_open_soon(0);
		return *group < 0 ? *group : 0;
	case STEP_ADD:
		return dev_add(vm->dev, *group);
	case STEP_JOIN:
		*container = container_open();
		return group_join(*group, *container);
	case STEP_IOMMU:
		return set_iommu(*container);
	case STEP_RUN:
		ret = vm_add_vcpu(vm, guest_wbinvd_once, sizeof(guest_wbinvd_once));
		return ret ? ret : vm_wbinvd(vm);
	case STEP_DEVICE:
		ret = group_get_device(*group, 0);
		return ret < 0 ? ret : 0;
	default:
		return call(close(*group));
	}
}

static void victim(enum step last, int tell)
{
	int group = -1, container = -1, ret = 0, step;
	struct vm vm;

	for (step = STEP_VM; step <= (int)last && !ret; step++)
		ret = do_step(step, &vm, &group, &container);
	if (write(tell, &ret, sizeof(ret)) == sizeof(ret))
		pause();
	_exit(1);
}

TEST_F(killed, everything_is_free)
{
	int told[2], ret = -1, group, status;
	struct vm vm;
	pid_t child;

	ASSERT_EQ(0, pipe(told));
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		victim(variant->last, told[1]);
	ASSERT_EQ(sizeof(ret), (size_t)read(told[0], &ret, sizeof(ret)));
	EXPECT_EQ(0, ret);
	kill(child, SIGKILL);
	ASSERT_EQ(child, waitpid(child, &status, 0));

	group = group_open_soon(0);
	ASSERT_LE(0, group);
	ASSERT_EQ(0, vm_open(&vm));
	EXPECT_EQ(0, dev_add(vm.dev, group));
	EXPECT_EQ(0, group_attach(group));
	EXPECT_EQ(0, dev_del(vm.dev, group));
}

/* --- Live update: another process takes a VM's device over --- */

/*
 * The calls that QEMU's cpr-transfer makes in its two processes. The old one
 * sends its VFIO files. The new one adds the group to its VM while the old VM
 * tracks it still, and tells VFIO where the memory is now. Then one of them
 * ends: the old one, or the new one if the update fails.
 */
enum order {
	ORDER_CREATE,		/* a VM whose guest executes WBINVD */
	ORDER_ASSIGN,		/* open group and device, attach, map */
	ORDER_SEND,
	ORDER_RECEIVE,
	ORDER_ADD,
	ORDER_DEL,
	ORDER_TAKE_ADDRESS,	/* memory mapped for DMA loses its address, */
	ORDER_GIVE_ADDRESS,	/* and has that of this process */
	ORDER_NONCOHERENT,	/* vm_noncoherent() */
	ORDER_STATE,		/* is what the device says true? */
	ORDER_CLOSE,
};

#define DMA_SIZE	(16 * 4096)

/* What a process has that is a VM monitor */
struct monitor {
	struct vm vm;
	int file[3];		/* group, container, device */
	int memory;		/* of both processes */
	int peer;		/* the other one */
};

static int monitor_map(struct monitor *m, uint32_t flags)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map), .flags = flags };
	void *memory = mmap(NULL, DMA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, m->memory, 0);

	if (memory == MAP_FAILED)
		return -errno;
	map.vaddr = (uintptr_t)memory;
	map.size = DMA_SIZE;
	return call(ioctl(m->file[1], VFIO_IOMMU_MAP_DMA, &map));
}

static int monitor_assign(struct monitor *m)
{
	int ret;

	m->file[0] = group_open_soon(0);
	m->file[1] = container_open();
	ret = group_join(m->file[0], m->file[1]);
	if (!ret)
		ret = set_iommu(m->file[1]);
	if (!ret)
		ret = monitor_map(m, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);
	if (ret)
		return ret;
	m->file[2] = group_get_device(m->file[0], 0);
	return m->file[2] < 0 ? m->file[2] : 0;
}

static int monitor_take_address(struct monitor *m)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.flags = VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_VADDR,
	};

	return call(ioctl(m->file[1], VFIO_IOMMU_UNMAP_DMA, &unmap));
}

/* The three files, from one process to the other */
static int monitor_transfer(struct monitor *m, bool send)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(m->file))];
	} control = {};
	char byte = 0;
	struct iovec data = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	if (send) {
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(sizeof(m->file));
		memcpy(CMSG_DATA(head), m->file, sizeof(m->file));
		return sendmsg(m->peer, &message, 0) == 1 ? 0 : -EIO;
	}
	if (recvmsg(m->peer, &message, MSG_CMSG_CLOEXEC) != 1 ||
	    head->cmsg_type != SCM_RIGHTS || head->cmsg_len != CMSG_LEN(sizeof(m->file)))
		return -EIO;
	memcpy(m->file, CMSG_DATA(head), sizeof(m->file));
	return 0;
}

static int monitor_close(struct monitor *m)
{
	int i;

	vm_close(&m->vm);
	for (i = 2; i >= 0; i--)
		close_fd(&m->file[i]);
	return 0;
}

static int monitor_obey(struct monitor *m, enum order order)
{
	switch (order) {
	case ORDER_CREATE:
		return vm_open_guest(&m->vm);
	case ORDER_ASSIGN:
		return monitor_assign(m);
	case ORDER_SEND:
	case ORDER_RECEIVE:
		return monitor_transfer(m, order == ORDER_SEND);
	case ORDER_ADD:
		return dev_add(m->vm.dev, m->file[0]);
	case ORDER_DEL:
		return dev_del(m->vm.dev, m->file[0]);
	case ORDER_TAKE_ADDRESS:
		return monitor_take_address(m);
	case ORDER_GIVE_ADDRESS:
		return monitor_map(m, VFIO_DMA_MAP_FLAG_VADDR);
	case ORDER_NONCOHERENT:
		return vm_noncoherent(&m->vm);
	case ORDER_STATE:
		return vm_state_is(&m->vm, 1, host.noncoherent) &&
			file_state_is(&m->vm, m->file[0], attached_state());
	case ORDER_CLOSE:
		return monitor_close(m);
	}
	return -EINVAL;
}

struct process {
	pid_t pid;
	int orders;
};

/* A process that has nothing of VFIO, and does what it is told */
static int process_start(struct process *p, int memory, int peer)
{
	struct monitor m = {
		.vm = NO_VM, .file = { -1, -1, -1 }, .memory = memory, .peer = peer,
	};
	int order, answer, pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		return -errno;
	p->orders = pair[0];
	p->pid = fork();
	if (p->pid) {
		close(pair[1]);
		return call(p->pid);
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(pair[1], &order, sizeof(order)) == sizeof(order)) {
		answer = monitor_obey(&m, order);
		if (write(pair[1], &answer, sizeof(answer)) != sizeof(answer))
			break;
	}
	_exit(0);
}

static int process_do(struct process *p, int order)
{
	int answer;

	if (send(p->orders, &order, sizeof(order), MSG_NOSIGNAL) != sizeof(order) ||
	    read(p->orders, &answer, sizeof(answer)) != sizeof(answer))
		return -EPIPE;
	return answer;
}

/* All files it had are closed when it can be waited for. */
static void process_kill(struct process *p)
{
	if (p->pid > 0) {
		kill(p->pid, SIGKILL);
		waitpid(p->pid, NULL, 0);
	}
	close_fd(&p->orders);
	p->pid = 0;
}

/* Only a container with an IOMMU knows. */
static const char *no_new_address(void)
{
	int group = group_open_soon(0);
	int container = container_open();
	bool can = !group_join(group, container) && !set_iommu(container) &&
		ioctl(container, VFIO_CHECK_EXTENSION, VFIO_UPDATE_VADDR) == 1 &&
		ioctl(container, VFIO_CHECK_EXTENSION, VFIO_UNMAP_ALL) == 1;

	close(container);
	close(group);
	return can ? "" : "VFIO does not take a new address for memory";
}

FIXTURE(live_update) {
	struct process old;
	struct process new;
};

FIXTURE_VARIANT(live_update) {
	bool fails;		/* and so the new one ends */
	bool killed;
};

FIXTURE_VARIANT_ADD(live_update, old_closes) { .fails = false, .killed = false };
FIXTURE_VARIANT_ADD(live_update, old_is_killed) { .fails = false, .killed = true };
FIXTURE_VARIANT_ADD(live_update, new_closes) { .fails = true, .killed = false };
FIXTURE_VARIANT_ADD(live_update, new_is_killed) { .fails = true, .killed = true };

FIXTURE_SETUP(live_update)
{
	int memory, peers[2];

	self->old.orders = -1;
	self->new.orders = -1;
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(1));
	REQUIRE(no_pci(0));
	REQUIRE(no_new_address());
	memory = memfd_create("memory", 0);
	ASSERT_LE(0, memory);
	ASSERT_EQ(0, ftruncate(memory, DMA_SIZE));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, peers));
	ASSERT_LT(0, process_start(&self->old, memory, peers[0]));
	ASSERT_LT(0, process_start(&self->new, memory, peers[1]));
}

FIXTURE_TEARDOWN(live_update)
{
	process_kill(&self->old);
	process_kill(&self->new);
}

#define EXPECT_NONCOHERENT(p) do {						\
	struct process *p_ = (p);						\
										\
	EXPECT_EQ(host.noncoherent, process_do(p_, ORDER_NONCOHERENT));		\
	EXPECT_EQ(1, process_do(p_, ORDER_STATE));				\
} while (0)

TEST_F(live_update, vm_stays_what_it_is)
{
	struct process *old = &self->old, *new = &self->new;
	struct process *left = variant->fails ? old : new;
	struct process *gone = variant->fails ? new : old;

	ASSERT_EQ(0, process_do(old, ORDER_CREATE));
	ASSERT_EQ(0, process_do(old, ORDER_ASSIGN));
	ASSERT_EQ(0, process_do(old, ORDER_ADD));
	EXPECT_NONCOHERENT(old);

	ASSERT_EQ(0, process_do(old, ORDER_SEND));
	ASSERT_EQ(0, process_do(new, ORDER_RECEIVE));
	ASSERT_EQ(0, process_do(new, ORDER_CREATE));
	EXPECT_EQ(0, process_do(new, ORDER_NONCOHERENT));
	ASSERT_EQ(0, process_do(new, ORDER_ADD));
	EXPECT_EQ(-EEXIST, process_do(new, ORDER_ADD));
	EXPECT_EQ(-EEXIST, process_do(old, ORDER_ADD));
	EXPECT_NONCOHERENT(old);
	EXPECT_NONCOHERENT(new);

	ASSERT_EQ(0, process_do(old, ORDER_TAKE_ADDRESS));
	EXPECT_NONCOHERENT(old);
	EXPECT_NONCOHERENT(new);
	ASSERT_EQ(0, process_do(left, ORDER_GIVE_ADDRESS));
	EXPECT_NONCOHERENT(old);
	EXPECT_NONCOHERENT(new);

	if (!variant->killed)
		EXPECT_EQ(0, process_do(gone, ORDER_CLOSE));
	process_kill(gone);
	EXPECT_NONCOHERENT(left);
	/* It has the group to itself, and lets go of it like any other. */
	EXPECT_EQ(-EBUSY, group_open(0));
	EXPECT_EQ(-EEXIST, process_do(left, ORDER_ADD));
	EXPECT_EQ(0, process_do(left, ORDER_DEL));
	EXPECT_EQ(0, process_do(left, ORDER_NONCOHERENT));
	EXPECT_EQ(0, process_do(left, ORDER_ADD));
	EXPECT_NONCOHERENT(left);
	process_kill(left);
	EXPECT_LE(0, group_open_soon(0));
}

/* --- Coherency: a model, and sequences that the device must follow --- */

/*
 * Two VMs, A and B, two groups and two containers. Every operation is done for
 * real and in the model; its result and, after it, the flag of both VMs must be
 * the model's.
 */
enum op_kind { OP_ADD, OP_DEL, OP_RESET, OP_JOIN, OP_LEAVE, OP_IOMMU, OP_DROP, OP_OPEN,
	       OP_GETDEV, OP_PUTDEV };

struct op {
	enum op_kind kind;
	int vm;			/* 0 is A, 1 is B */
	int group;
	int container;
};

struct world {
	struct vm vm[2];
	int group[2];		/* -1: closed */
	int device[2];		/* of the group; -1: closed */
	int container[2];
	/* The model: */
	unsigned int owners[2];	/* the VMs that track the group, a bit each */
	int member[2];		/* the container the group is in, or -1 */
	bool iommu[2];		/* VFIO_SET_IOMMU was done in the container */
};

static bool tracks(const struct world *w, int group, int vm)
{
	return w->owners[group] & (1u << vm);
}

static int world_open(struct world *w, int nr_groups)
{
	int i, ret = 0;

	for (i = 0; i < 2; i++) {
		w->vm[i] = NO_VM;
		w->group[i] = -1;
		w->device[i] = -1;
		w->owners[i] = 0;
		w->member[i] = -1;
		w->container[i] = container_open();
		w->iommu[i] = false;
	}
	for (i = 0; i < 2 && !ret; i++)
		ret = vm_open_guest(&w->vm[i]);
	for (i = 0; i < nr_groups && !ret; i++) {
		w->group[i] = need_group(i);
		ret = w->group[i] < 0 ? w->group[i] : 0;
	}
	return ret;
}

static void world_close(struct world *w)
{
	int i;

	for (i = 0; i < 2; i++) {
		close_fd(&w->device[i]);
		close_fd(&w->group[i]);
		close_fd(&w->container[i]);
		vm_close(&w->vm[i]);
	}
}

static bool file_is_open(const struct world *w, int group)
{
	return w->group[group] >= 0 || w->device[group] >= 0 || w->owners[group];
}

static bool is_attached(const struct world *w, int group)
{
	return w->member[group] >= 0 && w->iommu[w->member[group]];
}

/* The rule that everything here is about. */
static bool should_be_noncoherent(const struct world *w, int vm)
{
	int i;

	for (i = 0; i < 2; i++)
		if (tracks(w, i, vm) && is_attached(w, i))
			return host.noncoherent;
	return false;
}

static void model_leave(struct world *w, int group)
{
	int container = w->member[group];

	w->member[group] = -1;
	/* The last group takes the IOMMU with it. */
	if (w->member[!group] != container)
		w->iommu[container] = false;
}

static void model_close_if_unused(struct world *w, int group)
{
	if (!file_is_open(w, group) && w->member[group] >= 0)
		model_leave(w, group);
}

static int model_add(struct world *w, const struct op *op)
{
	if (w->group[op->group] < 0)
		return -EBADF;
	if (tracks(w, op->group, op->vm))
		return -EEXIST;
	w->owners[op->group] |= 1u << op->vm;
	return 0;
}

static int model_del(struct world *w, const struct op *op)
{
	if (w->group[op->group] < 0)
		return -EBADF;
	if (!tracks(w, op->group, op->vm))
		return -ENOENT;
	w->owners[op->group] &= ~(1u << op->vm);
	return 0;
}

static int model_join(struct world *w, const struct op *op)
{
	if (w->group[op->group] < 0)
		return -EBADF;
	if (w->member[op->group] >= 0)
		return -EINVAL;
	w->member[op->group] = op->container;
	return 0;
}

static int model_leave_op(struct world *w, const struct op *op)
{
	if (w->group[op->group] < 0)
		return -EBADF;
	if (w->member[op->group] < 0)
		return -EINVAL;
	if (w->device[op->group] >= 0)
		return -EBUSY;
	model_leave(w, op->group);
	return 0;
}

static int model_iommu(struct world *w, const struct op *op)
{
	if (w->iommu[op->container] ||
	    (w->member[0] != op->container && w->member[1] != op->container))
		return -EINVAL;
	w->iommu[op->container] = true;
	return 0;
}

/* Descriptors are real, so closing and opening one changes the model with it. */
static int do_drop(struct world *w, int group)
{
	close_fd(&w->group[group]);
	model_close_if_unused(w, group);
	return 0;
}

static int do_open(struct world *w, int group, int *expected)
{
	int fd;

	*expected = file_is_open(w, group) ? -EBUSY : 0;
	fd = group_open(group);
	if (fd < 0)
		return fd;
	w->group[group] = fd;
	return 0;
}

static int do_getdev(struct world *w, int group, int *expected)
{
	int fd;

	*expected = w->group[group] < 0 ? -EBADF : is_attached(w, group) ? 0 : -EINVAL;
	fd = group_get_device(w->group[group], group);
	if (fd < 0)
		return fd;
	w->device[group] = fd;
	return 0;
}

static int do_putdev(struct world *w, int group)
{
	close_fd(&w->device[group]);
	model_close_if_unused(w, group);
	return 0;
}

/* The KVM device is closed, and a new one made. */
static int do_reset(struct world *w, int vm)
{
	int i;

	close_fd(&w->vm[vm].dev);
	for (i = 0; i < 2; i++) {
		w->owners[i] &= ~(1u << vm);
		model_close_if_unused(w, i);
	}
	w->vm[vm].dev = create_device(w->vm[vm].fd, 0);
	return w->vm[vm].dev < 0 ? w->vm[vm].dev : 0;
}

/* Returns what the system call did, and in EXPECTED what it had to do. */
static int do_op(struct world *w, const struct op *op, int *expected)
{
	*expected = 0;
	switch (op->kind) {
	case OP_ADD:
		*expected = model_add(w, op);
		return dev_add(w->vm[op->vm].dev, w->group[op->group]);
	case OP_DEL:
		*expected = model_del(w, op);
		return dev_del(w->vm[op->vm].dev, w->group[op->group]);
	case OP_JOIN:
		*expected = model_join(w, op);
		return group_join(w->group[op->group], w->container[op->container]);
	case OP_LEAVE:
		*expected = model_leave_op(w, op);
		return group_leave(w->group[op->group]);
	case OP_IOMMU:
		*expected = model_iommu(w, op);
		return set_iommu(w->container[op->container]);
	case OP_RESET:
		return do_reset(w, op->vm);
	case OP_DROP:
		return do_drop(w, op->group);
	case OP_OPEN:
		return do_open(w, op->group, expected);
	case OP_GETDEV:
		return do_getdev(w, op->group, expected);
	case OP_PUTDEV:
		return do_putdev(w, op->group);
	}
	return -EINVAL;
}

static const char * const op_name[] = {
	[OP_ADD] = "add", [OP_DEL] = "del", [OP_RESET] = "reset", [OP_JOIN] = "join",
	[OP_LEAVE] = "leave", [OP_IOMMU] = "iommu", [OP_DROP] = "drop", [OP_OPEN] = "open",
	[OP_GETDEV] = "getdev", [OP_PUTDEV] = "putdev",
};

/*
 * "add1" group 1 for VM A, "Bdel2" group 2 for VM B, "join2.1" group 2 into
 * container 1 ("join1" is "join1.1"), "leave1", "iommu2" VFIO_SET_IOMMU in
 * container 2, "drop1" and "open1" the group's descriptor, "getdev1" and
 * "putdev1" the descriptor of its device, "reset" and "Breset" the KVM device.
 */
static int parse_op(const char *word, struct op *op)
{
	size_t i, size;

	memset(op, 0, sizeof(*op));
	if (*word == 'B') {
		op->vm = 1;
		word++;
	}
	for (i = 0; i < ARRAY_SIZE(op_name); i++) {
		size = strlen(op_name[i]);
		if (strncmp(word, op_name[i], size))
			continue;
		op->kind = i;
		if (word[size])
			op->group = word[size] - '1';
		if (op->kind == OP_IOMMU)
			op->container = op->group;
		else if (word[size] && word[size + 1] == '.')
			op->container = word[size + 2] - '1';
		return 0;
	}
	return -EINVAL;
}

static void print_op(const struct op *op, char *text, size_t size)
{
	bool of_vm = op->kind <= OP_RESET;

	snprintf(text, size, "%s%s%d.%d", of_vm && op->vm ? "B" : "", op_name[op->kind],
		 (op->kind == OP_IOMMU ? op->container : op->group) + 1, op->container + 1);
}

static void expect_noncoherent(const struct world *w, bool *expected)
{
	int i;

	for (i = 0; i < 2; i++)
		expected[i] = should_be_noncoherent(w, i);
}

static void observe(struct world *w, const struct op *op, struct outcome *o)
{
	bool expected[2];

	expect_noncoherent(w, expected);
	outcome_before(o, w->vm, expected);
	o->result = do_op(w, op, &o->expected_result);
	expect_noncoherent(w, expected);
	outcome_after(o, w->vm, expected);
}

FIXTURE(coherency) {
	struct world world;
};

FIXTURE_VARIANT(coherency) {
	const char *steps;
};

/* One group: every order of ADD and DEL with SET_CONTAINER, SET_IOMMU, UNSET. */
FIXTURE_VARIANT_ADD(coherency, add_del_join_iommu_leave) {
	.steps = "add1 del1 join1 iommu1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, add_join_del_iommu_leave) {
	.steps = "add1 join1 del1 iommu1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, add_join_iommu_del_leave) {
	.steps = "add1 join1 iommu1 del1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, add_join_iommu_leave_del) {
	.steps = "add1 join1 iommu1 leave1 del1",
};

FIXTURE_VARIANT_ADD(coherency, join_add_del_iommu_leave) {
	.steps = "join1 add1 del1 iommu1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, join_add_iommu_del_leave) {
	.steps = "join1 add1 iommu1 del1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, join_add_iommu_leave_del) {
	.steps = "join1 add1 iommu1 leave1 del1",
};

FIXTURE_VARIANT_ADD(coherency, join_iommu_add_del_leave) {
	.steps = "join1 iommu1 add1 del1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, join_iommu_add_leave_del) {
	.steps = "join1 iommu1 add1 leave1 del1",
};

FIXTURE_VARIANT_ADD(coherency, join_iommu_leave_add_del) {
	.steps = "join1 iommu1 leave1 add1 del1",
};

/* No SET_IOMMU: no DMA. */
FIXTURE_VARIANT_ADD(coherency, add_join_leave_del) {
	.steps = "add1 join1 leave1 del1",
};

FIXTURE_VARIANT_ADD(coherency, join_add_leave_del) {
	.steps = "join1 add1 leave1 del1",
};

FIXTURE_VARIANT_ADD(coherency, join_add_del_leave) {
	.steps = "join1 add1 del1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, add_only) {
	.steps = "add1 del1",
};

/* And again. */
FIXTURE_VARIANT_ADD(coherency, attached_twice) {
	.steps = "add1 join1 iommu1 leave1 join1.2 iommu2 leave1 join1.2 iommu2 del1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, added_twice) {
	.steps = "join1 iommu1 add1 del1 add1 del1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, device_closed_while_attached) {
	.steps = "join1 iommu1 add1 reset leave1",
};

FIXTURE_VARIANT_ADD(coherency, device_closed_then_attached) {
	.steps = "add1 reset join1 iommu1 add1 reset",
};

FIXTURE_VARIANT_ADD(coherency, untracked) {
	.steps = "join1 iommu1 del1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, failed_calls) {
	.steps = "add1 add1 join1 join1.2 iommu2 iommu1 iommu1 Badd1 Bdel1 leave1 leave1 del1 del1",
};

/* The group's descriptor closed: a tracked file is kept, and stays attached. */
FIXTURE_VARIANT_ADD(coherency, group_closed_untracked) {
	.steps = "join1 iommu1 drop1 open1 add1 del1",
};

FIXTURE_VARIANT_ADD(coherency, group_closed_while_tracked) {
	.steps = "add1 join1 iommu1 drop1 open1 reset open1 add1",
};

FIXTURE_VARIANT_ADD(coherency, group_closed_before_attached) {
	.steps = "add1 drop1 open1 reset open1 join1 add1 iommu1 drop1 reset",
};

/* Two groups in one container. */
FIXTURE_VARIANT_ADD(coherency, two_join_then_iommu) {
	.steps = "add1 add2 join1 join2 iommu1 leave1 leave2 del1 del2",
};

FIXTURE_VARIANT_ADD(coherency, two_iommu_then_join) {
	.steps = "add1 add2 join1 iommu1 join2 leave1 leave2 del1 del2",
};

FIXTURE_VARIANT_ADD(coherency, two_attached_then_added) {
	.steps = "join1 join2 iommu1 add1 add2 del1 del2 leave1 leave2",
};

FIXTURE_VARIANT_ADD(coherency, two_first_untracked) {
	.steps = "add2 join1 iommu1 join2 leave1 leave2",
};

FIXTURE_VARIANT_ADD(coherency, two_second_untracked) {
	.steps = "add1 join1 iommu1 join2 leave1 add1 add2 leave2",
};

FIXTURE_VARIANT_ADD(coherency, two_del_one_of_two) {
	.steps = "join1 iommu1 join2 add1 add2 del2 add2 del1 leave2 del2",
};

FIXTURE_VARIANT_ADD(coherency, two_closed_at_once) {
	.steps = "join1 join2 iommu1 add1 add2 reset leave1 leave2",
};

FIXTURE_VARIANT_ADD(coherency, two_left_one_by_one) {
	.steps = "add1 add2 join1 join2 iommu1 leave2 join2 leave1 join1 leave2 leave1",
};

FIXTURE_VARIANT_ADD(coherency, two_groups_closed) {
	.steps = "add1 add2 join1 join2 iommu1 drop1 drop2 reset open1 open2",
};

/* Two groups in two containers. */
FIXTURE_VARIANT_ADD(coherency, apart_added_first) {
	.steps = "add1 add2 join1.1 join2.2 iommu1 iommu2 leave1 leave2 del1 del2",
};

FIXTURE_VARIANT_ADD(coherency, apart_added_last) {
	.steps = "join1.1 join2.2 iommu2 iommu1 add1 add2 del1 del2",
};

FIXTURE_VARIANT_ADD(coherency, apart_only_one_iommu) {
	.steps = "join1.1 join2.2 add1 add2 iommu2 leave1 del2 leave2",
};

FIXTURE_VARIANT_ADD(coherency, apart_moved) {
	.steps = "add1 join1 iommu1 add2 join2.2 iommu2 leave2 join2 leave1 join1 leave1 leave2",
};

FIXTURE_VARIANT_ADD(coherency, apart_del_order) {
	.steps = "join1.1 iommu1 join2.2 iommu2 add1 add2 del2 del1 add2 add1 reset",
};

/* Two VMs. */
FIXTURE_VARIANT_ADD(coherency, vms_one_each) {
	.steps = "add1 Badd2 join1.1 iommu1 join2.2 iommu2 leave1 leave2 del1 Bdel2",
};

FIXTURE_VARIANT_ADD(coherency, vms_one_container) {
	.steps = "add1 Badd2 join1 join2 iommu1 leave1 join1 leave2 leave1",
};

FIXTURE_VARIANT_ADD(coherency, vms_added_attached) {
	.steps = "join1 join2 iommu1 add1 Badd2 del1 Bdel2",
};

FIXTURE_VARIANT_ADD(coherency, vms_handed_over) {
	.steps = "join1 iommu1 add1 del1 Badd1 Bdel1 add1 reset Badd1 Breset",
};

FIXTURE_VARIANT_ADD(coherency, vms_exclusive) {
	.steps = "add1 Badd1 join1 iommu1 Badd1 Bdel1 del1 Badd1 add1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, vms_only_one_tracks) {
	.steps = "Badd2 join1 iommu1 join2 leave1 leave2",
};

FIXTURE_VARIANT_ADD(coherency, vms_device_closed) {
	.steps = "add1 Badd2 join1 join2 iommu1 reset Breset",
};

/* With the device open, the group cannot leave; its file lives on in the device's. */
FIXTURE_VARIANT_ADD(coherency, device_open_then_added) {
	.steps = "join1 iommu1 getdev1 add1 leave1 del1 putdev1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, device_open_after_added) {
	.steps = "add1 getdev1 join1 iommu1 getdev1 leave1 putdev1 leave1",
};

FIXTURE_VARIANT_ADD(coherency, device_keeps_the_group) {
	.steps = "join1 iommu1 getdev1 add1 drop1 open1 reset open1 putdev1 open1",
};

FIXTURE_VARIANT_ADD(coherency, device_and_vm_keep_the_group) {
	.steps = "join1 iommu1 add1 getdev1 drop1 putdev1 open1 reset open1",
};

FIXTURE_SETUP(coherency)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(strpbrk(variant->steps, "2") ? 2 : 1));
	if (strstr(variant->steps, "getdev"))
		REQUIRE(no_pci(0));
	ASSERT_EQ(0, world_open(&self->world, host.nr_groups < 2 ? 1 : 2));
}

FIXTURE_TEARDOWN(coherency)
{
	world_close(&self->world);
}

TEST_F(coherency, flag_follows)
{
	FOLLOW(&self->world, variant->steps, false);
}

/* Exactly when a VM becomes non-coherent are caches written back for it. */
TEST_F(coherency, flush_is_paid)
{
	FOLLOW(&self->world, variant->steps, true);
}

/* What the device says agrees with the model, and all its ways to say it do. */
static bool state_agrees(struct world *w, int vm)
{
	int dev = w->vm[vm].dev, i, files = 0, noncoherent = 0, expected;
	struct kvm_vfio_vm_state state;

	for (i = 0; i < 2; i++) {
		files += tracks(w, i, vm);
		if (!tracks(w, i, vm))
			expected = -ENOENT;
		else if (!is_attached(w, i))
			expected = KVM_VFIO_FILE_NOT_ATTACHED;
		else
			expected = host.noncoherent ? KVM_VFIO_FILE_NOT_ENFORCED :
				KVM_VFIO_FILE_ENFORCED;
		noncoherent += expected == KVM_VFIO_FILE_NOT_ENFORCED;
		if (w->group[i] >= 0 && get_file_state(dev, w->group[i]) != expected)
			return false;
	}
	return !get_vm_state(dev, &state) && state.files == (uint32_t)files &&
		state.noncoherent_files == (uint32_t)noncoherent &&
		state.noncoherent == !!noncoherent && !state.pad &&
		fdinfo_number(dev, "noncoherent") == !!noncoherent &&
		fdinfo_number(dev, "files") == files &&
		fdinfo_number(dev, "noncoherent_files") == noncoherent;
}

TEST_F(coherency, state_agrees)
{
	const char *rest = variant->steps;
	int i, expected;
	char word[16];
	struct op op;

	REQUIRE(no_state(&self->world.vm[0]));
	while (next_word(&rest, word, sizeof(word))) {
		ASSERT_EQ(0, parse_op(word, &op));
		do_op(&self->world, &op, &expected);
		for (i = 0; i < 2; i++)
			EXPECT_TRUE(state_agrees(&self->world, i))
				TH_LOG("VM %c after %s in \"%s\"", 'A' + i, word, variant->steps);
	}
}

/* --- A random walk through all of that --- */

FIXTURE(walk) {
	struct world world;
};

FIXTURE_SETUP(walk)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(2));
	ASSERT_EQ(0, world_open(&self->world, 2));
}

FIXTURE_TEARDOWN(walk)
{
	world_close(&self->world);
}

/* What changes something, more often than what only could. */
static void random_op(uint32_t *state, struct op *op)
{
	static const enum op_kind often[] = {
		OP_ADD, OP_ADD, OP_ADD, OP_DEL, OP_DEL, OP_JOIN, OP_JOIN, OP_JOIN, OP_LEAVE,
		OP_LEAVE, OP_IOMMU, OP_IOMMU, OP_IOMMU, OP_OPEN, OP_OPEN, OP_DROP, OP_RESET,
	};

	op->kind = often[next_random(state) % ARRAY_SIZE(often)];
	op->vm = next_random(state) % 2;
	op->group = next_random(state) % 2;
	op->container = next_random(state) % 2;
}

#define WALK_STEPS	500

TEST_F_TIMEOUT(walk, result_and_flag, 120)
{
	const char *seed = getenv("VFIO_DEV_TEST_SEED");
	uint32_t state = seed ? atoi(seed) : 1;
	struct outcome o;
	char text[32];
	struct op op;
	int i;

	for (i = 0; i < WALK_STEPS; i++) {
		random_op(&state, &op);
		observe(&self->world, &op, &o);
		print_op(&op, text, sizeof(text));
		ASSERT_EQ(o.expected_result, o.result)
			TH_LOG("result of step %d, %s", i, text);
		ASSERT_EQ(o.expected_flag[0], o.flag[0])
			TH_LOG("VM A after step %d, %s", i, text);
		ASSERT_EQ(o.expected_flag[1], o.flag[1])
			TH_LOG("VM B after step %d, %s", i, text);
	}
}

TEST_F_TIMEOUT(walk, flush, 120)
{
	const char *seed = getenv("VFIO_DEV_TEST_SEED");
	uint32_t state = seed ? atoi(seed) : 2;
	struct outcome o;
	char text[32];
	struct op op;
	int i;

	for (i = 0; i < WALK_STEPS; i++) {
		random_op(&state, &op);
		observe(&self->world, &op, &o);
		print_op(&op, text, sizeof(text));
		ASSERT_EQ(o.flush_owed, o.flushed)
			TH_LOG("during step %d, %s", i, text);
	}
}

TEST_F_TIMEOUT(walk, state, 120)
{
	const char *seed = getenv("VFIO_DEV_TEST_SEED");
	uint32_t state = seed ? atoi(seed) : 3;
	int i, ret, expected;
	char text[32];
	struct op op;

	REQUIRE(no_state(&self->world.vm[0]));
	for (i = 0; i < 2 * WALK_STEPS; i++) {
		random_op(&state, &op);
		print_op(&op, text, sizeof(text));
		ret = do_op(&self->world, &op, &expected);
		ASSERT_EQ(expected, ret);
		ASSERT_TRUE(state_agrees(&self->world, 0) && state_agrees(&self->world, 1))
			TH_LOG("after step %d, %s", i, text);
	}
}

/* --- WBINVD of the guest --- */

FIXTURE(wbinvd) {
	struct vm vm;
	int fd;
};

FIXTURE_SETUP(wbinvd)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(1));
	ASSERT_EQ(0, vm_open_guest(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(wbinvd)
{
	vm_close(&self->vm);
}

TEST_F(wbinvd, without_a_device)
{
	long before = hits();
	int i;

	close_fd(&self->vm.dev);
	for (i = 0; i < 20; i++)
		EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(before, hits());
}

TEST_F(wbinvd, while_coherent)
{
	long before = hits();
	int i;

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	for (i = 0; i < 20; i++)
		EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(before, hits());
}

TEST_F(wbinvd, while_attached)
{
	long before;
	int i;

	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	for (i = 0; i < 20; i++) {
		before = hits();
		EXPECT_EQ(0, vm_wbinvd(&self->vm));
		EXPECT_EQ(host.noncoherent, hits() > before);
	}
}

/* The vCPU moved: its lines are dirty on the CPU it came from, as well. */
TEST_F(wbinvd, of_a_moved_vcpu)
{
	long before[2];

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	pin(0);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	pin(1);
	before[0] = hits_on(0);
	before[1] = hits_on(1);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(host.noncoherent, hits_on(0) > before[0]);
	EXPECT_EQ(host.noncoherent, hits_on(1) > before[1]);
}

TEST_F(wbinvd, stops_with_the_device)
{
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->vm));
	close_fd(&self->vm.dev);
	EXPECT_EQ(0, vm_noncoherent(&self->vm));
}

/* The vCPU keeps the VM alive, and the VM must know that its device is gone. */
TEST_F(wbinvd, stops_with_the_device_of_a_closed_vm)
{
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	close_fd(&self->vm.fd);
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->vm));
	close_fd(&self->vm.dev);
	EXPECT_EQ(0, vm_noncoherent(&self->vm));
}

/* It has written there, and executed no WBINVD yet. */
TEST_F(wbinvd, of_a_vcpu_that_wrote_elsewhere)
{
	long before[2];
	struct vm vm;

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, vm_open(&vm));
	ASSERT_EQ(0, vm_add_vcpu(&vm, guest_write_first, sizeof(guest_write_first)));
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(vm.dev, self->fd));
	before[0] = hits_on(0);
	before[1] = hits_on(1);
	pin(0);
	EXPECT_EQ(0, vm_wbinvd(&vm));
	EXPECT_EQ(before[0], hits_on(0));
	EXPECT_EQ(before[1], hits_on(1));
	pin(1);
	EXPECT_EQ(0, vm_wbinvd(&vm));
	EXPECT_EQ(host.noncoherent, hits_on(0) > before[0]);
	EXPECT_EQ(host.noncoherent, hits_on(1) > before[1]);
	vm_close(&vm);
}

/* Wait until the vCPU, which runs, has left its guest @n times more. */
static bool exits_follow(struct vm *vm, long n)
{
	long goal = debugfs_stat(vm, "exits") + n;
	int i;

	for (i = 0; i < 60000; i++) {
		if (debugfs_stat(vm, "exits") >= goal)
			return true;
		sleep_ms(1);
	}
	return false;
}

/* A guest that does nothing else sees the change at once. */
TEST_F(wbinvd, of_a_running_vcpu)
{
	struct runner r = { 0 };
	long before;
	struct vm vm;
	int i;

	REQUIRE(no_cpus(2));
	if (access("/sys/kernel/debug/kvm", F_OK))
		REQUIRE("debugfs is not mounted");
	ASSERT_EQ(0, vm_open(&vm));
	ASSERT_EQ(0, vm_add_vcpu(&vm, guest_wbinvd, sizeof(guest_wbinvd)));
	ASSERT_EQ(0, dev_add(vm.dev, self->fd));
	pin(0);
	ASSERT_EQ(0, runner_start(&r, &vm, 1));
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, group_attach(self->fd));
		before = hits();
		EXPECT_TRUE(exits_follow(&vm, 100));
		EXPECT_EQ(host.noncoherent, hits() > before);
		EXPECT_EQ(0, group_leave(self->fd));
		/* The instruction it was in may still have been under way. */
		EXPECT_TRUE(exits_follow(&vm, 10));
		before = hits();
		EXPECT_TRUE(exits_follow(&vm, 100));
		EXPECT_EQ(before, hits());
	}
	EXPECT_EQ(0, runner_stop(&r));
	vm_close(&vm);
}

/* --- What the device says of itself --- */

static int add_guest(struct vm *vm)
{
	return vm_add_vcpu(vm, guest_wbinvd_once, sizeof(guest_wbinvd_once));
}

FIXTURE(state) {
	struct vm vm;
	int fd;
};

FIXTURE_SETUP(state)
{
	REQUIRE(host.no_kvm);
	REQUIRE(no_groups(1));
	ASSERT_EQ(0, vm_open(&self->vm));
	REQUIRE(no_state(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(state)
{
	vm_close(&self->vm);
}

TEST_F(state, has)
{
	EXPECT_EQ(0, has_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM));
	EXPECT_EQ(0, has_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_FILE));
}

TEST_F(state, unknown_is_enxio)
{
	static const uint64_t unknown[] = {
		0, 3, ~0ULL, 1ULL << 32 | KVM_DEV_VFIO_STATE_VM,
		1ULL << 32 | KVM_DEV_VFIO_STATE_FILE,
	};
	uint64_t buf[4] = { 0 };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(unknown); i++) {
		EXPECT_EQ(-ENXIO, has_attr(self->vm.dev, KVM_DEV_VFIO_STATE, unknown[i]));
		EXPECT_EQ(-ENXIO, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, unknown[i], buf));
		EXPECT_EQ(-ENXIO, set_attr(self->vm.dev, KVM_DEV_VFIO_STATE, unknown[i], buf));
	}
	EXPECT_EQ(-ENXIO, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE + 1,
				   KVM_DEV_VFIO_STATE_VM, buf));
	EXPECT_EQ(0, buf[0] | buf[1] | buf[2] | buf[3]);
}

TEST_F(state, read_only)
{
	struct kvm_vfio_file_state file = { .fd = self->fd };
	struct kvm_vfio_vm_state vm = { .noncoherent = 1, .files = 1 };

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-ENXIO, set_attr(self->vm.dev, KVM_DEV_VFIO_STATE,
				   KVM_DEV_VFIO_STATE_VM, &vm));
	EXPECT_EQ(-ENXIO, set_attr(self->vm.dev, KVM_DEV_VFIO_STATE,
				   KVM_DEV_VFIO_STATE_FILE, &file));
	EXPECT_EQ(0, get_vm_state(self->vm.dev, &vm));
	EXPECT_EQ(0, vm.noncoherent);
	EXPECT_EQ(1, vm.files);
}

/* All that is written has been set, and nothing beyond it is. */
TEST_F(state, writes_its_size)
{
	struct { struct kvm_vfio_vm_state state; uint32_t after; } vm;
	struct { struct kvm_vfio_file_state state; uint32_t after; } file;

	ASSERT_EQ(16, sizeof(vm.state));
	ASSERT_EQ(8, sizeof(file.state));
	memset(&vm, 0xff, sizeof(vm));
	memset(&file, 0xff, sizeof(file));
	file.state.fd = self->fd;

	EXPECT_EQ(0, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM, &vm));
	EXPECT_EQ(0, vm.state.noncoherent);
	EXPECT_EQ(0, vm.state.files);
	EXPECT_EQ(0, vm.state.noncoherent_files);
	EXPECT_EQ(0, vm.state.pad);
	EXPECT_EQ(0xffffffff, vm.after);

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_FILE,
			      &file));
	EXPECT_EQ(self->fd, file.state.fd);
	EXPECT_EQ(KVM_VFIO_FILE_NOT_ATTACHED, file.state.coherency);
	EXPECT_EQ(0xffffffff, file.after);
}

/* The ABI as numbers, whatever a header calls them */
TEST_F(state, words_have_their_places)
{
	uint32_t vm[4], file[2] = { self->fd, 0xffffffff };
	int other;

	EXPECT_EQ(0, offsetof(struct kvm_vfio_vm_state, noncoherent));
	EXPECT_EQ(4, offsetof(struct kvm_vfio_vm_state, files));
	EXPECT_EQ(8, offsetof(struct kvm_vfio_vm_state, noncoherent_files));
	EXPECT_EQ(12, offsetof(struct kvm_vfio_vm_state, pad));
	EXPECT_EQ(0, offsetof(struct kvm_vfio_file_state, fd));
	EXPECT_EQ(4, offsetof(struct kvm_vfio_file_state, coherency));

	REQUIRE(no_groups(2));
	other = need_group(1);
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, other));
	ASSERT_EQ(0, group_attach(self->fd));
	EXPECT_EQ(0, get_attr(self->vm.dev, 0x1000, 2, file));
	EXPECT_EQ(self->fd, file[0]);
	EXPECT_EQ(1 + host.noncoherent, file[1]);
	EXPECT_EQ(0, get_attr(self->vm.dev, 0x1000, 1, vm));
	EXPECT_EQ(host.noncoherent, vm[0]);
	EXPECT_EQ(2, vm[1]);
	EXPECT_EQ(host.noncoherent, vm[2]);
	EXPECT_EQ(0, vm[3]);

	ASSERT_EQ(0, group_attach(other));
	EXPECT_EQ(0, get_attr(self->vm.dev, 0x1000, 1, vm));
	EXPECT_EQ(host.noncoherent, vm[0]);
	EXPECT_EQ(2 * host.noncoherent, vm[2]);
}

TEST_F(state, bad_address_is_efault)
{
	static const uint64_t attrs[] = { KVM_DEV_VFIO_STATE_VM, KVM_DEV_VFIO_STATE_FILE };
	size_t i;
	char *page;

	page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)page);
	ASSERT_EQ(0, munmap(page + 4096, 4096));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	for (i = 0; i < ARRAY_SIZE(attrs); i++) {
		EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, attrs[i], NULL));
		EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, attrs[i],
					    (void *)0xffffffff81000000UL));
		EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, attrs[i],
					    page + 4096));
		/* Its first half is there. */
		EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, attrs[i],
					    page + 4096 - 4));
	}
}

/* Readable, so the descriptor is found, but the answer cannot be written. */
TEST_F(state, read_only_address_is_efault)
{
	struct kvm_vfio_file_state *state;

	state = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)state);
	state->fd = self->fd;
	state->coherency = 0xffffffff;
	ASSERT_EQ(0, mprotect(state, 4096, PROT_READ));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_FILE,
				    state));
	EXPECT_EQ(-EFAULT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE, KVM_DEV_VFIO_STATE_VM,
				    state));
	EXPECT_EQ(0xffffffff, state->coherency);
}

TEST_F(state, file_errors)
{
	struct kvm_vfio_file_state state = { .fd = self->fd, .coherency = 0xffffffff };
	struct vm other;

	EXPECT_EQ(-EBADF, get_file_state(self->vm.dev, -1));
	EXPECT_EQ(-ENOENT, get_file_state(self->vm.dev, self->vm.fd));
	EXPECT_EQ(-ENOENT, get_attr(self->vm.dev, KVM_DEV_VFIO_STATE,
				    KVM_DEV_VFIO_STATE_FILE, &state));
	EXPECT_EQ(0xffffffff, state.coherency);

	ASSERT_EQ(0, vm_open(&other));
	ASSERT_EQ(0, dev_add(other.dev, self->fd));
	EXPECT_EQ(-ENOENT, get_file_state(self->vm.dev, self->fd));
	EXPECT_EQ(KVM_VFIO_FILE_NOT_ATTACHED, get_file_state(other.dev, self->fd));
	vm_close(&other);
}

TEST_F(state, by_copy_of_the_descriptor)
{
	int copy = dup(self->fd);

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(KVM_VFIO_FILE_NOT_ATTACHED, get_file_state(self->vm.dev, copy));
	close(copy);
}

TEST_F(state, other_process_gets_eio)
{
	struct kvm_vfio_vm_state state;
	int status;
	pid_t child = fork();

	if (!child)
		_exit(get_vm_state(self->vm.dev, &state) != -EIO);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
}

/* Many ask while the state changes: each answer is one that there was. */
struct asker {
	pthread_t thread;
	int dev;
	int fd;
	atomic_bool stop;
	int wrong;
};

static void *asker_main(void *arg)
{
	struct kvm_vfio_vm_state state;
	struct asker *a = arg;
	char text[256];
	int ret;

	while (!a->stop) {
		ret = get_vm_state(a->dev, &state);
		if (ret || state.noncoherent != state.noncoherent_files || state.files > 1 ||
		    state.noncoherent > state.files)
			a->wrong++;
		ret = get_file_state(a->dev, a->fd);
		if (ret != -ENOENT && (ret < 0 || ret > KVM_VFIO_FILE_NOT_ENFORCED))
			a->wrong++;
		ret = fdinfo(a->dev, "files", 0, text, sizeof(text));
		if (ret || atoi(text) > 1)
			a->wrong++;
	}
	return NULL;
}

TEST_F(state, is_one_that_there_was)
{
	struct asker a = { .dev = self->vm.dev, .fd = self->fd };
	int i;

	ASSERT_EQ(0, pthread_create(&a.thread, NULL, asker_main, &a));
	for (i = 0; i < 100; i++) {
		EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
		EXPECT_EQ(0, group_attach(self->fd));
		EXPECT_EQ(0, i % 2 ? dev_del(self->vm.dev, self->fd) : group_leave(self->fd));
		EXPECT_EQ(0, i % 2 ? group_leave(self->fd) : dev_del(self->vm.dev, self->fd));
	}
	a.stop = true;
	pthread_join(a.thread, NULL);
	EXPECT_EQ(0, a.wrong);
}

#ifdef __x86_64__
/* ioctl(2) as a 32-bit program calls it; all its pointers are below 4 GiB. */
static int ioctl_32(int fd, unsigned int request, void *arg)
{
	long ret;

	asm volatile("int $0x80" : "=a"(ret) :
		     "a"(54L), "b"((long)fd), "c"((long)request), "d"(arg) :
		     "memory", "r8", "r9", "r10", "r11");
	return (int)ret;
}

struct low {
	struct kvm_device_attr attr;
	union {
		struct kvm_vfio_vm_state vm;
		struct kvm_vfio_file_state file;
	};
};

/* Without that, the instruction is a fault. */
static const char *no_32_bit(void)
{
	int status;
	pid_t child = fork();

	if (!child) {
		ioctl_32(-1, 0, NULL);
		_exit(0);
	}
	waitpid(child, &status, 0);
	return status ? "the kernel runs no 32-bit programs" : "";
}

TEST_F(state, of_a_32_bit_program)
{
	struct low *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	REQUIRE(no_32_bit());
	ASSERT_NE(MAP_FAILED, (void *)low);
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, group_attach(self->fd));
	low->attr.group = KVM_DEV_VFIO_STATE;
	low->attr.attr = KVM_DEV_VFIO_STATE_VM;
	low->attr.addr = (uintptr_t)&low->vm;
	ASSERT_EQ(0, ioctl_32(self->vm.dev, KVM_GET_DEVICE_ATTR, &low->attr));
	EXPECT_EQ(host.noncoherent, low->vm.noncoherent);
	EXPECT_EQ(1, low->vm.files);
	EXPECT_EQ(host.noncoherent, low->vm.noncoherent_files);
	EXPECT_EQ(0, low->vm.pad);

	low->attr.attr = KVM_DEV_VFIO_STATE_FILE;
	low->file.fd = self->fd;
	ASSERT_EQ(0, ioctl_32(self->vm.dev, KVM_GET_DEVICE_ATTR, &low->attr));
	EXPECT_EQ(host.noncoherent ? KVM_VFIO_FILE_NOT_ENFORCED : KVM_VFIO_FILE_ENFORCED,
		  low->file.coherency);
}
#endif

TEST_F(state, fdinfo)
{
	char value[256], expected[256];

	EXPECT_EQ(0, fdinfo_number(self->vm.dev, "noncoherent"));
	EXPECT_EQ(0, fdinfo_number(self->vm.dev, "files"));
	EXPECT_EQ(0, fdinfo_number(self->vm.dev, "noncoherent_files"));
	EXPECT_EQ(-ENOENT, fdinfo(self->vm.dev, "file", 0, value, sizeof(value)));

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	snprintf(expected, sizeof(expected), "/dev/vfio/%d not-attached", host.group[0]);
	EXPECT_EQ(0, fdinfo(self->vm.dev, "file", 0, value, sizeof(value)));
	EXPECT_STREQ(expected, value);
	EXPECT_EQ(1, fdinfo_number(self->vm.dev, "files"));

	ASSERT_EQ(0, group_attach(self->fd));
	snprintf(expected, sizeof(expected), "/dev/vfio/%d %s", host.group[0],
		 host.noncoherent ? "not-enforced" : "enforced");
	EXPECT_EQ(0, fdinfo(self->vm.dev, "file", 0, value, sizeof(value)));
	EXPECT_STREQ(expected, value);
	EXPECT_EQ(-ENOENT, fdinfo(self->vm.dev, "file", 1, value, sizeof(value)));
	EXPECT_EQ(host.noncoherent, fdinfo_number(self->vm.dev, "noncoherent"));
	EXPECT_EQ(host.noncoherent, fdinfo_number(self->vm.dev, "noncoherent_files"));
}

/* Of what is no such device, as it was before */
TEST_F(state, fdinfo_of_a_vcpu_or_vm)
{
	static const char * const keys[] = {
		"vm", "noncoherent", "files", "noncoherent_files", "file",
	};
	char value[256];
	size_t i;

	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	for (i = 0; i < ARRAY_SIZE(keys); i++) {
		EXPECT_EQ(0, fdinfo(self->vm.dev, keys[i], 0, value, sizeof(value)));
		EXPECT_EQ(-ENOENT, fdinfo(self->vm.fd, keys[i], 0, value, sizeof(value)));
		EXPECT_EQ(-ENOENT, fdinfo(self->vm.vcpu, keys[i], 0, value, sizeof(value)));
	}
}

/* A VM that another thread creates, after which KVM names it */
struct creator {
	struct vm vm;
	pid_t tid;
	int ret;
	int (*open)(struct vm *vm);
};

static void *creator_main(void *arg)
{
	struct creator *c = arg;

	c->tid = gettid();
	c->ret = c->open(&c->vm);
	return NULL;
}

static int create_in_thread(struct creator *c)
{
	pthread_t thread;
	int ret = -pthread_create(&thread, NULL, creator_main, c);

	if (ret)
		return ret;
	pthread_join(thread, NULL);
	return c->ret;
}

/* By that, an administrator finds the VM's directory in debugfs. */
TEST_F(state, fdinfo_names_the_vm)
{
	struct creator c = { .open = vm_open };
	char path[64];

	if (access("/sys/kernel/debug/kvm", F_OK))
		REQUIRE("debugfs is not mounted");
	EXPECT_EQ(getpid(), fdinfo_number(self->vm.dev, "vm"));
	ASSERT_EQ(0, create_in_thread(&c));
	EXPECT_NE(getpid(), c.tid);
	EXPECT_EQ(c.tid, fdinfo_number(c.vm.dev, "vm"));
	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%ld-%d",
		 fdinfo_number(c.vm.dev, "vm"), c.vm.fd);
	EXPECT_EQ(0, access(path, F_OK));
	vm_close(&c.vm);
}

/*
 * A child that is the first process of its PID namespace, and number @pid in ours
 * if that is not 0.  It shares our file descriptors, and has a mount namespace of its own.
 */
static pid_t fork_namespace(pid_t pid)
{
	pid_t numbers[] = { 1, pid };
	struct clone_args args = {
		.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_FILES,
		.exit_signal = SIGCHLD,
		.set_tid = pid ? (uintptr_t)numbers : 0,
		.set_tid_size = pid ? ARRAY_SIZE(numbers) : 0,
	};

	return call(syscall(SYS_clone3, &args, sizeof(args)));
}

/* What fdinfo calls the VM of a device, for a process of another PID namespace */
struct said {
	long by_our_proc;
	long by_own_proc;
	long to_child;
	int dev;
};

static void *shared_memory(size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void ask_for_vm(struct said *said)
{
	said->by_our_proc = fdinfo_number(said->dev, "vm");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("proc", "/proc", "proc", 0, NULL))
		said->by_own_proc = -errno;
	else
		said->by_own_proc = fdinfo_number(said->dev, "vm");
}

/* A number that means nothing, or another process, where it is read is not told. */
TEST_F(state, fdinfo_names_no_vm_of_another_namespace)
{
	struct said *said = shared_memory(sizeof(*said));
	int status;
	pid_t child;

	ASSERT_NE(MAP_FAILED, (void *)said);
	said->dev = self->vm.dev;
	child = fork_namespace(0);
	if (!child) {
		ask_for_vm(said);
		_exit(0);
	}
	ASSERT_LT(0, child);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, said->by_our_proc);
	EXPECT_EQ(0, said->by_own_proc);
	EXPECT_EQ(getpid(), fdinfo_number(self->vm.dev, "vm"));
}

/* In its own namespace the creator has another number than in ours. */
TEST_F(state, fdinfo_names_the_vm_in_each_namespace)
{
	struct said *said = shared_memory(sizeof(*said));
	struct vm vm;
	int status;
	pid_t child;

	ASSERT_NE(MAP_FAILED, (void *)said);
	child = fork_namespace(0);
	if (!child) {
		if (vm_open(&vm))
			_exit(1);
		said->dev = vm.dev;
		ask_for_vm(said);
		child = fork();
		if (!child) {
			said->to_child = fdinfo_number(vm.dev, "vm");
			_exit(0);
		}
		_exit(waitpid(child, &status, 0) != child || status);
	}
	ASSERT_LT(0, child);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(1, said->by_our_proc);
	EXPECT_EQ(1, said->by_own_proc);
	EXPECT_EQ(1, said->to_child);
	EXPECT_EQ(child, fdinfo_number(said->dev, "vm"));
}

/*
 * The thread that created the VM has ended before there was a device, and another
 * process, which is somebody else in its own namespace, has got its number.
 */
TEST_F(state, fdinfo_names_no_other_process)
{
	struct said *said = shared_memory(sizeof(*said));
	struct creator c = { .open = vm_open_without_device };
	int status, go[2], tries = 1000;
	pid_t child;

	ASSERT_NE(MAP_FAILED, (void *)said);
	ASSERT_EQ(0, pipe(go));
	ASSERT_EQ(0, create_in_thread(&c));
	/* A thread that has been joined may yet have to give its number free. */
	while ((child = fork_namespace(c.tid)) == -EEXIST && tries--)
		sleep_ms(10);
	if (!child) {
		if (read(go[0], &said->dev, sizeof(said->dev)) != sizeof(said->dev))
			_exit(1);
		ask_for_vm(said);
		_exit(0);
	}
	ASSERT_EQ(c.tid, child);
	c.vm.dev = create_device(c.vm.fd, 0);
	EXPECT_LE(0, c.vm.dev);
	EXPECT_EQ(sizeof(c.vm.dev), write(go[1], &c.vm.dev, sizeof(c.vm.dev)));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, said->by_our_proc);
	EXPECT_EQ(0, said->by_own_proc);
	/* As the directory in debugfs */
	EXPECT_EQ(c.tid, fdinfo_number(c.vm.dev, "vm"));
	vm_close(&c.vm);
}

/* Is the Nth file listed that of a group? */
static bool fdinfo_has(int dev, int nth, int group)
{
	char value[256], path[64];
	int size = snprintf(path, sizeof(path), "/dev/vfio/%d ", host.group[group]);

	return !fdinfo(dev, "file", nth, value, sizeof(value)) && !strncmp(value, path, size);
}

TEST_F(state, fdinfo_in_order_of_add)
{
	int other;

	REQUIRE(no_groups(2));
	other = need_group(1);
	ASSERT_EQ(0, dev_add(self->vm.dev, other));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_TRUE(fdinfo_has(self->vm.dev, 0, 1));
	EXPECT_TRUE(fdinfo_has(self->vm.dev, 1, 0));
	/* Gone and back, it is the last one. */
	ASSERT_EQ(0, dev_del(self->vm.dev, other));
	ASSERT_EQ(0, dev_add(self->vm.dev, other));
	EXPECT_TRUE(fdinfo_has(self->vm.dev, 0, 0));
	EXPECT_TRUE(fdinfo_has(self->vm.dev, 1, 1));
}

/*
 * The group by another name: a device node DIR/NAME, which remains for the caller
 * to remove.
 */
static int group_open_as(int i, const char *dir, const char *name)
{
	char path[256];
	struct stat s;

	snprintf(path, sizeof(path), "/dev/vfio/%d", host.group[i]);
	if (stat(path, &s))
		return -errno;
	mkdir(dir, 0700);
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (mknod(path, S_IFCHR | 0600, s.st_rdev) && errno != EEXIST)
		return -errno;
	return call(open(path, O_RDWR | O_CLOEXEC));
}

static void group_unlink(const char *dir, const char *name)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	unlink(path);
	rmdir(dir);
}

/* Nor does a name break the line, or what a script makes of it. */
TEST_F(state, fdinfo_escapes_blanks)
{
	static const char dir[] = "/dev/vfio_dev_test a", name[] = "b\tc\nd\\e";
	char value[256];

	close_fd(&self->fd);
	self->fd = group_open_as(0, dir, name);
	if (self->fd < 0)
		group_unlink(dir, name);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, fdinfo(self->vm.dev, "file", 0, value, sizeof(value)));
	EXPECT_STREQ("/dev/vfio_dev_test\\040a/b\\011c\\012d\\134e not-attached", value);
	group_unlink(dir, name);
	EXPECT_EQ(0, fdinfo(self->vm.dev, "file", 0, value, sizeof(value)));
	EXPECT_STREQ("/dev/vfio_dev_test\\040a/b\\011c\\012d\\134e\\040(deleted) not-attached",
		     value);
}

/* --- Statistics --- */

FIXTURE(stats) {
	struct vm vm;
	int fd;
};

FIXTURE_SETUP(stats)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(1));
	ASSERT_EQ(0, vm_open_guest(&self->vm));
	REQUIRE(no_state(&self->vm));
	if (access("/sys/kernel/debug/kvm", F_OK))
		REQUIRE("debugfs is not mounted");
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(stats)
{
	pin(-1);
	vm_close(&self->vm);
}

TEST_F(stats, wbinvd_while_coherent)
{
	int i;

	for (i = 0; i < 7; i++)
		EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(7, binary_stat(self->vm.vcpu, "wbinvd_exits"));
	EXPECT_EQ(0, binary_stat(self->vm.vcpu, "wbinvd_flushes"));
	EXPECT_EQ(0, binary_stat(self->vm.vcpu, "wbinvd_ipis"));
	EXPECT_EQ(7, debugfs_stat(&self->vm, "wbinvd_exits"));
	/* The VM of find_kvm() has been here from the start. */
	EXPECT_LE(7, debugfs_stat(NULL, "wbinvd_exits"));
}

TEST_F(stats, wbinvd_while_attached)
{
	long before = hits();
	int i;

	pin(0);
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	for (i = 0; i < 5; i++)
		EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(5, binary_stat(self->vm.vcpu, "wbinvd_exits"));
	EXPECT_EQ(host.noncoherent ? 5 : 0, binary_stat(self->vm.vcpu, "wbinvd_flushes"));
	EXPECT_EQ(host.noncoherent ? 5 : 0, debugfs_stat(&self->vm, "wbinvd_flushes"));
	/* On the CPU it runs on and was created on: nobody to interrupt */
	EXPECT_EQ(hits() - before - debugfs_stat(&self->vm, "noncoherent_dma_flushes"),
		  binary_stat(self->vm.vcpu, "wbinvd_flushes") +
		  binary_stat(self->vm.vcpu, "wbinvd_ipis"));
}

TEST_F(stats, ipis)
{
	long ipis;

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	pin(0);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	ipis = binary_stat(self->vm.vcpu, "wbinvd_ipis");
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(ipis, binary_stat(self->vm.vcpu, "wbinvd_ipis"));
	pin(1);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(ipis + host.noncoherent, binary_stat(self->vm.vcpu, "wbinvd_ipis"));
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_EQ(ipis + host.noncoherent, binary_stat(self->vm.vcpu, "wbinvd_ipis"));
}

TEST_F(stats, changes)
{
	long vms = debugfs_stat(NULL, "noncoherent_dma");
	int i;

	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma"));
		EXPECT_EQ(vms, debugfs_stat(NULL, "noncoherent_dma"));
		EXPECT_EQ(host.noncoherent ? 2 * i : 0,
			  debugfs_stat(&self->vm, "noncoherent_dma_changes"));
		ASSERT_EQ(0, group_attach(self->fd));
		ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
		EXPECT_EQ(host.noncoherent, debugfs_stat(&self->vm, "noncoherent_dma"));
		EXPECT_EQ(vms + host.noncoherent, debugfs_stat(NULL, "noncoherent_dma"));
		EXPECT_EQ(host.noncoherent ? 2 * i + 1 : 0,
			  debugfs_stat(&self->vm, "noncoherent_dma_changes"));
		ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
		ASSERT_EQ(0, group_leave(self->fd));
	}
}

TEST_F(stats, owed_flushes)
{
	long before;

	REQUIRE(no_cpus(2));
	pin(0);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	pin(1);
	EXPECT_EQ(0, vm_wbinvd(&self->vm));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	before = hits();
	ASSERT_EQ(0, group_attach(self->fd));
	EXPECT_EQ(hits() - before, debugfs_stat(&self->vm, "noncoherent_dma_flushes"));
	if (host.noncoherent)
		EXPECT_LE(2, hits() - before);
}

/* Only EPT has memory types that depend on it. */
TEST_F(stats, zaps)
{
	long zaps;

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, group_attach(self->fd));
	zaps = debugfs_stat(&self->vm, "noncoherent_dma_zaps");
	EXPECT_TRUE(!zaps || zaps == host.noncoherent)
		TH_LOG("%ld zaps", zaps);
	EXPECT_EQ(!zaps, !debugfs_stat(&self->vm, "noncoherent_dma_zap_ns"));
}

TEST_F(stats, are_read_only)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/noncoherent_dma", getpid(),
		 self->vm.fd);
	EXPECT_GT(0, write_file(path, "1"));
	EXPECT_EQ(0, vm_noncoherent(&self->vm));
}

/* --- The flush that a VM owes when it becomes non-coherent --- */

enum becoming { BY_ADD, BY_IOMMU, BY_JOIN };

FIXTURE(owed) {
	struct vm vm;
	int fd;
	int other;
	int container;
};

FIXTURE_VARIANT(owed) {
	enum becoming how;
};

FIXTURE_VARIANT_ADD(owed, by_add) {
	.how = BY_ADD,
};

FIXTURE_VARIANT_ADD(owed, by_set_iommu) {
	.how = BY_IOMMU,
};

FIXTURE_VARIANT_ADD(owed, by_set_container) {
	.how = BY_JOIN,
};

FIXTURE_SETUP(owed)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(variant->how == BY_JOIN ? 2 : 1));
	ASSERT_EQ(0, vm_open(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	self->container = container_open();
	ASSERT_LE(0, self->container);
	if (variant->how == BY_JOIN) {
		/* A container whose IOMMU is set by another group. */
		self->other = need_group(1);
		ASSERT_EQ(0, group_join(self->other, self->container));
		ASSERT_EQ(0, set_iommu(self->container));
	} else {
		ASSERT_EQ(0, group_join(self->fd, self->container));
	}
	ASSERT_EQ(0, variant->how == BY_ADD ? set_iommu(self->container) :
					      dev_add(self->vm.dev, self->fd));
}

FIXTURE_TEARDOWN(owed)
{
	vm_close(&self->vm);
}

static int become(enum becoming how, struct vm *vm, int fd, int container)
{
	switch (how) {
	case BY_ADD:
		return dev_add(vm->dev, fd);
	case BY_IOMMU:
		return set_iommu(container);
	default:
		return group_join(fd, container);
	}
}

/* Back to where it was. BY_IOMMU needs the group in the container again. */
static int unbecome(enum becoming how, struct vm *vm, int fd, int container)
{
	int ret;

	if (how == BY_ADD)
		return dev_del(vm->dev, fd);
	ret = group_leave(fd);
	if (!ret && how == BY_IOMMU)
		ret = group_join(fd, container);
	return ret;
}

TEST_F(owed, paid)
{
	long before;

	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	before = hits();
	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	EXPECT_EQ(host.noncoherent, hits() > before);
}

TEST_F(owed, paid_again)
{
	long before;
	int i;

	ASSERT_EQ(0, add_guest(&self->vm));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, vm_wbinvd(&self->vm));
		before = hits();
		ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
		EXPECT_EQ(host.noncoherent, hits() > before);
		ASSERT_EQ(0, vm_wbinvd(&self->vm));
		before = hits();
		ASSERT_EQ(0, unbecome(variant->how, &self->vm, self->fd, self->container));
		EXPECT_EQ(before, hits());
	}
}

TEST_F(owed, paid_on_every_cpu)
{
	long before[2];
	int i;

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, add_guest(&self->vm));
	for (i = 0; i < 2; i++) {
		pin(i);
		ASSERT_EQ(0, vm_wbinvd(&self->vm));
		before[i] = hits_on(i);
	}
	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	for (i = 0; i < 2; i++)
		EXPECT_EQ(host.noncoherent, hits_on(i) > before[i])
			TH_LOG("on CPU %d", host.cpu[i]);
}

/* Each vCPU has a CPU of its own; the second one need not run to have been there. */
TEST_F(owed, paid_for_every_vcpu)
{
	long before[2];
	int i, second;

	REQUIRE(no_cpus(2));
	pin(0);
	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	pin(1);
	second = call(ioctl(self->vm.fd, KVM_CREATE_VCPU, 1UL));
	ASSERT_LE(0, second);
	for (i = 0; i < 2; i++)
		before[i] = hits_on(i);
	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	for (i = 0; i < 2; i++)
		EXPECT_EQ(host.noncoherent, hits_on(i) > before[i])
			TH_LOG("on CPU %d", host.cpu[i]);
	close(second);
}

/* CPUs that belong to somebody else are left in peace. */
TEST_F(owed, not_paid_elsewhere)
{
	struct vm other;
	long before;

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, vm_open_guest(&other));
	pin(1);
	ASSERT_EQ(0, vm_wbinvd(&other));
	/* Also a vCPU's making counts as being there. */
	pin(0);
	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	pin(1);
	before = hits_on(1);
	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	EXPECT_EQ(before, hits_on(1));
	vm_close(&other);
}

TEST_F(owed, nothing_without_vcpu)
{
	long before = hits();

	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	EXPECT_EQ(before, hits());
}

TEST_F(owed, nothing_for_a_second_file)
{
	long before;
	int fd;

	REQUIRE(no_groups(2));
	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
	fd = variant->how == BY_JOIN ? self->other : need_group(1);
	if (variant->how != BY_JOIN)
		ASSERT_EQ(0, group_attach(fd));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	before = hits();
	ASSERT_EQ(0, dev_add(self->vm.dev, fd));
	EXPECT_EQ(before, hits());
}

/* Running in the guest all the time, it dirties lines after each flush. */
TEST_F(owed, paid_where_a_vcpu_runs)
{
	struct runner r = { 0 };
	long before;
	int i;

	REQUIRE(no_cpus(2));
	ASSERT_EQ(0, vm_add_vcpu(&self->vm, guest_busy, sizeof(guest_busy)));
	pin(0);
	ASSERT_EQ(0, runner_start(&r, &self->vm, 1));
	sleep_ms(50);
	for (i = 0; i < 5; i++) {
		before = hits_on(1);
		EXPECT_EQ(0, become(variant->how, &self->vm, self->fd, self->container));
		EXPECT_EQ(host.noncoherent, hits_on(1) > before)
			TH_LOG("change %d", i);
		sleep_ms(10);
		EXPECT_EQ(0, unbecome(variant->how, &self->vm, self->fd, self->container));
		sleep_ms(10);
	}
	EXPECT_EQ(0, runner_stop(&r));
}

/* --- What trace-cmd, perf and bpftrace see --- */

#define TRACEFS		"/sys/kernel/tracing"
#define TRACE_INSTANCE	TRACEFS "/instances/vfio_dev_test"

FIXTURE(trace) {
	struct vm vm;
	int fd;
	FILE *pipe;
};

static int trace_write(const char *file, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), TRACE_INSTANCE "/%s", file);
	return write_file(path, text);
}

/* An instance of our own, which shows events in their order and without context. */
static int trace_open(FILE **pipe)
{
	int ret, fd;

	/* Of a test that was killed */
	rmdir(TRACE_INSTANCE);
	ret = call(mkdir(TRACE_INSTANCE, 0700));
	if (!ret)
		ret = trace_write("trace_clock", "counter");
	if (!ret)
		ret = trace_write("trace_options", "nocontext-info");
	if (!ret)
		ret = trace_write("events/kvm_vfio/enable", "1");
	if (ret)
		return ret;
	fd = call(open(TRACE_INSTANCE "/trace_pipe", O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	if (fd < 0)
		return fd;
	*pipe = fdopen(fd, "r");
	return *pipe ? 0 : -ENOMEM;
}

FIXTURE_SETUP(trace)
{
	self->pipe = NULL;
	self->fd = -1;
	REQUIRE(no_groups(1));
	if (access(TRACEFS "/instances", F_OK))
		REQUIRE("tracefs is not mounted");
	ASSERT_EQ(0, vm_open(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	/* Where they are missing, that is what fails. */
	ASSERT_EQ(0, access(TRACEFS "/events/kvm_vfio", F_OK));
	ASSERT_EQ(0, trace_open(&self->pipe));
}

FIXTURE_TEARDOWN(trace)
{
	pin(-1);
	vm_close(&self->vm);
	fclose(self->pipe);
	EXPECT_EQ(0, rmdir(TRACE_INSTANCE));
}

/* The oldest event that was not asked for yet, or "" */
static const char *next_event(FILE *pipe)
{
	static char line[256];

	clearerr(pipe);
	if (!fgets(line, sizeof(line), pipe))
		return "";
	line[strcspn(line, "\n")] = 0;
	return line;
}

/* What such an event is to look like */
static const char *file_event(pid_t vm, const char *what, int fd, const char *file, int ret,
			      bool noncoherent)
{
	static char text[256];

	snprintf(text, sizeof(text), "kvm_vfio_file: vm %d %s fd %d file %s ret %d, vm %s", vm,
		 what, fd, file, ret, noncoherent ? "non-coherent" : "coherent");
	return text;
}

static const char *coherency_event(pid_t vm, const char *file, int coherency,
				   int noncoherent_files)
{
	static const char * const words[] = { "not-attached", "enforced", "not-enforced" };
	static char text[256];

	snprintf(text, sizeof(text),
		 "kvm_vfio_coherency: vm %d file %s %s, vm %s (%d non-coherent files)", vm, file,
		 words[coherency], noncoherent_files ? "non-coherent" : "coherent",
		 noncoherent_files);
	return text;
}

static const char *wbinvd_event(pid_t vm, int cpus)
{
	static char text[256];

	snprintf(text, sizeof(text), "kvm_wbinvd: vm %d vcpu 0 %s (%d CPUs)", vm,
		 cpus ? "executed" : "skipped", cpus);
	return text;
}

/* As an event names the file of a group */
static const char *group_name(int i)
{
	static char name[2][32];

	snprintf(name[i], sizeof(name[i]), "vfio/%d", host.group[i]);
	return name[i];
}

static int attached_is(void)
{
	return host.noncoherent ? KVM_VFIO_FILE_NOT_ENFORCED : KVM_VFIO_FILE_ENFORCED;
}

TEST_F(trace, add_and_del)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_STREQ(file_event(getpid(), "add", self->fd, group_name(0), 0, false),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_STREQ(file_event(getpid(), "del", self->fd, group_name(0), 0, false),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* The reason comes before what it led to. */
TEST_F(trace, add_and_del_of_attached)
{
	ASSERT_EQ(0, group_attach(self->fd));
	EXPECT_STREQ("", next_event(self->pipe));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_STREQ(coherency_event(getpid(), group_name(0), attached_is(), host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ(file_event(getpid(), "add", self->fd, group_name(0), 0, host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_STREQ(coherency_event(getpid(), group_name(0), KVM_VFIO_FILE_NOT_ATTACHED, 0),
		     next_event(self->pipe));
	EXPECT_STREQ(file_event(getpid(), "del", self->fd, group_name(0), 0, false),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

TEST_F(trace, attach_and_detach)
{
	int container = container_open(), i;

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	next_event(self->pipe);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, group_join(self->fd, container));
		EXPECT_STREQ("", next_event(self->pipe));
		ASSERT_EQ(0, set_iommu(container));
		EXPECT_STREQ(coherency_event(getpid(), group_name(0), attached_is(),
					     host.noncoherent),
			     next_event(self->pipe));
		EXPECT_STREQ("", next_event(self->pipe));
		ASSERT_EQ(0, group_leave(self->fd));
		EXPECT_STREQ(coherency_event(getpid(), group_name(0),
					     KVM_VFIO_FILE_NOT_ATTACHED, 0),
			     next_event(self->pipe));
		EXPECT_STREQ("", next_event(self->pipe));
	}
}

/* One event for each, with how many non-coherent files there are after it */
TEST_F(trace, two_files)
{
	int container = container_open(), other, i, first;
	char event[256];

	REQUIRE(no_groups(2));
	other = need_group(1);
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, other));
	next_event(self->pipe);
	next_event(self->pipe);
	ASSERT_EQ(0, group_join(self->fd, container));
	ASSERT_EQ(0, group_join(other, container));
	ASSERT_EQ(0, set_iommu(container));
	/* Which of them comes first is VFIO's business. */
	snprintf(event, sizeof(event), "%s", next_event(self->pipe));
	first = !strcmp(event, coherency_event(getpid(), group_name(1), attached_is(),
					       host.noncoherent));
	for (i = 0; i < 2; i++) {
		EXPECT_STREQ(coherency_event(getpid(), group_name(i ^ first), attached_is(),
					     host.noncoherent * (i + 1)), event);
		snprintf(event, sizeof(event), "%s", next_event(self->pipe));
	}
	EXPECT_STREQ("", event);

	ASSERT_EQ(0, group_leave(other));
	EXPECT_STREQ(coherency_event(getpid(), group_name(1), KVM_VFIO_FILE_NOT_ATTACHED,
				     host.noncoherent), next_event(self->pipe));
	ASSERT_EQ(0, group_join(other, container));
	EXPECT_STREQ(coherency_event(getpid(), group_name(1), attached_is(),
				     host.noncoherent * 2), next_event(self->pipe));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_STREQ(coherency_event(getpid(), group_name(0), KVM_VFIO_FILE_NOT_ATTACHED,
				     host.noncoherent), next_event(self->pipe));
	EXPECT_STREQ(file_event(getpid(), "del", self->fd, group_name(0), 0, host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* VFIO's groups are closed by now, and their names still known. */
TEST_F(trace, closed_device)
{
	int other;

	REQUIRE(no_groups(2));
	other = need_group(1);
	ASSERT_EQ(0, group_attach(other));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, other));
	close_fd(&self->fd);
	close_fd(&other);
	while (*next_event(self->pipe))
		;
	close_fd(&self->vm.dev);
	EXPECT_STREQ(file_event(getpid(), "del", -1, group_name(0), 0, host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ(coherency_event(getpid(), group_name(1), KVM_VFIO_FILE_NOT_ATTACHED, 0),
		     next_event(self->pipe));
	EXPECT_STREQ(file_event(getpid(), "del", -1, group_name(1), 0, false),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* What refused a file, and which; without a file there is nothing to tell of. */
TEST_F(trace, failed_calls)
{
	int container = container_open();
	struct creator other = { .open = vm_open };

	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	next_event(self->pipe);
	next_event(self->pipe);
	ASSERT_EQ(0, create_in_thread(&other));

	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	EXPECT_STREQ(file_event(getpid(), "add", self->fd, group_name(0), -EEXIST,
				host.noncoherent), next_event(self->pipe));
	EXPECT_EQ(-ENOENT, dev_del(other.vm.dev, self->fd));
	EXPECT_STREQ(file_event(other.tid, "del", self->fd, group_name(0), -ENOENT, false),
		     next_event(self->pipe));
	EXPECT_EQ(-EINVAL, dev_add(self->vm.dev, container));
	EXPECT_STREQ(file_event(getpid(), "add", container, "vfio/vfio", -EINVAL,
				host.noncoherent), next_event(self->pipe));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, container));
	EXPECT_STREQ(file_event(getpid(), "del", container, "vfio/vfio", -ENOENT,
				host.noncoherent), next_event(self->pipe));

	EXPECT_EQ(-EBADF, dev_add(self->vm.dev, -1));
	EXPECT_EQ(-EFAULT, set_attr(self->vm.dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_DEL,
				    NULL));
	EXPECT_EQ(-ENXIO, set_attr(self->vm.dev, KVM_DEV_VFIO_FILE, 0, &container));
	EXPECT_STREQ("", next_event(self->pipe));
	vm_close(&other.vm);
}

/* Whoever attaches the group, it is the VM's creator that is named. */
TEST_F(trace, attached_by_another_process)
{
	int status;
	pid_t child;

	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	next_event(self->pipe);
	child = fork();
	if (!child)
		_exit(-group_attach(self->fd));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_STREQ(coherency_event(getpid(), group_name(0), attached_is(), host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* Its directory and its name, as far as there is room */
TEST_F(trace, long_name)
{
	static const char dir[] = "/dev/vfio_dev_test", name[] = "0123456789abcdefghijklmnop";

	close_fd(&self->fd);
	self->fd = group_open_as(0, dir, name);
	group_unlink(dir, name);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_STREQ(file_event(getpid(), "add", self->fd, "vfio_dev_test/0123456789abcdefg", 0,
				false), next_event(self->pipe));
}

TEST_F(trace, wbinvd)
{
	REQUIRE(no_guest);
	REQUIRE(no_cpus(2));
	pin(0);
	ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_STREQ(wbinvd_event(getpid(), 0), next_event(self->pipe));
	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	next_event(self->pipe);
	next_event(self->pipe);
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_STREQ(wbinvd_event(getpid(), host.noncoherent), next_event(self->pipe));
	/* It has left lines behind on the CPU it comes from. */
	pin(1);
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_STREQ(wbinvd_event(getpid(), 2 * host.noncoherent), next_event(self->pipe));
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_STREQ(wbinvd_event(getpid(), host.noncoherent), next_event(self->pipe));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	next_event(self->pipe);
	next_event(self->pipe);
	ASSERT_EQ(0, vm_wbinvd(&self->vm));
	EXPECT_STREQ(wbinvd_event(getpid(), 0), next_event(self->pipe));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* Everything that could be recorded */
static int all_at_once(struct vm *vm, int fd)
{
	int ret = dev_add(vm->dev, fd);

	if (!ret)
		ret = group_attach(fd);
	if (!ret && vm->vcpu >= 0)
		ret = vm_wbinvd(vm);
	if (!ret)
		ret = group_leave(fd);
	return ret ? ret : dev_del(vm->dev, fd);
}

TEST_F(trace, disabled)
{
	static const char * const events[] = {
		"kvm_vfio_file", "kvm_vfio_coherency", "kvm_wbinvd",
	};
	char path[64];
	size_t i;

	if (!*no_guest)
		ASSERT_EQ(0, add_guest(&self->vm));
	ASSERT_EQ(0, trace_write("events/kvm_vfio/enable", "0"));
	EXPECT_EQ(0, all_at_once(&self->vm, self->fd));
	EXPECT_STREQ("", next_event(self->pipe));
	/* One is there without the others. */
	for (i = 0; i < ARRAY_SIZE(events) - !!*no_guest; i++) {
		snprintf(path, sizeof(path), "events/kvm_vfio/%s/enable", events[i]);
		ASSERT_EQ(0, trace_write(path, "1"));
		EXPECT_EQ(0, all_at_once(&self->vm, self->fd));
		EXPECT_EQ(0, strncmp(events[i], next_event(self->pipe), strlen(events[i])));
		while (*next_event(self->pipe))
			;
		ASSERT_EQ(0, trace_write(path, "0"));
		EXPECT_EQ(0, all_at_once(&self->vm, self->fd));
		EXPECT_STREQ("", next_event(self->pipe));
	}
}

/* By name and value, as filters and bpftrace use them, whatever the text says */
TEST_F(trace, fields)
{
	char filter[256];

	snprintf(filter, sizeof(filter),
		 "vm == %d && add == 1 && fd == %d && ret == 0 && noncoherent == %d && file == \"%s\"",
		 getpid(), self->fd, host.noncoherent, group_name(0));
	ASSERT_EQ(0, trace_write("events/kvm_vfio/kvm_vfio_file/filter", filter));
	snprintf(filter, sizeof(filter),
		 "vm == %d && coherency == %d && noncoherent_files == %d && noncoherent == %d && file == \"%s\"",
		 getpid(), attached_is(), host.noncoherent, host.noncoherent, group_name(0));
	ASSERT_EQ(0, trace_write("events/kvm_vfio/kvm_vfio_coherency/filter", filter));
	snprintf(filter, sizeof(filter), "vm == %d && vcpu_id == 0 && cpus == %d", getpid(),
		 host.noncoherent);
	if (!*no_guest)
		ASSERT_EQ(0, trace_write("events/kvm_vfio/kvm_wbinvd/filter", filter));

	ASSERT_EQ(0, group_attach(self->fd));
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_STREQ(coherency_event(getpid(), group_name(0), attached_is(), host.noncoherent),
		     next_event(self->pipe));
	EXPECT_STREQ(file_event(getpid(), "add", self->fd, group_name(0), 0, host.noncoherent),
		     next_event(self->pipe));
	if (!*no_guest) {
		pin(0);
		ASSERT_EQ(0, add_guest(&self->vm));
		ASSERT_EQ(0, vm_wbinvd(&self->vm));
		EXPECT_STREQ(wbinvd_event(getpid(), host.noncoherent), next_event(self->pipe));
	}
	/* None of these passes. */
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_STREQ("", next_event(self->pipe));
}

/* --- A device that is taken away from vfio-pci --- */

enum unbound { UNBIND_TRACKED, UNBIND_UNTRACKED, UNBIND_ATTACHED, UNBIND_OPEN };

FIXTURE(unbind) {
	struct vm vm;
	int fd;
	int device;
};

FIXTURE_VARIANT(unbind) {
	enum unbound state;
};

FIXTURE_VARIANT_ADD(unbind, untracked) {
	.state = UNBIND_UNTRACKED,
};

FIXTURE_VARIANT_ADD(unbind, tracked) {
	.state = UNBIND_TRACKED,
};

FIXTURE_VARIANT_ADD(unbind, attached) {
	.state = UNBIND_ATTACHED,
};

FIXTURE_VARIANT_ADD(unbind, device_open) {
	.state = UNBIND_OPEN,
};

FIXTURE_SETUP(unbind)
{
	REQUIRE(host.no_probe);
	REQUIRE(no_groups(1));
	REQUIRE(no_pci(0));
	ASSERT_EQ(0, vm_open_guest(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	self->device = -1;
	if (variant->state >= UNBIND_ATTACHED)
		ASSERT_EQ(0, group_attach(self->fd));
	if (variant->state == UNBIND_OPEN) {
		self->device = group_get_device(self->fd, 0);
		ASSERT_LE(0, self->device);
	}
}

FIXTURE_TEARDOWN(unbind)
{
	vm_close(&self->vm);
	close_fd(&self->device);
	close_fd(&self->fd);
	EXPECT_EQ(0, bind_vfio_pci(host.bdf[0]));
}

/* The unbinding of an open device ends when it is closed, of another at once. */
TEST_F(unbind, races_with_add_and_del)
{
	struct unbinder u = { .bdf = host.bdf[0] };
	int i, ret;

	if (variant->state != UNBIND_UNTRACKED)
		ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, pthread_create(&u.thread, NULL, unbinder_main, &u));
	for (i = 0; i < 1000 && (i < 50 || !u.done); i++) {
		/* The file is VFIO's, whatever became of its device. */
		ret = dev_add(self->vm.dev, self->fd);
		EXPECT_TRUE(ret == 0 || ret == -EEXIST)
			TH_LOG("ADD gave %d", ret);
		EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
		if (i == 50)
			close_fd(&self->device);
	}
	/* A hang is ended by the harness. */
	pthread_join(u.thread, NULL);
	EXPECT_EQ(0, u.ret);
	EXPECT_EQ(0, vm_noncoherent(&self->vm));
}

/* Its group has left the container with it: no DMA any more. */
TEST_F(unbind, ends_noncoherence)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	close_fd(&self->device);
	EXPECT_EQ(variant->state >= UNBIND_ATTACHED && host.noncoherent,
		  vm_noncoherent(&self->vm));
	ASSERT_EQ(0, unbind_vfio_pci(host.bdf[0]));
	EXPECT_EQ(0, vm_noncoherent(&self->vm));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
}

TEST_F(unbind, then_all_as_before)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	close_fd(&self->device);
	ASSERT_EQ(0, unbind_vfio_pci(host.bdf[0]));
	close_fd(&self->vm.dev);
	close_fd(&self->fd);
	ASSERT_EQ(0, bind_vfio_pci(host.bdf[0]));
	self->fd = group_open(0);
	ASSERT_LE(0, self->fd);
	self->vm.dev = create_device(self->vm.fd, 0);
	EXPECT_EQ(0, group_attach(self->fd));
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->vm));
}

/* --- Everything at once --- */

#define STRESS_ROUNDS	400

/* What the threads share. */
struct stress {
	atomic_int group[2];
	int container;
	atomic_bool stop;
	atomic_int bad;		/* the last result that cannot be right */
};

FIXTURE(stress) {
	struct vm a;
	struct vm b;
	struct stress shared;
};

FIXTURE_SETUP(stress)
{
	int i;

	REQUIRE(host.no_probe);
	REQUIRE(no_groups(2));
	self->b = NO_VM;
	ASSERT_EQ(0, vm_open_guest(&self->a));
	ASSERT_EQ(0, vm_open_guest(&self->b));
	for (i = 0; i < 2; i++) {
		self->shared.group[i] = need_group(i);
		ASSERT_LE(0, self->shared.group[i]);
	}
	self->shared.container = container_open();
	ASSERT_LE(0, self->shared.container);
}

FIXTURE_TEARDOWN(stress)
{
	vm_close(&self->a);
	vm_close(&self->b);
}

struct stress_job {
	pthread_t thread;
	struct stress *shared;
	struct vm *vm;
	int group;
	uint32_t random;
};

/* RET may be 0 or one of the errors, the last of which is 0. */
static void allow(struct stress_job *job, int ret, const int *errors)
{
	while (*errors && ret != *errors)
		errors++;
	if (ret != *errors)
		job->shared->bad = ret;
}

/* A closed group's number may be anybody's when it is used: EBADF, EINVAL. */
static void *stress_track(void *arg)
{
	static const int add_errors[] = { -EEXIST, -EBADF, -EINVAL, 0 };
	static const int del_errors[] = { -ENOENT, -EBADF, 0 };
	struct stress_job *job = arg;
	int i, fd;

	for (i = 0; i < STRESS_ROUNDS; i++) {
		fd = job->shared->group[next_random(&job->random) % 2];
		if (next_random(&job->random) % 2)
			allow(job, dev_add(job->vm->dev, fd), add_errors);
		else
			allow(job, dev_del(job->vm->dev, fd), del_errors);
		if (next_random(&job->random) % 16)
			continue;
		close_fd(&job->vm->dev);
		job->vm->dev = create_device(job->vm->fd, 0);
		if (job->vm->dev < 0)
			job->shared->bad = job->vm->dev;
	}
	return NULL;
}

/* Each group is moved by one thread, but SET_IOMMU may be either's. */
static void *stress_attach(void *arg)
{
	static const int open_errors[] = { -EBUSY, 0 };
	static const int errors[] = { -EINVAL, 0 };
	struct stress_job *job = arg;
	int i, fd;

	for (i = 0; i < STRESS_ROUNDS; i++) {
		fd = job->shared->group[job->group];
		if (fd < 0) {
			fd = group_open(job->group);
			allow(job, fd < 0 ? fd : 0, open_errors);
			job->shared->group[job->group] = fd < 0 ? -1 : fd;
			continue;
		}
		switch (next_random(&job->random) % 8) {
		case 0:
		case 1:
		case 2:
			allow(job, group_join(fd, job->shared->container), errors);
			break;
		case 3:
		case 4:
			allow(job, set_iommu(job->shared->container), errors);
			break;
		case 5:
		case 6:
			allow(job, group_leave(fd), errors);
			break;
		default:
			job->shared->group[job->group] = -1;
			close(fd);
		}
	}
	return NULL;
}

static void *stress_run(void *arg)
{
	struct stress_job *job = arg;

	while (!job->shared->stop)
		if (vm_wbinvd(job->vm))
			job->shared->bad = -EPROTO;
	return NULL;
}

TEST_F_TIMEOUT(stress, ends_as_it_began, 120)
{
	struct stress_job job[] = {
		{ .vm = &self->a }, { .vm = &self->b },
		{ .group = 0 }, { .group = 1 },
		{ .vm = &self->a }, { .vm = &self->b },
	};
	void *(*main[])(void *) = {
		stress_track, stress_track, stress_attach, stress_attach, stress_run, stress_run,
	};
	int i;

	for (i = 0; i < 6; i++) {
		job[i].shared = &self->shared;
		job[i].random = i;
		ASSERT_EQ(0, pthread_create(&job[i].thread, NULL, main[i], &job[i]));
	}
	for (i = 0; i < 6; i++) {
		if (i == 4)
			self->shared.stop = true;
		pthread_join(job[i].thread, NULL);
	}
	EXPECT_EQ(0, self->shared.bad);

	/* Nothing is left of it. */
	close_fd(&self->a.dev);
	close_fd(&self->b.dev);
	EXPECT_EQ(0, vm_noncoherent(&self->a));
	EXPECT_EQ(0, vm_noncoherent(&self->b));
	self->a.dev = create_device(self->a.fd, 0);
	for (i = 0; i < 2; i++) {
		if (self->shared.group[i] >= 0)
			close(self->shared.group[i]);
		self->shared.group[i] = group_open(i);
		ASSERT_LE(0, self->shared.group[i]);
		EXPECT_EQ(0, group_attach(self->shared.group[i]));
		EXPECT_EQ(0, dev_add(self->a.dev, self->shared.group[i]));
	}
	EXPECT_EQ(host.noncoherent, vm_noncoherent(&self->a));
	EXPECT_EQ(0, vm_noncoherent(&self->b));
}

/* --- vfio.ko comes and goes --- */

/* What was unloaded, and the devices that lost their driver by that. */
static struct {
	char module[16][64];
	int nr_modules;
	char bdf[MAX_BOUND][32];
	int nr_bound;
} unloaded;

static int unload(const char *module)
{
	int ret = call(syscall(SYS_delete_module, module, O_NONBLOCK));

	if (!ret && unloaded.nr_modules < (int)ARRAY_SIZE(unloaded.module))
		snprintf(unloaded.module[unloaded.nr_modules++], 64, "%s", module);
	return ret;
}

/* Unload what uses the module, and what uses that. */
static int unload_holders(const char *module)
{
	char path[192];
	struct dirent *entry;
	int ret = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/module/%.64s/holders", module);
	dir = opendir(path);
	while (dir && !ret && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		ret = unload_holders(entry->d_name);
		if (!ret)
			ret = unload(entry->d_name);
		/* A holder of two of ours is gone when its turn comes. */
		if (ret == -ENOENT)
			ret = 0;
	}
	if (dir)
		closedir(dir);
	return ret;
}

static void remember_bound(void)
{
	DIR *dir = opendir("/sys/bus/pci/drivers/vfio-pci");
	struct dirent *entry;

	while (dir && (entry = readdir(dir)) && unloaded.nr_bound < MAX_BOUND)
		if (strchr(entry->d_name, ':'))
			snprintf(unloaded.bdf[unloaded.nr_bound++], 32, "%.31s",
				 entry->d_name);
	if (dir)
		closedir(dir);
}

static const char *module_wanted;
static char module_found[PATH_MAX];

/* "vfio_pci" is vfio-pci.ko or vfio_pci.ko. */
static int is_wanted(const char *path, const struct stat *s, int type, struct FTW *ftw)
{
	const char *name = path + ftw->base, *want = module_wanted;

	while (*want && (*name == *want || (*name == '-' && *want == '_'))) {
		name++;
		want++;
	}
	if (*want || strcmp(name, ".ko"))
		return 0;
	snprintf(module_found, sizeof(module_found), "%s", path);
	return 1;
}

/* modprobe knows best; where there is none, the module's file will do. */
static int load(const char *module)
{
	char text[128];
	struct utsname u;
	int fd, ret;

	snprintf(text, sizeof(text), "/sys/module/%.64s", module);
	if (!access(text, F_OK))
		return 0;
	snprintf(text, sizeof(text), "modprobe %.64s >/dev/null 2>&1", module);
	if (!system(text))
		return 0;
	uname(&u);
	snprintf(text, sizeof(text), "/lib/modules/%.64s", u.release);
	module_wanted = module;
	if (nftw(text, is_wanted, 16, FTW_PHYS) != 1)
		return -ENOENT;
	fd = open(module_found, O_RDONLY | O_CLOEXEC);
	ret = call(syscall(SYS_finit_module, fd, "", 0));
	close(fd);
	return ret;
}

static int load_all_again(void)
{
	int i, ret = 0;

	for (i = unloaded.nr_modules - 1; i >= 0 && !ret; i--)
		ret = load(unloaded.module[i]);
	for (i = 0; i < unloaded.nr_bound && !ret; i++)
		ret = bind_vfio_pci(unloaded.bdf[i]);
	unloaded.nr_modules = 0;
	return ret;
}

FIXTURE(module) {
	struct vm vm;
	int fd;
};

FIXTURE_SETUP(module)
{
	self->vm = NO_VM;
	self->fd = -1;
	REQUIRE(no_groups(1));
	REQUIRE(no_pci(0));
	if (access("/sys/module/vfio/holders", F_OK) ||
	    access("/sys/module/vfio/refcnt", F_OK))
		REQUIRE("vfio is not a module");
	ASSERT_EQ(0, vm_open(&self->vm));
	self->fd = need_group(0);
	ASSERT_LE(0, self->fd);
	remember_bound();
}

FIXTURE_TEARDOWN(module)
{
	vm_close(&self->vm);
	close_fd(&self->fd);
	EXPECT_EQ(0, load_all_again())
		TH_LOG("vfio could not be loaded again, load it by hand");
}

/* Its last user is the KVM device, which holds a file that nobody else has. */
TEST_F(module, tracked_file_keeps_vfio)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	close_fd(&self->fd);
	ASSERT_EQ(0, unload_holders("vfio"));
	EXPECT_EQ(-EWOULDBLOCK, unload("vfio"));
	EXPECT_EQ(-EWOULDBLOCK, unload("vfio"));
	close_fd(&self->vm.dev);
	EXPECT_EQ(0, unload("vfio"));
}

TEST_F(module, deleted_file_does_not)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	ASSERT_EQ(0, unload_holders("vfio"));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	/* It is still open here. */
	EXPECT_EQ(-EWOULDBLOCK, unload("vfio"));
	close_fd(&self->fd);
	/* The KVM device is not. */
	EXPECT_EQ(0, unload("vfio"));
}

TEST_F(module, failed_calls_do_not)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EINVAL, dev_add(self->vm.dev, self->vm.fd));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, self->vm.fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, self->fd));
	close_fd(&self->fd);
	ASSERT_EQ(0, unload_holders("vfio"));
	EXPECT_EQ(0, unload("vfio"));
}

TEST_F(module, not_loaded)
{
	int file = open("/proc/self/exe", O_RDONLY);

	close_fd(&self->fd);
	ASSERT_EQ(0, unload_holders("vfio"));
	ASSERT_EQ(0, unload("vfio"));
	EXPECT_EQ(-EINVAL, dev_add(self->vm.dev, file));
	EXPECT_EQ(-EINVAL, dev_add(self->vm.dev, self->vm.fd));
	EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, file));
	EXPECT_EQ(-EBADF, dev_add(self->vm.dev, -1));
	EXPECT_EQ(-EFAULT, set_attr(self->vm.dev, KVM_DEV_VFIO_FILE,
				    KVM_DEV_VFIO_FILE_ADD, NULL));
	EXPECT_EQ(0, has_attr(self->vm.dev, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD));
	close_fd(&self->vm.dev);
	self->vm.dev = create_device(self->vm.fd, 0);
	EXPECT_LE(0, self->vm.dev);
	EXPECT_NE(0, access("/sys/module/vfio", F_OK));
}

/* A device that is older than the vfio it works with. */
TEST_F(module, loaded_again)
{
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	close_fd(&self->fd);
	ASSERT_EQ(0, unload_holders("vfio"));
	ASSERT_EQ(0, unload("vfio"));
	ASSERT_EQ(0, load_all_again());
	self->fd = group_open_soon(0);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, group_attach(self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
}

/* --- And the host is as the tests found it --- */

FIXTURE(host_after) {
};

FIXTURE_SETUP(host_after)
{
	REQUIRE(no_groups(1));
}

FIXTURE_TEARDOWN(host_after)
{
}

TEST_F(host_after, every_group_opens)
{
	int i, fd;

	for (i = 0; i < host.nr_groups; i++) {
		fd = group_open_soon(i);
		EXPECT_LE(0, fd);
		close(fd);
	}
}

/* As TEST_HARNESS_MAIN, after a look at the host. */
int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	find_out();
	return test_harness_run(argc, argv);
}
