// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio_testdev: VFIO groups for tests, on any machine and in any number.
 *
 * A software IOMMU with platform devices behind it, each in an IOMMU group of
 * its own or in another's, and bound to a VFIO driver that does nothing.
 * Everything between user space and this module is the real thing: vfio.ko, its
 * containers and type1 (and iommufd where the kernel has it) attach the groups
 * to domains of this IOMMU, map user memory into them, and ask them to enforce
 * coherency.  No device ever does DMA.
 *
 * The answer to that question is what the module is for.  A domain enforces
 * coherency if all devices attached to it when it is asked are coherent, and
 * then refuses others, as hardware IOMMUs do.
 *
 *   /sys/devices/vfio_testdev/
 *     create    write "COUNT", "COUNT noncoherent" or, for devices in the group of
 *               device ID, "COUNT coherent|noncoherent ID"; fails if the domain of
 *               that group enforces coherency and the device is not coherent.
 *               "COUNT emulated" and "COUNT noiommu" are devices that the IOMMU
 *               does not know: mediated ones, and those that VFIO gives away
 *               without an IOMMU (vfio.enable_unsafe_noiommu_mode).
 *               Read: the next device's ID
 *     destroy   write "ID" or "all"; waits for users of the device to close it
 *     vfio_testdev.ID/          the name for VFIO_GROUP_GET_DEVICE_FD, too
 *       coherent     1 or 0, may be written at any time: counts from the next
 *                    attachment on (IOMMU_CAP_ENFORCE_CACHE_COHERENCY, where
 *                    the kernel has it, follows at once)
 *       domain       what the device is attached to: identity, blocked, paging
 *       kvm          the VM that VFIO named to the driver when the device was last
 *                    opened, by the thread that created it; 0: none
 *       iommu_group  -> the group, whose number is the file's name in /dev/vfio
 *     A device leaves its group's VFIO side and returns by unbind and bind in
 *     /sys/bus/platform/drivers/vfio_testdev/.
 *
 * Linux 6.1 has room for one IOMMU driver, so there the machine must be booted
 * without another one.  Linux 6.12 wants type1's allow_unsafe_interrupts=1,
 * because no interrupt of a platform device is remapped; iommufd has the same.  With
 * iommufd, domains can be parents of nested ones (IOMMU_HWPT_ALLOC), whose data is 4
 * bytes of type TESTDEV_HWPT_DATA that mean nothing.  The module can be removed once
 * all devices are destroyed.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/device.h>
#include <linux/iommu.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/vfio.h>
#include <linux/xarray.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <uapi/linux/iommufd.h>
#endif

#define TESTDEV_NAME	"vfio_testdev"
#define TESTDEV_MAX	4096
#define TESTDEV_HWPT_DATA	0x7e57

static unsigned int coherent;
module_param(coherent, uint, 0444);
MODULE_PARM_DESC(coherent, "coherent devices to create when loaded");

static unsigned int noncoherent;
module_param(noncoherent, uint, 0444);
MODULE_PARM_DESC(noncoherent, "non-coherent devices to create when loaded");

struct testdev_domain {
	struct iommu_domain domain;
	/* Physical page numbers by I/O page number. */
	struct xarray pages;
	/* How many of the attached devices are not coherent. */
	unsigned int noncoherent;
	/* enforce_cache_coherency() was promised. */
	bool enforced;
};

/* What translates and enforces is the parent. */
struct testdev_nested {
	struct iommu_domain domain;
	struct testdev_domain *parent;
};

enum testdev_kind {
	TESTDEV_COHERENT,
	TESTDEV_NONCOHERENT,
	TESTDEV_EMULATED,
	TESTDEV_NOIOMMU,
};

static const char * const testdev_kinds[] = {
	[TESTDEV_COHERENT]	= "coherent",
	[TESTDEV_NONCOHERENT]	= "noncoherent",
	[TESTDEV_EMULATED]	= "emulated",
	[TESTDEV_NOIOMMU]	= "noiommu",
};

