"""The byte budget: never exceeded, filled well, what was asked for is preferred, search does not suffer."""
import json
import subprocess
import threading
import time

import step

BUDGET = 64 << 20


class Watch(threading.Thread):
    """Samples what a memory takes on the disk."""

    def __init__(self, memory):
        super().__init__(daemon=True)
        self.memory, self.most, self.samples, self.stopped = memory, 0, 0, False

    def run(self):
        while not self.stopped:
            self.most = max(self.most, step.file_bytes(self.memory))
            self.samples += 1
            time.sleep(0.02)

    def stop(self):
        self.stopped = True
        self.join()


def state_tokens(memory):
    return step.query(memory, "SELECT coalesce(sum(n_vec), 0) FROM reps WHERE kind = 'kv' AND layer <= 0")[0][0]


def found(memory, questions):
    return [[(r["source"], r["start"], r["end"]) for r in step.mneme_json("search", memory, q, "--limit", 5)["results"]] for q in questions]


def body(s):
    text = step.novel_text(200_000 if s.quick else 1_000_000)
    half = text.find("\n", len(text) // 2) + 1
    folder = s.folder / "text"
    folder.mkdir()
    (folder / "first.txt").write_text(text[:half])
    (folder / "second.txt").write_text(text[half:])
    budget = BUDGET // 2 if s.quick else BUDGET
    questions = [f"What is said about {what}?" for what in ("the governess and the children", "the letter from her mother", "a walk to the church",
                                                            "Mr. Weston the curate", "the dog Snap", "marriage and money")]

    if s.quick:
        questions = questions[:3]

    lazy = s.folder / "lazy.mneme"
    step.mneme("read", folder, "-o", lazy)
    memory = s.folder / "budget.mneme"
    watch = Watch(memory)
    watch.start()
    # The first half is read and asked; then the second half wants the room.
    first = step.mneme_json("read", folder / "first.txt", "-o", memory, "--eager", "--budget", budget, timeout=7200)
    asked = []
    for question in questions:
        answer = step.mneme_json("ask", memory, question, "--always", "--explain")
        asked += [(c["start"], c["end"]) for c in answer["candidates"] if c["placed"]]
    asked = list(dict.fromkeys(asked))
    seen = subprocess.run([str(step.MNEME), "read", str(folder / "second.txt"), "-o", str(memory), "--eager"], capture_output=True, text=True)
    watch.stop()
    s.check("the second half is read", seen.returncode == 0, seen.stderr.strip().splitlines()[-1] if seen.returncode else "")
    shown = step.mneme_json("show", memory)

    s.note("samples of the size on disk", watch.samples)
    s.note("largest size on disk, file and -wal, bytes", watch.most)
    s.check("file and -wal stay within the budget at every sampled moment", watch.most <= budget, watch.most, f"at most {budget:,} bytes")
    s.at_most("states and free pages in the end, bytes", shown["state_page_bytes"] + shown["free_page_bytes"], budget)
    tokens = state_tokens(memory)
    s.at_least("tokens that have states", tokens, 1500 if s.quick else 3000)
    s.note("bytes of states", shown["state_bytes"])

    kept = {(b, e) for b, e in step.query(memory, "SELECT s.begin, s.end FROM spans s JOIN documents d ON d.id = s.document_id JOIN reps r ON r.span_id = s.id "
                                                  "WHERE r.kind = 'kv' AND d.label LIKE '%first.txt'")}
    of_first = step.query(memory, "SELECT count(*) FROM spans s JOIN documents d ON d.id = s.document_id WHERE s.leaf = 1 AND d.label LIKE '%first.txt'")[0][0]
    s.note("share of the first half's spans that keep a state", len(kept) / of_first)
    s.check("every span that was asked for keeps its state", all(span in kept for span in asked), f"{sum(span in kept for span in asked)} of {len(asked)}")
    again = step.mneme_json("ask", memory, questions[0], "--always")
    s.check("a question asked before needs no document token", again["usage"]["document_tokens_evaluated"] == 0, again["usage"]["document_tokens_evaluated"])

    names = {label: ["first.txt", "second.txt"][i] for m in (memory, lazy) for i, label in enumerate(sorted(x["name"] for x in step.mneme_json("show", m)["sources"]))}
    plain = lambda rows: [[(names[source], b, e) for source, b, e in row] for row in rows]
    s.check("the first five spans found are those of an unbounded memory", plain(found(memory, questions)) == plain(found(lazy, questions)))
    s.check("read says what was consolidated", first["consolidated_spans"] + shown["consolidated_spans"] > 0 and "made smaller" in seen.stdout + seen.stderr + step.mneme("show", memory).stdout,
            shown["consolidated_spans"])
    s.check("verify is content", step.mneme("verify", memory, "--deep", 5, check=False).returncode == 0)


if __name__ == "__main__":
    step.main(body)
