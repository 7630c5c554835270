#!/usr/bin/env python3
"""Times Snapferry and its peers on the same work, interleaved, in one run.

usage: compare.py DIR [--runs N] [--tools a,b,...] [--bin PATH]

DIR holds v1.raw and v2.raw (see images.sh) and takes everything else. The
tools that are in PATH are run: restic, kopia, borg (with rclone for its copy),
qemu-img; and snapferry, from --bin (default ../bin/snapferry), with zstd and
with s2. Each run does, tool by tool:

  full      the first snapshot, of v1.raw
  incr      the second, of v2.raw
  copyincr  the second copied to where the first already is
  copy      both copied to an empty place
  restore   v2 written to a raw file, compared with the original
  verify    everything checked, all data read

Wall time includes a sync of the file system where the tool does not sync by
itself. CPU counts the command and, for Snapferry, its region processes; memory
is the largest peak of one process. Prints Markdown: medians, and our ratios to
the best peer of each kind.
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time

TICK = os.sysconf("SC_CLK_TCK")


def sh(*argv, **kw):
    kw.setdefault("stdout", subprocess.DEVNULL)
    subprocess.run(argv, check=True, **kw)


def size(*paths):
    total = 0
    for path in paths:
        for top, _, names in os.walk(path):
            total += sum(os.lstat(os.path.join(top, n)).st_size for n in names)
    return total


def proc(pid):
    """CPU seconds and peak memory (MiB) of a process so far."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    peak = 0
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("VmHWM"):
                peak = int(line.split()[1]) / 1024
    return (int(fields[11]) + int(fields[12])) / TICK, peak


class Tool:
    """A tool under test; subclasses have one method for each job."""

    name = ""
    durable = False  # its commands sync what they wrote

    def __init__(self, args, dir):
        self.v1, self.v2 = os.path.join(args.dir, "v1.raw"), os.path.join(args.dir, "v2.raw")
        self.dir, self.out = dir, os.path.join(dir, "out.raw")
        self.env = dict(os.environ)

    def cmd(self, *argv, **kw):
        sh(*argv, env=self.env, stderr=subprocess.DEVNULL, **kw)

    def pids(self):
        return []

    def close(self):
        pass


class Restic(Tool):
    name = "restic"

    def __init__(self, args, dir):
        super().__init__(args, dir)
        self.env |= {"RESTIC_PASSWORD": "x", "RESTIC_FROM_PASSWORD": "x"}
        self.repo = [os.path.join(dir, r) for r in ("a", "b", "c")]
        self.disk = os.path.join(dir, "src", "disk.raw")
        os.makedirs(os.path.dirname(self.disk))
        self.restic(0, "init")
        for r in (1, 2):
            self.restic(r, "init", "--from-repo", self.repo[0], "--copy-chunker-params")

    def restic(self, r, *argv):
        self.cmd("restic", "-q", "--no-cache", "--pack-size", "64", "-r", self.repo[r], *argv)

    def backup(self, image):
        if os.path.exists(self.disk):
            os.remove(self.disk)
        os.link(image, self.disk)
        self.restic(0, "backup", "--no-scan", self.disk)

    def full(self):
        self.backup(self.v1)

    def prepare_copyincr(self):
        self.restic(1, "copy", "--from-repo", self.repo[0])

    def incr(self):
        self.backup(self.v2)

    def copyincr(self):
        self.restic(1, "copy", "--from-repo", self.repo[0])

    def copy(self):
        self.restic(2, "copy", "--from-repo", self.repo[0])

    def restore(self):
        to = os.path.join(self.dir, "restored")
        self.restic(2, "restore", "latest", "--target", to, "--sparse")
        self.out = to + self.disk

    def verify(self):
        self.restic(0, "check", "--read-data")

    def stored(self):
        return size(os.path.join(self.repo[0]))


