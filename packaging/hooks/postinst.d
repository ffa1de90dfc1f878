#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# /etc/kernel/postinst.d/dkms-kvm-vfio: runs before initramfs-tools, which takes what is there then.
# Stays when the package is removed and not purged.
[ -x /usr/libexec/kvm-vfio/kernel ] || exit 0
/usr/libexec/kvm-vfio/kernel install "$1"
# The initrd is made after this.
rm -f "/var/lib/kvm-vfio/initrd/$1"