/* The platform data of a device, so it lives exactly as long. */
struct testdev {
	enum testdev_kind kind;
	bool coherent;
	/* To join, rather than one of its own; only while it is created. */
	struct iommu_group *group;
	struct testdev_domain *domain;
	/* Of the VM at the last open */
	pid_t kvm;
};

/* Protects both structs above; nests inside the IOMMU core's group mutex. */
static DEFINE_MUTEX(domain_lock);

/* Serializes create and destroy; protects next_id. */
static DEFINE_MUTEX(create_lock);
static unsigned int next_id;

/* The devices, and nothing else, are its children. */
static struct device *root;
static struct iommu_device testdev_iommu;

static struct testdev_domain *to_testdev_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct testdev_domain, domain);
}

static struct testdev *to_testdev(struct device *dev)
{
	return dev_get_platdata(dev);
}

/*
 * The software IOMMU
 */

/* Move @td to @to, NULL for nowhere. */
static void testdev_move(struct testdev *td, struct testdev_domain *to)
{
	lockdep_assert_held(&domain_lock);

	if (!td->coherent && td->domain)
		td->domain->noncoherent--;
	td->domain = to;
	if (!td->coherent && to)
		to->noncoherent++;
}

static int testdev_attach_dev(struct iommu_domain *domain, struct device *dev)
{
	struct testdev_domain *to = to_testdev_domain(domain);
	struct testdev *td = to_testdev(dev);
	int ret = 0;

	mutex_lock(&domain_lock);
	if (to->enforced && !td->coherent)
		ret = -EINVAL;
	else
		testdev_move(td, to);
	mutex_unlock(&domain_lock);
	return ret;
}

static bool testdev_enforce_cache_coherency(struct iommu_domain *domain)
{
	struct testdev_domain *td = to_testdev_domain(domain);
	bool enforced;

	mutex_lock(&domain_lock);
	if (!td->noncoherent)
		td->enforced = true;
	enforced = td->enforced;
	mutex_unlock(&domain_lock);
	return enforced;
}

static int testdev_map_pages(struct iommu_domain *domain, unsigned long iova,
			     phys_addr_t paddr, size_t pgsize, size_t pgcount,
			     int prot, gfp_t gfp, size_t *mapped)
{
	struct testdev_domain *td = to_testdev_domain(domain);
	unsigned long index = iova >> PAGE_SHIFT;
	unsigned long pfn = PHYS_PFN(paddr);
	int ret;

	for (; pgcount; pgcount--, index++, pfn++) {
		ret = xa_insert(&td->pages, index, xa_mk_value(pfn), gfp);
		if (ret)
			return ret;
		*mapped += pgsize;
	}
	return 0;
}

static size_t testdev_unmap_pages(struct iommu_domain *domain,
				  unsigned long iova, size_t pgsize,
				  size_t pgcount,
				  struct iommu_iotlb_gather *gather)
{
	struct testdev_domain *td = to_testdev_domain(domain);
	unsigned long index = iova >> PAGE_SHIFT;
	size_t unmapped = 0;

	for (; pgcount && xa_erase(&td->pages, index); pgcount--, index++)
		unmapped += pgsize;
	return unmapped;
}

static phys_addr_t testdev_iova_to_phys(struct iommu_domain *domain,
					dma_addr_t iova)
{
	struct testdev_domain *td = to_testdev_domain(domain);
	void *entry = xa_load(&td->pages, iova >> PAGE_SHIFT);

	return entry ? PFN_PHYS(xa_to_value(entry)) + offset_in_page(iova) : 0;
}

static void testdev_domain_free(struct iommu_domain *domain)
{
	struct testdev_domain *td = to_testdev_domain(domain);

	xa_destroy(&td->pages);
	kfree(td);
}

static const struct iommu_domain_ops testdev_domain_ops = {
	.attach_dev		 = testdev_attach_dev,
	.map_pages		 = testdev_map_pages,
	.unmap_pages		 = testdev_unmap_pages,
	.iova_to_phys		 = testdev_iova_to_phys,
	.enforce_cache_coherency = testdev_enforce_cache_coherency,
	.free			 = testdev_domain_free,
};

