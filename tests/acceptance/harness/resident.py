"""Memory that a process holds, apart from weights that are mapped from their files."""
import re
import subprocess
import time



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


def peak(program, *arguments):
    """The most that it ever holds, seen ten times a second."""
    process = subprocess.Popen([str(program), *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, resident_without_weights(process.pid) or 0)
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(process.stderr.read()[-500:])
    return most
