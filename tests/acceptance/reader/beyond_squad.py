"""Texts and questions that the reader was never trained on: the Python reference, MCTest, books; base beside adapter."""
import json
import subprocess
import sys

import step

CHECKS = {"python_reference": True, "mctest": False, "books": False}  # and whether it has a bar


def body(s):
    for name, has_bar in CHECKS.items():
        rows = s.folder / f"{name}.jsonl"
        few = ["--stories", "4"] if s.quick and name == "mctest" else []
        out = subprocess.run([sys.executable, step.HERE / f"{name}.py", step.MNEME, "--data", step.DATA, "-o", rows, *few], capture_output=True, text=True)
        if out.returncode == 2:
            raise step.CannotRun(out.stderr.strip().splitlines()[-1])
        for line in rows.read_text().splitlines():
            row = json.loads(line)
            if row.get("what") == "bar":
                s.check("Python reference: right with the right topic cited", row["ok"], row["value"], f"at least {row['wanted']}")
            elif "what" in row:
                s.note(f"{name}: {row['what']}", row["value"])
        s.check(f"{name} ran", out.returncode == 0 or has_bar, "")
        s.note("report", f"# {name}\n" + out.stdout)


if __name__ == "__main__":
    step.main(body)
