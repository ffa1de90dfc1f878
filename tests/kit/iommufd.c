// SPDX-License-Identifier: GPL-2.0-only
/* Devices' own files, and iommufd: see the header. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>

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

int device_file(int id)
{
	char path[400];
	struct dirent *entry;
	int fd = -1;
	DIR *folder;

	snprintf(path, sizeof(path), TESTDEV "vfio_testdev.%d/vfio-dev", id);
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
		fail("device %d has no file in /dev/vfio/devices", id);
	return fd;
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
