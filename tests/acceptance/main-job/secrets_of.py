"""Bytes by which a source could be found in a memory file, and a search for them."""
import pathlib
import random
import re

import step


def marker(generator):
    """A word that no text holds."""
    return "zq" + "".join(generator.choice("bcdfghjklmnpqrstvwxz") + generator.choice("aeiou") for _ in range(7)) + "b"


def secrets_of(memory, label, words):
    """What the file holds of a source, by kind: packed text, search words, embeddings, states, and the words as they are."""
    found = {}
    piece = lambda blob, at, n=48: bytes(blob[at:at + n])
    of = "FROM documents d JOIN spans s ON s.document_id = d.id JOIN reps r ON r.span_id = s.id"
    texts = step.query(memory, "SELECT zstd FROM texts t JOIN documents d ON d.id = t.document_id WHERE d.label = ?", label)
    found["packed text"] = [piece(t, at) for (t,) in texts for at in range(32, max(33, len(t) - 48), 3000)]
    embeddings = step.query(memory, f"SELECT r.blob {of} WHERE d.label = ? AND r.blob IS NOT NULL", label)
    found["embeddings"] = [piece(b, 64) for (b,) in embeddings]
    states = step.query(memory, f"SELECT p.data {of} JOIN state_parts p ON p.rep_id = r.id WHERE d.label = ? LIMIT 40", label)
    found["states"] = [piece(b, at) for (b,) in states for at in range(100, len(b) - 48, max(1, len(b) // 4))]
    # Words lie packed in the text and, without the beginning that they share with a neighbour, in the search index.
    found["search words"] = [w[4:].encode() for w in words]
    # Pieces that stand elsewhere too say nothing: states of different spans begin alike.
    held = bytes_of(memory)
    return {kind: [x for x in pieces if len(x) >= 8 and (kind == "search words" or held.count(x) <= 1)] for kind, pieces in found.items()}


def bytes_of(memory):
    """The file and what lies beside it."""
    paths = [pathlib.Path(f"{memory}{suffix}") for suffix in ("", "-wal", "-journal", "-shm")]
    return b"".join(path.read_bytes() for path in paths if path.exists())


def search(memory, secrets):
    """The kinds of which a piece is in the file, or in what lies beside it, each with how many of its pieces."""
    held = bytes_of(memory)
    counts = {kind: sum(piece in held for piece in pieces) for kind, pieces in secrets.items()}
    return {kind: n for kind, n in counts.items() if n}


def secret_text(generator, words, size=9000):
    """A text of novels into whose paragraphs the words are sown."""
    paragraphs = step.novel_text(size, skip=generator.randrange(100_000, 4_000_000)).splitlines()
    for i, word in enumerate(words):
        at = (i * 7) % len(paragraphs)
        paragraphs[at] += f" {word.capitalize()} said {word} again."
    return "\n".join(paragraphs) + "\n"
