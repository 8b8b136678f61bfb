"""Forgotten text is found by no search of the file's bytes."""
import random

from secrets_of import marker, search, secret_text, secrets_of
import step


def body(s):
    generator = random.Random(3)
    words = [marker(generator) for _ in range(6)]
    folder = s.folder / "text"
    folder.mkdir()
    (folder / "secret.txt").write_text(secret_text(generator, words, 20_000))
    (folder / "kept.txt").write_text(step.novel_text(60_000))
    memory = s.folder / "memory.mneme"
    step.mneme("read", folder / "kept.txt", folder / "secret.txt", "-o", memory, "--eager")
    label = next(x["name"] for x in step.mneme_json("show", memory)["sources"] if x["name"].endswith("secret.txt"))
    # A chat whose replies were made from it, and an answer from it. The questions do not name it: they are not its text.
    step.mneme("ask", memory, "Who said it again?", "--always")
    step.mneme("chat", memory, "--max-tokens", 24, input="Who said it again?\nWhat was said?\n")
    secrets = secrets_of(memory, label, words)
    before = search(memory, secrets)
    s.check("the search finds text, words, embeddings and states while they are there", set(before) == set(secrets), before)
    report = step.mneme_json("forget", memory, label)
    after = search(memory, secrets)
    s.check("after forget it finds nothing", not after, after or "")
    s.check("forget says that the file was rewritten", report["cleaned"])
    s.check("only the source is gone", [x["name"].split("/")[-1] for x in step.mneme_json("show", memory)["sources"]] == ["kept.txt"])
    s.check("the other source is still found", bool(step.mneme_json("search", memory, "the governess")["results"]))
    s.check("verify is content", step.mneme("verify", memory, "--deep", 3, check=False).returncode == 0)
    shown = step.mneme("search", memory, words[0], check=False).stdout
    s.check("search does not show it", not any(w in shown.lower() for w in words))


if __name__ == "__main__":
    step.main(body)
