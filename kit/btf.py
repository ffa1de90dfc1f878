# SPDX-License-Identifier: GPL-2.0-only
"""Read layouts of structures and prototypes from BTF, the kernel's own type information."""

import struct

INT, POINTER, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
FUNCTION, PROTOTYPE, FLOAT, ENUM64 = 12, 13, 16, 19
# What a prototype of C calls them; const, volatile and tags change nothing for a caller.
KEYWORDS = {STRUCT: "struct ", UNION: "union ", ENUM: "enum ", ENUM64: "enum "}
# Bytes that follow the 12 of each kind of type: (fixed, for each of its vlen items).
EXTRA = {1: (4, 0), 2: (0, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 7: (0, 0),
         8: (0, 0), 9: (0, 0), 10: (0, 0), 11: (0, 0), 12: (0, 0), 13: (0, 8), 14: (4, 0),
         15: (0, 12), 16: (0, 0), 17: (4, 0), 18: (0, 0), 19: (0, 12)}


class BTF:
    """The types of one .BTF section, on top of those of BASE if it is a split one."""

    def __init__(self, data, base=None):
        magic, _version, _flags, header = struct.unpack_from("<HBBI", data)
        if magic != 0xeb9f:
            raise ValueError("not BTF")
        type_off, type_len, str_off, str_len = struct.unpack_from("<IIII", data, 8)
        self.base = base
        self.types = data[header + type_off:header + type_off + type_len]
        self.strings = data[header + str_off:header + str_off + str_len]
        self.first_string = base.end_string if base else 0
        self.end_string = self.first_string + str_len
        self.first = base.end if base else 1
        self.at = list(self._offsets())         # of each type, by id - first
        self.end = self.first + len(self.at)

    def _offsets(self):
        offset = 0
        while offset < len(self.types):
            yield offset
            info, = struct.unpack_from("<I", self.types, offset + 4)
            fixed, each = EXTRA[info >> 24 & 0x1f]
            offset += 12 + fixed + each * (info & 0xffff)

    def string(self, offset):
        if self.base and offset < self.first_string:
            return self.base.string(offset)
        start = offset - self.first_string
        return self.strings[start:self.strings.index(b"\0", start)].decode()

    def _type(self, number):
        """(name offset, kind, vlen, kind flag, size) and where it is, and whose it is."""
        if self.base and number < self.first:
            return self.base._type(number)
        offset = self.at[number - self.first]
        name, info, size = struct.unpack_from("<III", self.types, offset)
        return (name, info >> 24 & 0x1f, info & 0xffff, info >> 31, size), offset, self

    def _members(self, number, shift, into):
        """Name -> bit offset; members of nameless structures count as their parent's."""
        (_, _, count, bitfields, _), offset, owner = self._type(number)
        for i in range(count):
            name, kind, where = struct.unpack_from("<III", owner.types, offset + 12 + 12 * i)
            if bitfields:
                where &= 0xffffff
            if name:
                into[owner.string(name)] = shift + where
            elif owner._type(kind)[0][1] in (STRUCT, UNION):
                self._members(kind, shift + where, into)

    def structures(self):
        """Yield (name, size, {member: bit offset}) of each named structure and union."""
        for number in range(self.first, self.end):
            (name, kind, _, _, size), _, _ = self._type(number)
            if name and kind in (STRUCT, UNION):
                members = {}
                self._members(number, 0, members)
                yield self.string(name), size, members

    def _named(self, number):
        """What a prototype says of a type; of a type that a pointer leads to, just its name."""
        if not number:
            return "void"
        (name, kind, count, union, below), offset, owner = self._type(number)
        text = owner.string(name) if name else "?"
        if kind == POINTER:
            return self._named(below) + " *"
        if kind == ARRAY:
            element, _, length = struct.unpack_from("<III", owner.types, offset + 12)
            return f"{self._named(element)}[{length}]"
        if kind == FWD:
            return KEYWORDS[UNION if union else STRUCT] + text
        if kind == PROTOTYPE:
            of = struct.unpack_from(f"<{2 * count}I", owner.types, offset + 12)[1::2]
            return f"{self._named(below)} ({', '.join(map(self._named, of))})"
        if kind in (INT, FLOAT, TYPEDEF, *KEYWORDS):
            return KEYWORDS.get(kind, "") + text
        return self._named(below)

    def functions(self):
        """{function: its prototypes}: several, where static functions share a name."""
        found = {}
        for number in range(self.first, self.end):
            (name, kind, _, _, below), _, _ = self._type(number)
            if kind == FUNCTION:
                found.setdefault(self.string(name), set()).add(self._named(below))
        return found
