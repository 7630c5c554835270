#!/usr/bin/env python3
"""Writes vectors.json and dumps.json beside this file: the definition in docs/format/seal.md
a second time, with the Python package "cryptography" and nothing of ours."""

import hashlib
import json
import os
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def fixed(name, n):
    return hashlib.shake_128(name.encode()).digest(n)


def derive(data_key, salt, info, chain):
    return HKDF(hashes.SHA256(), 32, salt, info + b" 1\0" + chain).derive(data_key)


def dump(i, number, plain):
    region_key, nonce = fixed("region key %d" % i, 32), fixed("nonce %d" % i, 12)
    key = HKDF(hashes.SHA256(), 32, None, b"snapferry dump 1\0").derive(region_key)
    return {
        "region_key": region_key.hex(), "number": number, "plain": plain.hex(), "dump_key": key.hex(),
        "dump": (nonce + AESGCM(key).encrypt(nonce, plain, b"\1" + struct.pack(">Q", number))).hex(),
    }


def vector(i, slot, kind, codec, raw, level, index, revision, plain):
    name = lambda what: "%s %d" % (what, i)
    data_key, chain, ident = fixed(name("data key"), 32), fixed(name("chain"), 16), fixed(name("id"), 16)
    nonce = fixed(name("nonce"), 12)
    place = b"\1" + chain + ident
    seal = lambda key, aad: (nonce + AESGCM(key).encrypt(nonce, plain, aad)).hex()
    keys = {w: derive(data_key, ident, b"snapferry " + w.encode(), chain) for w in ("segment", "footer", "record")}
    return {
        "data_key": data_key.hex(), "chain": chain.hex(), "id": ident.hex(),
        "slot": slot, "kind": kind, "codec": codec, "raw_length": raw, "level": level, "index": index,
        "revision": revision, "plain": plain.hex(),
        "segment_key": keys["segment"].hex(), "footer_key": keys["footer"].hex(), "record_key": keys["record"].hex(),
        "frame": seal(keys["segment"], place + struct.pack(">HBBIBQ", slot, kind, codec, raw, level, index)),
        "footer": seal(keys["footer"], place),
        "record": seal(keys["record"], place + struct.pack(">Q", revision)),
    }


vectors = [
    vector(0, 0, 1, 0, 5, 0, 0, 1, b"hello"),
    vector(1, 65534, 1, 1, 65536, 0, 2**30 - 1, 2, fixed("plain 1", 333)),
    vector(2, 258, 2, 2, 10000, 2, 63, 2**63, fixed("plain 2", 64)),
    vector(3, 1, 2, 0, 1, 1, 2**40 + 3, 2**64 - 1, b""),
]
dumps = [dump(0, 1, b"hello"), dump(1, 2**64 - 1, fixed("plain 1", 333)), dump(2, 2**33, b"")]
for name, content in ("vectors.json", vectors), ("dumps.json", dumps):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), "w") as f:
        json.dump(content, f, indent=1)
        f.write("\n")
