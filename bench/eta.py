#!/usr/bin/env python3
"""Compares what is said of copies under way, when they will end, with when they do.

usage: eta.py DIR [--rate BYTES] [--rtt MS] [--mib N] [--only CASE,...]

DIR takes everything and must be empty or missing. Two regions, processes of
"snapferry serve", copy disks of random bytes over a link whose connections share a
rate and a delay that do not change (bench/linktest). "copy show -o json" is asked
once a second. The cases:

  alone      one copy of N MiB
  rate       one copy of N/2 MiB, held to half the link's rate by --rate
  two        two copies, of N/2 and N MiB, begun together
  increment  a quarter of a disk of N MiB, which changed
  deadline   copies with --complete-within on a link that "limit set" holds to half:
             one that can hold, one that cannot, two of which the one that was asked for
             later must be done earlier, and one for which the limit is lowered

Prints Markdown: at about 10, 25, 50, 75 and 90 % of the bytes, the predicted span
and the real end, in seconds from then, and by how much the middle of the span is off,
of the real time. After the first 10 % the real end must lie in the span, or the middle
be off by 20 % at most; the last line says how many samples that holds for.
"""
import argparse
import datetime
import os
import subprocess
import sys
import time

from compare import Snapferry
from link import HERE, Regions, prepared

MARKS = (10, 25, 50, 75, 90)
FINAL = ("done", "failed", "cancelled")


def at(text):
    """Seconds of a time in JSON, which has up to nine digits behind the second."""
    head, _, zone = text.partition(".")
    if not zone:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    digits = zone[:-1] if zone.endswith("Z") else zone[:-6]
    zone = "+00:00" if zone.endswith("Z") else zone[-6:]
    return datetime.datetime.fromisoformat(head + zone).timestamp() + float("0." + digits)


class Disks(Regions):
    """Two regions, of which one has snapshots of random disks."""

    def __init__(self, args, dir):
        Snapferry.__init__(self, args, dir)
        half, full = args.mib // 2, args.mib
        self.full, self.half = self.disk("full", full), self.disk("half", half)
        # A quarter of the disk, in one piece of each 16 MiB, changes.
        path, self.deadline = f"{dir}/full.raw", self.disk("deadline", half)
        with open(path, "r+b") as f:
            for leaf in range(0, full, 16):
                f.seek(leaf + 4 << 20)
                f.write(os.urandom(4 << 20))
        self.changed = self.ours("snapshot", "import", path, "--volume", "full", "--region", "east")["id"]
        self.close()

    def disk(self, name, mib):
        path = f"{self.dir}/{name}.raw"
        with open(path, "wb") as f:
            for _ in range(mib):
                f.write(os.urandom(1 << 20))
        return self.ours("snapshot", "import", path, "--volume", name, "--region", "east")["id"]

    def copy(self, snapshot, *more):
        """Begins a copy; returns its id and that of the snapshot it makes."""
        made = self.ours("snapshot", "copy", snapshot, "--from", "east", "--to", "west", *more)["id"]
        return next(c["id"] for c in self.ours("copy", "list", "--region", "west", "--all")["copies"] if c["snapshot"] == made)

    def ours(self, *argv):
        try:
            return super().ours(*argv)
        except subprocess.CalledProcessError as e:
            raise SystemExit(f"{' '.join(argv)}: {e.stderr.decode()}") from e

    def show(self, id):
        return self.ours("copy", "show", id, "--region", "west")

    def refused(self, snapshot, *more):
        got = subprocess.run([self.bin, "snapshot", "copy", snapshot, "--from", "east", "--to", "west", *more], env=self.env, capture_output=True, text=True)
        return got.returncode, got.stderr.strip().splitlines()[0] if got.returncode else ""

    def limit(self, rate):
        self.ours("limit", "set", "link/east", "--rate", str(rate), "--region", "west")


def watch(r, copies, each=lambda elapsed, rows: None):
    """Samples copies once a second until they have ended: by name, rows of the time,
    the part of the bytes that crossed, and the copy."""
    rows, began = {name: [] for name in copies}, time.time()
    while copies.keys() - {n for n, all in rows.items() if all and all[-1][2]["state"] in FINAL}:
        t0 = time.time()
        for name, id in copies.items():
            if rows[name] and rows[name][-1][2]["state"] in FINAL:
                continue
            t = time.time()
            c = r.show(id)
            p = c.get("progress") or {}
            all = p.get("moved", 0) + p.get("to_move", 0)
            rows[name].append((t, p.get("moved", 0) / all if all else 0, c))
        each(time.time() - began, rows)
        time.sleep(max(1 - (time.time() - t0), 0))
    return rows


