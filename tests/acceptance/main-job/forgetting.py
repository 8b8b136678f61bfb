"""Forgotten text is found by no search of the file's bytes: not of a source, nor of the turns of a chat."""
import random

from secrets_of import bytes_of, marker, search, secret_text, secrets_of
import step


def quoted(memory, secret, known):
    """Pieces of four words that replies of chats have of a text and of no other."""
    plain = lambda text: " ".join(text.split())
    secret, known, found = plain(secret), [plain(text) for text in known], set()
    for (text,) in step.query(memory, "SELECT text FROM turns WHERE role = 'assistant'"):
        words = text.split(" ")
        for i in range(len(words) - 3):
            piece = " ".join(words[i:i + 4])
            if plain(piece) in secret and not any(plain(piece) in other for other in known):
                found.add(piece)
    return found


def left_of(memory, pieces):
    held = bytes_of(memory)
    return sorted(piece for piece in pieces if piece.encode() in held)


def documents_of_chats(memory):
    return [label for (label,) in step.query(memory, "SELECT label FROM documents WHERE session_id IS NOT NULL ORDER BY id")]


def turns_of_a_chat(s, memory):
    """What left the context became a document of the session; forgetting it takes the turns with it, for good."""
    generator = random.Random(5)
    words = [marker(generator) for _ in range(4)]
    talk = lambda message: step.mneme("chat", memory, "--session", "talk", "--max-tokens", 4, input=message + "\n")
    for i, word in enumerate(words):
        talk(f"Remember {word}. " + " ".join(step.novel_text(2400, skip=200_000 + 10_000 * i).split()))
    kept = documents_of_chats(memory)
    if not s.check("old turns of a chat became a document", bool(kept), kept):
        return
    s.check("the first message is there to be found", bool(left_of(memory, words[:1])))
    report = step.mneme_json("forget", memory, kept[0])
    s.check("forgetting the document takes the turns that it holds", report["turns"] >= 2, report["turns"])
    s.check("no byte of them is left", not left_of(memory, words[:1]), left_of(memory, words[:1]) or "")
    rest = documents_of_chats(memory)
    talk("And now?")
    after = documents_of_chats(memory)
    s.check("they do not come back when the chat goes on", kept[0] not in after and not left_of(memory, words[:1]), after)
    s.check("what is not forgotten stays", set(rest) <= set(after) and bool(left_of(memory, words[-1:])), after)


def body(s):
    generator = random.Random(3)
    words = [marker(generator) for _ in range(6)]
    folder = s.folder / "text"
    folder.mkdir()
    secret, kept = secret_text(generator, words, 20_000), step.novel_text(60_000)
    # What a reader repeats word by word: it answers in few words, and of novels in other ones each time.
    secret += "\nThe watchword of the night watch at Tarrow was seven copper lanterns burning upstream, and nobody else knew it.\n"
    (folder / "secret.txt").write_text(secret)
    (folder / "kept.txt").write_text(kept)
    memory = s.folder / "memory.mneme"
    step.mneme("read", folder / "kept.txt", folder / "secret.txt", "-o", memory, "--eager")
    label = next(x["name"] for x in step.mneme_json("show", memory)["sources"] if x["name"].endswith("secret.txt"))
    # A chat whose replies were made from it, and an answer from it. The questions do not name it: they are not its text.
    step.mneme("ask", memory, "Who said it again?", "--always")
    messages = ["What was the watchword of the night watch at Tarrow?", "Whom did Mr. Weston come to see?", "Repeat what you told me."]
    step.mneme("chat", memory, "--max-tokens", 24, input="".join(message + "\n" for message in messages))
    secrets = secrets_of(memory, label, words)
    repeated = quoted(memory, secret, [kept, *messages])
    s.check("replies of the chat quote the source", bool(repeated), len(repeated))
    before = search(memory, secrets)
    s.check("the search finds text, words, embeddings and states while they are there", set(before) == set(secrets), before)
    report = step.mneme_json("forget", memory, label)
    after = search(memory, secrets)
    s.check("after forget it finds nothing", not after, after or "")
    s.check("nor what a chat repeated from it", not left_of(memory, repeated), left_of(memory, repeated) or "")
    s.check("forget says that the file was rewritten", report["cleaned"])
    s.check("only the source is gone", [x["name"].split("/")[-1] for x in step.mneme_json("show", memory)["sources"]] == ["kept.txt"])
    s.check("the other source is still found", bool(step.mneme_json("search", memory, "the governess")["results"]))
    s.check("verify is content", step.mneme("verify", memory, "--deep", 3, check=False).returncode == 0)
    shown = step.mneme("search", memory, words[0], check=False).stdout
    s.check("search does not show it", not any(w in shown.lower() for w in words))
    turns_of_a_chat(s, memory)


if __name__ == "__main__":
    step.main(body)