class Kopia(Tool):
    name = "kopia"

    def __init__(self, args, dir):
        super().__init__(args, dir)
        self.env |= {
            "KOPIA_PASSWORD": "x", "KOPIA_CONFIG_PATH": f"{dir}/kopia.config", "KOPIA_CACHE_DIRECTORY": f"{dir}/cache",
            "KOPIA_LOG_DIR": f"{dir}/log", "KOPIA_CHECK_FOR_UPDATES": "false", "KOPIA_USE_KEYRING": "false", "KOPIA_PERSIST_CREDENTIALS_ON_CONNECT": "true",
        }
        for d in ("a", "b", "c", "src"):
            os.mkdir(os.path.join(dir, d))
        self.cmd("kopia", "repository", "create", "filesystem", "--path", f"{dir}/a", "--object-splitter", "FIXED-1M",
                 "--block-hash", "BLAKE3-256", "--encryption", "AES256-GCM-HMAC-SHA256")
        self.cmd("kopia", "policy", "set", "--global", "--compression", "zstd-fastest", "--parallel-upload-above-size-mib", "256", "--max-parallel-file-reads", "2")

    def backup(self, image):
        disk = f"{self.dir}/src/disk.raw"
        if os.path.exists(disk):
            os.remove(disk)
        os.link(image, disk)
        self.cmd("kopia", "snapshot", "create", "--no-progress", f"{self.dir}/src")

    def sync(self, to):
        self.cmd("kopia", "repository", "sync-to", "filesystem", "--path", f"{self.dir}/{to}", "--parallel", "2")

    def full(self):
        self.backup(self.v1)

    def prepare_copyincr(self):
        self.sync("b")

    def incr(self):
        self.backup(self.v2)

    def copyincr(self):
        self.sync("b")

    def copy(self):
        self.sync("c")

    def prepare_restore(self):
        found = subprocess.run(["kopia", "snapshot", "list", "--json", f"{self.dir}/src"], env=self.env, check=True, capture_output=True)
        self.id = json.loads(found.stdout)[-1]["id"]

    def restore(self):
        self.cmd("kopia", "restore", self.id, f"{self.dir}/restored", "--no-progress", "--write-sparse-files")
        self.out = f"{self.dir}/restored/disk.raw"

    def verify(self):
        self.cmd("kopia", "snapshot", "verify", "--verify-files-percent=100", "--no-progress")

    def stored(self):
        return size(f"{self.dir}/a")


