"""What the adapter costs: prefill and decode with and without it, taking turns, and the first token of an answer."""
import statistics

import step

THREADS = 2
PREFILL, DEPTH, DECODE = 512, 128, 64
MOST = 1.10  # of the time without
QUESTIONS = ["What did the vicar say to his wife about the letter?", "Who came to the house on the evening of the ball?",
             "Why was the young man sent away from the school?", "What did the old gentleman leave in his will?"]


def body(s):
    rounds = 2 if s.quick else 9
    adapter = step.default_adapter()
    text = s.folder / "novel.txt"
    text.write_text(step.novel_text(8000))
    ids = step.mneme_json("tokenize", "-", stdin=text.open())["ids"]
    tool = step.SpeedTool(ids, THREADS, adapter["path"])
    s.quiet_machine()
    for compute in ("", " f32"):
        for what, command in (("prefill", f"prefill {PREFILL}"), ("decode", f"decode {DEPTH} {DECODE}")):
            without, with_it = [], []
            for _ in range(rounds + 1):
                without.append(tool.seconds(command + compute))
                with_it.append(tool.seconds(command + compute + " adapter"))
            ratio = statistics.median(a / b for a, b in zip(with_it[1:], without[1:]))
            n = PREFILL if what == "prefill" else DECODE
            s.note(f"{what}{compute}: tokens/s without, with", f"{n / statistics.median(without[1:]):.0f}, {n / statistics.median(with_it[1:]):.0f}")
            s.at_most(f"{what}{compute}: time with the adapter / without", ratio, MOST)
    tool.close()

    # The first token of the default answer, on each side behind its own prompt, from states that are there.
    text.write_text(step.novel_text(44_000))
    firsts = {}
    for side, more in (("adapter", []), ("none", ["--adapter", "none"])):
        memory = s.folder / f"{side}.mneme"
        step.mneme("read", text, "-o", memory, *more)
        for question in QUESTIONS:
            step.mneme_json("ask", memory, question, "--always", "--top", 3, "--threads", THREADS)
        firsts[side] = []
    s.quiet_machine()
    for _ in range(1 if s.quick else 5):
        for question in QUESTIONS:
            for side in firsts:
                out = step.mneme_json("ask", s.folder / f"{side}.mneme", question, "--always", "--top", 3, "--threads", THREADS)
                firsts[side].append(out["timing"]["first_token_s"])
    ours, before = statistics.median(firsts["adapter"]), statistics.median(firsts["none"])
    s.note("first token of --place each --top 3, s: with the adapter, without", f"{ours:.3f}, {before:.3f}")
    s.at_most("first token with the adapter / without, 3 spans", ours / before, 1.0)


if __name__ == "__main__":
    step.main(body)
