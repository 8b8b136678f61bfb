"""Parity with Hugging Face: logits, token ids on at least 3 MB, sentence embeddings."""
import os
import pathlib
import re
import subprocess
import sys

import llama
import step

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def run(s, script, *arguments):
    """One of tests/parity's scripts, each of its lines a check."""
    path = step.ROOT / "tests" / "parity" / script
    out = subprocess.run([sys.executable, path, *map(str, arguments)], capture_output=True, text=True)
    if out.returncode == 77:
        raise step.CannotRun(f"{script}: {(out.stdout + out.stderr).strip()[-300:]}")
    for line in out.stdout.splitlines():
        if match := re.match(r"(ok|FAIL)\s+(.*)", line):
            s.check(f"{path.stem}: {match[2]}", match[1] == "ok")
        elif line.strip():
            s.note(path.stem, line.strip())
    s.check(f"{script} as a whole", out.returncode == 0, out.stderr.strip().splitlines()[-1] if out.returncode and out.stderr.strip() else "")


def body(s):
    gguf = llama.weights()
    run(s, "language_model_parity.py", step.BUILD / "logits_tool", "--gguf", gguf, "--text", step.data("books", "Austen_Emma.txt.gz"))
    minilm = next(m["path"] for m in step.mneme_json("models")["models"] if m["name"] == "minilm")
    run(s, "tokenizers_parity.py", step.BUILD / "tokenize_texts", step.DATA, "--gguf", gguf, "--bert", minilm, "--megabytes", 0.2 if s.quick else 2)
    run(s, "sentence_encoder_parity.py", step.BUILD / "encoder_tool")


if __name__ == "__main__":
    step.main(body)
