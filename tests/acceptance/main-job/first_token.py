"""The first token from warm states, beside what llama.cpp needs to read the same tokens; small and large memories."""
import statistics
import time

import llama
import step

PLACED = 2000
QUESTIONS = ["What did the vicar say to his wife about the letter?", "Who came to the house on the evening of the ball?",
             "Why was the young man sent away from the school?", "What did the old gentleman leave in his will?",
             "How did the sisters travel to London in the winter?"]


def ask(memory, question, *more):
    started = time.perf_counter()
    out = step.mneme_json("ask", memory, question, "--always", "--threads", llama.THREADS, *more)
    out["process_s"] = time.perf_counter() - started
    return out


def placed_by(memory, top):
    """Median over the questions of the tokens that so many spans place."""
    return statistics.median(ask(memory, q, "--place", "together", "--top", top)["usage"]["tokens_placed"] for q in QUESTIONS)


def measure(s, memory, name, top, repeats):
    """Median first-token time over the questions, from states that are there."""
    together = ["--place", "together", "--top", top]
    for question in QUESTIONS:
        ask(memory, question, *together)
    s.quiet_machine()
    runs = [ask(memory, q, *together) for q in QUESTIONS for _ in range(repeats)]
    s.check(f"{name}: no document token is evaluated", all(r["usage"]["document_tokens_evaluated"] == 0 for r in runs))
    s.check(f"{name}: the same answer every time", all(len({r["answer"] for r in runs[i:i + repeats]}) == 1 for i in range(0, len(runs), repeats)))
    placed = statistics.median(r["usage"]["tokens_placed"] for r in runs)
    first = statistics.median(r["timing"]["first_token_s"] for r in runs)
    s.note(f"{name}: tokens in memory", runs[0]["usage"]["tokens_in_memory"])
    s.note(f"{name}: tokens placed, median", placed)
    s.note(f"{name}: first token after, s, median", first)
    s.note(f"{name}: of it retrieval, s", statistics.median(r["timing"]["retrieve_s"] for r in runs))
    s.note(f"{name}: whole process, s, median", statistics.median(r["process_s"] for r in runs))
    for question in QUESTIONS:
        ask(memory, question)
    each = [ask(memory, q) for q in QUESTIONS for _ in range(repeats)]
    s.note(f"{name}: --place each at its default, first token after, s", statistics.median(r["timing"]["first_token_s"] for r in each))
    s.note(f"{name}: --place each at its default, whole answer, s", statistics.median(r["timing"]["total_s"] for r in each))
    s.note(f"{name}: --place each, tokens placed", statistics.median(r["usage"]["tokens_placed"] for r in each))
    return placed, first


def body(s):
    repeats = 1 if s.quick else 3
    text = s.folder / "small.txt"
    text.write_text(step.novel_text(44_000))
    small = s.folder / "small.mneme"
    step.mneme("read", text, "-o", small)
    top = 4
    while top < 64 and placed_by(small, top) < PLACED:
        top += 1
    s.note("spans placed", top)
    placed, first = measure(s, small, "10k tokens", top, repeats)
    s.at_least("tokens placed, median", placed, PLACED)

    engine = llama.Llama(4096)
    ids = engine.ids(step.novel_text(16_000))[:int(placed)]
    s.quiet_machine()
    times = []
    for _ in range(3):
        engine.forget()
        times.append(engine.read(ids))
    reading = statistics.median(times)
    s.note(f"llama.cpp reads {len(ids)} tokens in, s", reading)
    s.at_least("first token sooner than llama.cpp reads the same tokens, times", reading / first, 20)

    folder = s.folder / "large"
    folder.mkdir()
    (folder / "small.txt").write_text(text.read_text())
    wanted = 1_300_000 if s.quick else 13_400_000
    for name, book in step.books():
        if wanted <= 0:
            break
        piece = book[:wanted]
        (folder / f"{name}.txt").write_text(piece)
        wanted -= len(piece)
    large = s.folder / "large.mneme"
    started = time.perf_counter()
    report = step.mneme_json("read", folder, "-o", large, timeout=4 * 3600)
    s.note("reading the large memory lazily, tokens/s", report["tokens_read"] / (time.perf_counter() - started))
    s.check("the large memory holds its tokens", s.quick or report["tokens_read"] >= 3_000_000, report["tokens_read"], "at least 3,000,000")
    s.check("nothing was computed ahead", report["state_bytes"] == 0)
    _, far = measure(s, large, "large memory", top, repeats)
    s.at_most("first token in the large memory beside the small one, times", far / first, 1.5)


if __name__ == "__main__":
    step.main(body)
