#!/usr/bin/python3
"""Measures live volumes of a real region, with their peers, in one run.

usage: volume.py DIR [--parts fio,encrypted,touch,snapshots,increment,lazy] [--bin PATH] [--runs N]

DIR takes everything, and holds v1.raw and v2.raw (see images.sh) for the parts
increment and lazy. The region is a process of --bin (default
../bin/snapferry), its volumes are reached over unix sockets.

  fio        the jobs of nbdpeers.py, all pages present, beside nbdkit file and
             qemu-nbd on a raw file and on qcow2
  encrypted  an encrypted volume beside one that is not, all pages present, the jobs
             by turns
  touch      writes with flushes to pages that are written for the first time:
             a new volume each time, beside qemu-nbd on a new sparse raw file
             and on one that is full
  snapshots  4 KiB random writes in 1 GiB, at half of what the server can do at
             most, and a snapshot every 2 s; beside qemu-storage-daemon with
             external snapshots
  increment  a live disk that was v1.raw gets the changes that make it v2.raw;
             then the next snapshot of it, until it is ready, beside qemu's
             incremental backup by dirty bitmap into qcow2 with zstd, and beside
             restic and kopia if they are in PATH
  lazy       the time to make a volume of a snapshot, of 1 GiB and of 64 TiB, and
             of the first reads of it

Needs fio with its nbd engine, qemu-utils, qemu-storage-daemon and
python3-libnbd. Prints Markdown.
"""
import argparse
import glob
import json
import mmap
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time

import compare

HERE = os.path.dirname(os.path.abspath(__file__))
TICK = os.sysconf("SC_CLK_TCK")


