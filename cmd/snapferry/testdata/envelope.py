#!/usr/bin/env python3
"""Opens what an encrypted region has on its disk with nothing of ours: the documents
docs/format/{keyring,chain,seal,object,segment,layer}.md, and the Python package
"cryptography" (OpenSSL).

    envelope.py REGION

REGION is the data directory of a region that is stopped: region.key, bucket/,
volumes/. It prints a line for each block and each page of data that it opened, with
the SHA-256 of the content:

    block CHAIN NUMBER SHA256
    page FILE NUMBER SHA256

and before them the data key of each chain, "key CHAIN KEY".

Blocks must have been stored without compression. Whatever does not open ends it."""

import hashlib
import os
import struct
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def hkdf(secret, salt, info):
    return HKDF(hashes.SHA256(), 32, salt or None, info).derive(secret)


def opened(key, message, aad):
    return AESGCM(key).decrypt(message[:12], message[12:], aad)


def fields(p):
    got = {}
    while p:
        tag, n = struct.unpack(">HI", p[:6])
        got[tag & 0x7FFF], p = p[6 : 6 + n], p[6 + n :]
    return got


def entries(p):
    while p:
        n = struct.unpack(">I", p[:4])[0]
        yield fields(p[4 : 4 + n])
        p = p[4 + n :]


class Region:
    def __init__(self, path):
        self.path, self.bucket = path, os.path.join(path, "bucket")
        with open(os.path.join(path, "region.key")) as f:
            self.key = bytes.fromhex(f.read().strip())
        self.masters = {}  # secrets, by key and generation
        self.read_keyring()
        self.data_keys = {}  # by chain
        for chain in os.listdir(os.path.join(self.bucket, "chain")):
            self.read_chain(bytes.fromhex(chain))

    def files(self, folder):
        """The files of a folder of the bucket, which a directory shards by the first letters."""
        return [os.path.join(root, n) for root, _, names in os.walk(os.path.join(self.bucket, folder)) for n in names]

    def newest(self, folder):
        with open(max(self.files(folder), key=os.path.basename), "rb") as f:
            return f.read()

    def read_keyring(self):
        p = self.newest("keyring")
        assert p[:6] == b"SFKEY\x01"
        ring = fields(opened(hkdf(self.key, b"", b"snapferry keyring 1\0"), p[14:], b"\x01" + p[6:14]))
        self.name = ring[1]
        for key in entries(ring.get(3, b"")):
            for generation in entries(key[12]):
                if 2 in generation:
                    self.masters[key[1], int.from_bytes(generation[1], "big")] = generation[2]

    def read_chain(self, chain):
        p = self.newest("chain/" + chain.hex())
        assert p[:6] == b"SFCHN\x01"
        f = fields(p[6:-64])
        if 10 not in f:
            return
        w = f[10]
        assert w[:6] == b"SFWRK\x01" and f[1] == chain and f[3] == self.name
        n = w[6]
        key, generation, check, blob = w[7 : 7 + n], w[7 + n : 11 + n], w[11 + n : 43 + n], w[43 + n :]
        context = b"snapferry context 1\0" + bytes([len(f[4])]) + f[4] + chain + bytes([len(self.name)]) + self.name
        assert blob[:4] == generation
        secret = self.masters[key, int.from_bytes(generation, "big")]
        data_key = opened(hkdf(secret, b"", b"snapferry master 1\0"), blob[4:], context + generation)
        assert check == hkdf(data_key, hashlib.sha256(context).digest(), b"snapferry check 1\0")
        self.data_keys[chain] = data_key

    def objects(self):
        for name in self.files("objects"):
            with open(name, "rb") as f:
                yield f.read()

    def blocks(self):
        for p in self.objects():
            assert p[:6] == b"SFOBJ\x01" and p[-3:] == b"SFD"
            at, count = struct.unpack(">QI", p[-24:-12])
            for i in range(count):
                segment, _, off, length, _ = struct.unpack(">16sIQQI", p[at + 40 * i :][:40])
                yield from self.segment(segment, p[off : off + length])

    def segment(self, segment, body):
        assert body[:6] == b"SFSEG\x01" and body[-3:] == b"SFT" and body[28:44] == segment
        kind, flags, chain = body[6], body[7], body[12:28]
        if flags == 0:
            return
        assert flags == 1
        data_key = self.data_keys[chain]
        place = b"\x01" + chain + segment
        n, _, info_len, footer = struct.unpack(">HHII", body[-28:-16])
        clear = body[footer : footer + 13 * n]
        infos = opened(hkdf(data_key, segment, b"snapferry footer 1\0" + chain), body[footer + 13 * n :][:info_len], place)
        assert len(infos) == 16 * n
        frames = hkdf(data_key, segment, b"snapferry segment 1\0" + chain)
        for i in range(n):
            slot, off = struct.unpack(">HI", clear[13 * i :][:6])
            length = int.from_bytes(clear[13 * i + 6 :][:3], "big")
            info = infos[16 * i :][:16]
            same, codec, level, raw, index = struct.unpack(">HBBIQ", info)
            assert same == slot
            aad = place + struct.pack(">HBBIBQ", slot, kind, codec, raw, level, index)
            plain = opened(frames, body[off : off + length], aad)
            if kind == 1:
                assert codec == 0 and len(plain) == raw, "blocks must be stored without compression"
                yield chain, index, plain

    def pages(self):
        for root, _, names in os.walk(self.path):
            if "key" not in names or not any(n.startswith("map.") for n in names):
                continue
            place = os.path.relpath(root, self.path)
            with open(os.path.join(root, "key"), "rb") as f:
                p = f.read()
            assert p[:6] == b"SFLKY\x01" and len(p) == 12 + struct.unpack(">H", p[6:8])[0]
            identity, message = p[8:24], p[24:-4]
            for chain, data_key in self.data_keys.items():
                try:
                    wrapping = hkdf(data_key, identity, b"snapferry layer 1\0" + chain)
                    key = opened(wrapping, message, b"\x01" + chain + identity + place.encode())
                    break
                except Exception:
                    continue
            else:
                raise SystemExit(f"no data key opens the key of {place}")
            for name in sorted(names):
                if name.startswith("data."):
                    yield from self.data_file(root, place, name, key)

    def data_file(self, root, place, name, key):
        stripe = int(name[5:])
        with open(os.path.join(root, "map." + name[5:]), "rb") as f:
            states = f.read()
        with open(os.path.join(root, name), "rb") as f:
            for page in range(4 * len(states)):
                if states[page // 4] >> 2 * (page % 4) & 3 != 1:
                    continue
                f.seek(4096 * page)
                number = stripe * (1 << 26) + page
                d = Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little"))).decryptor()
                yield os.path.join(place, name), number, d.update(f.read(4096)) + d.finalize()


region = Region(sys.argv[1])
for chain, data_key in region.data_keys.items():
    print("key", chain.hex(), data_key.hex())
for chain, index, plain in region.blocks():
    print("block", chain.hex(), index, hashlib.sha256(plain).hexdigest())
for name, number, plain in region.pages():
    print("page", name, number, hashlib.sha256(plain).hexdigest())