static struct iommu_domain *testdev_domain_alloc(unsigned int type)
{
	struct testdev_domain *td;

	if (type != IOMMU_DOMAIN_UNMANAGED && type != IOMMU_DOMAIN_IDENTITY &&
	    type != IOMMU_DOMAIN_BLOCKED)
		return NULL;

	td = kzalloc(sizeof(*td), GFP_KERNEL);
	if (!td)
		return NULL;
	xa_init(&td->pages);
	td->domain.geometry.aperture_end = DMA_BIT_MASK(48);
	td->domain.geometry.force_aperture = true;
	return &td->domain;
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
static int testdev_attach_nested(struct iommu_domain *domain, struct device *dev)
{
	struct testdev_nested *nested =
		container_of(domain, struct testdev_nested, domain);

	return testdev_attach_dev(&nested->parent->domain, dev);
}

/* iommufd insists on having it. */
static int testdev_invalidate_nested(struct iommu_domain *domain,
				     struct iommu_user_data_array *array)
{
	return 0;
}

static void testdev_free_nested(struct iommu_domain *domain)
{
	kfree(container_of(domain, struct testdev_nested, domain));
}

static const struct iommu_domain_ops testdev_nested_ops = {
	.attach_dev		= testdev_attach_nested,
	.cache_invalidate_user	= testdev_invalidate_nested,
	.free			= testdev_free_nested,
};

static struct iommu_domain *
testdev_alloc_nested(struct iommu_domain *parent, u32 flags,
		     const struct iommu_user_data *data)
{
	struct testdev_nested *nested;

	if (flags || data->type != TESTDEV_HWPT_DATA || data->len != sizeof(u32))
		return ERR_PTR(-EOPNOTSUPP);
	nested = kzalloc(sizeof(*nested), GFP_KERNEL);
	if (!nested)
		return ERR_PTR(-ENOMEM);
	nested->domain.type = IOMMU_DOMAIN_NESTED;
	nested->domain.ops = &testdev_nested_ops;
	nested->parent = to_testdev_domain(parent);
	return &nested->domain;
}

/* For iommufd; VFIO's containers use testdev_domain_alloc(). */
static struct iommu_domain *
testdev_domain_alloc_user(struct device *dev, u32 flags,
			  struct iommu_domain *parent,
			  const struct iommu_user_data *data)
{
	struct iommu_domain *domain;

	if (parent)
		return testdev_alloc_nested(parent, flags, data);
	if (data || flags & ~IOMMU_HWPT_ALLOC_NEST_PARENT)
		return ERR_PTR(-EOPNOTSUPP);
	domain = testdev_domain_alloc(IOMMU_DOMAIN_UNMANAGED);
	if (!domain)
		return ERR_PTR(-ENOMEM);
	domain->type = IOMMU_DOMAIN_UNMANAGED;
	domain->ops = &testdev_domain_ops;
	domain->pgsize_bitmap = PAGE_SIZE;
	return domain;
}
#endif

static bool testdev_capable(struct device *dev, enum iommu_cap cap)
{
	switch (cap) {
	case IOMMU_CAP_CACHE_COHERENCY:
		return true;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
	case IOMMU_CAP_INTR_REMAP:
		return true;	/* there is no interrupt to remap */
#else
	case IOMMU_CAP_ENFORCE_CACHE_COHERENCY:
		return READ_ONCE(to_testdev(dev)->coherent);
#endif
	default:
		return false;
	}
}

/* The kernel offers every device of its buses; ours are children of root. */
static struct iommu_device *testdev_probe_device(struct device *dev)
{
	if (dev->parent != root || dev->bus != &platform_bus_type)
		return ERR_PTR(-ENODEV);
	if (to_testdev(dev)->kind > TESTDEV_NONCOHERENT)
		return ERR_PTR(-ENODEV);
	return &testdev_iommu;
}

static void testdev_release_device(struct device *dev)
{
	mutex_lock(&domain_lock);
	testdev_move(to_testdev(dev), NULL);
	mutex_unlock(&domain_lock);
}

static struct iommu_group *testdev_device_group(struct device *dev)
{
	struct iommu_group *group = to_testdev(dev)->group;

