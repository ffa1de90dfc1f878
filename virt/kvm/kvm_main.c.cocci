// SPDX-License-Identifier: GPL-2.0-only
// expect: close_before_release 1

// A device may have something to let go of that must not wait for a lock
// under kvm->lock.  It is called while still on the list of devices.
@close_before_release@
identifier dev;
@@
 kvm_device_release(...)
 {
 ...
+	if (dev->ops->close)
+		dev->ops->close(dev);
 	if (dev->ops->release) { ... }
 ...
 }
