"""What the steps of all acceptances share: where things are, running mneme, and writing down what was found.

A step is a program in the folder of its issue. It prints a line a check, `ok` or `FAIL`, leaves the same in
build/acceptance/ISSUE/results.jsonl (ISSUE-LEVEL at a lower level of the kernels), and exits 1 if a check failed, 2 if it could not be made. The first row of a step is
`begun`; it becomes `ended` with the last one, so that a step that was killed does not pass for one that is through.

usage: step.py ISSUE STEP      writes down that a step begins, before its program is started
"""
import argparse
import gzip
import json
import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import traceback

import level

ROOT = pathlib.Path(__file__).resolve().parents[3]
HERE = pathlib.Path(sys.argv[0]).resolve().parent  # of the step
BUILD = ROOT / "build"
MNEME = BUILD / "mneme"


def work_of(issue):
    """The folder of an issue's results."""
    return BUILD / "acceptance" / level.folder_name(issue)


WORK = work_of(HERE.name)
RESULTS = WORK / "results.jsonl"
DEFAULT_ADAPTER = "smollm2-reader"
DATA = pathlib.Path(os.environ.get("MNEME_DATA") or ROOT.parent / "shared" / "data")


class CannotRun(Exception):
    """Something that the step needs is not here."""


def busy_processors(seconds=1.0):
    """How many processors something runs on now. The load of the last minute would count what a step itself ran before."""
    def read():
        with open("/proc/stat") as file:
            user, nice, system, idle, wait, *_ = map(int, file.readline().split()[1:])
        return user + nice + system, idle + wait
    work, rest = read()
    time.sleep(seconds)
    more_work, more_rest = read()
    work, rest = more_work - work, more_rest - rest
    return os.cpu_count() * work / max(1, work + rest)


def commit():
    """What is checked out. Reports do not count as changes: writing one would make every later step's commit another."""
    git = lambda *a: subprocess.run(["git", "-C", ROOT, *a], capture_output=True, text=True).stdout.strip()
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/reports")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+changes" if changes else "")


def rows(results):
    """The rows of a results file; a last line that a kill cut off is none."""
    out = []
    for line in results.read_text().splitlines() if results.exists() else []:
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            pass
    return out


def replace(results, keep):
    """Writes the rows anew as keep(row) gives them, without those for which it is None; a kill leaves the old or the new file."""
    kept = [row for row in map(keep, rows(results)) if row is not None]
    new = results.with_suffix(".new")
    new.write_text("".join(json.dumps(row) + "\n" for row in kept))
    new.replace(results)


def begin(folder, name, **more):
    """In place of what a step gave before: that it has begun, on which commit, and not ended."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.done").unlink(missing_ok=True)  # it says so of the rows that go
    results = folder / "results.jsonl"
    replace(results, lambda row: None if row["step"] == name else row)
    with results.open("a") as out:
        out.write(json.dumps(dict(step=name, state="begun", commit=commit(), level=level.in_use(), **more)) + "\n")


class Step:
    """One step: its checks, and a folder of its own that starts empty."""

    def __init__(self, arguments=lambda parser: None):
        parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__.split("\n")[0])
        parser.add_argument("--quick", action="store_true", help="a smaller form, to try the step out; its results do not count")
        parser.add_argument("--noisy", action="store_true", help="measure times although the machine is busy; written into the results")
        arguments(parser)
        self.options = parser.parse_args()
        self.quick = self.options.quick
        self.name = pathlib.Path(sys.argv[0]).stem
        self.folder = WORK / self.name
        self.failed = 0
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        begin(WORK, self.name, **self._marks())
        self.started = time.time()

    def _marks(self):
        return {"quick": True} if self.quick else {}

    def _write(self, **row):
        row = dict(step=self.name, level=level.in_use(), **row, **self._marks())
        with RESULTS.open("a") as out:
            out.write(json.dumps(row) + "\n")

    def check(self, what, ok, value="", wanted=""):
        """Writes down one check; `value` is what was found, `wanted` in words what it must be."""
        if isinstance(value, float):
            value = float(f"{value:.4g}")
        if isinstance(value, str):
            value = value.replace(f"{ROOT}/", "")  # a report names no machine's paths
        tail = (f": {value}" if value != "" else "") + (f" ({wanted})" if wanted else "")
        print(f"{'ok  ' if ok else 'FAIL'} {what}{tail}", flush=True)
        self._write(what=what, ok=bool(ok), value=value, wanted=wanted)
        self.failed += not ok
        return ok

    def at_least(self, what, value, bar):
        return self.check(what, value >= bar, value, f"at least {bar:g}")

    def at_most(self, what, value, bar):
        return self.check(what, value <= bar, value, f"at most {bar:g}")

    def note(self, what, value):
        """A figure without a bar."""
        if isinstance(value, float):
            value = float(f"{value:.4g}")
        print(f"     {what}: {value}", flush=True)
        self._write(what=what, value=value)

    def quiet_machine(self):
        """Waits until little else runs; times of a busy machine are worth nothing."""
        for waited in range(0, 600, 10):
            load = busy_processors()
            if load < 0.3:
                break
            if self.options.noisy:
                self.note("measured on a busy machine, load", load)
                return
            if waited == 0:
                print(f"     waiting for a quiet machine (load {load:.1f})", flush=True)
            time.sleep(10)
        else:
            raise CannotRun(f"the machine stays busy (load {load:.1f}): stop what else runs, or give --noisy")

    def end(self):
        """Writes down that no more rows come."""
        self.note("seconds", time.time() - self.started)
        replace(RESULTS, lambda row: dict(row, state="ended") if row["step"] == self.name and "state" in row else row)

    def finish(self):
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)
        sys.exit(1 if self.failed else 0)


def main(body, arguments=lambda parser: None):
    """Runs a step's body(step)."""
    step = Step(arguments)
    try:
        body(step)
    except CannotRun as reason:
        step.check(f"{step.name} could be run", False, str(reason))
        step.end()
        sys.exit(2)
    except Exception as error:  # the checks that it did not come to are not met; its folder stays, to be looked at
        traceback.print_exc()
        step.check(f"{step.name} as a whole", False, " ".join(f"{type(error).__name__}: {error}".split()))
        step.end()
        sys.exit(1)
    step.finish()


