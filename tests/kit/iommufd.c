// SPDX-License-Identifier: GPL-2.0-only
/* Devices' own files, and iommufd: see the header. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "iommufd.h"

int open_iommufd(void)
{
	return must(open("/dev/iommu", O_RDWR | O_CLOEXEC));
}

uint32_t new_ioas(int iommufd)
{
	struct ioas_alloc request = { .size = sizeof(request) };

	must(ioctl(iommufd, IOMMU_IOAS_ALLOC, &request));
	return request.out_ioas_id;
}

int ioas_map(int iommufd, uint32_t ioas, void *memory, uint64_t iova, size_t size)
{
	struct ioas_map request = {
		.size = sizeof(request),
		.flags = 7,
		.ioas_id = ioas,
		.user_va = (uintptr_t)memory,
		.length = size,
		.iova = iova,
	};

	return ioctl(iommufd, IOMMU_IOAS_MAP, &request);
}

int ioas_unmap(int iommufd, uint32_t ioas, uint64_t iova, size_t size)
{
	struct ioas_unmap request = {
		.size = sizeof(request),
		.ioas_id = ioas,
		.iova = iova,
		.length = size,
	};

	return ioctl(iommufd, IOMMU_IOAS_UNMAP, &request);
}

int ioas_copy(int iommufd, uint32_t to, uint32_t from, uint64_t iova, size_t size)
{
	struct ioas_copy request = {
		.size = sizeof(request),
		.flags = 7,
		.dst_ioas_id = to,
		.src_ioas_id = from,
		.length = size,
		.dst_iova = iova,
		.src_iova = iova,
	};

	return ioctl(iommufd, IOMMU_IOAS_COPY, &request);
}

#define IOMMU_IOAS_MAP_FILE_NR	_IO(IOMMUFD_TYPE, 0x8f)

struct ioas_map_file {
	uint32_t size;
	uint32_t flags;		/* as of ioas_map */
	uint32_t ioas_id;
	int32_t fd;
	uint64_t start;
	uint64_t length;
	uint64_t iova;
};

int ioas_map_file(int iommufd, uint32_t ioas, int fd, uint64_t iova, size_t size)
{
	struct ioas_map_file request = {
		.size = sizeof(request),
		.flags = 7,
		.ioas_id = ioas,
		.fd = fd,
		.length = size,
		.iova = iova,
	};

	return ioctl(iommufd, IOMMU_IOAS_MAP_FILE_NR, &request);
}

/* Of the device with this folder in sysfs */
static int open_device_file(const char *device)
{
	char path[400];
	struct dirent *entry;
	int fd = -1;
	DIR *folder;

	snprintf(path, sizeof(path), "%s/vfio-dev", device);
	folder = opendir(path);
	while (folder && fd < 0 && (entry = readdir(folder))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/dev/vfio/devices/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
	}
	if (folder)
		closedir(folder);
	if (fd < 0)
		fail("%s has no file in /dev/vfio/devices", device);
	return fd;
}

int device_file(int id)
{
	char device[96];

	snprintf(device, sizeof(device), TESTDEV "vfio_testdev.%d", id);
	return open_device_file(device);
}

int edu_file(int index)
{
	return open_device_file(edu_device(index));
}

int device_file_bind(int file, int iommufd)
{
	struct bind_iommufd request = { .argsz = sizeof(request), .iommufd = iommufd };

	return ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &request);
}

int device_file_attach(int file, uint32_t *pt)
{
	struct attach_pt request = { .argsz = sizeof(request), .pt_id = *pt };
	int ret = ioctl(file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &request);

	if (!ret)
		*pt = request.pt_id;
	return ret;
}

int device_file_detach(int file)
{
	struct detach_pt request = { .argsz = sizeof(request) };

	return ioctl(file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &request);
}

int device_file_attach_pasid(int file, uint32_t pasid, uint32_t pt)
{
	struct attach_pt request = {
		.argsz = sizeof(request), .flags = 1, .pt_id = pt, .pasid = pasid,
	};

	return ioctl(file, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &request);
}

int device_file_detach_pasid(int file, uint32_t pasid)
{
	struct detach_pt request = { .argsz = sizeof(request), .flags = 1, .pasid = pasid };

	return ioctl(file, VFIO_DEVICE_DETACH_IOMMUFD_PT, &request);
}

static uint32_t new_table_for(int iommufd, int id, uint32_t ioas, uint32_t flags)
{
	struct bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommufd };
	struct hwpt_alloc request = {
		.size = sizeof(request), .flags = flags, .pt_id = ioas,
	};
	int file = device_file(id);

	must(ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	request.dev_id = bind.out_devid;
	must(ioctl(iommufd, IOMMU_HWPT_ALLOC, &request));
	close(file);
	return request.out_hwpt_id;
}

uint32_t new_table(int iommufd, int id, uint32_t ioas)
{
	return new_table_for(iommufd, id, ioas, 0);
}

uint32_t new_pasid_table(int iommufd, int id, uint32_t ioas)
{
	return new_table_for(iommufd, id, ioas, FOR_PASID);
}
