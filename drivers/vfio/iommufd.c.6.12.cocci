// SPDX-License-Identifier: GPL-2.0-only
// expect: header 1
// expect: noiommu_refused 2
// expect: ask 1

@header@
@@
+#include "noncoherent.h"
 #include "vfio.h"

// Without an IOMMU DMA is possible from now on, and never coherent.
@noiommu_refused@
identifier df, vdev, ictx;
@@
 vfio_df_iommufd_bind(struct vfio_device_file *df)
 {
 struct vfio_device *vdev = df->device;
 struct iommufd_ctx *ictx = df->iommufd;
+int ret;
 lockdep_assert_held(...);
+
+	if (vfio_device_is_noiommu(vdev)) {
+		/* Its DMA is possible from now on. */
+		ret = vfio_dev_permit_noncoherent(vdev->dev, false);
+		if (ret)
+			return ret;
+	}
 ...
 }

@ask@
identifier vdev, idev;
@@
 vfio_iommufd_physical_bind(struct vfio_device *vdev, ...)
 {
 ...
 	vdev->iommufd_device = idev;
+	iommufd_device_ask_noncoherent(idev, vfio_dev_permit_noncoherent);
 ...
 }
