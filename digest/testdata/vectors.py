#!/usr/bin/env python3
"""Computes vectors.txt from the text of docs/format/digest.md, with hashlib and
nothing of Snapferry: vectors.py > vectors.txt"""

import hashlib
import struct

BLOCK = 65536
known = {}


def content(recipe):
    """The bytes of a recipe: parts joined by '+', each 'HEX*COUNT' or
    'count*N', which is the bytes 0, 1, ... 255, 0, ... up to N."""
    out = b""
    for part in recipe.split("+"):
        what, times = part.split("*")
        if what == "count":
            out += bytes(i % 256 for i in range(int(times)))
        else:
            out += bytes.fromhex(what) * int(times)
    return out


def block(recipe):
    data = content(recipe)
    return data + bytes(BLOCK - len(data))


def node(recipe):
    level, *children = recipe.split()
    presence = bytearray(32)
    digests = b""
    for child in children:
        indexes, name = child.split("=")
        first, _, last = indexes.partition("-")
        for i in range(int(first), int(last or first) + 1):
            presence[i // 8] |= 1 << (i % 8)
            digests += known[name]
    return b"snapferry node 1\0" + bytes([int(level)]) + bytes(presence) + digests


def snapshot(recipe):
    size, root = recipe.split()
    root = bytes(32) if root == "empty" else known[root]
    return b"snapferry snapshot 1\0" + struct.pack(">Q", int(size)) + root


VECTORS = [
    ("zeros", block, "00*65536"),
    ("ones", block, "ff*65536"),
    ("counting", block, "count*65536"),
    ("sector", block, "a5*512"),
    ("sector-padded", block, "a5*512+00*65024"),
    ("one-byte", block, "01*1"),
    ("last-byte", block, "00*65535+80*1"),
    ("leaf-first", node, "0 0=ones"),
    ("leaf-last", node, "0 255=ones"),
    ("leaf-two", node, "0 7=counting 8=sector"),
    ("leaf-full", node, "0 0-255=counting"),
    ("inner-1", node, "1 0=leaf-first 3=leaf-two 255=leaf-full"),
    ("inner-2", node, "2 0=inner-1"),
    ("root", node, "3 0=inner-2 63=inner-2"),
    ("small-1", node, "1 0=leaf-first"),
    ("small-2", node, "2 0=small-1"),
    ("small-root", node, "3 0=small-2"),
    ("snapshot-empty", snapshot, "512 empty"),
    ("snapshot-empty-largest", snapshot, "70368744177664 empty"),
    ("snapshot-one-block", snapshot, "65536 small-root"),
    ("snapshot-one-block-larger", snapshot, "131072 small-root"),
    ("snapshot-large", snapshot, "70368744177664 root"),
]

print("# kind, name, input, SHA-256. Made by vectors.py; docs/format/digest.md explains the inputs.")
for name, kind, recipe in VECTORS:
    known[name] = hashlib.sha256(kind(recipe)).digest()
    print("\t".join([kind.__name__, name, recipe, known[name].hex()]))
