// SPDX-License-Identifier: GPL-2.0-only
// expect: ask 1
// expect: attach 1
// expect: replace 1

@ask@
@@
+/**
+ * iommufd_device_ask_noncoherent - Ask before DMA of a device can be non-coherent
+ * @idev: Device, which is attached to nothing
+ * @permit: Asked before a device of the same group is attached to a page table that
+ *	does not enforce cache coherency, and before one is bound that no page table can
+ *	enforce it for while it can for the others.  If it does not return 0 that fails
+ *	with what it returns, and nothing is changed.  "quiet": nothing fails yet, so
+ *	there is nothing to log.
+ */
+void iommufd_device_ask_noncoherent(struct iommufd_device *idev,
+				    iommufd_permit_fn permit)
+{
+	struct iommufd_group *igroup = idev->igroup;
+
+	mutex_lock(&igroup->watch_lock);
+	WRITE_ONCE(igroup->permit_noncoherent, permit);
+	mutex_unlock(&igroup->watch_lock);
+}
+EXPORT_SYMBOL_NS_GPL(iommufd_device_ask_noncoherent, "IOMMUFD");
+
+/* @old is what @hwpt replaces: where that is not coherent, it does not begin now. */
+static int iommufd_device_permit_noncoherent(struct iommufd_device *idev,
+					     struct iommufd_hw_pagetable *hwpt,
+					     struct iommufd_hw_pagetable *old)
+{
+	iommufd_permit_fn permit = READ_ONCE(idev->igroup->permit_noncoherent);
+	bool coherent = !READ_ONCE(idev->igroup->noncoherent_devices);
+
+	if (!permit || (coherent && iommufd_hwpt_enforces_cc(hwpt)))
+		return 0;
+	if (old && !(coherent && iommufd_hwpt_enforces_cc(old)))
+		return 0;
+	return permit(idev->dev, false);
+}
+
 iommufd_hw_pagetable_attach(...) { ... }

// What the page table enforces does not change.  A device that takes coherency away from
// its group has been asked about when it joined.
@attach@
identifier hwpt, idev, rc, igroup;
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
 mutex_lock(&igroup->lock);
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
+	rc = iommufd_device_permit_noncoherent(idev, hwpt, old_hwpt);
+	if (rc)
+		goto err_unlock;
 if (attach_resv) {
 	rc = iommufd_group_do_replace_reserved_iova(...);
 	...
 }
 ...+>
 }