	return group ? iommu_group_ref_get(group) : generic_device_group(dev);
}

/* No kernel driver does DMA here, so nothing needs the DMA API's domains. */
static int testdev_def_domain_type(struct device *dev)
{
	return IOMMU_DOMAIN_IDENTITY;
}

static const struct iommu_ops testdev_iommu_ops = {
	.capable		= testdev_capable,
	.domain_alloc		= testdev_domain_alloc,
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
	.domain_alloc_user	= testdev_domain_alloc_user,
#endif
	.probe_device		= testdev_probe_device,
	.release_device		= testdev_release_device,
	.device_group		= testdev_device_group,
	.def_domain_type	= testdev_def_domain_type,
	.default_domain_ops	= &testdev_domain_ops,
	.pgsize_bitmap		= PAGE_SIZE,
	.owner			= THIS_MODULE,
};

static int testdev_iommu_register(void)
{
	int ret;

	ret = iommu_device_sysfs_add(&testdev_iommu, NULL, NULL, TESTDEV_NAME);
	if (ret)
		return ret;
	ret = iommu_device_register(&testdev_iommu, &testdev_iommu_ops, NULL);
	if (ret == -EBUSY)
		pr_err("another IOMMU driver is in use; boot without it\n");
	if (ret)
		iommu_device_sysfs_remove(&testdev_iommu);
	return ret;
}

static void testdev_iommu_unregister(void)
{
	iommu_device_unregister(&testdev_iommu);
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
	/* An IOMMU driver was never meant to go: its buses still point to it. */
	platform_bus_type.iommu_ops = NULL;
	pci_bus_type.iommu_ops = NULL;
#endif
	iommu_device_sysfs_remove(&testdev_iommu);
}

/*
 * The VFIO driver
 */

static int testdev_open_device(struct vfio_device *vdev)
{
	WRITE_ONCE(to_testdev(vdev->dev)->kvm, vdev->kvm ? vdev->kvm->userspace_pid : 0);
	return 0;
}

static void testdev_close_device(struct vfio_device *vdev)
{
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
static void testdev_vfio_release(struct vfio_device *vdev)
{
	vfio_free_device(vdev);
}
#endif

static const struct vfio_device_ops testdev_vfio_ops = {
	.name		= TESTDEV_NAME,
	.open_device	= testdev_open_device,
	.close_device	= testdev_close_device,
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
	.release	= testdev_vfio_release,
#else
	.bind_iommufd	= vfio_iommufd_physical_bind,
	.unbind_iommufd	= vfio_iommufd_physical_unbind,
	.attach_ioas	= vfio_iommufd_physical_attach_ioas,
	.detach_ioas	= vfio_iommufd_physical_detach_ioas,
#endif
};

static const struct vfio_device_ops testdev_emulated_ops = {
	.name		= TESTDEV_NAME,
	.open_device	= testdev_open_device,
	.close_device	= testdev_close_device,
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
	.release	= testdev_vfio_release,
#else
	.bind_iommufd	= vfio_iommufd_emulated_bind,
	.unbind_iommufd	= vfio_iommufd_emulated_unbind,
	.attach_ioas	= vfio_iommufd_emulated_attach_ioas,
	.detach_ioas	= vfio_iommufd_emulated_detach_ioas,
#endif
};

static void testdev_unregister_vfio(void *data)
{
	struct vfio_device *vdev = data;

	vfio_unregister_group_dev(vdev);
	vfio_put_device(vdev);
}

static int testdev_probe(struct platform_device *pdev)
{
	bool emulated = to_testdev(&pdev->dev)->kind == TESTDEV_EMULATED;
	struct vfio_device *vdev;
	int ret;

	vdev = _vfio_alloc_device(sizeof(*vdev), &pdev->dev,
				  emulated ? &testdev_emulated_ops : &testdev_vfio_ops);
	if (IS_ERR(vdev))
		return PTR_ERR(vdev);
	ret = emulated ? vfio_register_emulated_iommu_dev(vdev) :
			 vfio_register_group_dev(vdev);
	if (ret) {
		vfio_put_device(vdev);
		return ret;
	}
	/* Rather than .remove(), whose type differs between the bases. */
	return devm_add_action_or_reset(&pdev->dev, testdev_unregister_vfio, vdev);
}

static struct platform_driver testdev_driver = {
	.probe = testdev_probe,
	.driver.name = TESTDEV_NAME,
	/* VFIO claims the group for user space. */
	.driver_managed_dma = true,
};

/*
 * The devices and their controls
 */

static ssize_t coherent_show(struct device *dev, struct device_attribute *attr,
			     char *buf)
{
	return sysfs_emit(buf, "%d\n", READ_ONCE(to_testdev(dev)->coherent));
}

static ssize_t coherent_store(struct device *dev, struct device_attribute *attr,
			      const char *buf, size_t count)
{
	struct testdev *td = to_testdev(dev);
	struct testdev_domain *domain;
	bool value;
	int ret;

	ret = kstrtobool(buf, &value);
	if (ret)
		return ret;
	mutex_lock(&domain_lock);
	domain = td->domain;
	testdev_move(td, NULL);
	WRITE_ONCE(td->coherent, value);
	testdev_move(td, domain);
	mutex_unlock(&domain_lock);
	return count;
}
static DEVICE_ATTR_RW(coherent);

static ssize_t domain_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct testdev *td = to_testdev(dev);
	const char *name = "none";

	mutex_lock(&domain_lock);
	if (td->domain) {
		switch (td->domain->domain.type) {
		case IOMMU_DOMAIN_IDENTITY:
			name = "identity";
			break;
		case IOMMU_DOMAIN_BLOCKED:
			name = "blocked";
			break;
		default:
			name = "paging";
		}
	}
	mutex_unlock(&domain_lock);
	return sysfs_emit(buf, "%s\n", name);
}
static DEVICE_ATTR_RO(domain);

static ssize_t kvm_show(struct device *dev, struct device_attribute *attr,
			char *buf)
{
	return sysfs_emit(buf, "%d\n", READ_ONCE(to_testdev(dev)->kvm));
}
static DEVICE_ATTR_RO(kvm);

static struct attribute *testdev_attrs[] = {
	&dev_attr_coherent.attr,
	&dev_attr_domain.attr,
	&dev_attr_kvm.attr,
	NULL
};
ATTRIBUTE_GROUPS(testdev);

static int testdev_create(enum testdev_kind kind, struct iommu_group *group)
{
	struct testdev td = {
		.kind = kind,
		.coherent = kind == TESTDEV_COHERENT,
		.group = group,
	};
	struct platform_device *pdev;
	int ret;

	lockdep_assert_held(&create_lock);

	if (next_id == TESTDEV_MAX)
		return -ENOSPC;
	pdev = platform_device_alloc(TESTDEV_NAME, next_id);
	if (!pdev)
		return -ENOMEM;
	pdev->dev.parent = root;
	pdev->dev.groups = testdev_groups;
	ret = platform_device_add_data(pdev, &td, sizeof(td));
	if (!ret)
		ret = platform_device_add(pdev);
	if (ret) {
		platform_device_put(pdev);
		return ret;
	}
	to_testdev(&pdev->dev)->group = NULL;
	/* The driver core puts up with a device that its IOMMU or VFIO refused. */
	if (!device_iommu_mapped(&pdev->dev)) {
		platform_device_unregister(pdev);
		return -EINVAL;
	}
	next_id++;
	return 0;
}

static int testdev_create_many(unsigned int count, enum testdev_kind kind,
			       struct iommu_group *group)
{
	int ret = 0;