def proc(pid):
    """CPU seconds, memory (MiB) and bytes written to disks of a process so far."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    with open(f"/proc/{pid}/status") as f:
        rss = next(int(l.split()[1]) / 1024 for l in f if l.startswith("VmRSS"))
    with open(f"/proc/{pid}/io") as f:
        wrote = next(int(l.split()[1]) for l in f if l.startswith("write_bytes"))
    return (int(fields[11]) + int(fields[12])) / TICK, rss, wrote


class Region:
    """A region process of its own, with an empty directory."""

    def __init__(self, a, name):
        self.bin, self.dir = os.path.abspath(a.bin), os.path.join(a.dir, name)
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)
        self.log = open(f"{self.dir}/log", "w")
        self.env = dict(os.environ, SNAPFERRY_CONFIG=f"{self.dir}/dev/client.yaml")
        self.dev = subprocess.Popen([self.bin, "dev", "--dir", f"{self.dir}/dev", "--regions", "east"], stdout=self.log, stderr=self.log)
        for _ in range(300):
            if os.path.exists(self.env["SNAPFERRY_CONFIG"]) and subprocess.run(
                    [self.bin, "snapshot", "list"], env=self.env, capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        else:
            sys.exit(f"the region did not start: see {self.dir}/log")
        children = [p for t in glob.glob(f"/proc/{self.dev.pid}/task/*/children") for p in open(t).read().split()]
        self.pid = int(children[0])

    def do(self, *argv):
        got = subprocess.run([self.bin, *argv, "-o", "json"], env=self.env, capture_output=True)
        if got.returncode:
            sys.exit(f"snapferry {' '.join(argv)}: {got.stderr.decode()}")
        return json.loads(got.stdout) if got.stdout.strip() else None

    def volume(self, *argv):
        """Makes a volume and exports it: its id and where."""
        v = self.do("volume", "create", *argv)
        return v["id"], self.do("volume", "export", v["id"])["export"]["uri"]

    def drop(self, id):
        self.do("volume", "unexport", id)
        self.do("volume", "delete", id, "--wait")

    def close(self):
        self.dev.terminate()
        self.dev.wait()
        self.log.close()
        shutil.rmtree(self.dir)


class Qsd:
    """A qemu-storage-daemon, spoken to by QMP."""

    def __init__(self, dir):
        self.dir = dir
        shutil.rmtree(dir, ignore_errors=True)
        os.makedirs(dir)
        self.p = subprocess.Popen(["qemu-storage-daemon", "--chardev", f"socket,id=c,path={dir}/qmp,server=on,wait=off", "--monitor", "chardev=c"],
                                  stdout=subprocess.DEVNULL)
        self.pid, s = self.p.pid, socket.socket(socket.AF_UNIX)
        for _ in range(200):
            try:
                s.connect(f"{dir}/qmp")
                break
            except OSError:
                time.sleep(0.02)
        self.f = s.makefile("rw")
        self.f.readline()
        self.do("qmp_capabilities")

    def do(self, command, /, **arguments):
        named = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.f.write(json.dumps({"execute": command, "arguments": named}) + "\n")
        self.f.flush()
        while True:
            answer = json.loads(self.f.readline())
            if "error" in answer:
                sys.exit(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def node(self, name, path, format, **more):
        self.do("blockdev-add", driver="file", node_name=name + "-file", filename=path)
        self.do("blockdev-add", driver=format, node_name=name, file=name + "-file", **more)

    def export(self, node):
        self.do("nbd-server-start", addr={"type": "unix", "data": {"path": f"{self.dir}/nbd"}})
        self.do("block-export-add", type="nbd", id="e", node_name=node, name="disk", writable=True)
        return f"nbd+unix:///disk?socket={self.dir}/nbd"

    def backup(self, **arguments):
        """Runs a backup job: its seconds."""
        start = time.monotonic()
        self.do("blockdev-backup", job_id="j", auto_dismiss=False, compress=True, **arguments)
        while next(j for j in self.do("query-jobs") if j["id"] == "j")["status"] != "concluded":
            time.sleep(0.002)
        took = time.monotonic() - start
        self.do("job-dismiss", id="j")
        return took

    def close(self):
        self.do("quit")
        self.p.wait()
        shutil.rmtree(self.dir)


def fio(uri, *more, size="2G"):
    """Runs fio: what it says of the job."""
    out = subprocess.run(["fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", f"--size={size}", "--norandommap", "--randrepeat=0",
                          "--output-format=json", *more], check=True, capture_output=True, text=True).stdout
    return json.loads(out[out.index("{"):])["jobs"][0]


def fill(uri, size="2G"):
    fio(uri, "--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers", "--end_fsync=1", size=size)


def part_fio(a):
    r = Region(a, "fio")
    id, uri = r.volume("--size", "2G")
    fill(uri)
    print("\n## All pages present\n", flush=True)
    subprocess.run([sys.executable, f"{HERE}/nbdpeers.py", f"{a.dir}/peers", "--uri", uri, "--pid", str(r.pid), "--peers", "nbdkit,qemu,qcow2",
                    "--fill", "--runs", str(a.runs), "--seconds", str(a.seconds)], check=True)
    print("\n| write amplification | bytes to the disk / bytes written |\n|---|--:|")
    for name, rw, bs, more in (("4 KiB random, a flush every 32", "randwrite", "4k", ["--fsync=32"]), ("1 MiB sequential", "write", "1M", ["--end_fsync=1"])):
        subprocess.run(["sync", "-f", r.dir], check=True)
        before = proc(r.pid)[2]
        j = fio(uri, f"--rw={rw}", f"--bs={bs}", "--iodepth=32", "--io_size=256M", *more)
        subprocess.run(["sync", "-f", r.dir], check=True)
        print(f"| {name}, pages present | {(proc(r.pid)[2] - before) / j['write']['io_bytes']:.2f} |")
    r.drop(id)
    for name, rw, bs, more in (("4 KiB random, a flush every 32", "randwrite", "4k", ["--fsync=32"]), ("1 MiB sequential", "write", "1M", ["--end_fsync=1"])):
        id, uri = r.volume("--size", "2G")
        subprocess.run(["sync", "-f", r.dir], check=True)
        before = proc(r.pid)[2]
        j = fio(uri, f"--rw={rw}", f"--bs={bs}", "--iodepth=32", "--io_size=256M", *more)
        subprocess.run(["sync", "-f", r.dir], check=True)
        print(f"| {name}, first touch | {(proc(r.pid)[2] - before) / j['write']['io_bytes']:.2f} |", flush=True)
        r.drop(id)
    r.close()


def part_encrypted(a):
    r = Region(a, "encrypted")
    uris = {"plain": r.volume("--size", "2G")[1], "encrypted": r.volume("--size", "2G", "--encrypt")[1]}
    for uri in uris.values():
        fill(uri)
    jobs = [(f"{bs} {rw}, depth {depth}", rw, bs, depth)
            for bs, depths in (("4k", (1, 32)), ("1M", (8,))) for rw in ("randread", "randwrite", "read", "write") for depth in depths]
    print("\n## Encrypted volumes\n\nMedians; MB/s and CPU seconds of the region for each GB.\n")
    print("| job | plain MB/s | encrypted MB/s | ratio | plain CPU | encrypted CPU |\n|---|--:|--:|--:|--:|--:|", flush=True)
    for name, rw, bs, depth in jobs:
        rate, cpu = {k: [] for k in uris}, {k: [] for k in uris}
        for _ in range(a.runs):
            for kind, uri in uris.items():
                before = proc(r.pid)[0]
                j = fio(uri, f"--rw={rw}", f"--bs={bs}", f"--iodepth={depth}", "--time_based", f"--runtime={a.seconds}", "--refill_buffers")
                side = j["read" if "read" in rw else "write"]
                rate[kind].append(side["bw_bytes"] / 1e6)
                cpu[kind].append((proc(r.pid)[0] - before) / (side["io_bytes"] / 1e9))
        m = {k: statistics.median(v) for k, v in rate.items()}
        c = {k: statistics.median(v) for k, v in cpu.items()}
        print(f"| {name} | {m['plain']:.0f} | {m['encrypted']:.0f} | {m['encrypted'] / m['plain']:.2f} | {c['plain']:.2f} | {c['encrypted']:.2f} |", flush=True)
    r.close()


class QemuNBD:
    """qemu-nbd over a raw file of 2 GiB, sparse or full."""

    def __init__(self, a, full):
        self.dir = os.path.join(a.dir, "qemu-nbd")
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)
        path = f"{self.dir}/raw"
        with open(path, "wb") as f:
            f.truncate(2 << 30)
        self.p = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", f"{self.dir}/s", path])
        while not os.path.exists(f"{self.dir}/s"):
            time.sleep(0.02)
        self.uri = f"nbd+unix:///?socket={self.dir}/s"
        if full:
            fill(self.uri)

    def close(self):
        self.p.terminate()
        self.p.wait()
        shutil.rmtree(self.dir)


def part_touch(a):
    jobs = {"depth 1, a flush after each": (1, 1), "depth 1, a flush every 32": (1, 32), "depth 32, a flush every 32": (32, 32)}
    got = {(j, s): [] for j in jobs for s in ("snapferry", "sparse", "full")}
    r = Region(a, "touch")
    for _ in range(a.runs):
        for job, (depth, flush) in jobs.items():
            def run(uri):
                return fio(uri, "--rw=randwrite", "--bs=4k", f"--iodepth={depth}", f"--fsync={flush}", f"--runtime={a.seconds}", "--time_based")["write"]["iops"]
            id, uri = r.volume("--size", "2G")
            got[job, "snapferry"].append(run(uri))
            r.drop(id)
            for full in (False, True):
                q = QemuNBD(a, full)
                got[job, "full" if full else "sparse"].append(run(q.uri))
                q.close()
    r.close()
    print("\n## First touch, 4 KiB random writes\n\n| job | snapferry | qemu raw, sparse | qemu raw, full | / sparse | / full |\n|---|--:|--:|--:|--:|--:|")
    for job in jobs:
        m = [statistics.median(got[job, s]) for s in ("snapferry", "sparse", "full")]
        print(f"| {job} | {m[0]:,.0f} | {m[1]:,.0f} | {m[2]:,.0f} | {m[0] / m[1]:.2f} | {m[0] / m[2]:.2f} |", flush=True)


def percentile(xs, q):
    xs = sorted(xs)
    return xs[min(len(xs) - 1, int(q * len(xs)))]


def load(a, uri, rate, snapshot, seconds):
    """Writes at a rate with a snapshot every 2 s, if any: what fio says, when each
    began and ended, and (ms since the start, ms of latency) of each write."""
    log = os.path.join(a.dir, "lat")
    for old in glob.glob(log + "_*"):
        os.remove(old)
    f = subprocess.Popen(["fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", "--size=1G", "--rw=randwrite", "--bs=4k", "--iodepth=8",
                          "--norandommap", "--randrepeat=0", f"--rate_iops={rate}", "--rate_process=linear", f"--runtime={seconds}", "--time_based",
                          f"--write_lat_log={log}", "--log_avg_msec=0", "--output-format=json"], stdout=subprocess.PIPE, text=True)
    start, taken = time.monotonic(), []
    while snapshot and time.monotonic() - start < seconds - 2:
        time.sleep(max(0, start + 2 * (len(taken) + 1) - time.monotonic()))
        began = time.monotonic() - start
        pause = snapshot(len(taken))
        taken.append((began, time.monotonic() - start, pause))
    out = f.communicate()[0]
    lats = []
    with open(log + "_clat.1.log") as lines:
        for line in lines:
            at, lat = line.split(",")[:2]
            lats.append((int(at), int(lat) / 1e6))
    return json.loads(out[out.index("{"):])["jobs"][0]["write"], taken, lats


def part_snapshots(a):
    print("\n## Snapshots every 2 s under writes at half of the maximum\n", flush=True)
    print("| server | maximum | rate | without: IOPS, p99, max ms | with: IOPS, p99, max ms | loss | worst write around a snapshot, ms: median, p99 | pauses, ms: median, p99, max | refused |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in a.servers.split(","):
        if name == "snapferry":
            r = Region(a, "snapshots")
            id, uri = r.volume("--size", "1G")
            refused = [0]

            def snapshot(_):
                got = subprocess.run([r.bin, "snapshot", "create", id, "-o", "json"], env=r.env, capture_output=True)
                if got.returncode:
                    refused[0] += 1
                    return None
                return r.do("volume", "show", id)["local"]["pauses"]["last"] / 1e6
        else:
            q = Qsd(f"{a.dir}/qsd")
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", f"{q.dir}/0", "1G"], check=True)
            q.node("n0", f"{q.dir}/0", "qcow2")
            uri, refused = q.export("n0"), [0]

            def snapshot(i):
                q.do("blockdev-snapshot-sync", node_name=f"n{i}", snapshot_file=f"{q.dir}/{i + 1}", snapshot_node_name=f"n{i + 1}", format="qcow2")
                return None
        fill(uri, "1G")
        most = fio(uri, "--rw=randwrite", "--bs=4k", "--iodepth=8", "--runtime=5", "--time_based", size="1G")["write"]["iops"]
        rate = int(most / 2)
        plain, _, before = load(a, uri, rate, None, a.load)
        with_, taken, lats = load(a, uri, rate, snapshot, a.load)
        worst = []
        for i, (began, _, _) in enumerate(taken):
            until = taken[i + 1][0] if i + 1 < len(taken) else began + 2
            near = [lat for at, lat in lats if 1e3 * began <= at < 1e3 * min(until, began + 1)]
            worst.append(max(near, default=0))
        pauses = [p for _, _, p in taken if p is not None]
        text = f"{statistics.median(pauses):.2f}, {percentile(pauses, .99):.2f}, {max(pauses):.2f}" if pauses else "-"
        p99 = lambda x: x["clat_ns"]["percentile"]["99.000000"] / 1e6
        print(f"| {name} | {most:,.0f} | {rate:,} | {plain['iops']:,.0f}, {p99(plain):.2f}, {max(l for _, l in before):.1f}"
              f" | {with_['iops']:,.0f}, {p99(with_):.2f}, {max(l for _, l in lats):.1f} | {1 - with_['iops'] / plain['iops']:.1%}"
              f" | {statistics.median(worst):.1f}, {percentile(worst, .99):.1f} | {text} | {refused[0]} of {len(taken)} |", flush=True)
        if name == "snapferry":
            r.drop(id)
            r.close()
        else:
            q.close()


def changed(old, new, step=4096):
    """The runs of 4 KiB pages in which two files differ, and what the new one has."""
    with open(old, "rb") as f, open(new, "rb") as g:
        x, y = (mmap.mmap(h.fileno(), 0, prot=mmap.PROT_READ) for h in (f, g))
    runs = []
    for at in range(0, len(y), 1 << 20):
        p, q = x[at:at + (1 << 20)], y[at:at + (1 << 20)]
        for i in range(0, len(q) if p != q else 0, step):
            if p[i:i + step] == q[i:i + step]:
                continue
            if runs and sum(runs[-1]) == at + i:
                runs[-1][1] += step
            else:
                runs.append([at + i, step])
    return runs, y


def write(uri, runs, data):
    import nbd
    h = nbd.NBD()
    h.connect_uri(uri)
    for off, n in runs:
        for at in range(off, off + n, 4 << 20):
            h.pwrite(data[at:min(at + (4 << 20), off + n)], at)
    h.flush()
    h.shutdown()


def part_increment(a):
    v1, v2 = f"{a.dir}/v1.raw", f"{a.dir}/v2.raw"
    runs, data = changed(v1, v2)
    full, total = changed_from_nothing(v1)
    n = sum(n for _, n in runs)
    ours, theirs, added, backup = [], [], 0, 0
    peers = {k: [] for k in ("restic", "kopia") if shutil.which(k)}
    for _ in range(a.runs):
        r = Region(a, "increment")
        id, uri = r.volume("--size", str(len(data)))
        write(uri, full, total)
        r.do("snapshot", "create", id, "--wait")
        write(uri, runs, data)
        start = time.monotonic()
        s = r.do("snapshot", "create", id, "--wait")
        ours.append(time.monotonic() - start)
        s = (s["snapshots"] if "snapshots" in s else [s])[0]
        added = s["bytes"]["stored"]
        r.do("snapshot", "export", s["id"], f"{a.dir}/out.raw")
        subprocess.run(["cmp", f"{a.dir}/out.raw", v2], check=True)
        os.remove(f"{a.dir}/out.raw")
        r.close()

        q = Qsd(f"{a.dir}/qsd")
        subprocess.run(["cp", "--sparse=always", v1, f"{q.dir}/disk"], check=True)
        q.node("disk", f"{q.dir}/disk", "raw")
        q.do("block-dirty-bitmap-add", node="disk", name="b", granularity=65536)
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compression_type=zstd"]
        subprocess.run([*create, f"{q.dir}/full", str(len(data))], check=True)
        q.node("full", f"{q.dir}/full", "qcow2")
        q.backup(device="disk", target="full", sync="full")
        write(q.export("disk"), runs, data)
        subprocess.run([*create, "-F", "qcow2", "-b", f"{q.dir}/full", f"{q.dir}/incr"], check=True)
        start = time.monotonic()
        q.node("incr", f"{q.dir}/incr", "qcow2", backing="full")
        q.backup(device="disk", target="incr", sync="incremental", bitmap="b")
        subprocess.run(["sync", f"{q.dir}/incr"], check=True)
        theirs.append(time.monotonic() - start)
        backup = os.stat(f"{q.dir}/incr").st_blocks * 512
        q.close()

        for key, took in peers.items():
            dir = os.path.join(a.dir, "peer")
            shutil.rmtree(dir, ignore_errors=True)
            os.makedirs(dir)
            tool = compare.TOOLS[key][0](a, dir)
            tool.full()
            subprocess.run(["sync", "-f", dir], check=True)
            start, held = time.monotonic(), tool.stored()
            tool.incr()
            subprocess.run(["sync", "-f", dir], check=True)
            took.append((time.monotonic() - start, tool.stored() - held))
            tool.close()
            shutil.rmtree(dir)
    m = statistics.median(ours), statistics.median(theirs)
    print(f"\n## The increment of a live disk of {len(data) >> 30} GiB, {n / 2**20:.1f} MiB of it changed\n")
    print("| tool | s | MiB | / snapferry |\n|---|--:|--:|--:|")
    print(f"| snapferry snapshot create --wait, from the call to ready | {m[0]:.2f} | {added / 2**20:.1f} | 1.0x |")
    print(f"| qemu incremental backup, dirty bitmap, zstd | {m[1]:.2f} | {backup / 2**20:.1f} | {m[1] / m[0]:.2f}x |")
    for key, took in peers.items():
        t, stored = (statistics.median(c) for c in zip(*took))
        print(f"| {key}, which reads all of the disk | {t:.2f} | {stored / 2**20:.1f} | {t / m[0]:.1f}x |", flush=True)


def changed_from_nothing(path):
    """The runs of a file that are not zero."""
    with open(path, "rb") as f:
        x = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    zero, runs = bytes(1 << 16), []
    for at in range(0, len(x), 1 << 16):
        if x[at:at + (1 << 16)] == zero[:len(x) - at]:
            continue
        n = min(1 << 16, len(x) - at)
        if runs and sum(runs[-1]) == at and runs[-1][1] < 4 << 20:
            runs[-1][1] += n
        else:
            runs.append([at, n])
    return runs, x


def part_lazy(a):
    import nbd
    r = Region(a, "lazy")
    print("\n## Volumes of snapshots\n\n| what | measured |\n|---|--:|")
    for size in ("1G", "64T"):
        id, uri = r.volume("--size", size)
        write(uri, [[0, 1 << 20], [(1 << 30) - (1 << 20), 1 << 20]], random.randbytes(1 << 20) * 1024)
        s = r.do("snapshot", "create", id, "--wait")
        s = (s["snapshots"] if "snapshots" in s else [s])[0]["id"]
        took = []
        for _ in range(9):
            start = time.monotonic()
            v = r.do("volume", "create", "--snapshot", s)["id"]
            took.append(time.monotonic() - start)
            r.do("volume", "delete", v, "--wait")
        print(f"| `volume create --snapshot`, {size} | {1e3 * statistics.median(took):.0f} ms |", flush=True)
        r.drop(id)
    s = r.do("snapshot", "import", f"{a.dir}/v1.raw", "--volume", "v1")["id"]
    runs, data = changed_from_nothing(f"{a.dir}/v1.raw")
    id, uri = r.volume("--snapshot", s)
    h = nbd.NBD()
    h.connect_uri(uri)
    took = []
    for off, n in random.Random(1).sample(runs, 300):
        start = time.monotonic()
        p = h.pread(4096, off)
        took.append(time.monotonic() - start)
        assert p == data[off:off + 4096]
    print(f"| first reads at 300 places of v1: the first, then median, p99 | {1e3 * took[0]:.1f} ms, {1e3 * statistics.median(took[1:]):.1f} ms, {1e3 * percentile(took, .99):.1f} ms |")
    start = time.monotonic()
    r.do("volume", "hydrate", id, "--wait")
    print(f"| hydration of v1, {sum(n for _, n in runs) / 2**30:.2f} GiB | {time.monotonic() - start:.1f} s |", flush=True)
    h.shutdown()
    r.close()


PARTS = {n[5:]: f for n, f in list(globals().items()) if n.startswith("part_")}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir")
    p.add_argument("--bin", default=f"{HERE}/../bin/snapferry")
    p.add_argument("--parts", default=",".join(PARTS))
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--seconds", type=int, default=4, help="of each run of fio")
    p.add_argument("--load", type=int, default=60, help="seconds of load with snapshots")
    p.add_argument("--servers", default="snapferry,qemu", help="of the part snapshots")
    a = p.parse_args()
    a.dir = os.path.abspath(a.dir)
    for part in a.parts.split(","):
        PARTS[part](a)


if __name__ == "__main__":
    main()
