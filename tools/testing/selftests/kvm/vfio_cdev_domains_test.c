// SPDX-License-Identifier: GPL-2.0-only
/*
 * The KVM-VFIO pseudo device with iommufd's page tables: devices that differ share
 * one, or have one each, and move.
 *
 * No hardware has such devices side by side.  They are those of the lab's fixture,
 * vfio_testdev.ko, which is loaded from the current folder; without it all is
 * skipped.  See vfio_dev_test.h for what else these tests need.
 */
#define _GNU_SOURCE
#include "vfio_cdev_test.h"

/* --- Page tables of devices that differ: the lab's software IOMMU --- */

#define TESTDEV		"/sys/devices/vfio_testdev/"
#define LAX		"/sys/module/vfio_testdev/parameters/lax"
#define NONCOHERENT	"/sys/module/vfio/parameters/noncoherent"
#define TESTDEV_HWPT_DATA	0x7e57
#define TESTDEV_PASIDS		4

static const char *no_testdev(void)
{
	int fd;

	if (!access(TESTDEV, F_OK))
		return "";
	fd = open("vfio_testdev.ko", O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		syscall(SYS_finit_module, fd, "", 0);
	close(fd);
	write_file("/sys/module/iommufd/parameters/allow_unsafe_interrupts", "1");
	write_file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "1");
	write_file("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "1");
	return access(TESTDEV, F_OK) ? "the host has no vfio_testdev devices" : "";
}

/* "1 noncoherent", or "1 coherent 3" in the group of device 3. Its number, or -errno */
static int testdev_create(const char *what)
{
	char text[32];
	int ret;

	ret = read_file(TESTDEV "create", text, sizeof(text));
	if (ret)
		return ret;
	ret = write_file(TESTDEV "create", what);
	return ret ? ret : atoi(text);
}

static int testdev_open(int id)
{
	struct dirent *entry;
	char path[320];
	int fd = -ENOENT;
	DIR *dir;

	snprintf(path, sizeof(path), TESTDEV "vfio_testdev.%d/vfio-dev", id);
	dir = opendir(path);
	while (dir && fd == -ENOENT && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/dev/vfio/devices/%s", entry->d_name);
		fd = call(open(path, O_RDWR | O_CLOEXEC));
	}
	if (dir)
		closedir(dir);
	return fd;
}

static int testdev_open_group(int id)
{
	char path[96], link[128];
	int size;

	snprintf(path, sizeof(path), TESTDEV "vfio_testdev.%d/iommu_group", id);
	size = readlink(path, link, sizeof(link) - 1);
	if (size < 0)
		return -errno;
	link[size] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%s", strrchr(link, '/') + 1);
	if (access(path, F_OK))
		snprintf(path, sizeof(path), "/dev/vfio/noiommu-%s", strrchr(link, '/') + 1);
	return call(open(path, O_RDWR | O_CLOEXEC));
}

#define NR_DOMAIN_DEVS	4

FIXTURE(domains) {
	struct vm vm;
	int iommufd;
	uint32_t ioas;
	int fd[NR_DOMAIN_DEVS];
	uint32_t dev[NR_DOMAIN_DEVS];	/* the device's ID in the iommufd */
	int nr;
};

FIXTURE_SETUP(domains)
{
	int i;

	REQUIRE(no_iommufd());
	REQUIRE(no_testdev());
	self->iommufd = iommufd_open();
	ASSERT_EQ(0, vm_open(&self->vm));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas));
	for (i = 0; i < NR_DOMAIN_DEVS; i++)
		self->fd[i] = -1;
}

FIXTURE_TEARDOWN(domains)
{
	int i;

	vm_close(&self->vm);
	for (i = 0; i < NR_DOMAIN_DEVS; i++)
		close_fd(&self->fd[i]);
	close_fd(&self->iommufd);
	write_file(TESTDEV "destroy", "all");
	write_file(LAX, "0");
	write_file(NONCOHERENT, "allow");
}