class Table:
    def __init__(self):
        self.lines, self.good, self.all = [], 0, 0

    def add(self, case, name, rows):
        end = at(rows[-1][2]["finished"])
        if rows[-1][2]["state"] != "done":
            raise SystemExit(f"{case}: {name} ended as {rows[-1][2]}")
        marks = list(MARKS)
        for t, part, c in rows[:-1]:
            span, left = (c.get("progress") or {}).get("ends"), end - t
            if not span:
                if marks and 100 * part >= marks[0] and part < 1:
                    self.lines.append(f"| {case} | {name} | {100 * part:.0f} | - | - | {left:.1f} | not known |")
                    marks = [m for m in marks if m > 100 * part]
                continue
            lo, hi = at(span["earliest"]) - t, at(span["latest"]) - t
            off = ((lo + hi) / 2 - left) / left * 100
            inside = lo <= left <= hi
            if part >= 0.1:
                self.all, self.good = self.all + 1, self.good + (inside or abs(off) <= 20)
            if marks and 100 * part >= marks[0]:
                self.lines.append(f"| {case} | {name} | {100 * part:.0f} | {lo:.1f} | {hi:.1f} | {left:.1f} | {off:+.0f}{'' if inside else ', outside'} |")
                marks = [m for m in marks if m > 100 * part]
            if os.environ.get("ETA_ALL"):
                print(f"    {case} {name} {100 * part:5.1f} {lo:6.1f} {hi:6.1f} {left:6.1f} {off:+5.0f} {inside}", file=sys.stderr)


def deadlines(r, args, lines):
    """The least time that may be asked for is a minute."""
    rate, late = args.rate // 2, lambda rows: rows[-1][2].get("late", False)

    def took(rows):
        c = rows[-1][2]
        return f"done after {at(c['finished']) - at(c['created']):.0f} s, late: {str(late(rows)).lower()}"

    r.limit(rate // 4)
    code, why = r.refused(r.deadline, "--full", "--complete-within", "60s")
    lines.append(f"| cannot hold: the limit is {rate / 4e6:g} MB/s | 60 | exit code {code}: {why} |")
    r.limit(rate)
    rows = watch(r, {"": r.copy(r.deadline, "--full", "--complete-within", "60s")})[""]
    lines.append(f"| can hold: it is {rate / 1e6:g} MB/s | 60 | admitted; {took(rows)} |")
    # Two: the second must be done first.
    a, b = (r.copy(s, "--full", "--complete-within", within) for s, within in ((r.half, "150s"), (r.deadline, "75s")))
    rows = watch(r, {"a": a, "b": b})
    at_half = next(i for i, x in enumerate(rows["b"]) if x[1] >= 0.5)
    lines.append(f"| two, the first | 150 | {took(rows['a'])}; at {100 * rows['a'][at_half][1]:.0f} % when the second is at {100 * rows['b'][at_half][1]:.0f} % |")
    lines.append(f"| two, the second | 75 | {took(rows['b'])} |")
    # One that becomes late.
    marked, lowered = [], []

    def lower(elapsed, rows):
        t, part, c = rows[""][-1]
        if part >= 0.3 and not lowered:
            r.limit(rate // 8)
            lowered.append(time.time())
        if c.get("late") and not marked:
            marked.append((t, at(c["deadline"]) - t))
            r.limit(0)
    rows = watch(r, {"": r.copy(r.deadline, "--full", "--complete-within", "60s")}, lower)[""]
    when = f"marked {marked[0][0] - lowered[0]:.1f} s later, {marked[0][1]:.0f} s before the deadline" if marked else "never marked"
    lines.append(f"| the limit is lowered to an eighth at 30 % | 60 | {when}; the limit is taken away then: {took(rows)} |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir")
    p.add_argument("--rate", type=int, default=20_000_000)
    p.add_argument("--rtt", type=float, default=50)
    p.add_argument("--mib", type=int, default=512)
    p.add_argument("--only", default="alone,rate,two,increment,deadline")
    p.add_argument("--bin", default=os.path.join(HERE, "..", "bin", "snapferry"))
    args = prepared(p.parse_args())
    r, table, lines = Disks(args, args.dir), Table(), []
    r.run(args)
    try:
        for case in args.only.split(","):
            if case == "deadline":
                deadlines(r, args, lines)
                continue
            copies = {
                "alone": lambda: {"": r.copy(r.full, "--full")},
                "rate": lambda: {"": r.copy(r.half, "--full", "--rate", str(args.rate // 2))},
                "two": lambda: {"small": r.copy(r.half, "--full"), "large": r.copy(r.full, "--full")},
                "increment": lambda: {"": r.copy(r.changed)},
            }[case]()
            for name, rows in watch(r, copies).items():
                table.add(case, name, rows)
            print(f"  {case}", file=sys.stderr, flush=True)
    finally:
        r.end()
    print(f"\nLink: {args.rate / 1e6:g} MB/s, {args.rtt:g} ms; disks of {args.mib} and {args.mib // 2} MiB\n")
    if table.lines:
        print("| case | copy | % of the bytes | earliest | latest | real | middle off by % |")
        print("|---|---|--:|--:|--:|--:|--:|")
        print("\n".join(table.lines))
        print(f"\n{table.good} of {table.all} samples after the first 10 % have the real end in the span, or its middle within 20 %")
    if lines:
        print("\n| deadline | within s | what happened |")
        print("|---|--:|---|")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
