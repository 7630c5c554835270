#!/usr/bin/env bash
# Makes the two disk images the benchmarks run on, v1.raw and v2.raw in DIR:
# an ext4 disk of SIZE GiB holding FILL MiB of the files of SRC and RANDOM MiB
# that do not compress, and the same disk after about 1 % of its user data was
# overwritten or added through the file system. Needs root (loop mounts).
# usage: images.sh DIR        env: SIZE=4 FILL=2048 RANDOM_MIB=256 CHANGE=32 NEW=8 SRC=/usr
set -euo pipefail
dir=${1:?usage: images.sh DIR}
size=${SIZE:-4} fill=${FILL:-2048} random=${RANDOM_MIB:-256} change=${CHANGE:-32} new=${NEW:-8} src=${SRC:-/usr}
mkdir -p "$dir/mount"
mnt=$dir/mount
trap 'mountpoint -q "$mnt" && umount "$mnt"; rmdir "$mnt" 2>/dev/null || true' EXIT

truncate -s 0 "$dir/v1.raw"
truncate -s "${size}G" "$dir/v1.raw"
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$dir/v1.raw"
mount -o loop "$dir/v1.raw" "$mnt"
python3 - "$src" "$mnt" "$fill" "$random" <<'PY'
import os, random, shutil, stat, sys
src, dst, fill, rand = sys.argv[1], sys.argv[2], int(sys.argv[3]) << 20, int(sys.argv[4])
rng = random.Random(7)
found = []
for top, _, names in os.walk(src):
    for name in names:
        path = os.path.join(top, name)
        try:
            st = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISREG(st.st_mode) and 0 < st.st_size < 16 << 20:
            found.append((path, st.st_size))
found.sort()
rng.shuffle(found)
for path, n in found:
    if n > fill:
        continue
    out = os.path.join(dst, path.lstrip("/"))
    os.makedirs(os.path.dirname(out), exist_ok=True)
    try:
        shutil.copyfile(path, out)
    except OSError:
        continue
    fill -= n
for i in range(rand // 8):
    with open(os.path.join(dst, "random%d" % i), "wb") as f:
        f.write(rng.randbytes(8 << 20))
PY
umount "$mnt"
cp --sparse=always "$dir/v1.raw" "$dir/v2.raw"
mount -o loop "$dir/v2.raw" "$mnt"
python3 - "$mnt" "$change" "$new" <<'PY'
import os, random, sys
mnt, change, new = sys.argv[1], int(sys.argv[2]) << 20, int(sys.argv[3]) << 20
rng = random.Random(8)
big = sorted(os.path.join(t, n) for t, _, ns in os.walk(mnt) for n in ns if os.path.getsize(os.path.join(t, n)) >= 65536)
while change > 0:
    path = rng.choice(big)
    n = rng.choice((4096, 4096, 8192, 16384, 65536))
    at = rng.randrange((os.path.getsize(path) - n) // 4096 + 1) * 4096
    with open(path, "r+b") as f:
        f.seek(at)
        old = f.read(n)
        f.seek(at)
        f.write(rng.randbytes(n) if rng.random() < 0.5 else old[::-1])
    change -= n
for i in range(new // (64 << 10)):
    with open(os.path.join(mnt, "log%d" % i), "wb") as f:
        f.write(rng.randbytes(64 << 10) if i % 2 else b"a line of a log that is much like the last one\n" * 1394)
PY
umount "$mnt"
sync -f "$dir/v2.raw"
ls -ls "$dir"/v?.raw
