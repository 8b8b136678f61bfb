"""Reading does not become slower as a memory grows: the last tenth beside the first."""
import time

import step

LEAST = 0.9


def body(s):
    for name, size, flag in (("1M tokens lazily", 4_000_000, "--lazy"), ("300k tokens eagerly", 1_200_000, "--eager")):
        # Passages of 50 lines are dealt out in turn: tenths of novels as they stand differ by more than the bar.
        lines = step.novel_text(size // (10 if s.quick else 1)).splitlines(keepends=True)
        passages = ["".join(lines[i:i + 50]) for i in range(0, len(lines), 50)]
        memory = s.folder / f"{flag[2:]}.mneme"
        s.quiet_machine()
        rates = []
        for i in range(10):
            text = s.folder / f"part{i}.txt"
            text.write_text("".join(passages[i::10]))
            started = time.perf_counter()
            report = step.mneme_json("read", text, "-o", memory, flag, "--budget", "8GiB")
            rates.append(report["tokens_read"] / (time.perf_counter() - started))
        s.note(f"{name}: tokens/s of every tenth, loading included", [round(rate) for rate in rates])
        s.at_least(f"{name}: the last tenth beside the first", rates[-1] / rates[0], LEAST)


if __name__ == "__main__":
    step.main(body)
