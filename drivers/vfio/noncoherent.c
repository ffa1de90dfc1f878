// SPDX-License-Identifier: GPL-2.0-only
/*
 * May devices be given away whose DMA is not cache coherent?
 *
 * A VM with such a device may execute WBINVD, which writes back the whole caches of
 * the CPUs that it has run on: a privilege over all others on the host.  It has it
 * for as long as the device is attached to an IOMMU domain that does not enforce
 * coherency, or is used without an IOMMU.  Whether any may be is the administrator's
 * decision, and this is where it is asked for, by who knows the domain: VFIO's type 1
 * IOMMU driver, the code for devices without an IOMMU, and iommufd, by a pointer.
 */
#include <linux/device.h>
#include <linux/errno.h>
#include <linux/iommu.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/pci.h>
#include <linux/string.h>

#include "noncoherent.h"

/*
 * Written at any time, and read without a lock: who has read it goes on with what it
 * read.  No other data depends on it, so it takes no memory barrier.
 */
static bool vfio_noncoherent_refused;

static int vfio_noncoherent_set(const char *value, const struct kernel_param *kp)
{
	if (sysfs_streq(value, "allow"))
		WRITE_ONCE(vfio_noncoherent_refused, false);
	else if (sysfs_streq(value, "refuse"))
		WRITE_ONCE(vfio_noncoherent_refused, true);
	else
		return -EINVAL;
	return 0;
}

static int vfio_noncoherent_get(char *buffer, const struct kernel_param *kp)
{
	return sprintf(buffer, "%s\n",
		       READ_ONCE(vfio_noncoherent_refused) ? "refuse" : "allow");
}

static const struct kernel_param_ops vfio_noncoherent_ops = {
	.set = vfio_noncoherent_set,
	.get = vfio_noncoherent_get,
};
module_param_cb(noncoherent, &vfio_noncoherent_ops, NULL, 0644);
MODULE_PARM_DESC(noncoherent,
		 "\"refuse\": attaching a device to an IOMMU domain that does not enforce cache coherency, or using it without an IOMMU, fails.  What is attached stays. (default: allow)");

/**
 * vfio_dev_permit_noncoherent - may a device do DMA that is not coherent?
 * @dev: the device, about to be attached to a domain that does not enforce coherency,
 *	to join a group whose DMA is no longer coherent with it, or to be used without
 *	an IOMMU
 * @quiet: another domain is looked for if it may not, so that is not logged
 *
 * To be asked before the device can do DMA to anything by that, and before a VM
 * becomes non-coherent.  The answer may be another one the next time.
 *
 * Return: 0, or -EPERM.  Then the kernel's log names the device, unless @quiet or there
 * are too many such messages.
 */
int vfio_dev_permit_noncoherent(struct device *dev, bool quiet)
{
	if (!READ_ONCE(vfio_noncoherent_refused))
		return 0;
	if (!quiet)
		dev_warn_ratelimited(dev, "not attached: its DMA would not be cache coherent (vfio.noncoherent=refuse)\n");
	return -EPERM;
}

/* A group may begin with a bridge, or a device without a driver, which nobody means. */
static int vfio_group_dev_permit_noncoherent(struct device *dev, void *unused)
{
	if (!READ_ONCE(dev->driver) || (dev_is_pci(dev) && pci_is_bridge(to_pci_dev(dev))))
		return 0;
	return vfio_dev_permit_noncoherent(dev, false);
}

/**
 * vfio_group_permit_noncoherent - may the devices of an IOMMU group?
 * @group: the group, about to be attached, or attached to a domain in which nothing is
 *	mapped yet: the type 1 driver knows what a domain enforces only then
 *
 * As vfio_dev_permit_noncoherent() for all of them at once.  The log names the first
 * that VFIO can be about.
 *
 * Return: 0 or -EPERM.
 */
int vfio_group_permit_noncoherent(struct iommu_group *group)
{
	if (!READ_ONCE(vfio_noncoherent_refused))
		return 0;
	iommu_group_for_each_dev(group, NULL, vfio_group_dev_permit_noncoherent);
	return -EPERM;
}
EXPORT_SYMBOL_GPL(vfio_group_permit_noncoherent);