#define N	KVM_VFIO_FILE_NOT_ATTACHED
#define E	KVM_VFIO_FILE_ENFORCED
#define X	KVM_VFIO_FILE_NOT_ENFORCED

/* One more device, its file tracked and bound. Its number in the fixture */
#define ADD_DEVICE(what) ({							\
	const char *add_what = (what);						\
	int add_nr = self->nr++, add_id = testdev_create(add_what);		\
	struct bind_iommufd add_bind = {					\
		.argsz = sizeof(add_bind), .iommufd = self->iommufd,		\
	};									\
										\
	ASSERT_LE(0, add_id) TH_LOG("creating %s", add_what);			\
	self->fd[add_nr] = testdev_open(add_id);				\
	ASSERT_LE(0, self->fd[add_nr]) TH_LOG("opening %s", add_what);	\
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd[add_nr]));			\
	ASSERT_EQ(0, call(ioctl(self->fd[add_nr], VFIO_DEVICE_BIND_IOMMUFD,	\
				&add_bind)));					\
	self->dev[add_nr] = add_bind.out_devid;					\
	add_id;									\
})

#define EXPECT_STATE(file, state)						\
	EXPECT_EQ(state, get_file_state(self->vm.dev, self->fd[file]))

static int hwpt_alloc(int iommufd, uint32_t dev, uint32_t pt, uint32_t flags, bool nested,
		      uint32_t *id)
{
	uint32_t data = 0;
	struct hwpt_alloc arg = {
		.size = sizeof(arg), .flags = flags, .dev_id = dev, .pt_id = pt,
	};
	int ret;

	if (nested) {
		arg.data_type = TESTDEV_HWPT_DATA;
		arg.data_len = sizeof(data);
		arg.data_uptr = (uintptr_t)&data;
	}
	ret = call(ioctl(iommufd, IOMMU_HWPT_ALLOC, &arg));
	*id = arg.out_hwpt_id;
	return ret;
}

/* What the second one joins, it shares. */
TEST_F(domains, shared_made_for_noncoherent)
{
	ADD_DEVICE("1 noncoherent");
	ADD_DEVICE("1 coherent");
	EXPECT_EQ(0, cdev_attach(self->fd[0], self->ioas));
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, cdev_attach(self->fd[1], self->ioas));
	EXPECT_STATE(1, X);
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd[0]));
	close_fd(&self->fd[0]);
	EXPECT_STATE(1, X);
	EXPECT_EQ(1, debugfs_stat(&self->vm, "noncoherent_dma"));
	EXPECT_EQ(0, cdev_detach(self->fd[1]));
	EXPECT_STATE(1, N);
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma"));
}

TEST_F(domains, apart_made_for_coherent)
{
	ADD_DEVICE("1 coherent");
	ADD_DEVICE("1 noncoherent");
	EXPECT_EQ(0, cdev_attach(self->fd[0], self->ioas));
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, cdev_attach(self->fd[1], self->ioas));
	EXPECT_STATE(0, E);
	EXPECT_STATE(1, X);
}

TEST_F(domains, replaced)
{
	uint32_t good, bad;

	ADD_DEVICE("1 coherent");
	ADD_DEVICE("1 noncoherent");
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev[0], self->ioas, 0, false, &good));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev[1], self->ioas, 0, false, &bad));
	EXPECT_EQ(0, cdev_attach(self->fd[0], good));
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, cdev_attach(self->fd[0], bad));
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, cdev_attach(self->fd[0], good));
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, cdev_attach(self->fd[1], bad));
	EXPECT_EQ(-EINVAL, cdev_attach(self->fd[1], good));
	EXPECT_STATE(1, X);
}

/*
 * Some IOMMU drivers would attach a device that cannot be made coherent to a page table
 * that enforces coherency for others, whose memory nobody flushes.
 */