	mutex_lock(&create_lock);
	while (count-- && !ret)
		ret = testdev_create(kind, group);
	mutex_unlock(&create_lock);
	return ret;
}

/* The caller puts it. */
static struct device *testdev_find(unsigned int id)
{
	char name[sizeof(TESTDEV_NAME) + 12];

	snprintf(name, sizeof(name), TESTDEV_NAME ".%u", id);
	return device_find_child_by_name(root, name);
}

/* The caller puts it, if there is one. */
static struct iommu_group *testdev_group_of(unsigned int id)
{
	struct device *dev = testdev_find(id);
	struct iommu_group *group = NULL;

	if (dev)
		group = iommu_group_get(dev);
	put_device(dev);
	return group;
}

static int testdev_destroy(struct device *dev, void *unused)
{
	platform_device_unregister(to_platform_device(dev));
	return 0;
}

static void testdev_destroy_all(void)
{
	mutex_lock(&create_lock);
	device_for_each_child(root, NULL, testdev_destroy);
	next_id = 0;
	mutex_unlock(&create_lock);
}

static int testdev_destroy_one(unsigned int id)
{
	struct device *dev;

	mutex_lock(&create_lock);
	dev = testdev_find(id);
	if (dev) {
		testdev_destroy(dev, NULL);
		put_device(dev);
	}
	mutex_unlock(&create_lock);
	return dev ? 0 : -ENODEV;
}

static ssize_t create_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(next_id));
}

