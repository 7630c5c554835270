#!/usr/bin/env python3
"""Writes vectors.json beside this file: AES-256-XTS by the Python package
"cryptography" (OpenSSL)."""

import hashlib
import json
import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def fixed(name, n):
    return hashlib.shake_128(name.encode()).digest(n)


def unit(key, number, plain):
    e = Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little"))).encryptor()
    return e.update(plain) + e.finalize()


vectors = []
for number in [0, 1, 0xFF, 2**34 - 1, 2**40]:
    key, plain = fixed(f"key {number}", 64), fixed(f"plain {number}", 4096)
    sealed = unit(key, number, plain)
    vectors.append({
        "key": key.hex(), "unit": number, "plain": f"plain {number}",
        "sha256": hashlib.sha256(sealed).hexdigest(), "first": sealed[:32].hex(), "last": sealed[-32:].hex(),
    })
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "vectors.json"), "w") as f:
    json.dump(vectors, f, indent=1)
    f.write("\n")