TEST_F(domains, enforced_for_others)
{
	bool lax = !write_file(LAX, "1");
	uint32_t good;
	char with[40];
	int id;

	id = ADD_DEVICE("1 coherent");
	ADD_DEVICE("1 noncoherent");
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev[0], self->ioas, 0, false, &good));
	EXPECT_EQ(0, cdev_attach(self->fd[0], good));
	EXPECT_STATE(0, E);
	EXPECT_EQ(-EINVAL, cdev_attach(self->fd[1], good));
	EXPECT_STATE(1, N);
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma"));

	/* It gets one of its own, and keeps that. */
	EXPECT_EQ(0, cdev_attach(self->fd[1], self->ioas));
	EXPECT_STATE(1, X);
	EXPECT_EQ(-EINVAL, cdev_attach(self->fd[1], good));
	EXPECT_STATE(1, X);
	EXPECT_STATE(0, E);
	EXPECT_EQ(1, debugfs_stat(&self->vm, "noncoherent_dma"));
	EXPECT_EQ(0, cdev_detach(self->fd[1]));
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma"));
	if (!lax)
		return;

	/* One that joins the group of a device that is attached */
	snprintf(with, sizeof(with), "1 noncoherent %d", id);
	ADD_DEVICE(with);
	EXPECT_STATE(2, X);
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, cdev_detach(self->fd[0]));
	EXPECT_STATE(0, N);
	EXPECT_STATE(2, N);
	EXPECT_EQ(0, cdev_attach(self->fd[0], good));
	EXPECT_STATE(0, X);
}

/* One that is bound meanwhile would take coherency away from all of its group. */
TEST_F(domains, refused_to_join_group)
{
	bool lax = !write_file(LAX, "1");
	struct bind_iommufd bind = {
		.argsz = sizeof(bind), .iommufd = self->iommufd,
	};
	char with[40];
	int id, other;

	id = ADD_DEVICE("1 coherent");
	EXPECT_EQ(0, cdev_attach(self->fd[0], self->ioas));
	EXPECT_STATE(0, E);
	snprintf(with, sizeof(with), "1 noncoherent %d", id);
	other = testdev_create(with);
	ASSERT_LE(0, other);
	if (!lax) {
		/* The IOMMU does not attach it, and the group stays as it is. */
		EXPECT_STATE(0, E);
		EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
		return;
	}
	self->fd[1] = testdev_open(other);
	ASSERT_LE(0, self->fd[1]);
	ASSERT_EQ(0, dev_add(self->vm.dev, self->fd[1]));
	ASSERT_EQ(0, write_file(NONCOHERENT, "refuse"));
	EXPECT_EQ(-EPERM, call(ioctl(self->fd[1], VFIO_DEVICE_BIND_IOMMUFD, &bind)));
	EXPECT_STATE(0, E);
	EXPECT_STATE(1, N);
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
	/* Nor is it remembered for what comes. */
	EXPECT_EQ(0, cdev_detach(self->fd[0]));
	EXPECT_EQ(0, cdev_attach(self->fd[0], self->ioas));
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma_changes"));

	ASSERT_EQ(0, write_file(NONCOHERENT, "allow"));
	EXPECT_EQ(0, call(ioctl(self->fd[1], VFIO_DEVICE_BIND_IOMMUFD, &bind)));
	EXPECT_STATE(0, X);
	EXPECT_STATE(1, X);
	/* What is attached stays, but is not attached again. */
	ASSERT_EQ(0, write_file(NONCOHERENT, "refuse"));
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, cdev_detach(self->fd[0]));
	EXPECT_EQ(-EPERM, cdev_attach(self->fd[0], self->ioas));
	EXPECT_STATE(0, N);
	EXPECT_STATE(1, N);
}