static ssize_t create_store(struct device *dev, struct device_attribute *attr,
			    const char *buf, size_t len)
{
	struct iommu_group *group = NULL;
	char name[16] = "coherent";
	unsigned int count, id;
	int words, kind, ret;

	words = sscanf(buf, "%u %15s %u", &count, name, &id);
	if (words < 1 || count > TESTDEV_MAX)
		return -EINVAL;
	kind = match_string(testdev_kinds, ARRAY_SIZE(testdev_kinds), name);
	if (kind < 0 || (words == 3 && kind > TESTDEV_NONCOHERENT))
		return -EINVAL;
	if (words == 3) {
		group = testdev_group_of(id);
		if (!group)
			return -ENODEV;
	}
	ret = testdev_create_many(count, kind, group);
	iommu_group_put(group);
	return ret ? ret : len;
}
static DEVICE_ATTR_RW(create);

static ssize_t destroy_store(struct device *dev, struct device_attribute *attr,
			     const char *buf, size_t len)
{
	unsigned int id;
	int ret = 0;

	if (sysfs_streq(buf, "all"))
		testdev_destroy_all();
	else if (!kstrtouint(buf, 0, &id))
		ret = testdev_destroy_one(id);
	else
		ret = -EINVAL;
	return ret ? ret : len;
}
static DEVICE_ATTR_WO(destroy);

static struct attribute *root_attrs[] = {
	&dev_attr_create.attr,
	&dev_attr_destroy.attr,
	NULL
};
ATTRIBUTE_GROUPS(root);

static int __init testdev_init(void)
{
	int ret;

	root = root_device_register(TESTDEV_NAME);
	if (IS_ERR(root))
		return PTR_ERR(root);
	ret = testdev_iommu_register();
	if (ret)
		goto err_root;
	ret = platform_driver_register(&testdev_driver);
	if (ret)
		goto err_iommu;
	ret = testdev_create_many(coherent, TESTDEV_COHERENT, NULL);
	if (!ret)
		ret = testdev_create_many(noncoherent, TESTDEV_NONCOHERENT, NULL);
	if (!ret)
		ret = sysfs_create_groups(&root->kobj, root_groups);
	if (ret)
		goto err_devices;
	return 0;

err_devices:
	testdev_destroy_all();
	platform_driver_unregister(&testdev_driver);
err_iommu:
	testdev_iommu_unregister();
err_root:
	root_device_unregister(root);
	return ret;
}

/* Each device holds a reference to the module, so there are none left. */
static void __exit testdev_exit(void)
{
	sysfs_remove_groups(&root->kobj, root_groups);
	testdev_destroy_all();
	platform_driver_unregister(&testdev_driver);
	testdev_iommu_unregister();
	root_device_unregister(root);
}

module_init(testdev_init);
module_exit(testdev_exit);
MODULE_DESCRIPTION("VFIO devices behind a software IOMMU, for tests");
MODULE_LICENSE("GPL");
