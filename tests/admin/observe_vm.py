# SPDX-License-Identifier: GPL-2.0-only
"""The second VM of tests/admin/observe: a VM monitor that does what it is told, one word a line.

    create        a VM with one vCPU and the KVM-VFIO device, made by a thread that ends then
    open GROUP    /dev/vfio/GROUP
    device BDF    the device of that group, as a file of its own
    add, del      KVM_DEV_VFIO_FILE_ADD, _DEL of the group; add-device, del-device of the device
    attach        a container for the group, with a type 1 IOMMU; detach undoes it
    wbinvd CPU    the guest executes WBINVD there
    copy, uncopy  give a child a copy of the device's descriptor; end that child
    close         close the KVM-VFIO device

Answers each with a line: what create made (process, thread, descriptor), the child that copy made,
else 0 or a negative errno.
"""

import ctypes
import fcntl
import os
import struct
import sys
import threading

KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE, KVM_CREATE_VCPU, KVM_RUN = 0xAE01, 0xAE04, 0xAE41, 0xAE80
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_CREATE_DEVICE, KVM_SET_DEVICE_ATTR = 0xC00CAEE0, 0x4018AEE1
KVM_DEV_TYPE_VFIO, KVM_DEV_VFIO_FILE = 4, 1
KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL = 1, 2
KVM_EXIT_HLT = 5
VFIO_SET_IOMMU, VFIO_GROUP_GET_DEVICE_FD = 0x3B66, 0x3B6A
VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_UNSET_CONTAINER = 0x3B68, 0x3B69
VFIO_TYPE1V2_IOMMU = 3

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]

# Where a vCPU starts: 16 bytes below 4 GiB. wbinvd; hlt; and again
RESET_PAGE, RESET_OFFSET, PAGE = 0xfffff000, 0xff0, 4096
CODE = bytes((0x0f, 0x09, 0xf4, 0xeb, 0xfb))


def mmap(size, fd):
    """Of fd, or of new memory if that is -1; shared either way."""
    address = libc.mmap(None, size, 3, 0x01 if fd >= 0 else 0x21, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return address


class Monitor:
    """What the words are for, one method each."""

    def __init__(self):
        self.vm = self.vcpu = self.run = self.dev = -1
        self.group = self.container = self.dev_file = -1
        self.child = 0

    def create(self):
        made = []
        thread = threading.Thread(target=lambda: made.append(self._create()))
        thread.start()
        thread.join()
        return f"{os.getpid()} {made[0]} {self.vm}"

    def _create(self):
        kvm = os.open("/dev/kvm", os.O_RDWR)
        self.vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        memory = mmap(PAGE, -1)
        ctypes.memmove(memory + RESET_OFFSET, CODE, len(CODE))
        fcntl.ioctl(self.vm, KVM_SET_USER_MEMORY_REGION,
                    struct.pack("IIQQQ", 0, 0, RESET_PAGE, PAGE, memory))
        self.vcpu = fcntl.ioctl(self.vm, KVM_CREATE_VCPU, 0)
        self.run = mmap(fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), self.vcpu)
        os.close(kvm)
        made = fcntl.ioctl(self.vm, KVM_CREATE_DEVICE, struct.pack("III", KVM_DEV_TYPE_VFIO, 0, 0))
        self.dev = struct.unpack("III", made)[1]
        return threading.get_native_id()

    def open(self, number):
        self.group = os.open(f"/dev/vfio/{number}", os.O_RDWR)

    def device(self, bdf):
        # Of what it may write to, ioctl() returns the result.
        self.dev_file = fcntl.ioctl(self.group, VFIO_GROUP_GET_DEVICE_FD,
                                    bytearray(bdf.encode() + b"\0"))

    def _set(self, attr, fd):
        place = ctypes.c_int32(fd)
        fcntl.ioctl(self.dev, KVM_SET_DEVICE_ATTR,
                    struct.pack("IIQQ", 0, KVM_DEV_VFIO_FILE, attr, ctypes.addressof(place)))

    def add(self):
        self._set(KVM_DEV_VFIO_FILE_ADD, self.group)

    def delete(self):
        self._set(KVM_DEV_VFIO_FILE_DEL, self.group)

    def add_device(self):
        self._set(KVM_DEV_VFIO_FILE_ADD, self.dev_file)

    def del_device(self):
        self._set(KVM_DEV_VFIO_FILE_DEL, self.dev_file)
        os.close(self.dev_file)

    def attach(self):
        self.container = os.open("/dev/vfio/vfio", os.O_RDWR)
        fcntl.ioctl(self.group, VFIO_GROUP_SET_CONTAINER, struct.pack("i", self.container))
        fcntl.ioctl(self.container, VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU)

    def detach(self):
        fcntl.ioctl(self.group, VFIO_GROUP_UNSET_CONTAINER)
        os.close(self.container)

    def wbinvd(self, cpu):
        os.sched_setaffinity(0, {int(cpu)})
        fcntl.ioctl(self.vcpu, KVM_RUN, 0)
        reason = ctypes.c_uint32.from_address(self.run + 8).value
        if reason != KVM_EXIT_HLT:
            raise OSError(reason, "KVM_RUN ended otherwise than by HLT")

    def copy(self):
        self.child = os.fork()
        if not self.child:
            libc.pause()
        return self.child

    def uncopy(self):
        os.kill(self.child, 9)
        os.waitpid(self.child, 0)

    def close(self):
        os.close(self.dev)


def main():
    monitor = Monitor()
    words = {"del": "delete", "add-device": "add_device", "del-device": "del_device"}
    for line in sys.stdin:
        word, *arguments = line.split()
        try:
            answer = getattr(monitor, words.get(word, word))(*arguments)
        except OSError as error:
            answer = -error.errno
        print(answer or 0, flush=True)


if __name__ == "__main__":
    main()