/* It takes coherency away for as long as it is bound, and not by a call that fails. */
TEST_F(domains, noncoherent_leaves_group)
{
	bool lax = !write_file(LAX, "1");
	int id = ADD_DEVICE("1 coherent"), i;
	char with[40];

	EXPECT_EQ(0, cdev_attach(self->fd[0], self->ioas));
	EXPECT_STATE(0, E);
	snprintf(with, sizeof(with), "1 noncoherent %d", id);
	for (i = 1; lax && i <= 2; i++) {
		self->fd[i] = testdev_open(testdev_create(with));
		ASSERT_LE(0, self->fd[i]);
		EXPECT_EQ(-EFAULT, cdev_bind_in_vain(self->fd[i], self->iommufd));
	}
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
	for (i = 1; lax && i <= 2; i++) {
		EXPECT_EQ(0, cdev_bind(self->fd[i], self->iommufd));
		EXPECT_STATE(0, X);
	}
	for (i = 1; lax && i <= 2; i++) {
		EXPECT_STATE(0, X);
		EXPECT_EQ(1, debugfs_stat(&self->vm, "noncoherent_dma"));
		close_fd(&self->fd[i]);
	}
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma"));
	EXPECT_EQ(lax ? 2 : 0, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
}

TEST_F(domains, nested)
{
	uint32_t parent[2], nested[2];
	int i;

	ADD_DEVICE("1 coherent");
	ADD_DEVICE("1 noncoherent");
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev[i], self->ioas, FOR_NESTED, false,
					&parent[i]));
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev[0], parent[i], 0, true,
					&nested[i]));
	}
	EXPECT_EQ(0, cdev_attach(self->fd[0], nested[0]));
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, cdev_attach(self->fd[0], nested[1]));
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, cdev_attach(self->fd[0], nested[0]));
	EXPECT_STATE(0, E);
}

/*
 * A coherent device, and page tables that enforce coherency and that do not, which it can
 * be attached to by PASIDs, too. Its number; or -1 before Linux 7.3, which has none
 */
#define PASID_DEVICE(good, bad) ({						\
	int pasid_id = ADD_DEVICE("1 coherent");				\
										\
	ADD_DEVICE("1 noncoherent");						\
	if (access(LAX, F_OK)) {						\
		EXPECT_EQ(-EINVAL, cdev_attach_pasid(self->fd[0], 1, self->ioas)); \
		EXPECT_STATE(0, N);						\
		pasid_id = -1;							\
	} else {								\
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev[0], self->ioas, \
					FOR_PASID, false, good));		\
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev[1], self->ioas, \
					FOR_PASID, false, bad));		\
	}									\
	pasid_id;								\
})

/* What does DMA by a PASID is attached, and each of its page tables counts. */
TEST_F(domains, pasids)
{
	uint32_t good, bad;

	if (PASID_DEVICE(&good, &bad) < 0)
		return;
	EXPECT_EQ(0, cdev_attach_pasid(self->fd[0], 1, good));
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, cdev_attach_pasid(self->fd[0], 2, bad));
	EXPECT_STATE(0, X);
	EXPECT_EQ(1, debugfs_stat(&self->vm, "noncoherent_dma"));
	EXPECT_EQ(0, cdev_attach(self->fd[0], good));
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, cdev_detach_pasid(self->fd[0], 2));
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma"));

	/* What it does without a PASID counts as well. */
	EXPECT_EQ(0, cdev_attach(self->fd[0], bad));
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, cdev_detach(self->fd[0]));
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, cdev_detach_pasid(self->fd[0], 1));
	EXPECT_STATE(0, N);
	EXPECT_EQ(4, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
}

TEST_F(domains, pasid_replaced)
{
	uint32_t good, bad;

	if (PASID_DEVICE(&good, &bad) < 0)
		return;
	EXPECT_EQ(0, cdev_attach_pasid(self->fd[0], 1, good));
	EXPECT_EQ(0, cdev_attach_pasid(self->fd[0], 1, bad));
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, cdev_attach_pasid(self->fd[0], 1, good));
	EXPECT_STATE(0, E);
	EXPECT_EQ(2, debugfs_stat(&self->vm, "noncoherent_dma_changes"));

	/* A device that is not coherent does not get what enforces coherency by a PASID, too. */
	EXPECT_EQ(-EINVAL, cdev_attach_pasid(self->fd[1], 1, good));
	EXPECT_STATE(1, N);
	EXPECT_EQ(0, cdev_attach_pasid(self->fd[1], 1, bad));
	EXPECT_EQ(-EINVAL, cdev_attach_pasid(self->fd[1], 1, good));
	EXPECT_STATE(1, X);
}

