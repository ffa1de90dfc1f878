// SPDX-License-Identifier: GPL-2.0-only
/*
 * The KVM-VFIO pseudo device (KVM_DEV_TYPE_VFIO), seen from user space: errors,
 * creation and lifetimes.
 *
 *   create, known_attr, unknown_attr, bad_addr, bad_fd, file, unchanged
 *	every row of the device's error table, and that a failed call changes
 *	nothing
 *   life
 *	who keeps a VFIO file, and when it is given back
 *
 * Other subjects have programs of their own, vfio_dev_*_test.c, and so have
 * devices' files and iommufd, vfio_cdev_test.c.
 *
 * See vfio_dev_test.h for what these tests need, and how they know what they say.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>

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
	const char *name;
	uint64_t attr;
};

static const FIXTURE_VARIANT(known_attr) known_attr_variants[] = {
	{ "file_add", KVM_DEV_VFIO_FILE_ADD },
	{ "file_del", KVM_DEV_VFIO_FILE_DEL },
};

FIXTURE_VARIANTS(known_attr);

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
	const char *name;
	uint32_t group;
	uint64_t attr;
};

static const FIXTURE_VARIANT(unknown_attr) unknown_attr_variants[] = {
	{ "group_0", 0, KVM_DEV_VFIO_FILE_ADD },
	{ "group_2", 2, KVM_DEV_VFIO_FILE_ADD },
	{ "group_2_del", 2, KVM_DEV_VFIO_FILE_DEL },
	{ "group_max", 0xffffffff, KVM_DEV_VFIO_FILE_ADD },
	{ "attr_0", KVM_DEV_VFIO_FILE, 0 },
	{ "attr_4", KVM_DEV_VFIO_FILE, 4 },
	{ "attr_max", KVM_DEV_VFIO_FILE, ~0ULL },
	/* An attribute has 64 bits. */
	{ "attr_add_above_32_bits", KVM_DEV_VFIO_FILE, 1ULL << 32 | KVM_DEV_VFIO_FILE_ADD },
	{ "attr_del_above_32_bits", KVM_DEV_VFIO_FILE, 1ULL << 32 | KVM_DEV_VFIO_FILE_DEL },
	/* Of ppc64 only. */
	{ "spapr_tce", KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE },
};

FIXTURE_VARIANTS(unknown_attr);

FIXTURE_SETUP(unknown_attr)
{
	struct utsname u;

	REQUIRE(host.no_kvm);
	uname(&u);
	if (variant->attr == KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE && !strncmp(u.machine, "ppc64", 5))
		SKIP(END_SKIPPED_TEST, "known on ppc64");
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
	const char *name;
	enum addr_kind kind;
};

static const FIXTURE_VARIANT(bad_addr) bad_addr_variants[] = {
	{ "null", ADDR_NULL },
	{ "one", ADDR_ONE },
	{ "kernel", ADDR_KERNEL },
	{ "noncanonical", ADDR_NONCANONICAL },
	{ "last_byte", ADDR_LAST },
	{ "unmapped_page", ADDR_UNMAPPED },
	{ "prot_none_page", ADDR_PROT_NONE },
	{ "half_across", ADDR_HALF },
};

FIXTURE_VARIANTS(bad_addr);

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
	const char *name;
	enum fd_kind kind;
};

static const FIXTURE_VARIANT(bad_fd) bad_fd_variants[] = {
	{ "minus_one", FD_MINUS_ONE },
	{ "int_min", FD_INT_MIN },
	{ "int_max", FD_INT_MAX },
	{ "closed", FD_CLOSED },
	{ "beyond_limit", FD_BEYOND_LIMIT },
	{ "path_only", FD_PATH },
	{ "regular_file", FD_REGULAR },
	{ "dev_null", FD_DEV_NULL },
	{ "directory", FD_DIRECTORY },
	{ "pipe", FD_PIPE },
	{ "socket", FD_SOCKET },
	{ "eventfd", FD_EVENTFD },
	{ "memfd", FD_MEMFD },
	{ "dev_kvm", FD_KVM },
	{ "vm", FD_VM },
	{ "vcpu", FD_VCPU },
	{ "the_device_itself", FD_ITSELF },
	{ "device_of_another_vm", FD_OTHER_VFIO_DEV },
	{ "vfio_container", FD_CONTAINER },
};

FIXTURE_VARIANTS(bad_fd);

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

/*
 * Each tracked file is an assignment, by which KVM knows that the VM has devices, where
 * somebody asks.
 */
