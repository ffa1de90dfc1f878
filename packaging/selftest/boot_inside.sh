#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# /lab/inside of the system that packaging/selftest/boot_test boots: its unit lab.service starts it.
# What it says goes to the second serial port; then the system ends.
exec >/dev/ttyS1 2>&1 </dev/null
MODULES="kvm kvm_amd vfio vfio_iommu_type1"
DEVICE=$(basename "$(dirname "$(grep -l 0x1234 /sys/bus/pci/devices/*/vendor | head -n 1)")")

section()
{
	echo "== $1"
}

# Build ids of what runs
running()
{
	section "$1"
	for module in $MODULES; do
		echo "$module $(od -An -v -tx1 "/sys/module/$module/notes/.note.gnu.build-id" | tr -d ' \n')"
	done
}

section systemd
systemctl is-active basic.target
uname -r
running at-boot
section status
kvm-vfio status
echo "exit $?"

# A device of VFIO's, and something that a reload sets back
echo vfio-pci >"/sys/bus/pci/devices/$DEVICE/driver_override"
echo "$DEVICE" >/sys/bus/pci/drivers_probe
echo 1234 >/sys/module/vfio_iommu_type1/parameters/dma_entry_limit
section before-reload
basename "$(readlink "/sys/bus/pci/devices/$DEVICE/driver")"
cat /sys/module/vfio_iommu_type1/parameters/dma_entry_limit

# A VM: KVM_CREATE_VM and no more. Its process says so when it is there.
mkfifo /run/vm
python3 -c '
import fcntl, os, time
vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xae01, 0)
open("/run/vm", "w").close()
time.sleep(100000)' -name lab-vm &
cat /run/vm
section reload-with-vm
kvm-vfio reload
echo "exit $?"
cat /sys/module/vfio_iommu_type1/parameters/dma_entry_limit
kill %1
wait

section reload
kvm-vfio reload
echo "exit $?"
basename "$(readlink "/sys/bus/pci/devices/$DEVICE/driver")"
cat /sys/module/vfio_iommu_type1/parameters/dma_entry_limit
running after-reload
section status-after
kvm-vfio status
echo "exit $?"
section end
systemctl poweroff --force
