#!/usr/bin/env python3
"""What it costs to make many partitions durable at once, by method. Prints the table of docs/performance.md.

Every round writes one 4 KiB page to each of N files and makes all of them durable; a figure is the time of
both, the median of the rounds, with the fastest and the slowest. Rounds of all methods are interleaved.

  python3 storage/benches/sync_cost.py DIRECTORY [ROUNDS]

Python, so that the crate keeps its only unsafe code in src/mapping.rs: writing through a mapping needs some.
"""
import ctypes, mmap, os, shutil, statistics, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor

PAGE = 4096
COUNTS = [1, 100, 1000]
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 7
libc = ctypes.CDLL(None, use_errno=True)
pools = {n: ThreadPoolExecutor(n) for n in (2, 8)}
for pool, n in ((p, n) for n, p in pools.items()):
    list(pool.map(lambda _: time.sleep(0.05), range(n)))


def sync_each(fds):
    for fd in fds:
        os.fdatasync(fd)


def sync_parallel(threads):
    def run(fds):
        list(pools[threads].map(sync_each, [fds[i::threads] for i in range(threads)]))
    return run


def sync_fs(fds):
    if libc.syncfs(fds[0]) != 0:
        raise OSError(ctypes.get_errno(), "syncfs")


METHODS = {
    "fdatasync, one by one": sync_each,
    "fdatasync, 2 threads": sync_parallel(2),
    "fdatasync, 8 threads": sync_parallel(8),
    "syncfs": sync_fs,
    "one shared journal": None,
}
BLOCKS = len(METHODS) * ROUNDS


def main():
    root = tempfile.mkdtemp(dir=sys.argv[1], prefix="sync-cost-")
    results = {}
    try:
        for through in ("pwrite", "mapping"):
            fds, maps = [], []
            for i in range(max(COUNTS)):
                fd = os.open(f"{root}/{through}-{i}", os.O_RDWR | os.O_CREAT)
                # A third of the blocks for each of the counts, so that fresh stays fresh.
                os.posix_fallocate(fd, 0, BLOCKS * len(COUNTS) * PAGE)
                fds.append(fd)
                maps.append(mmap.mmap(fd, BLOCKS * len(COUNTS) * PAGE) if through == "mapping" else None)
            journal = os.open(f"{root}/{through}-journal", os.O_RDWR | os.O_CREAT)
            # The journal takes the same pages into one file.
            os.posix_fallocate(journal, 0, ROUNDS * sum(COUNTS) * PAGE)
            jmap = mmap.mmap(journal, ROUNDS * sum(COUNTS) * PAGE) if through == "mapping" else None
            libc.syncfs(journal)
            for blocks in ("fresh", "recycled"):
                at = 0
                for c, count in enumerate(COUNTS):
                    for r in range(ROUNDS):
                        for m, (name, sync) in enumerate(METHODS.items()):
                            page = os.urandom(PAGE)
                            begin = time.perf_counter()
                            if sync is None:
                                for _ in range(count):
                                    if jmap is None:
                                        os.pwrite(journal, page, at)
                                    else:
                                        jmap[at:at + PAGE] = page
                                    at += PAGE
                                os.fdatasync(journal)
                            else:
                                offset = ((c * ROUNDS + r) * len(METHODS) + m) * PAGE
                                for i in range(count):
                                    if maps[i] is None:
                                        os.pwrite(fds[i], page, offset)
                                    else:
                                        maps[i][offset:offset + PAGE] = page
                                sync(fds[:count])
                            took = (time.perf_counter() - begin) * 1e3
                            results.setdefault((name, through, blocks, count), []).append(took)
                # The second pass over the same offsets is the recycled one. The files' last unwritten
                # blocks (those of the counts a file took no part in) are written before it.
                for i, fd in enumerate(fds):
                    os.pwrite(fd, bytes(BLOCKS * len(COUNTS) * PAGE), 0)
                os.pwrite(journal, bytes(PAGE), 0)
                libc.syncfs(journal)
            for m in maps:
                m and m.close()
            jmap and jmap.close()
            for fd in fds + [journal]:
                os.close(fd)
    finally:
        shutil.rmtree(root)
    print("| method | through | blocks | " + " | ".join(f"{c:,} dirty, ms" for c in COUNTS) + " |")
    print("| --- | --- | --- |" + " ---: |" * len(COUNTS))
    for name in METHODS:
        for through in ("pwrite", "mapping"):
            for blocks in ("fresh", "recycled"):
                cells = []
                for count in COUNTS:
                    took = results[name, through, blocks, count]
                    cells.append(f"{statistics.median(took):.2f} ({min(took):.2f} to {max(took):.2f})")
                print(f"| {name} | {through} | {blocks} | " + " | ".join(cells) + " |")


main()
