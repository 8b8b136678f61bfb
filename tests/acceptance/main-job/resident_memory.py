"""Resident memory while 10 MB are read lazily and 1 MB eagerly, mapped weights aside."""
import time

import resident
import step

LIMIT = 1.0  # GiB


def body(s):
    for name, size, flag in (("lazily", 10_000_000, "--lazy"), ("eagerly", 1_000_000, "--eager")):
        if s.quick:
            size //= 10
        folder = s.folder / name
        folder.mkdir()
        for part in range(4):
            (folder / f"{part}.txt").write_text(step.novel_text(size // 4, skip=part * size // 4))
        started = time.time()
        most = resident.peak(step.MNEME, "read", folder, "-o", s.folder / f"{name}.mneme", flag)
        s.at_most(f"{size / 1e6:g} MB {name}: resident, mapped weights aside, GiB", most / 2**30, LIMIT)
        s.note(f"{size / 1e6:g} MB {name}: seconds", time.time() - started)


if __name__ == "__main__":
    step.main(body)
