/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * May devices be given away whose DMA is not cache coherent?
 */
#ifndef __VFIO_NONCOHERENT_H__
#define __VFIO_NONCOHERENT_H__

#include <linux/types.h>

struct device;
struct iommu_group;

int vfio_dev_permit_noncoherent(struct device *dev, bool quiet);
int vfio_group_permit_noncoherent(struct iommu_group *group);

#endif /* __VFIO_NONCOHERENT_H__ */
