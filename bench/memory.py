#!/usr/bin/env python3
"""Measures the memory of two regions while many copies are under way.

usage: memory.py DIR [--copies N] [--mib N] [--rate BYTES] [--rtt MS] [--memory BYTES] [--only NAME]

DIR takes everything and must be empty or missing; it needs twice the size of all
disks. N volumes (20) of as many MiB (256) of random bytes are imported into one
region, and all are copied to the other at the same time, twice: over a link of a
rate and a round trip (bench/linktest), and without one (--only link, --only direct:
one of them). Both regions are processes of "snapferry serve", started anew each
time.

What is printed, as Markdown: the byte budget of a region, the key memory of its
configuration; its resident memory, read ten times a second from /proc: the median
while all copies were under way, and the peak (VmHWM); of the peak, what lay in files
(RssFile: the program itself for the most part); and the difference of peak and
budget.
"""
import argparse
import os
import statistics
import subprocess
import sys
import threading
import time

from compare import Snapferry
from link import HERE, Regions, prepared

DEFAULT = 220 << 20  # the budget of a region whose configuration has none


def status(pid):
    """What /proc says of a process's memory, in bytes."""
    with open(f"/proc/{pid}/status") as f:
        rows = (line.split() for line in f)
        return {r[0][:-1]: int(r[1]) << 10 for r in rows if r[0].startswith(("VmHWM", "Rss", "VmRSS"))}


class Sampler(threading.Thread):
    """Reads the memory of processes ten times a second until it is stopped."""

    def __init__(self, pids):
        super().__init__()
        self.samples, self.ended = {p: [] for p in pids}, threading.Event()
        for p in pids:
            with open(f"/proc/{p}/clear_refs", "w") as f:
                f.write("5")  # the peak starts anew
        self.start()

    def run(self):
        while not self.ended.wait(0.1):
            for p, all in self.samples.items():
                all.append((time.monotonic(), status(p)))

    def stop(self):
        self.ended.set()
        self.join()


class Many(Regions):
    """Two regions, of which one has many volumes."""

    def __init__(self, args, dir):
        Snapferry.__init__(self, args, dir)
        disk = f"{dir}/disk.raw"
        self.snapshots = []
        for n in range(args.copies):
            with open(disk, "wb") as f:
                for _ in range(args.mib):
                    f.write(os.urandom(1 << 20))
            self.snapshots.append(self.ours("snapshot", "import", disk, "--volume", f"disk{n}", "--region", "east")["id"])
        os.remove(disk)
        self.close()  # those that are measured are others

    def configure(self, memory):
        """Gives both regions a budget, and room for all copies at once."""
        for r in ("east", "west"):
            with open(f"{self.dev}/{r}/config.yaml", "a") as f:
                f.write(f"memory: {memory}\n")


def measure(args, many, results, name):
    for s in many.snapshots:
        many.ours("snapshot", "copy", s, "--from", "east", "--to", "west", "--full")
    pids = {r: p.pid for r, p in zip(("east", "west"), many.all)}
    sampler = Sampler(pids.values())
    began, moving = time.monotonic(), []
    while True:
        all = many.ours("copy", "list", "--region", "west", "--all")["copies"]
        failed = [c for c in all if c["state"] in ("failed", "cancelled") and c.get("ending") != "cancelled"]
        if failed:
            raise SystemExit(f"a copy failed: {failed[0]}")
        active = [c for c in all if c["state"] not in ("done", "failed", "cancelled")]
        moving.append((time.monotonic(), sum(c["state"] != "queued" for c in active)))
        if not active:
            break
        time.sleep(0.5)
    took = time.monotonic() - began
    sampler.stop()
    # All were under way between the first and the last time that so many were seen.
    most = max(n for _, n in moving)
    full = [t for t, n in moving if n == most]
    if most < args.copies or len(full) < 2:
        print(f"  {name}: {most} of {args.copies} copies were seen at once, {len(full)} times: take larger disks", file=sys.stderr)
    for r, p in pids.items():
        rows = sampler.samples[p]
        steady = statistics.median([s["VmRSS"] for t, s in rows if full[0] <= t <= full[-1]] or [0])
        top = max((s for _, s in rows), key=lambda s: s["VmRSS"])
        results.append((name, r, most, took, args.memory, steady, status(p)["VmHWM"], top["RssFile"]))
        if args.samples:
            with open(f"{args.samples}-{name}-{r}.tsv", "w") as f:
                for t, s in rows:
                    f.write(f"{t - began:.1f}\t{s['VmRSS'] >> 20}\t{s['RssFile'] >> 20}\n")
    for c in all:
        if c["state"] == "done" and c["snapshot"]:
            subprocess.run([many.bin, "snapshot", "delete", c["snapshot"], "--region", "west"], env=many.env, capture_output=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir")
    p.add_argument("--copies", type=int, default=20)
    p.add_argument("--mib", type=int, default=256)
    p.add_argument("--rate", type=int, default=50_000_000)
    p.add_argument("--rtt", type=float, default=50)
    p.add_argument("--memory", type=int, default=DEFAULT)
    p.add_argument("--only", choices=("link", "direct"))
    p.add_argument("--samples", help="beginning of the names of files for all samples")
    p.add_argument("--bin", default=os.path.join(HERE, "..", "bin", "snapferry"))
    args = prepared(p.parse_args())
    results = []
    many = Many(args, args.dir)
    many.configure(args.memory)
    link = args.rate, args.rtt
    for name in ("link", "direct"):
        if args.only not in (None, name):
            continue
        args.rate, args.rtt = link if name == "link" else (0, 0)
        many.run(args)
        try:
            measure(args, many, results, name)
        finally:
            many.end()
        print(f"  {name}: {results[-1][3]:.1f} s", file=sys.stderr, flush=True)
    mib = 1 << 20
    print(f"\n{args.copies} copies of {args.mib} MiB at once; link: {link[0] / 1e6:g} MB/s, {link[1]:g} ms\n")
    print("| way | region | at once | s | budget MiB | steady MiB | peak MiB | of it files | peak - budget |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, region, most, took, budget, steady, peak, files in results:
        print(f"| {name} | {region} | {most} | {took:.1f} | {budget / mib:.0f} | {steady / mib:.0f} | {peak / mib:.0f} | {files / mib:.0f} | {(peak - budget) / mib:.0f} |")


if __name__ == "__main__":
    main()