def mneme(*arguments, check=True, timeout=3600, **popen):
    """Runs mneme; its output is text. With `check` a failure ends the step."""
    out = subprocess.run([str(MNEME), *map(str, arguments)], capture_output=True, text=True, errors="replace", timeout=timeout, **popen)
    if check and out.returncode:
        raise RuntimeError(f"mneme {' '.join(map(str, arguments))} exits {out.returncode}: {out.stderr.strip()[-500:]}")
    return out


def mneme_json(*arguments, **more):
    return json.loads(mneme(*arguments, "--json", **more).stdout)


def weights(name="smollm2"):
    """A model's file, as mneme finds it."""
    return next(m["path"] for m in mneme_json("models")["models"] if m["name"] == name)


def default_adapter():
    """The adapter that comes with mneme: its name and path. Others may lie beside it."""
    for adapter in mneme_json("models")["adapters"]:
        if adapter["name"] == DEFAULT_ADAPTER:
            if "problem" in adapter:
                raise CannotRun(f"the adapter {DEFAULT_ADAPTER} cannot be used: {adapter['problem']}")
            return adapter
    raise CannotRun(f"no adapter {DEFAULT_ADAPTER} is found by name")


def parity(s, script, *arguments, note=lambda line: True):
    """One of tests/parity's scripts, each of its verdicts a check, every other line that `note` wants a note."""
    path = ROOT / "tests" / "parity" / script
    out = subprocess.run([sys.executable, path, *map(str, arguments)], capture_output=True, text=True, env=dict(os.environ, HF_HUB_OFFLINE="1"))
    if out.returncode == 77:
        raise CannotRun(f"{script}: {(out.stdout + out.stderr).strip()[-300:]}")
    for line in out.stdout.splitlines():
        if match := re.match(r"(ok|FAIL)\s+(.*)", line):
            s.check(f"{path.stem}: {match[2]}", match[1] == "ok")
        elif line.strip() and note(line):
            s.note(path.stem, line.strip())
    s.check(f"{script} as a whole", out.returncode == 0, out.stderr.strip().splitlines()[-1] if out.returncode and out.stderr.strip() else "")


class SpeedTool:
    """A warm process that reads token ids and says how long it took."""

    def __init__(self, ids, threads, *adapter):
        program = BUILD / "speed_tool"
        if not program.exists():
            raise CannotRun(f"no {program}: scripts/build")
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
        self.process = subprocess.Popen([program, "smollm2", str(threads), *map(str, adapter)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=environment)
        self.send(" ".join(map(str, ids)))

    def send(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def seconds(self, command):
        self.send(command)
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def data(*parts):
    path = DATA.joinpath(*parts)
    if not path.exists():
        raise CannotRun(f"no {path}: set MNEME_DATA to the folder of the data sets")
    return path


def books():
    """The novels, each whole."""
    for path in sorted(data("books").glob("*.txt.gz")):
        yield path.name.split(".")[0], gzip.open(path).read().decode("utf-8", "replace")


def novel_text(size, skip=0):
    """About `size` bytes of novels from the byte `skip` on, whole lines."""
    out, seen = [], 0
    for _, text in books():
        if seen + len(text) > skip:
            out.append(text[max(0, skip - seen):])
            if sum(map(len, out)) > size + 10_000:
                break
        seen += len(text)
    text = "\n".join(out)
    start = text.find("\n") + 1 if skip else 0
    end = text.rfind("\n", start, start + size)
    return text[start:end if end > start else start + size] + "\n"


def file_bytes(memory):
    """The memory file and what still lies beside it."""
    total = 0
    for suffix in ("", "-wal", "-journal"):
        try:
            total += os.stat(f"{memory}{suffix}").st_size
        except FileNotFoundError:
            pass
    return total


def query(memory, sql, *values):
    """Rows of a memory file, read as SQLite."""
    db = sqlite3.connect(f"file:{memory}?mode=ro", uri=True)
    try:
        return db.execute(sql, values).fetchall()
    finally:
        db.close()


def lines(text):
    """What a person sees of an error output: lines that are not empty, without progress."""
    return [line for line in text.splitlines() if line.strip() and not re.search(r"\d(\.\d+)?k? ?(tokens|B|KiB|MiB)(/s| in )|: stopped at \d", line)]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    begin(work_of(sys.argv[1]), sys.argv[2])
