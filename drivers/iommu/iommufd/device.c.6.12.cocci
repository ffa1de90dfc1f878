// SPDX-License-Identifier: GPL-2.0-only
// expect: ask 1
// expect: attach 1
// expect: replace 1

@ask@
@@
+/**
+ * iommufd_device_ask_noncoherent - Ask before DMA of a device can be non-coherent
+ * @idev: Device, which is attached to nothing
+ * @permit: Asked before the device is attached to a page table that does not enforce
+ *	cache coherency.  If it does not return 0 that fails with what it returns, and
+ *	nothing is changed.  "quiet": nothing fails yet, so there is nothing to log.
+ */
+void iommufd_device_ask_noncoherent(struct iommufd_device *idev,
+				    iommufd_permit_fn permit)
+{
+	idev->permit_noncoherent = permit;
+}
+EXPORT_SYMBOL_NS_GPL(iommufd_device_ask_noncoherent, IOMMUFD);
+
+/* @old is what @hwpt replaces: where that is not coherent, it does not begin now. */
+static int iommufd_device_permit_noncoherent(struct iommufd_device *idev,
+					     struct iommufd_hw_pagetable *hwpt,
+					     struct iommufd_hw_pagetable *old)
+{
+	if (!idev->permit_noncoherent)
+		return 0;
+	if (iommufd_hwpt_enforces_cc(hwpt) || (old && !iommufd_hwpt_enforces_cc(old)))
+		return 0;
+	return idev->permit_noncoherent(idev->dev, false);
+}
+
 iommufd_hw_pagetable_attach(...) { ... }

// What the page table enforces does not change.
@attach@
identifier hwpt, idev, rc;
@@
 iommufd_hw_pagetable_attach(struct iommufd_hw_pagetable *hwpt,
 			     struct iommufd_device *idev, ...)
 {
 ...
 int rc;
+
+	rc = iommufd_device_permit_noncoherent(idev, hwpt, NULL);
+	if (rc)
+		return rc;
 mutex_lock(&idev->igroup->lock);
 ...
 }

@replace@
identifier hwpt, idev, rc;
@@
 iommufd_device_do_replace(struct iommufd_device *idev, ...,
 			   struct iommufd_hw_pagetable *hwpt)
 {
 ...
 int rc;
 <+...
 old_hwpt = igroup->hwpt;
+
+	rc = iommufd_device_permit_noncoherent(idev, hwpt, old_hwpt);
+	if (rc)
+		goto err_unlock;
 ...+>
 }
