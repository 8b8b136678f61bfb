"""Writes what an issue's steps found to bench/reports/ISSUE_<cpu level>_<yyyymmdd>.md, or, while some have never run, to report.md beside their results.

usage: report.py ISSUE TITLE STEP=TITLE...
"""
import datetime
import os
import platform
import sys

import level
import step


def cpu():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def level_in_words(rows):
    """The level in use, and how far it holds."""
    out = f"kernels at level {level.in_use()}"
    if level.lower():
        out += ", libtorch held to it too (no other engine)" if level.libraries_held() else ", libtorch at the processor's own"
    others = sorted({row["level"] for row in rows if "level" in row} - {level.in_use()})
    return out + (f"; **some steps ran at level {', '.join(others)}**" if others else "")


def begun_at(rows):
    """The commit that a step's rows are of; those from before it was written down have none."""
    return next((row["commit"] for row in rows if "commit" in row), "an earlier commit")


def named(commit):
    return commit if " " in commit else f"commit {commit}"


def without_end(name, rows):
    """A failed check, if the step did not come to its end."""
    if all(row.get("state") != "begun" for row in rows):
        return []
    return [dict(step=name, what=f"{name} as a whole", ok=False, value="did not come to its end: it was killed, could not start, or still runs",
                 wanted="")]


def main(issue, title, *steps_in_order):
    titles = dict(s.split("=", 1) for s in steps_in_order)
    results = step.work_of(issue) / "results.jsonl"
    steps = {}
    for row in step.rows(results):
        steps.setdefault(row["step"], []).append(row)
    of = {name: begun_at(found) for name, found in steps.items()}
    for name, found in steps.items():
        found += without_end(name, found)
    rows = [row for found in steps.values() for row in found]
    commits = list(dict.fromkeys(of.values())) or [step.commit()]
    head = commits[0] if len(commits) == 1 else None
    at_level = f"MNEME_LEVEL={level.in_use()} " if level.lower() else ""
    checks = [r for r in rows if "ok" in r]
    met = sum(r["ok"] for r in checks)
    out = [f"# {title}", "",
           f"{datetime.date.today():%Y-%m-%d}, {named(head) if head else f'{len(commits)} commits'}. {cpu()}, {os.cpu_count()} cores seen, {level_in_words(rows)}; 2 threads. "
           f"Made by `{at_level}make acceptance ISSUE={issue}`; {met} of {len(checks)} checks met.", ""]
    if not head:
        out += [f"**The steps are of {len(commits)} commits ({', '.join(commits)}): `{at_level}tests/acceptance/{issue}/run --again` runs them all on one.**", ""]
    if any(r.get("quick") for r in rows):
        out += ["**Some steps ran in their quick form: this is no result.**", ""]
    for name in [*titles, *(n for n in steps if n not in titles)]:
        if name not in steps:
            out += [f"## {titles[name]}", "", "Not run.", ""]
            continue
        out += [f"## {titles.get(name, name)}", ""]
        if of[name] != head:
            out += [f"Found on {named(of[name])}.", ""]
        found = [r for r in steps[name] if "ok" in r]
        notes = [r for r in steps[name] if "ok" not in r and r.get("what") not in (None, "seconds", "report")]
        cell = lambda x: str(x).replace("|", "\\|").replace("\n", " ")
        out += ["| check | found | wanted | |", "|---|---|---|---|"]
        out += [f"| {cell(r['what'])} | {cell(r['value'])} | {cell(r['wanted'])} | {'ok' if r['ok'] else '**FAIL**'} |" for r in found]
        if notes:
            out += ["", *(f"- {cell(r['what'])}: {cell(r['value'])}" for r in notes)]
        for r in steps[name]:
            if r.get("what") == "report":  # another program's own, one level deeper
                out += ["", *(("#" + line if line.startswith("#") else line) for line in r["value"].split("\n## Bars")[0].splitlines()[1:])]
        out.append("")
    # A part of the steps is no report to keep, nor to put in place of one that has all.
    if all(name in steps for name in titles):
        path = step.ROOT / "bench" / "reports" / f"{issue}_{level.in_use()}_{datetime.date.today():%Y%m%d}.md"
    else:
        path = step.work_of(issue) / "report.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(out).rstrip() + "\n")
    print(f"{met} of {len(checks)} checks met; {path.relative_to(step.ROOT)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
