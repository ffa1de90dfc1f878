#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# /etc/kernel/header_postinst.d/dkms-kvm-vfio: headers that come after their kernel
[ -x /usr/libexec/kvm-vfio/kernel ] && [ -d "/lib/modules/$1/kernel" ] || exit 0
/usr/libexec/kvm-vfio/kernel headers "$1"
/usr/libexec/kvm-vfio/kernel initrd "$1"
