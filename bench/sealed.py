#!/usr/bin/env python3
"""Measures what sealing costs: the same work on a plain and on an encrypted snapshot.

usage: sealed.py DIR [--runs N] [--codecs zstd,s2] [--bin PATH]

DIR holds v1.raw (see images.sh) and takes everything. Two regions are processes of
their own on the loopback, with TLS between them. In each run, plain and sealed by
turns:

  import   of v1.raw into the first region
  copy     to the second region, where the sealed one is sealed with a key of that region
  export   of the first region's snapshot to a file, durably
  re-key   of the sealed snapshot: a copy inside its region under another key, beside the
           sealed copy to the second region
  lend     a copy to the second region under a third key: that region has the content
           already, and seals it again

Times are those of whole commands, which end when all is durable. Every export is
compared with the image. Prints Markdown: medians, and plain over sealed.
"""
import argparse
import os
import shutil
import statistics
import sys

import compare


class Pair(compare.Snapferry):
    """Regions with a plain and a sealed snapshot."""

    def __init__(self, args, dir):
        super().__init__(args, dir)
        self.ids = {}
        for region in ("east", "west"):
            for alias in ("one", "two"):
                self.ours("key", "create", "--alias", alias, "--region", region)

    def copied(self, source, to, *flags):
        s = self.ours("snapshot", "copy", source, "--from", "east", "--to", to, "--wait", *flags)
        if s["state"] != "ready":
            raise SystemExit(f"a copy is {s['state']}: {s.get('reason')}")
        return s

    def import_plain(self):
        self.ids["plain"] = self.ours("snapshot", "import", self.v1, "--volume", "plain", "--region", "east")["id"]

    def import_sealed(self):
        self.ids["sealed"] = self.ours("snapshot", "import", self.v1, "--volume", "sealed", "--region", "east", "--encrypt", "--key", "one")["id"]

    def copy_plain(self):
        self.copied(self.ids["plain"], "west", "--full")

    def copy_sealed(self):
        self.ids["west"] = self.copied(self.ids["sealed"], "west", "--full", "--encrypt", "--key", "one")["id"]

    def export_plain(self):
        self.ours("snapshot", "export", self.ids["plain"], self.out, "--region", "east")

    def export_sealed(self):
        self.ours("snapshot", "export", self.ids["sealed"], self.out, "--region", "east")

    def rekey(self):
        self.copied(self.ids["sealed"], "east", "--encrypt", "--key", "two")

    def lend(self):
        s = self.copied(self.ids["sealed"], "west", "--encrypt", "--key", "two")
        if s["bytes"].get("lent", 0) != s["bytes"]["present"]:
            raise SystemExit(f"not all was lent: {s['bytes']}")


def run(args, codec, n, results):
    cls = type("Pair" + codec, (Pair,), {"codec": codec})
    dir = os.path.join(args.dir, "run-sealed")
    shutil.rmtree(dir, ignore_errors=True)
    os.makedirs(dir)
    tool = cls(args, dir)
    try:
        order = ("plain", "sealed") if n % 2 == 0 else ("sealed", "plain")
        jobs = [f"{what}_{how}" for what in ("import", "copy", "export") for how in order] + ["rekey", "lend"]
        for job in jobs:
            wall, cpu, _ = compare.timed(tool, job, [tool.v1])
            results.setdefault((codec, job), []).append((wall, cpu))
            print(f"  {codec:5} {job:14} {wall:7.2f} s wall {cpu:7.2f} s cpu", file=sys.stderr, flush=True)
            if job.startswith("export"):
                compare.sh("cmp", tool.v1, tool.out)
                os.remove(tool.out)
    finally:
        tool.close()
        shutil.rmtree(dir, ignore_errors=True)


def report(results, codecs):
    def median(codec, job, column):
        return statistics.median(row[column] for row in results[codec, job])

    print("| job | codec | plain s | sealed s | plain / sealed | plain CPU s | sealed CPU s |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for what in ("import", "copy", "export"):
        for codec in codecs:
            p, s = median(codec, what + "_plain", 0), median(codec, what + "_sealed", 0)
            print(f"| {what} | {codec} | {p:.2f} | {s:.2f} | {p / s:.2f} | {median(codec, what + '_plain', 1):.2f} | {median(codec, what + '_sealed', 1):.2f} |")
    print()
    print("| a sealed snapshot under another key | codec | s | sealed copy over the loopback, s | copy / this |")
    print("|---|---|--:|--:|--:|")
    for job, name in (("rekey", "inside its region"), ("lend", "in the second region, which has it")):
        for codec in codecs:
            t, c = median(codec, job, 0), median(codec, "copy_sealed", 0)
            print(f"| {name} | {codec} | {t:.2f} | {c:.2f} | {c / t:.2f} |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--codecs", default="zstd,s2")
    p.add_argument("--bin", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bin", "snapferry"))
    args = p.parse_args()
    args.dir = os.path.abspath(args.dir)
    if not os.path.exists(os.path.join(args.dir, "v1.raw")):
        raise SystemExit(f"{args.dir}/v1.raw is missing: make it with images.sh {args.dir}")
    codecs, results = args.codecs.split(","), {}
    for n in range(args.runs):
        print(f"run {n + 1} of {args.runs}", file=sys.stderr)
        for codec in codecs:
            run(args, codec, n, results)
    report(results, codecs)


if __name__ == "__main__":
    main()
