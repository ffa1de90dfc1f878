// SPDX-License-Identifier: GPL-2.0-only
/*
 * The KVM-VFIO device (KVM_DEV_TYPE_VFIO) with a PCI device, in each way to have that:
 * what may be added and deleted, and whether the VM is non-coherent exactly while DMA is
 * that it has to know of.
 */
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include <linux/kvm.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;

FIXTURE(vfio_pci_kvm_test) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int vm;
	int kvm_device;
};

FIXTURE_VARIANT(vfio_pci_kvm_test) {
	const char *iommu_mode;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_iommu_mode)		\
FIXTURE_VARIANT_ADD(vfio_pci_kvm_test, _iommu_mode) {		\
	.iommu_mode = #_iommu_mode,				\
}

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES();

static int kvm_device_create(int vm)
{
	struct kvm_create_device args = {
		.type = KVM_DEV_TYPE_VFIO,
	};

	ioctl_assert(vm, KVM_CREATE_DEVICE, &args);
	return args.fd;
}

FIXTURE_SETUP(vfio_pci_kvm_test)
{
	int kvm = open("/dev/kvm", O_RDWR);

	if (kvm < 0)
		SKIP(return, "open(/dev/kvm) failed\n");

	self->vm = ioctl(kvm, KVM_CREATE_VM, 0);
	ASSERT_LE(0, self->vm);
	ASSERT_EQ(0, close(kvm));
	self->kvm_device = kvm_device_create(self->vm);

	self->iommu = iommu_init(variant->iommu_mode);
}

FIXTURE_TEARDOWN(vfio_pci_kvm_test)
{
	/* First, for it keeps the device's file open. */
	ASSERT_EQ(0, close(self->kvm_device));
	ASSERT_EQ(0, close(self->vm));

	if (self->device)
		vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

/* Returns 0 or the error. */
static int kvm_vfio_file(int kvm_device, u64 attr, int fd)
{
	struct kvm_device_attr args = {
		.group = KVM_DEV_VFIO_FILE,
		.attr = attr,
		.addr = (u64)&fd,
	};

	return ioctl(kvm_device, KVM_SET_DEVICE_ATTR, &args) ? errno : 0;
}

static int kvm_add(int kvm_device, int fd)
{
	return kvm_vfio_file(kvm_device, KVM_DEV_VFIO_FILE_ADD, fd);
}

static int kvm_del(int kvm_device, int fd)
{
	return kvm_vfio_file(kvm_device, KVM_DEV_VFIO_FILE_DEL, fd);
}

/* What KVM says of the VM. */
static struct kvm_vfio_vm_state vm_state(int kvm_device)
{
	struct kvm_vfio_vm_state state = {};
	struct kvm_device_attr args = {
		.group = KVM_DEV_VFIO_STATE,
		.attr = KVM_DEV_VFIO_STATE_VM,
		.addr = (u64)&state,
	};

	ioctl_assert(kvm_device, KVM_GET_DEVICE_ATTR, &args);
	return state;
}

/* What VFIO says of one of its files: KVM_VFIO_FILE_*. */
static u32 file_state(int kvm_device, int fd)
{
	struct kvm_vfio_file_state state = { .fd = fd };
	struct kvm_device_attr args = {
		.group = KVM_DEV_VFIO_STATE,
		.attr = KVM_DEV_VFIO_STATE_FILE,
		.addr = (u64)&state,
	};

	ioctl_assert(kvm_device, KVM_GET_DEVICE_ATTR, &args);
	return state.coherency;
}

#if defined(__x86_64__)
static const bool vm_can_be_noncoherent = true;
#else
static const bool vm_can_be_noncoherent;
#endif

#define ASSERT_VM(_kvm_device, _files, _noncoherent_files) do {			\
	struct kvm_vfio_vm_state __state = vm_state(_kvm_device);		\
	u32 __noncoherent = _noncoherent_files;					\
										\
	ASSERT_EQ(_files, __state.files);					\
	ASSERT_EQ(__noncoherent, __state.noncoherent_files);			\
	ASSERT_EQ(vm_can_be_noncoherent && __noncoherent, __state.noncoherent);	\
} while (0)

