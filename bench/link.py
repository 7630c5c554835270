#!/usr/bin/env python3
"""Copies the same disk over the same long link with Snapferry and with peers.

usage: link.py DIR [--mib N] [--rate BYTES] [--rtt MS] [--runs N] [--image FILE]

DIR takes everything and must be empty or missing. The disk is --image, or N MiB
of random bytes. All go through one proxy (bench/linktest), whose connections
share the rate and the delay, in one run:

  snapferry   snapshot copy between two regions, each a process of its own
  rclone      rclone copy of the objects of the first region from rclone serve
              http, by all of 4, 8 and 16 transfers
  restic      restic copy from a repository that restic's own protocol serves
              (rclone serve restic), with 5 and 16 connections

The time of a tool is that of its whole command; what it stores at the near end is
not synced but by Snapferry. What is moved is what has passed the link. Prints
Markdown: medians, and what part of the link's rate the stored bytes make.
"""
import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time

from compare import SnapferryS2, Tool, size

HERE = os.path.dirname(os.path.abspath(__file__))


def serve(argv, port, log):
    """Starts a server and waits until its port answers."""
    import socket
    p = subprocess.Popen(argv, stdout=log, stderr=log)
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return p
        except OSError:
            if p.poll() is not None:
                raise SystemExit(f"{argv[0]} ended: see {log.name}")
            time.sleep(0.05)
    raise SystemExit(f"{argv[0]} does not answer")


def free_port():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def prepared(args):
    """Returns the arguments of a script when its directory is empty, and the proxy in it."""
    args.dir = os.path.abspath(args.dir)
    os.makedirs(args.dir, exist_ok=True)
    if os.listdir(args.dir):
        raise SystemExit(f"{args.dir} is not empty")
    args.linktest = f"{args.dir}/linktest"
    subprocess.run(["go", "build", "-o", args.linktest, "./bench/linktest"], check=True, cwd=os.path.join(HERE, ".."))
    return args


