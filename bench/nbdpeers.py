#!/usr/bin/env python3
"""Measures an NBD server and its peers with fio, interleaved, in one run.

usage: nbdpeers.py DIR [--uri URI --pid PID] [--test BINARY] [--runs N] [--jobs a,b,...] [--fill]

DIR takes a file of random bytes (--size), which is kept, and a qcow2 image of
it. Measured, each over a unix socket:

  uri      the server of --uri, whose process is --pid
  test     the server of package nbd over the plain file, from a test binary
           (go test -c -o BINARY ./nbd)
  nbdkit   nbdkit file, over the same plain file
  qemu     qemu-nbd -f raw, over the same plain file
  qcow2    qemu-nbd -f qcow2

Those whose program is missing are left out, as are those not in --peers. Needs
fio with its nbd engine, which itself keeps about one core busy. Each run goes
through all peers before the next begins. Prints Markdown: medians of operations
a second (MB/s for jobs of 1 MiB), of the 99th percentile of latency and of the
server's CPU time for each operation, and what the first peer has as multiples
of each other one.
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

TICK = os.sysconf("SC_CLK_TCK")

# name: fio's --rw, --bs, --iodepth, --fsync
JOBS = {
    "randread-1": ("randread", "4k", 1, 0),
    "randread-32": ("randread", "4k", 32, 0),
    "randwrite-1": ("randwrite", "4k", 1, 0),
    "randwrite-32": ("randwrite", "4k", 32, 0),
    "flush-each-1": ("randwrite", "4k", 1, 1),
    "flush-32-32": ("randwrite", "4k", 32, 32),
    "read-1M-4": ("read", "1M", 4, 0),
    "write-1M-4": ("write", "1M", 4, 0),
    "write-1M-4-flush-16": ("write", "1M", 4, 16),
}


def cpu(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


class Server:
    """A server process that listens at a socket of its own."""

    def __init__(self, name, sock, argv):
        self.name, self.uri = name, f"nbd+unix:///?socket={sock}"
        if os.path.exists(sock):
            os.unlink(sock)
        self.proc = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        self.pid = self.proc.pid
        for _ in range(200):
            if os.path.exists(sock):
                return
            time.sleep(0.05)
        sys.exit(f"{name} did not make its socket")

    def stop(self):
        self.proc.send_signal(signal.SIGTERM)
        self.proc.wait()


class Given:
    """The server of --uri."""

    def __init__(self, uri, pid):
        self.name, self.uri, self.pid = "uri", uri, pid

    def stop(self):
        pass


def servers(a):
    raw = os.path.join(a.dir, "disk.raw")
    if not os.path.exists(raw) or os.path.getsize(raw) != a.size << 20:
        subprocess.run(["fio", "--name=fill", f"--filename={raw}", f"--size={a.size}M", "--rw=write", "--bs=4M",
                        "--ioengine=psync", "--refill_buffers", "--end_fsync=1"], check=True, stdout=subprocess.DEVNULL)
    found, want = [], a.peers.split(",")

    def add(name, program, *argv):
        if name in want and shutil.which(program):
            sock = os.path.join(a.dir, name + ".sock")
            found.append(Server(name, sock, [program, *[x.replace("SOCK", sock) for x in argv]]))

    if a.uri:
        found.append(Given(a.uri, a.pid))
    if a.test:
        add("test", os.path.abspath(a.test), "-test.run=^TestServeFile$", "-test.timeout=0", f"-serve-file={raw}", "-serve-socket=SOCK")
    add("nbdkit", "nbdkit", "-f", "-U", "SOCK", "file", raw)
    add("qemu", "qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", "SOCK", raw)
    if "qcow2" in want and shutil.which("qemu-img"):
        image = os.path.join(a.dir, "disk.qcow2")
        if not os.path.exists(image):
            subprocess.run(["qemu-img", "convert", "-U", "-f", "raw", "-O", "qcow2", "-S", "0", raw, image], check=True)
        add("qcow2", "qemu-nbd", "-t", "-e", "8", "-f", "qcow2", "-k", "SOCK", image)
    return found


def fill(server, a):
    """Writes all of the disk through the server, from the beginning to the end."""
    subprocess.run(["fio", "--name=fill", "--ioengine=nbd", f"--uri={server.uri}", f"--size={a.size}M", "--rw=write", "--bs=1M", "--iodepth=8",
                    "--refill_buffers", "--end_fsync=1"], check=True, stdout=subprocess.DEVNULL)


def measure(server, job, a):
    rw, bs, depth, fsync = JOBS[job]
    os.sync()
    argv = ["fio", f"--name={job}", "--ioengine=nbd", f"--uri={server.uri}", f"--size={a.size}M", f"--rw={rw}", f"--bs={bs}",
            f"--iodepth={depth}", f"--runtime={a.seconds}", "--time_based", "--refill_buffers", "--norandommap", "--randrepeat=0",
            "--output-format=json"]
    if fsync:
        argv.append(f"--fsync={fsync}")
    before = cpu(server.pid) if server.pid else 0
    out = subprocess.run(argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60 + 4 * a.seconds).stdout
    spent = cpu(server.pid) - before if server.pid else 0
    j = json.loads(out[out.index("{"):])["jobs"][0]
    x = j["read"] if rw.endswith("read") else j["write"]
    rate = x["bw_bytes"] / 1e6 if bs == "1M" else x["iops"]
    return rate, x["clat_ns"]["percentile"]["99.000000"] / 1e3, spent * 1e6 / max(x["total_ios"], 1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir")
    p.add_argument("--uri")
    p.add_argument("--pid", type=int)
    p.add_argument("--test")
    p.add_argument("--peers", default="test,nbdkit,qemu,qcow2")
    p.add_argument("--jobs", default=",".join(JOBS))
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--seconds", type=int, default=4)
    p.add_argument("--fill", action="store_true", help="first write each disk through its server")
    p.add_argument("--size", type=int, default=2048, help="MiB")
    a = p.parse_args()
    os.makedirs(a.dir, exist_ok=True)
    all_servers = servers(a)
    try:
        first, others = all_servers[0], all_servers[1:]
        for s in all_servers if a.fill else []:
            fill(s, a)
        print("| job | " + " | ".join(s.name for s in all_servers) + " | " + " | ".join(f"{first.name} / {s.name}" for s in others)
              + " | p99 us | server CPU us/op |")
        print("|---" * (3 + len(all_servers) + len(others)) + "|")
        for job in a.jobs.split(","):
            got = {s.name: [] for s in all_servers}
            for _ in range(a.runs):
                for s in all_servers:
                    got[s.name].append(measure(s, job, a))
            med = {n: [statistics.median(c) for c in zip(*v)] for n, v in got.items()}
            cells = [job] + [f"{med[s.name][0]:,.0f}" for s in all_servers]
            cells += [f"{med[first.name][0] / med[s.name][0]:.2f}" for s in others]
            cells += [" / ".join(f"{med[s.name][1]:.0f}" for s in all_servers), " / ".join(f"{med[s.name][2]:.1f}" for s in all_servers)]
            print("| " + " | ".join(cells) + " |", flush=True)
    finally:
        for s in all_servers:
            s.stop()


if __name__ == "__main__":
    main()