/* Does the IOMMU make DMA coherent?  An IOAS is asked as a container, for it is one, too. */
static bool dma_is_coherent(struct iommu *iommu)
{
	struct iommu_vfio_ioas args = {
		.size = sizeof(args),
		.ioas_id = iommu->ioas_id,
		.op = IOMMU_VFIO_IOAS_SET,
	};
	int fd = iommu->container_fd;
	int ret;

	if (iommu->iommufd) {
		fd = iommu->iommufd;
		ioctl_assert(fd, IOMMU_VFIO_IOAS, &args);
	}

	ret = ioctl(fd, VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU);
	VFIO_ASSERT_GE(ret, 0);
	return ret;
}

static u32 attached_state(struct iommu *iommu)
{
	return dma_is_coherent(iommu) ? KVM_VFIO_FILE_ENFORCED : KVM_VFIO_FILE_NOT_ENFORCED;
}

TEST_F(vfio_pci_kvm_test, add_del)
{
	int fds[2], nr = 0, i;

	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	fds[nr++] = self->device->fd;
	if (self->device->group_fd)
		fds[nr++] = self->device->group_fd;

	ASSERT_EQ(EBADF, kvm_add(self->kvm_device, -1));
	ASSERT_EQ(EINVAL, kvm_add(self->kvm_device, self->vm));

	for (i = 0; i < nr; i++) {
		ASSERT_EQ(ENOENT, kvm_del(self->kvm_device, fds[i]));
		ASSERT_EQ(0, kvm_add(self->kvm_device, fds[i]));
		ASSERT_EQ(EEXIST, kvm_add(self->kvm_device, fds[i]));
	}

	for (i = 0; i < nr; i++) {
		ASSERT_EQ(0, kvm_del(self->kvm_device, fds[i]));
		ASSERT_EQ(ENOENT, kvm_del(self->kvm_device, fds[i]));
	}
}

/* The KVM-VFIO device lets go of its files when it is closed. */
TEST_F(vfio_pci_kvm_test, close)
{
	self->device = vfio_pci_device_init(device_bdf, self->iommu);

	ASSERT_EQ(0, kvm_add(self->kvm_device, self->device->fd));
	ASSERT_EQ(0, close(self->kvm_device));

	self->kvm_device = kvm_device_create(self->vm);
	ASSERT_EQ(ENOENT, kvm_del(self->kvm_device, self->device->fd));
	ASSERT_EQ(0, kvm_add(self->kvm_device, self->device->fd));
}

/* A file that is attached counts from its ADD to its DEL. */
TEST_F(vfio_pci_kvm_test, attach_add_del)
{
	u32 attached;
	int fd;

	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	fd = self->device->fd;
	attached = attached_state(self->iommu);

	ASSERT_VM(self->kvm_device, 0, 0);
	ASSERT_EQ(0, kvm_add(self->kvm_device, fd));
	ASSERT_EQ(attached, file_state(self->kvm_device, fd));
	ASSERT_VM(self->kvm_device, 1, attached == KVM_VFIO_FILE_NOT_ENFORCED);
	ASSERT_EQ(0, kvm_del(self->kvm_device, fd));
	ASSERT_VM(self->kvm_device, 0, 0);
}

/* Opens the device as vfio_pci_device_init() does, but adds its file before it is attached. */
static int open_and_add(struct vfio_pci_device *device, int kvm_device)
{
	int fd;

	if (device->iommu->mode->container_path) {
		vfio_pci_group_setup(device, device_bdf);
		fd = device->group_fd;
	} else {
		vfio_pci_cdev_open(device, device_bdf);
		VFIO_ASSERT_EQ(__vfio_device_bind_iommufd(device->fd, device->iommu->iommufd,
							  NULL), 0);
		fd = device->fd;
	}

	VFIO_ASSERT_EQ(kvm_add(kvm_device, fd), 0);
	return fd;
}

