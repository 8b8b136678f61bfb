"""Answers, absence and refusal on SQuAD's test articles by `mneme bench answers`, with the adapter and without."""
import hashlib
import json

import step

# What the issue wants, in percent of F1 and as ratios.
GOLD, EACH, TOGETHER = 78, 72, 66
TOGETHER_TO_JOINT, FOUR_BITS = 0.95, 0.97
ABSENT, ABSENT_COST = 0.60, 0.10
STRANGERS, STRANGERS_COST = 0.97, 0.04
WAYS = "gold,joint,together-f16,together-q4,ask-each,ask-together"


def interval(e, scale=1, digits=3):
    return f"{scale * e['value']:.{digits}f} [{scale * e['low']:.{digits}f}, {scale * e['high']:.{digits}f}]"


def bench(adapter, count):
    """Figures and report of one side; what an interrupted run has left is gone on from."""
    program = hashlib.sha256(step.MNEME.read_bytes() + b"".join(f.read_bytes() for f in sorted((step.ROOT / "adapters").glob("*.safetensors")))).hexdigest()[:16]
    kept = step.WORK / f"answers-{program}-{count}"
    kept.mkdir(parents=True, exist_ok=True)
    name = adapter or "default"
    report = kept / f"{name}.md"
    figures = step.mneme_json("bench", "answers", "--data", step.DATA, "--split", "final", "--questions", count, "--variants", WAYS, "--resume", kept / f"{name}.jsonl",
                              "--report", report, *(["--adapter", adapter] if adapter else []), timeout=6 * 3600)
    (kept / f"{name}.json").write_text(json.dumps(figures))
    return figures, report.read_text()


def body(s):
    step.data("squad", "dev-v1.1.json.gz")
    count = 24 if s.quick else 500
    figures, report = bench("", count)
    f1 = {way: x["f1"] for way, x in figures["answers"].items()}

    def at_least(what, estimate, bar, scale=1):
        s.check(what, scale * estimate["value"] >= bar, interval(estimate, scale, 1 if scale > 1 else 3), f"at least {bar:g}")

    at_least("F1 on the gold paragraph", f1["gold"], GOLD, 100)
    at_least("F1 of --place each in one memory of 12 whole articles", f1["ask-each"], EACH, 100)
    at_least("F1 of --place together", f1["ask-together"], TOGETHER, 100)
    at_least("--place together / the same spans read jointly", figures["ratios"]["together / joint, 3 spans"], TOGETHER_TO_JOINT)
    at_least("states at 4 bits / uncoded, together", figures["ratios"]["together, 4 bits / together, uncoded"], FOUR_BITS)
    small = next(x for name, x in figures["refusal"].items() if name.startswith("12 ") and not name.endswith("never trained on"))
    unseen = next(x for name, x in figures["refusal"].items() if name.endswith("never trained on"))
    at_least("SQuAD v2's unanswerable questions refused", small["unanswerable refused"], ABSENT)
    s.check("answerable questions refused", small["answerable refused"]["value"] <= ABSENT_COST, interval(small["answerable refused"]), f"at most {ABSENT_COST:g}")
    at_least("questions on other topics refused, of articles that the reader was not trained on", unseen["strangers refused"], STRANGERS)
    s.check("answerable questions refused, beside those on other topics", small["answerable refused"]["value"] <= STRANGERS_COST,
            interval(small["answerable refused"]), f"at most {STRANGERS_COST:g}")
    s.note("questions", figures["questions"])
    s.note("report", report)
    base, base_report = bench("none", count)
    for way in ("gold", "ask-each", "ask-together", "joint"):
        s.note(f"the base model, F1, {way}", interval(base["answers"][way]["f1"], 100, 1))
    s.note("report", base_report)


if __name__ == "__main__":
    step.main(body)
