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


def sentence_encoder(s):
    """500 texts: novels in pieces of all lengths, some longer than the encoder reads."""
    import json
    import numpy
    from sentence_transformers import SentenceTransformer
    words = step.novel_text(600_000).split()
    texts, at = [], 0
    for i in range(500):
        n = 1 + (i * 37) % 220
        texts.append(" ".join(words[at:at + n]))
        at += n
    folder = next(m["path"] for m in step.mneme_json("models")["models"] if m["name"] == "minilm")
    theirs = SentenceTransformer(folder, device="cpu")
    # Vectors of one length are compared; sentence-transformers runs in f32.
    want = theirs.encode(texts, normalize_embeddings=True)
    rows = [json.loads(line) for line in step.mneme("embed", "-", "--json", input="\n".join(texts) + "\n").stdout.splitlines()]
    s.check("one embedding a text", len(rows) == len(texts), len(rows))
    cosine = [float(numpy.dot(r["embedding"], w)) for r, w in zip(rows, want)]
    s.at_least("sentence embeddings on the fast path: smallest cosine of 500", min(cosine), 0.999)
    limit = theirs.max_seq_length
    long = [len(theirs.tokenizer(t)["input_ids"]) > limit for t in texts]
    s.check("truncation is reported for exactly the texts that are too long", [r["truncated"] for r in rows] == long, f"{sum(long)} of {len(texts)}")


def body(s):
    gguf = llama.weights()
    run(s, "language_model_parity.py", step.BUILD / "logits_tool", "--gguf", gguf, "--text", step.data("books", "Austen_Emma.txt.gz"))
    minilm = next(m["path"] for m in step.mneme_json("models")["models"] if m["name"] == "minilm")
    run(s, "tokenizers_parity.py", step.BUILD / "tokenize_texts", step.DATA, "--gguf", gguf, "--bert", minilm, "--megabytes", 0.2 if s.quick else 2)
    for script in sorted((step.ROOT / "tests" / "parity").glob("*encoder*.py")):
        run(s, script.name, *([step.BUILD / "logits_tool"] if "logits_tool" in script.read_text() else []))
    sentence_encoder(s)


if __name__ == "__main__":
    step.main(body)
