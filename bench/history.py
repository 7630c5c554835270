#!/usr/bin/env python3
"""Deletes every second snapshot of a history, with Snapferry and its peers, in
one run.

usage: history.py DIR [--snapshots N] [--changes N] [--tools a,b] [--bin PATH] [--rounds N] [--pause] [--grace TIME]

DIR holds v1.raw (see images.sh) and takes everything else. Each tool takes N
snapshots of the same disk, into 64 MiB of which CHANGES random pieces of 4 to
64 KiB are written between two snapshots, then deletes every second one and gives the space
back: restic by forget --prune, kopia by snapshot delete and a full maintenance,
Snapferry by deleting and letting its jobs come to rest, compaction and the
removal of objects included. Then the last snapshot is read back and compared.

The histories are made first, tool by tool; then each round deletes from a copy
of each, one tool after the other, and the medians of the rounds are printed.
Making takes long: --pause waits for a line on standard input after it, so that
the rounds can have a quiet machine.

Wall time includes a sync; CPU and memory are those of the command, for
Snapferry those of its region process too, whose peak starts anew before the
deletion. A region waits before it removes objects, for readers with old
addresses (reclaim_grace), and kopia before it removes blobs; nobody reads here,
so neither waits (--grace, and --safety=none).
Prints Markdown, with ratios to Snapferry.
"""
import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

import compare
from compare import proc, sh, size


# What changes lies in so many bytes of the disk, as that of most disks does: so
# snapshots have something of their own.
HOT = 64 << 20