/* They end with the file, which is tracked no longer: a sibling tells. */
TEST_F(domains, pasids_of_closed_file)
{
	uint32_t good, bad;
	char with[32];
	int id;

	id = PASID_DEVICE(&good, &bad);
	if (id < 0)
		return;
	snprintf(with, sizeof(with), "1 coherent %d", id);
	ADD_DEVICE(with);
	EXPECT_EQ(0, cdev_attach_pasid(self->fd[0], 1, good));
	EXPECT_EQ(0, cdev_attach_pasid(self->fd[0], 2, bad));
	EXPECT_STATE(2, X);
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd[0]));
	EXPECT_EQ(1, debugfs_stat(&self->vm, "noncoherent_dma"));
	close_fd(&self->fd[0]);
	EXPECT_STATE(2, N);
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma"));
}

TEST_F(domains, pasid_failures_change_nothing)
{
	uint32_t good, bad;
	long changes;

	if (PASID_DEVICE(&good, &bad) < 0)
		return;
	EXPECT_EQ(0, cdev_attach(self->fd[0], good));
	/* Tracked, it would hide what becomes of the VM by the other one. */
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd[1]));
	EXPECT_EQ(0, cdev_attach(self->fd[1], self->ioas));
	changes = debugfs_stat(&self->vm, "noncoherent_dma_changes");
	EXPECT_EQ(-ENOENT, cdev_attach_pasid(self->fd[0], 1, 0x7fffffff));
	EXPECT_EQ(-EINVAL, cdev_attach_pasid(self->fd[0], 1, self->dev[0]));
	EXPECT_EQ(-EBUSY, cdev_attach_pasid(self->fd[0], 0, bad));
	EXPECT_EQ(-EINVAL, cdev_attach_pasid(self->fd[0], TESTDEV_PASIDS, bad));
	EXPECT_EQ(-EINVAL, cdev_attach_pasid(self->fd[0], 100, bad));
	/* What an IOAS gets by itself is not for PASIDs, whatever is permitted. */
	EXPECT_EQ(-EINVAL, cdev_attach_pasid(self->fd[0], 1, self->ioas));
	EXPECT_EQ(-EFAULT, cdev_attach_in_vain(self->fd[0], 1, bad));
	EXPECT_STATE(0, E);
	ASSERT_EQ(0, write_file(NONCOHERENT, "refuse"));
	EXPECT_EQ(-EPERM, cdev_attach_pasid(self->fd[0], 1, bad));
	EXPECT_EQ(-EINVAL, cdev_attach_pasid(self->fd[0], 1, self->ioas));
	EXPECT_STATE(0, E);
	EXPECT_EQ(0, cdev_attach_pasid(self->fd[0], 1, good));
	EXPECT_EQ(-EPERM, cdev_attach_pasid(self->fd[0], 1, bad));
	EXPECT_STATE(0, E);
	/* None of them is attached, so this makes no difference. */
	EXPECT_EQ(0, cdev_detach_pasid(self->fd[0], 2));
	EXPECT_STATE(0, E);
	EXPECT_EQ(changes, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
	EXPECT_EQ(0, cdev_detach(self->fd[0]));
	EXPECT_STATE(0, E);
}

/* iommufd attaches them all at once. */
TEST_F(domains, siblings)
{
	char with[32];
	int id = ADD_DEVICE("1 noncoherent");

	snprintf(with, sizeof(with), "1 noncoherent %d", id);
	ADD_DEVICE(with);
	ADD_DEVICE(with);
	EXPECT_EQ(0, cdev_attach(self->fd[0], self->ioas));
	EXPECT_STATE(0, X);
	EXPECT_STATE(1, X);
	EXPECT_STATE(2, X);
	EXPECT_EQ(0, cdev_attach(self->fd[1], self->ioas));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd[0]));
	close_fd(&self->fd[0]);
	EXPECT_STATE(1, X);
	EXPECT_STATE(2, X);
	/* One that is bound meanwhile */
	ADD_DEVICE(with);
	EXPECT_STATE(3, X);
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd[2]));
	close_fd(&self->fd[2]);
	EXPECT_EQ(0, cdev_detach(self->fd[1]));
	EXPECT_STATE(1, N);
	EXPECT_STATE(3, N);
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma"));
}

