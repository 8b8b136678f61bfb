"""Runs one case of tests/cases against a built mneme: commands as people type them, and what they must give.

A case is text. Lines before the first command may say
  needs models            skip unless the default models are installed
  needs unprivileged      skip where the program cannot be run as somebody without rights
Everything else is commands, each followed by what it must give:
  $ COMMAND               run by bash in a folder of its own that all commands of the case share, with `mneme` on the
  > MORE OF IT            PATH; `unprivileged COMMAND` runs as a user who may not write what is not his
  exit 2                  the exit status; 0 if nothing is said
  out: REGEX              some line of stdout matches; `no-out` says there is none
  err: REGEX              some line of stderr matches; `no-err` says there is none
  json: SCHEMA            stdout is one line, a JSON value of this shape: "str", "int", "num", "bool", "any", a list with the
                          shape of its elements, an object with the shape of the fields it must have; lines that begin with
                          two spaces go on with it
  jsonl: SCHEMA           the same for every line
  check: EXPRESSION       true in Python, where j is the JSON value (for jsonl their list), out and err are the texts, and
                          kept is a dictionary that lives as long as the case
  says-more               a failing command may write other things than the one line that is asked of it
A command that fails must write exactly one line on stderr, "mneme: ...", and leave no new file behind.

usage: run_case.py PROGRAM CASE      exits 0 (all is as said), 1, or 77 (skipped)
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
TIMEOUT_S = 300
UNPRIVILEGED = 65534


class Step:
    def __init__(self, command, line):
        self.command, self.line = command, line
        self.exit, self.out, self.err, self.checks = 0, [], [], []
        self.no_out = self.no_err = self.says_more = False
        self.schema, self.many = None, False


def parse(text, name):
    """The needs and the steps of a case."""
    needs, steps, schema = [], [], None
    for number, line in enumerate(text.splitlines(), 1):
        def wrong(why):
            sys.exit(f"{name}:{number}: {why}: {line}")

        if schema is not None:
            if line.startswith("  "):
                schema.append(line)
                continue
            steps[-1].schema, schema = json.loads("\n".join(schema)), None
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("$ "):
            steps.append(Step(line[2:], number))
        elif not steps:
            match = re.fullmatch(r"needs (models|unprivileged)", line)
            needs.append(match[1]) if match else wrong("not understood")
        elif line.startswith("> ") or line == ">":
            steps[-1].command += "\n" + line[2:]
        elif match := re.fullmatch(r"exit (\d+)", line):
            steps[-1].exit = int(match[1])
        elif line in ("no-out", "no-err", "says-more"):
            setattr(steps[-1], line.replace("-", "_"), True)
        elif match := re.fullmatch(r"(out|err|check): (.*)", line):
            {"out": steps[-1].out, "err": steps[-1].err, "check": steps[-1].checks}[match[1]].append(match[2])
        elif match := re.fullmatch(r"(json|jsonl): (.*)", line):
            steps[-1].many = match[1] == "jsonl"
            schema = [match[2]]
        else:
            wrong("not understood")
    if schema is not None:
        steps[-1].schema = json.loads("\n".join(schema))
    return needs, steps


def misfit(value, shape, where="$"):
    """Why a JSON value has not this shape, or None."""
    types = {"str": str, "int": int, "num": (int, float), "bool": bool}
    if isinstance(shape, str):
        if shape == "any" or isinstance(value, types[shape]) and isinstance(value, bool) == (shape == "bool"):
            return None
        return f"{where} is {value!r}, not {shape}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        return next(filter(None, (misfit(v, shape[0], f"{where}[{i}]") for i, v in enumerate(value))), None)
    if not isinstance(value, dict):
        return f"{where} is no object"
    for key, inner in shape.items():
        if key not in value:
            return f"{where}.{key} is missing"
        if why := misfit(value[key], inner, f"{where}.{key}"):
            return why
    return None


def complaints(step, status, out, err, before, after, kept):
    """Everything in which a command did not give what it must."""
    if status != step.exit:
        yield f"exit status {status}, not {step.exit}"
        return
    for stream, text, patterns, nothing in (("stdout", out, step.out, step.no_out), ("stderr", err, step.err, step.no_err)):
        if nothing and text:
            yield f"{stream} is not empty"
        for pattern in patterns:
            if not any(re.search(pattern, line) for line in text.splitlines()):
                yield f"no line of {stream} matches {pattern}"
    if step.exit != 0 and not step.says_more:
        lines = err.splitlines()
        if len(lines) != 1 or not lines[0].startswith("mneme: "):
            yield f"{len(lines)} lines on stderr where one, from mneme, is wanted"
        if after - before:
            yield f"left behind: {', '.join(sorted(after - before))}"
    value = None
    if step.schema is not None:
        try:
            lines = out.splitlines()
            if not step.many and len(lines) != 1:
                yield f"{len(lines)} lines on stdout where one JSON value is wanted"
                return
            values = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            yield f"stdout is no JSON: {error}"
            return
        value = values if step.many else values[0]
        if why := misfit(value, [step.schema] if step.many else step.schema):
            yield why
            return
    for check in step.checks:
        try:
            holds = eval(check, {"j": value, "out": out, "err": err, "kept": kept})  # the cases are ours
        except Exception as error:
            holds = False
            check += f" ({error!r})"
        if not holds:
            yield f"does not hold: {check}"


def listing(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def main(program, case):
    case = pathlib.Path(case)
    needs, steps = parse(case.read_text(encoding="utf-8"), case.name)
    with tempfile.TemporaryDirectory(prefix="mneme-case-") as scratch:
        scratch = pathlib.Path(scratch)
        scratch.chmod(0o755)
        work, tools = scratch / "work", scratch / "tools"
        work.mkdir()
        tools.mkdir()
        (tools / "mneme").symlink_to(pathlib.Path(program).resolve())
        rights = tools / "unprivileged"
        drop = f"setpriv --reuid={UNPRIVILEGED} --regid={UNPRIVILEGED} --clear-groups " if os.geteuid() == 0 else ""
        rights.write_text(f'#!/bin/sh\nexec {drop}"$@"\n')
        rights.chmod(0o755)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MNEME_") or k == "MNEME_MODELS"}
        environment.update(PATH=f"{tools}:{environment['PATH']}", LC_ALL="C.UTF-8", XDG_CONFIG_HOME=str(scratch / "config"))

        def run(command):
            return subprocess.run(["bash", "-c", command], cwd=work, env=environment, stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=TIMEOUT_S)

        if "models" in needs and len(json.loads(run("mneme models --json").stdout)["models"]) < 2:
            print("skipped: the default models are not installed")
            return SKIPPED
        if "unprivileged" in needs and (drop and not shutil.which("setpriv") or run("unprivileged mneme --version").returncode != 0):
            print("skipped: mneme cannot be run without rights here")
            return SKIPPED
        kept, wrong = {}, 0
        for step in steps:
            before = listing(work)
            done = run(step.command)
            out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
            for complaint in complaints(step, done.returncode, out, err, before, listing(work), kept):
                wrong += 1
                print(f"{case.name}:{step.line}: {step.command}\n  {complaint}")
                print("".join(f"  {stream}| {line}\n" for stream, text in (("out", out), ("err", err)) for line in text.splitlines()[:20]), end="")
        print(f"{case.name}: {len(steps)} commands, {wrong} complaints")
        return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
