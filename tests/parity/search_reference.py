"""Hybrid search by other means: numpy for cosines, Python's own sqlite3 for BM25 and terms, plain loops for the rest.

  search_reference.py FOLDER --squad dev-v1.1.json.gz [--minilm MODEL] [--articles N] [--questions N]

writes FOLDER/case.json (spans, questions, the gold span of each, the first twenty candidates with their scores, the
relevance) and FOLDER/spans.f32, questions.f32 (unit vectors). Without --minilm a text's vector is a sum of random
vectors of its words: no model is needed to compare the ordering.
"""

import argparse
import gzip
import json
import math
import pathlib
import random
import re
import sqlite3

import numpy as np

STOP_WORDS = set(
    "a an and are as at be been by did do does for from had has have how in is it its many much of on or s that the their there "
    "these this to was were what when where which who whom whose why will with would".split())


def word_vectors(texts, dimension=64):
    """One unit vector a text: the sum of a random vector a word, drawn from the word."""
    out = np.zeros((len(texts), dimension), np.float32)
    for row, text in zip(out, texts):
        for word in re.findall(r"\w+", text.lower()) or [""]:
            seed = int.from_bytes(word.encode()[:24], "little")
            row += np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def minilm_vectors(model, texts):
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu")
    return encoder.encode(texts, batch_size=16, normalize_embeddings=True, show_progress_bar=False).astype(np.float32)


class Words:
    """BM25 and terms of the spans."""

    def __init__(self, spans):
        self.db = sqlite3.connect(":memory:")
        self.db.execute("create virtual table s using fts5(t, tokenize='porter unicode61')")
        self.db.executemany("insert into s(rowid, t) values (?, ?)", enumerate(spans))
        self.terms = terms_of(spans)
        self.df = {}
        for terms in self.terms:
            for term in terms:
                self.df[term] = self.df.get(term, 0) + 1

    def ranked(self, question, limit):
        words = dict.fromkeys(re.findall(r"\w+", question.lower()))
        query = " OR ".join(f'"{w}"' for w in words)
        sql = "select rowid from s where s match ? order by bm25(s), rowid limit ?"
        return [r[0] for r in self.db.execute(sql, (query, limit))] if words else []

    def idf(self, term):
        df = self.df.get(term, 0)
        return math.log(1 + (len(self.terms) - df + 0.5) / (df + 0.5))


def terms_of(texts):
    db = sqlite3.connect(":memory:")
    db.execute("create virtual table s using fts5(t, tokenize='porter unicode61')")
    db.execute("create virtual table v using fts5vocab(s, 'instance')")
    db.executemany("insert into s(rowid, t) values (?, ?)", enumerate(texts))
    out = [set() for _ in texts]
    for term, row in db.execute("select term, doc from v"):
        out[row].add(term)
    return out


def candidates(question_terms, cosines, dense, lexical, words, k=10, depth=20, weight=0.5):
    fused = {}
    for ranked in (dense, lexical):
        for place, span in enumerate(ranked):
            fused[span] = fused.get(span, 0.0) + 1 / (k + place + 1)
    first = sorted(fused, key=lambda s: (-fused[s], s))[:depth]
    total = sum(words.idf(t) for t in question_terms) or 1.0
    cover = {s: sum(words.idf(t) for t in question_terms if t in words.terms[s]) / total for s in first}
    score = {s: float(cosines[s]) + weight * cover[s] for s in first}
    order = sorted(first, key=lambda s: -score[s])
    # A share of few words says little: cover counts as far as the question's idf mass outweighs one word of no span.
    mass = sum(words.idf(t) for t in question_terms)
    trust = mass / (mass + words.idf(None)) if mass > 0 else 0.0
    return order, [score[s] for s in order], max((float(cosines[s]) + trust * cover[s] for s in first), default=0.0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--squad", required=True)
    parser.add_argument("--minilm")
    parser.add_argument("--articles", type=int, default=12)
    parser.add_argument("--questions", type=int, default=200)
    options = parser.parse_args()

    data = json.load(gzip.open(options.squad))["data"][-options.articles:]
    paragraphs = [p for article in data for p in article["paragraphs"]]
    spans = [p["context"] for p in paragraphs]
    asked = [(q["question"].strip(), i) for i, p in enumerate(paragraphs) for q in p["qas"]]
    asked = random.Random(1).sample(asked, min(options.questions, len(asked)))
    questions = [q for q, _ in asked]
    embed = (lambda texts: minilm_vectors(options.minilm, texts)) if options.minilm else word_vectors
    span_vectors, question_vectors = embed(spans), embed(questions)

    words, stops = Words(spans), set.union(*terms_of(sorted(STOP_WORDS)))
    orders, scores, relevances = [], [], []
    for question, vector, terms in zip(questions, question_vectors, terms_of(questions)):
        cosines = span_vectors @ vector
        dense = [int(i) for i in np.argsort(-cosines, kind="stable")[:100]]
        found = candidates(terms - stops or terms, cosines, dense, words.ranked(question, 100), words)
        for into, value in zip((orders, scores, relevances), found):
            into.append(value)
    options.folder.mkdir(parents=True, exist_ok=True)
    span_vectors.tofile(options.folder / "spans.f32")
    question_vectors.tofile(options.folder / "questions.f32")
    case = dict(dimension=int(span_vectors.shape[1]), spans=spans, questions=questions, gold=[i for _, i in asked],
                orders=orders, scores=scores, relevances=relevances)
    (options.folder / "case.json").write_text(json.dumps(case))


if __name__ == "__main__":
    main()
