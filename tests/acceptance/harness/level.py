"""The level of mneme's kernels that steps run at, and what holds libraries to a lower one.

usage: level.py      prints the level in use, then VARIABLE=VALUE lines to set in the environment of steps
"""
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

MNEME = pathlib.Path(__file__).resolve().parents[3] / "build" / "mneme"
# What libtorch's own kernels, oneDNN's and MKL's call the levels; they choose the processor's best by themselves.
LIBRARIES = {"ATEN_CPU_CAPABILITY": {"base": "default", "avx2": "avx2"},
             "ONEDNN_MAX_CPU_ISA": {"base": "SSE41", "avx2": "AVX2"},
             "MKL_ENABLE_INSTRUCTIONS": {"base": "SSE4_2", "avx2": "AVX2"}}


@functools.lru_cache(maxsize=None)
def levels():
    """The level in use, and the processor's own, as `mneme doctor` says them. It may find other things not well."""
    out = subprocess.run([MNEME, "doctor", "--json"], capture_output=True, text=True)
    try:
        found = next(c["found"] for c in json.loads(out.stdout)["checks"] if c["name"] == "kernels")
    except ValueError:  # no JSON: a level that does not run here
        sys.exit(out.stderr.strip() or f"{MNEME} doctor exits {out.returncode}")
    in_use, own = re.fullmatch(r"(\w+) in use; this processor runs (?:.*, )?(\w+)", found).groups()
    return in_use, own


def in_use():
    return levels()[0]


def lower():
    """Whether MNEME_LEVEL chose a level below the processor's own."""
    return bool(os.environ.get("MNEME_LEVEL")) and in_use() != levels()[1]


def folder_name(issue):
    """Of an issue's results under build/acceptance: each lower level has its own."""
    return f"{issue}-{in_use()}" if lower() else issue


def of_libraries():
    """The environment that holds libraries to the level in use; nothing at the processor's own."""
    return {name: of[in_use()] for name, of in LIBRARIES.items() if lower()}


def libraries_held():
    return all(os.environ.get(name) == value for name, value in of_libraries().items())


if __name__ == "__main__":
    print(in_use())
    for name, value in of_libraries().items():
        print(f"{name}={value}")