def change(path, seed, pieces):
    """Overwrites random pieces of a disk, all in one part of it."""
    rng = random.Random(seed)
    begin = os.path.getsize(path) // 8
    with open(path, "r+b") as f:
        for _ in range(pieces):
            n = rng.choice([4, 8, 16, 32, 64]) << 10
            f.seek(begin + (rng.randrange(0, (HOT - n) >> 12) << 12))
            f.write(rng.randbytes(n // 2) * 2)
        f.flush()
        os.fsync(f.fileno())


class Restic(compare.Restic):
    def snapshots(self):
        got = self.out_of("restic", "-q", "--no-cache", "-r", self.repo[0], "snapshots", "--json")
        return [s["id"] for s in sorted(got, key=lambda s: s["time"])]

    def out_of(self, *argv):
        return json.loads(subprocess.run(argv, env=self.env, check=True, capture_output=True).stdout)

    def delete(self, ids):
        self.restic(0, "forget", "--prune", *ids)

    def restore_last(self):
        to = os.path.join(self.dir, "restored")
        self.restic(0, "restore", "latest", "--target", to, "--sparse")
        return to + self.disk


class Kopia(compare.Kopia):
    def __init__(self, args, dir):
        super().__init__(args, dir)
        self.cmd("kopia", "policy", "set", "--global", "--keep-latest", "1000")

    def snapshots(self):
        got = subprocess.run(["kopia", "snapshot", "list", "--json", "--all", f"{self.dir}/src"], env=self.env, check=True, capture_output=True)
        return [s["id"] for s in json.loads(got.stdout)]

    def delete(self, ids):
        self.cmd("kopia", "snapshot", "delete", "--delete", *ids)
        self.cmd("kopia", "maintenance", "run", "--full", "--safety=none")

    def restore_last(self):
        self.prepare_restore()
        self.restore()
        return self.out


class Snapferry(compare.Snapferry):
    def __init__(self, args, dir):
        super().__init__(args, dir)
        self.close()
        for region in ("east", "west", "north"):
            with open(f"{dir}/dev/{region}/config.yaml", "a") as f:
                f.write(f"reclaim_grace: {args.grace}\n")
        self.args, self.ids = args, []
        self.open()

    def open(self):
        super().__init__(self.args, self.dir)

    def backup(self, image):
        self.ids.append(self.ours("snapshot", "import", image, "--volume", "disk", "--region", "east")["id"])

    def snapshots(self):
        return list(self.ids)

    def delete(self, ids):
        began = time.monotonic()
        self.ours("snapshot", "delete", *ids, "--region", "east")
        print(f"  snapferry answered {len(ids)} deletions in {time.monotonic() - began:.2f} s", file=sys.stderr, flush=True)
        self.ours("region", "jobs", "--wait", "--region", "east")

    def restore_last(self):
        self.ours("snapshot", "export", self.ids[-1], self.out, "--region", "east")
        return self.out


TOOLS = {"snapferry": (Snapferry, None), "restic": (Restic, "restic"), "kopia": (Kopia, "kopia")}


def make(args, key):
    """Makes a tool's history, and leaves it closed in DIR/history-KEY."""
    dir = os.path.join(args.dir, "history-" + key)
    shutil.rmtree(dir, ignore_errors=True)
    os.makedirs(dir)
    disk = os.path.join(args.dir, "history.raw")
    shutil.copyfile(os.path.join(args.dir, "v1.raw"), disk)
    tool = TOOLS[key][0](args, dir)
    began = time.monotonic()
    for n in range(args.snapshots):
        if n > 0:
            change(disk, n, args.changes)
        tool.backup(disk)
    took = time.monotonic() - began
    tool.history = tool.snapshots()
    tool.close()
    if len(tool.history) != args.snapshots:
        raise SystemExit(f"{key}: {len(tool.history)} snapshots, want {args.snapshots}")
    print(f"  {key:10} made in {took:.0f} s", file=sys.stderr, flush=True)
    return tool


def measure(args, key, tool):
    """Deletes every second snapshot of a copy of a history, which stands where
    the history stood: the tools know their places by name."""
    kept = tool.dir + ".kept"
    os.rename(tool.dir, kept)
    try:
        sh("cp", "-a", kept, tool.dir)
        sh("sync", "-f", tool.dir)
        if hasattr(tool, "open"):
            tool.open()
        before = tool.stored()
        held = {p: proc(p) for p in tool.pids()}
        for p in tool.pids():
            with open(f"/proc/{p}/clear_refs", "w") as f:
                f.write("5")
        resting = max((proc(p)[1] for p in tool.pids()), default=0)
        pid = os.fork()
        t0 = time.monotonic()
        if pid == 0:  # so that what the children used is known of the deletion alone
            try:
                tool.delete(tool.history[0:-1:2])
                sh("sync", "-f", tool.dir)
                os._exit(0)
            except BaseException as e:
                print(e, file=sys.stderr, flush=True)
            os._exit(1)
        _, status, used = os.wait4(pid, 0)
        wall = time.monotonic() - t0
        if status:
            raise SystemExit(f"{key}: the deletion failed")
        cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        for p in tool.pids():
            c, m = proc(p)
            cpu, peak = cpu + c - held[p][0], max(peak, m)
        row = {"wall": wall, "cpu": cpu, "peak": peak, "before": before / 2**20, "after": tool.stored() / 2**20}
        sh("cmp", os.path.join(args.dir, "history.raw"), tool.restore_last())
        print(f"  {key:10} deleted in {wall:.2f} s wall, {cpu:.2f} s cpu, {peak:.0f} MiB peak ({resting:.0f} at rest); "
              f"{row['before']:.0f} -> {row['after']:.0f} MiB", file=sys.stderr, flush=True)
        return row
    finally:
        tool.close()
        shutil.rmtree(tool.dir, ignore_errors=True)
        os.rename(kept, tool.dir)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir")
    p.add_argument("--snapshots", type=int, default=100)
    p.add_argument("--changes", type=int, default=64)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--grace", default="0s")
    p.add_argument("--pause", action="store_true")
    p.add_argument("--tools", default=",".join(TOOLS))
    p.add_argument("--bin", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bin", "snapferry"))
    args = p.parse_args()
    args.dir = os.path.abspath(args.dir)
    keys = [k for k in args.tools.split(",") if TOOLS[k][1] is None or shutil.which(TOOLS[k][1])]
    tools = {}
    try:
        for key in keys:
            tools[key] = make(args, key)
        if args.pause:
            print("  made: a line goes on", file=sys.stderr, flush=True)
            sys.stdin.readline()
        rounds = {key: [] for key in keys}
        for _ in range(args.rounds):
            for key in keys:
                rounds[key].append(measure(args, key, tools[key]))
    finally:
        for key in keys:
            shutil.rmtree(os.path.join(args.dir, "history-" + key), ignore_errors=True)
    rows = {key: {name: statistics.median(r[name] for r in got) for name in got[0]} for key, got in rounds.items()}
    print(f"| tool | delete {args.snapshots // 2} of {args.snapshots}: wall s | CPU s | peak MiB | MiB before | MiB after | wall / ours | peak / ours |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    ours = rows.get("snapferry")
    for key, r in rows.items():
        times = (f"{r['wall'] / ours['wall']:.1f}x", f"{r['peak'] / ours['peak']:.1f}x") if ours else ("-", "-")
        print(f"| {key} | {r['wall']:.2f} | {r['cpu']:.2f} | {r['peak']:.0f} | {r['before']:.0f} | {r['after']:.0f} | {times[0]} | {times[1]} |")


if __name__ == "__main__":
    main()