class Link:
    """A long link to an address of this machine."""

    def __init__(self, args, to, listen="127.0.0.1:0"):
        self.p = subprocess.Popen([args.linktest, "-listen", listen, "-to", to, "-rate", str(args.rate), "-rtt", f"{args.rtt}ms"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self.p.stdout.readline().strip()

    def close(self):
        """Ends the link; returns the bytes that came back over it."""
        out, _ = self.p.communicate()
        return int(out.split()[1])


class Regions(SnapferryS2):
    """Two regions that reach each other over a link. dev writes the addresses of
    the regions into their configuration: they run once for that, then west is
    told that east is where the link begins."""

    codec = "zstd"
    text = ""  # of west's configuration, without a link

    def __init__(self, args, dir):
        super().__init__(args, dir)
        self.s1 = self.ours("snapshot", "import", args.image, "--volume", "disk", "--region", "east")["id"]

    def over_link(self, args):
        """Runs west again with east at the end of a link."""
        self.close()
        self.run(args)

    def run(self, args):
        """Runs both regions, with east at the end of a link."""
        config = f"{self.dev}/west/config.yaml"
        if not self.text:
            with open(config) as f:
                self.text = f.read()
        with open(f"{self.dev}/east/config.yaml") as f:
            east = next(line.split()[-1] for line in f.read().split("peer:", 1)[1].splitlines() if "listen:" in line)
        self.link = Link(args, east)
        with open(config, "w") as f:
            f.write(self.text.replace(east, self.link.address))
        self.log = open(f"{self.dir}/serve.log", "w")
        self.all = [subprocess.Popen([self.bin, "serve", "--config", f"{self.dev}/{r}/config.yaml"], stdout=self.log, stderr=self.log, env=self.env) for r in ("east", "west")]
        for r in ("east", "west"):
            for _ in range(200):
                if subprocess.run([self.bin, "snapshot", "list", "--region", r], env=self.env, capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                raise SystemExit(f"region {r} did not start: see {self.log.name}")

    def copy(self):
        self.ours("snapshot", "copy", self.s1, "--from", "east", "--to", "west", "--full", "--wait")

    def end(self):
        for p in self.all:
            p.terminate()
        for p in self.all:
            p.wait()
        self.log.close()
        return self.link.close()


def timed(fn):
    t0 = time.monotonic()
    fn()
    return time.monotonic() - t0


def snapferry(args, dir, results):
    r = Regions(args, dir)
    stored = r.stored()
    r.over_link(args)
    try:
        took = timed(r.copy)
    finally:
        back = r.end()
    results.setdefault("snapferry", []).append((took, stored, back))
    return f"{r.dev}/east/data/bucket"


def rclone(args, dir, objects, transfers, results):
    port = free_port()
    with open(f"{dir}/rclone.log", "w") as log:
        server = serve(["rclone", "serve", "http", objects, "--addr", f"127.0.0.1:{port}"], port, log)
        link = Link(args, f"127.0.0.1:{port}")
        try:
            took = timed(lambda: subprocess.run(["rclone", "copy", "-q", "--transfers", str(transfers), "--checkers", str(transfers), "--multi-thread-streams", "4",
                                                 "--http-url", f"http://{link.address}", ":http:", f"{dir}/to"], check=True, stderr=log))
        finally:
            server.terminate()
            server.wait()
            back = link.close()
    if size(f"{dir}/to") != size(objects):
        raise SystemExit("rclone did not copy everything")
    results.setdefault(f"rclone copy, {transfers} transfers", []).append((took, size(objects), back))


def restic(args, dir, connections, results):
    env = dict(os.environ, RESTIC_PASSWORD="x", RESTIC_FROM_PASSWORD="x")
    quiet = {"env": env, "check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["restic", "-q", "init", "-r", f"{dir}/from"], **quiet)
    subprocess.run(["restic", "-q", "--no-cache", "--pack-size", "64", "-r", f"{dir}/from", "backup", args.image], **quiet)
    subprocess.run(["restic", "-q", "init", "-r", f"{dir}/to", "--from-repo", f"{dir}/from", "--copy-chunker-params"], **quiet)
    port = free_port()
    with open(f"{dir}/restic.log", "w") as log:
        server = serve(["rclone", "serve", "restic", f"{dir}/from", "--addr", f"127.0.0.1:{port}"], port, log)
        link = Link(args, f"127.0.0.1:{port}")
        try:
            took = timed(lambda: subprocess.run(["restic", "-q", "--no-cache", "--pack-size", "64", "-o", f"rest.connections={connections}", "-r", f"{dir}/to",
                                                 "copy", "--from-repo", f"rest:http://{link.address}/"], **quiet, stderr=log))
        finally:
            server.terminate()
            server.wait()
            back = link.close()
    results.setdefault(f"restic copy, {connections} connections", []).append((took, size(f"{dir}/from"), back))


def report(args, results):
    ours = statistics.median(row[0] for row in results["snapferry"])
    print(f"\n{args.rate / 1e6:g} MB/s, {args.rtt:g} ms, {os.path.getsize(args.image) >> 20} MiB, medians of {args.runs}:\n")
    print("| tool | s | MiB stored | MiB over the link | % of the rate | / snapferry |")
    print("|---|--:|--:|--:|--:|--:|")
    for tool, rows in results.items():
        took, stored, back = (statistics.median(c) for c in zip(*rows))
        print(f"| {tool} | {took:.2f} | {stored / 2**20:.1f} | {back / 2**20:.1f} | {100 * stored / args.rate / took:.0f} | {took / ours:.2f}x |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir")
    p.add_argument("--mib", type=int, default=400)
    p.add_argument("--rate", type=int, default=50_000_000)
    p.add_argument("--rtt", type=float, default=100)
    p.add_argument("--runs", type=int, default=1)
    p.add_argument("--image")
    p.add_argument("--bin", default=os.path.join(HERE, "..", "bin", "snapferry"))
    args = prepared(p.parse_args())
    if not args.image:
        args.image = f"{args.dir}/disk.raw"
        with open(args.image, "wb") as f:
            for _ in range(args.mib):
                f.write(os.urandom(1 << 20))
    results = {}

    def step(name, fn):
        dir = f"{args.dir}/{name}"
        os.makedirs(dir)
        try:
            return fn(dir)
        finally:
            for tool, rows in results.items():
                print(f"  {tool:28} {rows[-1][0]:7.2f} s", file=sys.stderr, flush=True)
            if name != "snapferry":
                shutil.rmtree(dir)

    for n in range(args.runs):
        objects = step("snapferry", lambda d: snapferry(args, d, results))
        if shutil.which("rclone"):
            for transfers in (4, 8, 16):
                step(f"rclone{transfers}", lambda d: rclone(args, d, objects, transfers, results))
        if shutil.which("rclone") and shutil.which("restic"):
            for connections in (5, 16):
                step(f"restic{connections}", lambda d: restic(args, d, connections, results))
        shutil.rmtree(f"{args.dir}/snapferry")
    report(args, results)


if __name__ == "__main__":
    main()
