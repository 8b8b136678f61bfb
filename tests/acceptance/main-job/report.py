"""Writes what the steps found to bench/reports/main-job_<cpu level>_<yyyymmdd>.md."""
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys

import step

# In this order; others behind.
TITLES = {"parity": "Parity", "speed": "Speed beside llama.cpp", "first_token": "The first token from stored states", "answers": "Answers, citations, refusal",
          "budget": "Budget", "resident_memory": "Resident memory", "crash": "Crashes", "forgetting": "Forgetting", "bad_input": "Bad input"}


def cpu():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def level():
    """The kernels' level, as `mneme doctor` says it."""
    out = step.mneme("doctor", check=False).stdout
    for word in ("avx512", "avx2", "base"):
        if word in out.lower():
            return word
    return "unknown"


def commit():
    git = lambda *a: subprocess.run(["git", "-C", step.ROOT, *a], capture_output=True, text=True).stdout.strip()
    return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def main():
    rows = [json.loads(line) for line in step.RESULTS.read_text().splitlines()]
    steps = {}
    for row in rows:
        steps.setdefault(row["step"], []).append(row)
    checks = [r for r in rows if "ok" in r]
    met = sum(r["ok"] for r in checks)
    out = ["# The main job: what it shows", "",
           f"{datetime.date.today():%Y-%m-%d}, commit {commit()}. {cpu()}, {os.cpu_count()} cores seen, kernels at level {level()}; 2 threads. "
           f"Made by `make acceptance ISSUE=main-job`; {met} of {len(checks)} checks met.", ""]
    if any(r.get("quick") for r in rows):
        out += ["**Some steps ran in their quick form: this is no result.**", ""]
    for name in [*TITLES, *(n for n in steps if n not in TITLES)]:
        if name not in steps:
            out += [f"## {TITLES[name]}", "", "Not run.", ""]
            continue
        out += [f"## {TITLES.get(name, name)}", ""]
        found = [r for r in steps[name] if "ok" in r]
        notes = [r for r in steps[name] if "ok" not in r and r["what"] not in ("seconds", "report")]
        cell = lambda x: str(x).replace("|", "\\|").replace("\n", " ")
        out += ["| check | found | wanted | |", "|---|---|---|---|"]
        out += [f"| {cell(r['what'])} | {cell(r['value'])} | {cell(r['wanted'])} | {'ok' if r['ok'] else '**FAIL**'} |" for r in found]
        if notes:
            out += ["", *(f"- {cell(r['what'])}: {cell(r['value'])}" for r in notes)]
        for r in steps[name]:
            if r["what"] == "report":  # another program's own, one level deeper
                out += ["", *(("#" + line if line.startswith("#") else line) for line in r["value"].split("\n## Bars")[0].splitlines()[1:])]
        out.append("")
    path = step.ROOT / "bench" / "reports" / f"main-job_{level()}_{datetime.date.today():%Y%m%d}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(out).rstrip() + "\n")
    print(f"{met} of {len(checks)} checks met; {path.relative_to(step.ROOT)}")
    return 0 if met == len(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
