"""Twenty questions on two novels that no training reads, both in one memory; reported, without a bar."""
import gzip
import json

import asking


def body(check, folder):
    questions = json.loads((asking.HERE / "books_questions.json").read_text())["questions"]
    texts = folder / "books"
    texts.mkdir()
    for source in sorted({section["source"] for question in questions for section in question["sections"]}):
        name = source.split("/")[1]
        packed = check.data / "books" / f"{name}.gz"
        if not packed.is_file():
            raise asking.CannotRun(f"no {packed}: name the folder of the data sets with --data")
        (texts / name).write_bytes(gzip.decompress(packed.read_bytes()))
    asking.judged(check, questions, texts)
    return True


if __name__ == "__main__":
    asking.main(body)
