"""What writes freely, and what chats from memory: the model with its adapter and without.

How likely other people's text and replies are says which side `generate`, `continue` and a chat's replies that are not
from memory use; a conversation of questions says which side replies from memory. All on articles held back.
"""
import contextlib
import gzip
import json
import sqlite3
import statistics
import struct
import subprocess

import numpy
import asking
import step

TOKENS = 512
ARTICLES = ("Amazon_rainforest", "Apollo_program", "Black_Death", "Force")


def losses(ids, adapter):
    """-log p of every token but the first."""
    out = subprocess.run([step.BUILD / "logits_tool", "smollm2", "f32", "0", adapter], input=struct.pack(f"={len(ids)}i", *ids), capture_output=True, check=True)
    logits = numpy.frombuffer(out.stdout, numpy.float32).reshape(len(ids), -1)[:-1].astype(numpy.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return numpy.log(numpy.exp(logits).sum(axis=1)) - logits[numpy.arange(len(ids) - 1), ids[1:]]


def tokens(s, text):
    path = s.folder / "text.txt"
    path.write_text(text)
    return step.mneme_json("tokenize", "--special", "-", stdin=path.open())["ids"]


def dialogues():
    """Dialogues in the model's chat template: what the system says is a reply."""
    for name in ("sim-R-dev.json.gz", "sim-M-dev.json.gz"):
        for dialogue in json.load(gzip.open(step.data("sim-dialogue", name)))[:12]:
            text = ""
            for turn in dialogue["turns"]:
                if "system_utterance" in turn:
                    text += f"<|im_start|>assistant\n{turn['system_utterance']['text']}<|im_end|>\n"
                if "user_utterance" in turn:
                    text += f"<|im_start|>user\n{turn['user_utterance']['text']}<|im_end|>\n"
            yield text


def conversation(s, questions, *more):
    """F1 of each reply when the questions are put one after another in one session."""
    memory = s.folder / f"chat{len(more)}.mneme"
    step.mneme("read", s.folder / "articles", "-o", memory, *more)
    step.mneme("chat", memory, "--temp", 0, "--max-tokens", 32, "--quiet", input="".join(q["question"] + "\n" for q in questions))
    with contextlib.closing(sqlite3.connect(f"file:{memory}?mode=ro", uri=True)) as file:
        replies = [text for text, in file.execute("SELECT text FROM turns WHERE role = 'assistant' ORDER BY id")]
    if len(replies) != len(questions):
        raise step.CannotRun(f"{len(replies)} replies to {len(questions)} questions")
    return [max(asking.word_f1(reply, gold) for gold in q["answers"]) for reply, q in zip(replies, questions)]


def squad():
    """Articles as texts, and every ninth question on them."""
    for article in json.load(gzip.open(step.data("squad", "dev-v1.1.json.gz")))["data"]:
        if article["title"] in ARTICLES:
            paragraphs = article["paragraphs"]
            yield (article["title"], "\n\n".join(p["context"] for p in paragraphs),
                   [dict(question=" ".join(q["question"].split()), answers=[a["text"] for a in q["answers"]]) for p in paragraphs for q in p["qas"]])


def body(s):
    name = step.default_adapter()["name"]
    texts = [text[20_000:24_000] for _, text in step.books()][:3 if s.quick else 8]
    better = {"novels": [], "dialogues": []}
    for kind, list_of in (("novels", texts), ("dialogues", list(dialogues())[:3 if s.quick else 24])):
        both = []
        for text in list_of:
            ids = tokens(s, text)[:TOKENS]
            both.append((losses(ids, "none").mean(), losses(ids, name).mean()))
        base, adapted = (statistics.mean(x) for x in zip(*both))
        s.note(f"{kind}: nats a token, base and adapter", f"{base:.3f}, {adapted:.3f}")
        better[kind] = base < adapted
    (s.folder / "articles").mkdir()
    questions = []
    for title, text, asked in squad():
        (s.folder / "articles" / f"{title}.txt").write_text(text)
        questions += asked[::30 if s.quick else 13]
    sides = conversation(s, questions), conversation(s, questions, "--adapter", "none")
    for side, f1 in zip(("adapter", "base"), sides):
        s.note(f"a conversation of {len(questions)} questions, F1 of the replies, {side}", asking.percent(*asking.interval(f1)))
    mean, low, high = asking.interval([a - b for a, b in zip(*sides)])
    s.check("replies from memory come from the adapter, which serves them better", mean > 0, asking.percent(mean, low, high), "difference above 0")
    s.check("text that is not from memory is written without the adapter, which serves it better", all(better.values()))


if __name__ == "__main__":
    step.main(body)