TEST_F(file, is_an_assignment)
{
	int begun, ended;

	REQUIRE(host.no_probe);
	pin(0);
	begun = open_kvm_probe("kvm_arch_start_assignment");
	if (begun == -ENOENT)
		REQUIRE("nobody asks KVM whether the VM has devices");
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

/* Before 6.6 a device's file is no VFIO file; later it may be one. */
TEST_F(file, device_descriptor)
{
	int dev, ret;

	REQUIRE(no_pci(0));
	ASSERT_EQ(0, group_attach(self->fd));
	dev = group_get_device(self->fd, 0);
	ASSERT_LE(0, dev);
	ret = dev_add(self->vm.dev, dev);
	if (*no_device_files() || ret) {
		EXPECT_EQ(-EINVAL, ret);
		EXPECT_EQ(-ENOENT, dev_del(self->vm.dev, dev));
	} else {
		EXPECT_EQ(-EEXIST, dev_add(self->vm.dev, dev));
		EXPECT_EQ(0, dev_del(self->vm.dev, dev));
	}
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
}

/* ADD, which fails in its NTH place; *FAILED tells whether there were so many. */
static int add_with_failure(struct vm *vm, int group, int control, int nth, bool *failed)
{
	char text[16];
	int ret, size;

	size = snprintf(text, sizeof(text), "%d", nth);
	if (pwrite(control, text, size, 0) != size)
		return -EIO;
	ret = dev_add(vm->dev, group);
	/* These are copies themselves: if ADD has fewer places, one of them may be the NTH. */
	size = pread(control, text, sizeof(text) - 1, 0);
	if (size <= 0 && errno != EFAULT)
		return -EIO;
	if (pwrite(control, "0", 1, 0) != 1 && pwrite(control, "0", 1, 0) != 1)
		return -EIO;
	text[size > 0 ? size : 0] = 0;
	*failed = size > 0 && atoi(text) == 0;
	return ret;
}

/*
 * Let every allocation of ADD fail in turn, and every copy from user space where the
 * kernel can do that: ENOMEM or EFAULT, and nothing has changed. Only a kernel with fault
 * injection can show it.
 */
TEST_F(file, enomem)
{
	int i, ret, control, seen = 0, copies = 0;
	bool failed = true;

	control = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	/* Not for the strict mode: it is the kernel's configuration, not the host. */
	if (control < 0 || write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N"))
		SKIP(return, "this kernel has no fault injection");
	/* No stack trace in the log for what is wanted. */
	write_file("/sys/kernel/debug/failslab/verbose", "0");
	write_file("/sys/kernel/debug/fail_usercopy/verbose", "0");
	for (i = 1; i < 100 && failed; i++) {
		ret = add_with_failure(&self->vm, self->fd, control, i, &failed);
		if (ret) {
			seen += ret == -ENOMEM;
			copies += ret == -EFAULT;
			ASSERT_TRUE(ret == -ENOMEM || ret == -EFAULT);
			ASSERT_EQ(-ENOENT, dev_del(self->vm.dev, self->fd));
		} else {
			ASSERT_EQ(0, dev_del(self->vm.dev, self->fd));
		}
	}
	EXPECT_LT(0, seen);
	if (!access("/sys/kernel/debug/fail_usercopy", F_OK))
		EXPECT_LT(0, copies);
	EXPECT_FALSE(failed);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd));
	close(self->fd);
	EXPECT_LE(0, group_open_soon(0));
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
	const char *name;
	enum failing call;
	int expected;
};

static const FIXTURE_VARIANT(unchanged) unchanged_variants[] = {
	{ "add_at_null", FAIL_ADD_NULL, -EFAULT },
	{ "add_of_no_file", FAIL_ADD_BADF, -EBADF },
	{ "add_of_foreign_file", FAIL_ADD_NOT_VFIO, -EINVAL },
	{ "add_again", FAIL_ADD_AGAIN, -EEXIST },
	{ "del_at_null", FAIL_DEL_NULL, -EFAULT },
	{ "del_of_no_file", FAIL_DEL_BADF, -EBADF },
	{ "del_of_foreign_file", FAIL_DEL_NOT_VFIO, -ENOENT },
	{ "del_of_untracked", FAIL_DEL_UNTRACKED, -ENOENT },
	{ "del_of_another_vms", FAIL_DEL_OTHERS, -ENOENT },
	{ "unknown_group", FAIL_UNKNOWN_GROUP, -ENXIO },
	{ "unknown_attr", FAIL_UNKNOWN_ATTR, -ENXIO },
	{ "second_device", FAIL_SECOND_DEVICE, -EBUSY },
};

FIXTURE_VARIANTS(unchanged);

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

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