/* Who has a device from its group may close the group: then a sibling moves them both. */
TEST_F(domains, sibling_moves_device_of_group)
{
	struct vfio_ioas ioas = { .size = sizeof(ioas), .ioas_id = self->ioas, .op = 1 };
	int id = testdev_create("1 coherent"), group, device;
	char name[32], with[32];
	uint32_t bad;

	ASSERT_LE(0, id);
	ASSERT_EQ(0, call(ioctl(self->iommufd, IOMMU_VFIO_IOAS, &ioas)));
	group = testdev_open_group(id);
	ASSERT_LE(0, group);
	ASSERT_EQ(0, group_join(group, self->iommufd));
	snprintf(name, sizeof(name), "vfio_testdev.%d", id);
	device = call(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name));
	ASSERT_LE(0, device);
	close(group);
	ASSERT_EQ(0, dev_add(self->vm.dev, device));
	EXPECT_EQ(E, get_file_state(self->vm.dev, device));
	ADD_DEVICE("1 noncoherent");
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev[0], self->ioas, 0, false, &bad));
	snprintf(with, sizeof(with), "1 coherent %d", id);
	ADD_DEVICE(with);
	EXPECT_EQ(0, cdev_attach(self->fd[1], self->ioas));
	EXPECT_EQ(0, cdev_attach(self->fd[1], bad));
	EXPECT_STATE(1, X);
	EXPECT_EQ(X, get_file_state(self->vm.dev, device));
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd[1]));
	EXPECT_EQ(1, debugfs_stat(&self->vm, "noncoherent_dma"));
	EXPECT_EQ(0, cdev_attach(self->fd[1], self->ioas));
	EXPECT_EQ(E, get_file_state(self->vm.dev, device));
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma"));
	EXPECT_EQ(0, dev_del(self->vm.dev, device));
	close(device);
}

