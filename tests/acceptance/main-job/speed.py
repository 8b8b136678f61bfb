"""Speed beside llama.cpp: prefill of 512 tokens and decode at depth 128, the engines taking turns."""
import statistics

import llama
import step

PREFILL, DEPTH, DECODE = 512, 128, 64


def body(s):
    rounds = 2 if s.quick else 5
    theirs = llama.Llama(2048)
    ids = theirs.ids(step.novel_text(8000))
    ours = step.SpeedTool(ids, llama.THREADS)

    def their_prefill():
        theirs.forget()
        return theirs.read(ids[:PREFILL])

    def their_decode():
        theirs.forget()
        theirs.read(ids[:DEPTH])
        return sum(theirs.read([i]) for i in ids[DEPTH:DEPTH + DECODE])

    ways = {"prefill": (lambda: ours.seconds(f"prefill {PREFILL}"), their_prefill, PREFILL, 1.5),
            "decode": (lambda: ours.seconds(f"decode {DEPTH} {DECODE}"), their_decode, DECODE, 0.8)}
    s.quiet_machine()
    for what, (mine, other, n, bar) in ways.items():
        mine(), other()  # warm
        pairs = [(mine(), other()) for _ in range(rounds)]
        a, b = (n / statistics.median(times) for times in zip(*pairs))
        s.note(f"{what}, mneme, tokens/s", a)
        s.note(f"{what}, llama.cpp, tokens/s", b)
        s.note(f"{what}, ratio of every round", [round(y / x, 3) for x, y in pairs])
        s.at_least(f"{what} beside llama.cpp, {llama.THREADS} threads, median of {rounds}", a / b, bar)
    ours.close()
    # The same through the command line, as a user sees it.
    prompt = theirs.model.detokenize(ids[:DEPTH]).decode(errors="ignore")
    seen = step.mneme_json("generate", prompt, "--temp", 0, "--max-tokens", DECODE, "--threads", llama.THREADS)["timing"]
    s.note("mneme generate, decode tokens/s", seen["decode_tokens_per_s"])


if __name__ == "__main__":
    step.main(body)
