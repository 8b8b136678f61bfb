"""What limits attention over 4-bit pages: the instructions or the memory. No bars: it explains one that is missed or met by a hair, as memory is fast or slow."""
import json
import subprocess

import step

DEPTH = 6144
CACHED = {128: "second", 2048: "third"}  # cache that holds the pages of so many entries in all layers
BYTES = 30 * 3 * 64 * 2 * (0.5 + 0.125)  # a token's keys and values in all layers: codes, a scale and a minimum for 32 of them


def body(s):
    s.quiet_machine()
    out = subprocess.run([step.BUILD / "bench_kernels", "--only", "memory,attend_step", "--noisy", "1"], capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in out.splitlines()]
    rate = next(row["rate"] for row in rows if row["bench"] == "memory")
    took = {depth: next(row["median_ms"] for row in rows if row["spec"].startswith("q4 ") and f"depth={depth} " in row["spec"])
            for depth in (*CACHED, DEPTH)}
    s.note(f"attention over {DEPTH} entries at 4 bits in 30 layers, ms", took[DEPTH])
    for depth, cache in CACHED.items():
        s.note(f"as many entries by {depth}, from the {cache} cache, ms", took[depth] * DEPTH / depth)
    s.note(f"reading their {DEPTH * BYTES / 1e6:.0f} MB alone, ms", 1e3 * DEPTH * BYTES / (rate * 1e9))


if __name__ == "__main__":
    step.main(body)