class Borg(Tool):
    name = "borg"

    def __init__(self, args, dir):
        super().__init__(args, dir)
        self.env |= {"BORG_PASSPHRASE": "x", "BORG_BASE_DIR": f"{dir}/base", "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}
        self.disk = f"{dir}/disk.raw"
        self.cmd("borg", "init", "-e", "repokey-blake2", f"{dir}/a")

    def create(self, name, image):
        if os.path.exists(self.disk):
            os.remove(self.disk)
        os.link(image, self.disk)
        self.cmd("borg", "create", "--chunker-params", "fixed,1048576", "-C", "zstd,1", "--files-cache", "disabled", "--sparse", f"{self.dir}/a::{name}", self.disk)

    def full(self):
        self.create("v1", self.v1)

    def prepare_copyincr(self):
        self.cmd("rclone", "sync", f"{self.dir}/a", f"{self.dir}/b")

    def incr(self):
        self.create("v2", self.v2)

    def copyincr(self):
        self.cmd("rclone", "sync", f"{self.dir}/a", f"{self.dir}/b")

    def copy(self):
        self.cmd("rclone", "sync", f"{self.dir}/a", f"{self.dir}/c")

    def restore(self):
        os.mkdir(f"{self.dir}/restored")
        self.cmd("borg", "extract", "--sparse", f"{self.dir}/a::v2", cwd=f"{self.dir}/restored")
        self.out = f"{self.dir}/restored{self.disk}"

    def verify(self):
        self.cmd("borg", "check", "--verify-data", f"{self.dir}/a")

    def stored(self):
        return size(f"{self.dir}/a")


class Qemu(Tool):
    """qemu-img to compressed qcow2: no digests, no deduplication. Its increment
    is not timed: it would be told what changed."""

    name = "qemu-img"

    def full(self):
        self.cmd("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "-W", "-m", "16", self.v1, f"{self.dir}/v1.qcow2")

    def prepare_restore(self):
        self.cmd("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "-W", "-m", "16", self.v2, f"{self.dir}/v2.qcow2")

    def restore(self):
        self.cmd("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-W", "-m", "16", f"{self.dir}/v2.qcow2", self.out)

    def stored(self):
        return sum(os.path.getsize(os.path.join(self.dir, n)) for n in os.listdir(self.dir) if n.endswith(".qcow2"))


class Snapferry(Tool):
    durable = True
    codec = "zstd"

    @property
    def name(self):
        return "snapferry " + self.codec

    def __init__(self, args, dir):
        super().__init__(args, dir)
        self.bin, self.dev = os.path.abspath(args.bin), f"{dir}/dev"
        self.log = open(f"{dir}/dev.log", "w")
        self.server = subprocess.Popen([self.bin, "dev", "--dir", self.dev, "--regions", "east,west,north", "--compression", self.codec],
                                       stdout=self.log, stderr=self.log, env=self.env)
        self.env["SNAPFERRY_CONFIG"] = f"{self.dev}/client.yaml"
        for _ in range(300):
            ready = os.path.exists(self.env["SNAPFERRY_CONFIG"]) and all(
                subprocess.run([self.bin, "snapshot", "list", "--region", r], env=self.env, capture_output=True).returncode == 0
                for r in ("east", "west", "north"))
            if ready:
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"the regions did not start: see {dir}/dev.log")
        with open(f"/proc/{self.server.pid}/task/{self.server.pid}/children") as f:
            self.children = [int(p) for p in f.read().split()]
        if not self.children:
            for task in os.listdir(f"/proc/{self.server.pid}/task"):
                with open(f"/proc/{self.server.pid}/task/{task}/children") as f:
                    self.children += [int(p) for p in f.read().split()]

    def pids(self):
        return self.children

    def ours(self, *argv):
        got = subprocess.run([self.bin, *argv, "-o", "json"], env=self.env, check=True, capture_output=True)
        return json.loads(got.stdout) if got.stdout.strip() else None

    def full(self):
        self.s1 = self.ours("snapshot", "import", self.v1, "--volume", "disk", "--region", "east")["id"]

    def prepare_copyincr(self):
        self.ours("snapshot", "copy", self.s1, "--from", "east", "--to", "west", "--wait")

    def incr(self):
        self.s2 = self.ours("snapshot", "import", self.v2, "--volume", "disk", "--region", "east")["id"]

    def copyincr(self):
        self.w2 = self.ours("snapshot", "copy", self.s2, "--from", "east", "--to", "west", "--wait")["id"]

    def copy(self):
        self.ours("snapshot", "copy", self.s1, "--from", "east", "--to", "north", "--wait")
        self.ours("snapshot", "copy", self.s2, "--from", "east", "--to", "north", "--wait")

    def restore(self):
        self.ours("snapshot", "export", self.w2, self.out, "--region", "west")

    def verify(self):
        self.ours("fsck", "--deep", "--region", "east")

    def stored(self):
        return size(f"{self.dev}/east/data/bucket")

    def close(self):
        self.server.terminate()
        self.server.wait()
        self.log.close()


class SnapferryS2(Snapferry):
    codec = "s2"


TOOLS = {"snapferry": (Snapferry, None), "snapferry-s2": (SnapferryS2, None), "restic": (Restic, "restic"), "kopia": (Kopia, "kopia"),
         "borg": (Borg, "borg"), "qemu-img": (Qemu, "qemu-img")}
JOBS = ["full", "incr", "copyincr", "copy", "restore", "verify"]


def timed(tool, job, warm):
    for path in warm:
        with open(path, "rb", buffering=0) as f:
            while f.read(1 << 22):
                pass
    os.sync()
    before = {p: proc(p) for p in tool.pids()}
    for p in tool.pids():
        with open(f"/proc/{p}/clear_refs", "w") as f:
            f.write("5")  # peak memory starts anew
    r0, t0 = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    getattr(tool, job)()
    if not tool.durable:
        fd = os.open(tool.dir, os.O_RDONLY)
        subprocess.run(["sync", "-f", tool.dir], check=True)
        os.close(fd)
    wall = time.monotonic() - t0
    r1 = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = r1.ru_utime + r1.ru_stime - r0.ru_utime - r0.ru_stime
    peak = r1.ru_maxrss / 1024 if not tool.pids() else 0  # the largest child so far
    for p in tool.pids():
        c, m = proc(p)
        cpu, peak = cpu + c - before[p][0], max(peak, m)
    return wall, cpu, peak


def run(args, key, results):
    cls, _ = TOOLS[key]
    dir = os.path.join(args.dir, "run-" + key)
    shutil.rmtree(dir, ignore_errors=True)
    os.makedirs(dir)
    tool = cls(args, dir)
    try:
        for job in JOBS:
            if not hasattr(tool, job):
                continue
            if job == "incr" and hasattr(tool, "prepare_copyincr"):
                tool.prepare_copyincr()
            if job != "copyincr" and hasattr(tool, "prepare_" + job):
                getattr(tool, "prepare_" + job)()
            held = tool.stored()
            row = timed(tool, job, [tool.v1, tool.v2])
            results.setdefault((tool.name, job), []).append((*row, tool.stored() - held))
            print(f"  {tool.name:16} {job:9} {row[0]:7.2f} s wall {row[1]:7.2f} s cpu {row[2]:6.0f} MiB peak", file=sys.stderr, flush=True)
            if job == "restore":
                sh("cmp", tool.v2, tool.out)
                os.remove(tool.out)
    finally:
        tool.close()
        shutil.rmtree(dir, ignore_errors=True)


def report(results):
    tools = list(dict.fromkeys(t for t, _ in results))
    print("| job | tool | wall s, median (min-max) | CPU s | peak MiB | MiB added |")
    print("|---|---|--:|--:|--:|--:|")
    med = {}
    for job in JOBS:
        for tool in tools:
            rows = results.get((tool, job))
            if not rows:
                continue
            wall, cpu, peak, added = zip(*rows)
            med[tool, job] = statistics.median(wall), statistics.median(added) / 2**20
            note = f"{med[tool, job][1]:.1f}" if job in ("full", "incr") else ""
            print(f"| {job} | {tool} | {med[tool, job][0]:.2f} ({min(wall):.2f}-{max(wall):.2f}) | {statistics.median(cpu):.2f} | {max(peak):.0f} | {note} |")
    print()
    dedup = [t for t in ("restic", "kopia", "borg") if (t, "full") in med]

    def ratio(what, job, ours, peers, goal, column=0):
        if (ours, job) not in med or not any((p, job) in med for p in peers):
            return
        best = min((med[p, job][column], p) for p in peers if (p, job) in med)
        print(f"| {what} | {best[1]} | {best[0] / med[ours, job][column]:.2f}x | {goal} |")

    print("| what | best peer | peer / ours | goal |")
    print("|---|---|--:|---|")
    z, s = "snapferry zstd", "snapferry s2"
    ratio("full import, zstd", "full", z, dedup, ">= 1.6x")
    ratio("full import, s2", "full", s, dedup, ">= 2.5x")
    ratio("increment", "incr", z, dedup, ">= 2x")
    ratio("bytes of the increment", "incr", z, dedup, ">= 2.5x", 1)
    ratio("copy of both", "copy", z, ["restic"], ">= 7x")
    ratio("copy of the increment", "copyincr", z, ["restic"], ">= 10x")
    ratio("durable export", "restore", z, dedup, ">= 1.6x")
    ratio("durable export", "restore", z, ["qemu-img"], ">= 1x")
    ratio("deep check", "verify", z, ["restic"], ">= 2x")
    if dedup and (z, "full") in med and (z, "incr") in med:
        both = {t: med[t, "full"][1] + med[t, "incr"][1] for t in [z, *dedup]}
        best = min((both[t], t) for t in dedup)
        print(f"| bytes of both | {best[1]} | {best[0] / both[z]:.2f}x | >= 1x |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--tools", default=",".join(TOOLS))
    p.add_argument("--bin", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bin", "snapferry"))
    args = p.parse_args()
    args.dir = os.path.abspath(args.dir)
    for v in ("v1.raw", "v2.raw"):
        if not os.path.exists(os.path.join(args.dir, v)):
            raise SystemExit(f"{args.dir}/{v} is missing: make it with images.sh {args.dir}")
    keys = [k for k in args.tools.split(",") if TOOLS[k][1] is None or shutil.which(TOOLS[k][1])]
    results = {}
    for n in range(args.runs):
        print(f"run {n + 1} of {args.runs}", file=sys.stderr)
        for key in keys:
            run(args, key, results)
    report(results)


if __name__ == "__main__":
    main()
