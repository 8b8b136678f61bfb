"""Resident memory while 10 MB are read lazily and 1 MB eagerly, mapped weights aside."""
import re
import subprocess
import time

import step

LIMIT = 1.0  # GiB


def resident_without_weights(pid):
    """Bytes that a process holds in memory, less what is mapped from files of weights; None when it is gone."""
    try:
        text = open(f"/proc/{pid}/smaps").read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    total = weights = 0
    name = ""
    for line in text.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) > 5 else ""
        elif line.startswith("Rss:"):
            size = int(line.split()[1]) * 1024
            total += size
            if name.endswith((".gguf", ".safetensors")):
                weights += size
    return (total - weights) or None


def peak(*arguments):
    process = subprocess.Popen([str(step.MNEME), *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, resident_without_weights(process.pid) or 0)
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(process.stderr.read()[-500:])
    return most


def body(s):
    for name, size, flag in (("lazily", 10_000_000, "--lazy"), ("eagerly", 1_000_000, "--eager")):
        if s.quick:
            size //= 10
        folder = s.folder / name
        folder.mkdir()
        for part in range(4):
            (folder / f"{part}.txt").write_text(step.novel_text(size // 4, skip=part * size // 4))
        started = time.time()
        most = peak("read", folder, "-o", s.folder / f"{name}.mneme", flag)
        s.at_most(f"{size / 1e6:g} MB {name}: resident, mapped weights aside, GiB", most / 2**30, LIMIT)
        s.note(f"{size / 1e6:g} MB {name}: seconds", time.time() - started)


if __name__ == "__main__":
    step.main(body)
