"""Prints `ILSVRC id TAB wnid TAB words` for the 1,000 leaf classes of the devkit's meta.mat; Python's library alone.

Reads MATLAB level-5 files as far as meta.mat needs it: numbers, strings, one array of structures, zlib compression.
"""

import struct
import sys
import zlib

NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
MATRIX, COMPRESSED, UTF8 = 14, 15, 16
CELL_CLASS, STRUCT_CLASS, CHAR_CLASS = 1, 2, 4


def elements(data, order):
    """(type, bytes) of each data element; a short one keeps its bytes inside the tag."""
    at = 0
    while at + 8 <= len(data):
        tag, size = struct.unpack_from(order + "II", data, at)
        if tag >> 16:
            kind, size, start, end = tag & 0xFFFF, tag >> 16, at + 4, at + 8
        else:
            kind, start = tag, at + 8
            end = start + size if kind == COMPRESSED else start + (size + 7) // 8 * 8
        if start + size > len(data):
            raise ValueError("the file is cut short")
        yield kind, data[start:start + size]
        at = end


def numbers(kind, data, order):
    letter = NUMBERS[kind]
    return struct.unpack(f"{order}{len(data) // struct.calcsize(letter)}{letter}", data)


def matrix(data, order):
    """(name, value): a string, a list of numbers, or for an array of structures a list of dictionaries."""
    parts = list(elements(data, order))
    if not parts:
        return "", None
    array_class = numbers(*parts[0], order)[0] & 0xFF
    name = parts[2][1].decode("ascii")
    if array_class == STRUCT_CLASS:
        width = numbers(*parts[3], order)[0]
        raw = parts[4][1]
        fields = [raw[i:i + width].split(b"\0")[0].decode("ascii") for i in range(0, len(raw), width)]
        values = [matrix(body, order)[1] for _, body in parts[5:]]
        rows = [dict(zip(fields, values[i:i + len(fields)])) for i in range(0, len(values), len(fields))]
        return name, rows
    if array_class == CELL_CLASS or len(parts) < 4:
        return name, None
    kind, body = parts[3]
    if array_class == CHAR_CLASS:
        return name, body.decode("utf-8") if kind in (1, 2, UTF8) else "".join(map(chr, numbers(kind, body, order)))
    return name, list(numbers(kind, body, order))


def synsets(data):
    if data[126:128] not in (b"IM", b"MI"):
        raise ValueError("not a MATLAB level-5 file")
    order = "<" if data[126:128] == b"IM" else ">"
    for kind, body in elements(data[128:], order):
        if kind == COMPRESSED:
            kind, body = next(elements(zlib.decompress(body), order))
        if kind == MATRIX:
            name, value = matrix(body, order)
            if name == "synsets":
                return value
    raise ValueError("holds no variable 'synsets'")


def main():
    path = sys.argv[1]
    try:
        with open(path, "rb") as file:
            rows = synsets(file.read())
        leaves = [row for row in rows if not any(row["num_children"])]
        for row in sorted(leaves, key=lambda row: row["ILSVRC2012_ID"]):
            print(f"{int(row['ILSVRC2012_ID'][0])}\t{row['WNID']}\t{row['words']}")
    except (OSError, ValueError, KeyError, TypeError, struct.error, zlib.error) as error:
        sys.exit(f"{path}: cannot be read as the devkit's meta.mat: {error!r}")


main()
