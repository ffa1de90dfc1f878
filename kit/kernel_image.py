# SPDX-License-Identifier: GPL-2.0-only
"""The ELF file inside a kernel image."""

import gzip
import lzma
import struct
import subprocess

from kit.common import Problem


def unzstd(data):
    return subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, check=False).stdout


def unlz4(data):
    return subprocess.run(["lz4", "-dcq"], input=data, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, check=False).stdout


UNPACKERS = {
    b"\xfd7zXZ\0": lambda data: lzma.LZMADecompressor().decompress(data),
    b"\x1f\x8b": gzip.decompress,
    b"\x28\xb5\x2f\xfd": unzstd,
    b"\x02\x21\x4c\x18": unlz4,
}


def unpack(image, path):
    """The ELF file inside a bzImage (Documentation/x86/boot.rst: payload_offset)."""
    if image[0x202:0x206] != b"HdrS":
        raise Problem(f"{path} is no x86 kernel image")
    setup = ((image[0x1f1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[setup + offset:setup + offset + length]
    size, = struct.unpack("<I", payload[-4:])
    for magic, unpacker in UNPACKERS.items():
        if payload.startswith(magic):
            try:
                elf = unpacker(payload)
            except FileNotFoundError as error:
                raise Problem(f"{path} is packed with {error.filename}: install it") from None
            break
    else:
        raise Problem(f"{path} is packed in an unknown way ({payload[:6].hex()})")
    if len(elf) != size or elf[:6] != b"\x7fELF\x02\x01":
        raise Problem(f"{path} does not unpack: its {size} bytes came out as {len(elf)}")
    return elf