static void attach(struct vfio_pci_device *device)
{
	struct vfio_device_attach_iommufd_pt args = {
		.argsz = sizeof(args),
		.pt_id = device->iommu->ioas_id,
	};

	if (device->iommu->mode->container_path) {
		vfio_container_set_iommu(device);
		__vfio_pci_group_get_device_fd(device, device_bdf, NULL);
		VFIO_ASSERT_GE(device->fd, 0);
	} else {
		ioctl_assert(device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &args);
	}
}

static void detach(struct vfio_pci_device *device)
{
	struct vfio_device_detach_iommufd_pt args = {
		.argsz = sizeof(args),
	};

	if (device->iommu->mode->container_path) {
		VFIO_ASSERT_EQ(close(device->fd), 0);
		ioctl_assert(device->group_fd, VFIO_GROUP_UNSET_CONTAINER, NULL);
	} else {
		ioctl_assert(device->fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &args);
	}
}

/* A file that is tracked counts while it is attached. */
TEST_F(vfio_pci_kvm_test, add_attach_detach)
{
	struct vfio_pci_device *device;
	u32 attached;
	int fd;

	device = vfio_pci_device_alloc(device_bdf, self->iommu);
	fd = open_and_add(device, self->kvm_device);
	ASSERT_EQ(KVM_VFIO_FILE_NOT_ATTACHED, file_state(self->kvm_device, fd));
	ASSERT_VM(self->kvm_device, 1, 0);

	attach(device);
	attached = attached_state(self->iommu);
	ASSERT_EQ(attached, file_state(self->kvm_device, fd));
	ASSERT_VM(self->kvm_device, 1, attached == KVM_VFIO_FILE_NOT_ENFORCED);

	detach(device);
	ASSERT_EQ(KVM_VFIO_FILE_NOT_ATTACHED, file_state(self->kvm_device, fd));
	ASSERT_VM(self->kvm_device, 1, 0);

	ASSERT_EQ(0, kvm_del(self->kvm_device, fd));
	ASSERT_EQ(0, close(fd));
	vfio_pci_device_free(device);
}

/* The device does its work for a VM, too, and sends no MSI that nobody asked for. */
TEST_F(vfio_pci_kvm_test, memcpy)
{
	struct iova_allocator *allocator;
	struct vfio_pci_driver *driver;
	struct dma_region *region;
	char *src, *dst;
	u64 size;

	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	driver = &self->device->driver;
	region = &driver->region;
	if (!driver->ops)
		SKIP(return, "No driver found for device %s\n", device_bdf);

	/* One half is the driver's, of the other the test copies one quarter to the other. */
	allocator = iova_allocator_init(self->iommu);
	region->size = SZ_4M;
	region->iova = iova_allocator_alloc(allocator, region->size);
	region->vaddr = mmap(NULL, region->size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, region->vaddr);
	iommu_map(self->iommu, region);
	iova_allocator_cleanup(allocator);

	ASSERT_EQ(0, kvm_add(self->kvm_device, self->device->fd));
	vfio_pci_driver_init(self->device);

	src = region->vaddr + SZ_2M;
	dst = src + SZ_1M;
	size = min_t(u64, driver->max_memcpy_size, SZ_1M);
	memset(src, 'x', size);
	memset(dst, 'y', size);
	ASSERT_EQ(0, vfio_pci_driver_memcpy(self->device, to_iova(self->device, src),
					    to_iova(self->device, dst), size));
	ASSERT_EQ(0, memcmp(src, dst, size));

	vfio_pci_driver_remove(self->device);
	iommu_unmap(self->iommu, region);
	ASSERT_EQ(0, munmap(region->vaddr, region->size));
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
