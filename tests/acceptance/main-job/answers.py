"""Answers, citations and refusal on SQuAD by `mneme bench answers`, beside llama.cpp on the same prompts."""
import gzip
import hashlib
import json

import llama
import step


def peer_answers(questions, prompt, out):
    """llama.cpp's greedy answers to the gold paragraphs, appended to `out`; what is there is not done again."""
    have = {json.loads(line)["id"] for line in out.read_text().splitlines()} if out.exists() else set()
    missing = [q for q in questions if q not in have]
    if not missing:
        return
    asked = {}
    for article in json.load(gzip.open(step.data("squad", "dev-v1.1.json.gz")))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                asked[question["id"]] = (paragraph["context"].strip(), question["question"].strip())
    engine = llama.Llama(2048)
    prefix = engine.ids(prompt["prefix"])
    engine.read(prefix)
    engine.model.n_tokens = len(prefix)
    ends = prompt["answer_ends_at"]
    with out.open("a") as file:
        for done, question in enumerate(missing):
            context, text = asked[question]
            engine.forget(len(prefix))
            # Pieces are tokenized apart, as mneme does.
            engine.model.eval(engine.ids(prompt["span_before"] + context + prompt["span_after"]) +
                              engine.ids(prompt["question_before"] + text + prompt["question_after"]))
            said = []
            while len(said) < prompt["max_tokens"]:
                token = engine.model.sample(temp=0.0)
                piece = engine.model.detokenize([token]).decode(errors="replace")
                if token in (0, 2) or "\n" in piece or piece.startswith(ends):
                    break
                said.append(token)
                engine.model.eval([token])
            answer = engine.model.detokenize(said).decode(errors="replace").split(ends)[0].strip()
            file.write(json.dumps(dict(id=question, answer=answer[:-1] if answer.endswith(".") else answer)) + "\n")
            file.flush()
            if done % 50 == 49:
                print(f"     llama.cpp: {done + 1} of {len(missing)} questions", flush=True)


def suite(count, kept, name, *more):
    """A run of the suite whose rows, kept under a name, an interrupted one has left."""
    return ["bench", "answers", "--data", step.DATA, "--split", "final", "--questions", count, "--resume", kept / f"{name}.jsonl", *more]


def body(s):
    count = 24 if s.quick else 500
    kept = step.WORK / f"answers-{step.MNEME.stat().st_mtime_ns}-{count}"  # rows of this very program
    kept.mkdir(parents=True, exist_ok=True)
    report = kept / "report.md"
    step.data("squad", "dev-v1.1.json.gz")
    figures = step.mneme_json(*suite(count, kept, "rows", "--report", report), timeout=4 * 3600)
    # llama.cpp runs the weights as they are: beside it, so do we.
    base = suite(count, kept, "base", "--adapter", "none", "--variants", "gold")
    step.mneme(*base, timeout=4 * 3600)
    table = [json.loads(line) for line in (kept / "base.jsonl").read_text().splitlines() if line.strip()]
    questions = list(dict.fromkeys(row["id"] for row in table if "id" in row))
    prompt = table[0]["settings"]["prompt"]
    texts = "".join(f"{name}={value}\n" for name, value in sorted(prompt.items()) if isinstance(value, str))
    peer = step.WORK / f"llama-{hashlib.sha256(texts.encode()).hexdigest()[:16]}.jsonl"  # of any program with this prompt
    peer_answers(questions, prompt, peer)
    beside = step.mneme_json(*base, "--peer", peer, timeout=3600)
    for bar in figures["bars"] + [bar for bar in beside["bars"] if "peer" in bar["name"]]:
        e = bar["value"]
        s.check(bar["name"], bar["ok"], f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]", bar["wanted"])
    s.note("questions", figures["questions"])
    s.note("report", report.read_text())


if __name__ == "__main__":
    step.main(body)