/* Wrong, of the wrong type, another's; and an answer that cannot be written. */
TEST_F(domains, failures_change_nothing)
{
	int other = iommufd_open(), i;
	long changes, flushes, zaps;
	uint32_t foreign;

	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, ioas_alloc(other, &foreign));
	ADD_DEVICE("1 noncoherent");
	changes = debugfs_stat(&self->vm, "noncoherent_dma_changes");
	flushes = debugfs_stat(&self->vm, "noncoherent_dma_flushes");
	zaps = debugfs_stat(&self->vm, "noncoherent_dma_zaps");
	ASSERT_LE(0, changes);
	for (i = 0; i < 100; i++) {
		EXPECT_EQ(-ENOENT, cdev_attach(self->fd[0], 0x7fffffff));
		EXPECT_EQ(-EINVAL, cdev_attach(self->fd[0], self->dev[0]));
		EXPECT_EQ(-ENOENT, cdev_attach(self->fd[0], foreign));
		EXPECT_EQ(-EFAULT, cdev_attach_in_vain(self->fd[0], 0, self->ioas));
	}
	EXPECT_STATE(0, N);
	EXPECT_EQ(changes, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
	EXPECT_EQ(flushes, debugfs_stat(&self->vm, "noncoherent_dma_flushes"));
	EXPECT_EQ(zaps, debugfs_stat(&self->vm, "noncoherent_dma_zaps"));
	/* It can be noticed. */
	EXPECT_EQ(0, cdev_attach(self->fd[0], self->ioas));
	EXPECT_EQ(changes + 1, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
	close(other);
}

TEST_F(domains, emulated)
{
	ADD_DEVICE("1 emulated");
	EXPECT_STATE(0, N);
	EXPECT_EQ(-ENOENT, cdev_attach(self->fd[0], 0x7fffffff));
	EXPECT_EQ(0, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
	EXPECT_EQ(0, cdev_attach(self->fd[0], self->ioas));
	EXPECT_STATE(0, X);
	EXPECT_EQ(-ENOENT, cdev_attach(self->fd[0], 0x7fffffff));
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, cdev_detach(self->fd[0]));
	EXPECT_STATE(0, N);
}

/* Such a group can leave an iommufd and join a container while its device is open. */
static void group_moves(struct __test_metadata *_metadata, struct vm *vm, int iommufd,
			const char *kind)
{
	int id = testdev_create(kind), container = container_open(), group, device;
	char name[32];

	ASSERT_LE(0, id);
	group = testdev_open_group(id);
	ASSERT_LE(0, group);
	snprintf(name, sizeof(name), "vfio_testdev.%d", id);
	EXPECT_EQ(0, dev_add(vm->dev, group));
	EXPECT_EQ(0, group_join(group, iommufd));
	EXPECT_EQ(N, get_file_state(vm->dev, group));
	device = call(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name));
	ASSERT_LE(0, device);
	EXPECT_EQ(X, get_file_state(vm->dev, group));
	EXPECT_EQ(0, dev_add(vm->dev, device));
	EXPECT_EQ(X, get_file_state(vm->dev, device));
	EXPECT_EQ(0, group_leave(group));
	EXPECT_EQ(X, get_file_state(vm->dev, group));
	EXPECT_EQ(0, group_join(group, container));
	EXPECT_EQ(X, get_file_state(vm->dev, group));
	/*
	 * Opened once more, the device would be closed for a container that has not counted
	 * it, and the group's file be freed, which the VM tracks. Not with the stock modules,
	 * which let it be opened.
	 */
	if (get_file_state(vm->dev, group) == X)
		EXPECT_EQ(-EBUSY, call(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name)));
	EXPECT_EQ(0, group_leave(group));
	EXPECT_EQ(0, dev_del(vm->dev, device));
	close(device);
	EXPECT_EQ(N, get_file_state(vm->dev, group));
	EXPECT_EQ(0, dev_del(vm->dev, group));
	close(group);
	close(container);
}

TEST_F(domains, noiommu_group_moves)
{
	group_moves(_metadata, &self->vm, self->iommufd, "1 noiommu");
}

/*
 * From Linux 7.3 on, where the fixture has LAX, such a device has a file as well if the
 * kernel has CONFIG_IOMMUFD_NOIOMMU. No page table is between its DMA and memory, whatever
 * it is attached to.
 */
TEST_F(domains, noiommu_file)
{
	int id = testdev_create("1 noiommu");

	ASSERT_LE(0, id);
	self->fd[0] = testdev_open(id);
	if (access(LAX, F_OK)) {
		EXPECT_EQ(-ENOENT, self->fd[0]);
		return;
	}
	if (self->fd[0] == -ENOENT)
		REQUIRE("no file without an IOMMU");
	ASSERT_LE(0, self->fd[0]);
	EXPECT_EQ(0, dev_add(self->vm.dev, self->fd[0]));
	EXPECT_STATE(0, N);
	EXPECT_EQ(0, cdev_bind(self->fd[0], self->iommufd));
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, cdev_attach(self->fd[0], self->ioas));
	EXPECT_STATE(0, X);
	EXPECT_EQ(1, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
	EXPECT_EQ(0, cdev_detach(self->fd[0]));
	EXPECT_STATE(0, X);
	EXPECT_EQ(0, dev_del(self->vm.dev, self->fd[0]));
	EXPECT_EQ(2, debugfs_stat(&self->vm, "noncoherent_dma_changes"));
}

TEST_F(domains, emulated_group_moves)
{
	group_moves(_metadata, &self->vm, self->iommufd, "1 emulated");
}

#undef N
#undef E
#undef X

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
