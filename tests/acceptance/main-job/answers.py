"""Answers, citations and refusal on SQuAD by `mneme bench answers`, beside llama.cpp on the same prompts."""
import gzip
import hashlib
import json
import sys

import llama
import step

sys.path.insert(0, str(step.ROOT / "tests" / "parity"))  # dequantized.py


def prompts(questions, prompt, ids):
    """Token ids of the gold paragraph and of what is asked on it. Pieces are tokenized apart, as mneme does."""
    for article in json.load(gzip.open(step.data("squad", "dev-v1.1.json.gz")))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                if question["id"] in questions:
                    yield (question["id"], ids(prompt["span_before"] + paragraph["context"].strip() + prompt["span_after"]) +
                           ids(prompt["question_before"] + question["question"].strip() + prompt["question_after"]))


def greedy(read, text_of, asked, prompt):
    """The answer that the likeliest tokens give; read(ids) runs ids behind those before and gives the likeliest next one."""
    said, token = [], read(asked)
    while len(said) < prompt["max_tokens"]:
        piece = text_of([token])
        if token in (0, 2) or "\n" in piece or piece.startswith(prompt["answer_ends_at"]):
            break
        said.append(token)
        token = read([token])
    answer = text_of(said).split(prompt["answer_ends_at"])[0].strip()
    return answer[:-1] if answer.endswith(".") else answer


def peer_answers(questions, prompt, out):
    """llama.cpp's greedy answers to the gold paragraphs, appended to `out`; what is there is not done again."""
    have = answers_in(out) if out.exists() else {}
    missing = [q for q in questions if q not in have]
    if not missing:
        return
    engine = llama.Llama(2048)
    prefix = engine.ids(prompt["prefix"])
    engine.read(prefix)

    def read(ids):
        engine.model.eval(ids)
        return engine.model.sample(temp=0.0)
    with out.open("a") as file:
        for done, (question, asked) in enumerate(prompts(set(missing), prompt, engine.ids)):
            engine.forget(len(prefix))
            answer = greedy(read, lambda ids: engine.model.detokenize(ids).decode(errors="replace"), asked, prompt)
            file.write(json.dumps(dict(id=question, answer=answer)) + "\n")
            file.flush()
            if done % 50 == 49:
                print(f"     llama.cpp: {done + 1} of {len(missing)} questions", flush=True)


def single_precision_answers(questions, prompt):
    """transformers' greedy answers in f32, on the weights dequantized: what rounding in neither engine would give."""
    import torch
    import dequantized
    model, tokenizer = dequantized.load(step.weights())
    ids = lambda text: tokenizer.encode(text, add_special_tokens=False)
    prefix, out = ids(prompt["prefix"]), {}
    for question, asked in prompts(questions, prompt, ids):
        cache = None

        def read(some):
            nonlocal cache
            with torch.inference_mode():
                got = model(torch.tensor([some]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = got.past_key_values
            return int(got.logits[0, -1].argmax())
        out[question] = greedy(read, tokenizer.decode, prefix + asked, prompt)
    return out


def answers_in(path):
    return {row["id"]: row["answer"] for row in step.rows(path) if row.get("variant", "gold") == "gold" and "id" in row}


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
    # Where the two differ: whose arithmetic is nearer to the weights' own?
    mine, theirs = answers_in(kept / "base.jsonl"), answers_in(peer)
    differ = {q for q in questions if mine[q] != theirs[q]}
    exact = single_precision_answers(differ, prompt)
    s.note(f"answers that differ from llama.cpp's, of {count}", len(differ))
    s.note("of these transformers in f32 says the same as mneme, as llama.cpp, as neither",
           [sum(exact[q] == mine[q] for q in differ), sum(exact[q] == theirs[q] for q in differ),
            sum(exact[q] not in (mine[q], theirs[q]) for q in differ)])
    third = kept / "single-precision.jsonl"
    third.write_text("".join(json.dumps(dict(id=q, answer=exact.get(q, mine[q]))) + "\n" for q in questions))
    e = step.mneme_json(*base, "--peer", third, timeout=3600)["ratios"]["gold paragraph / peer"]
    s.note("F1 on the gold paragraph / F1 with transformers' answers in f32 where mneme and llama.cpp differ", f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]")
    s.note("questions", figures["questions"])
    s.note("report", report.read_text())


if __name__ == "__main__":
    step.main(body)
