"""Twenty questions on the Python Language Reference in a user's words: at least 12 right with the right topic cited.

The reference is the one inside this Python, as scripts/python_reference.py writes it for the demo; the questions are
written for that of Python 3.11, and each is checked against the text before anything is asked.
"""
import contextlib
import importlib.util
import io
import json

import asking

BAR = 12


def write_reference(folder):
    specification = importlib.util.spec_from_file_location("python_reference_of_demo", asking.ROOT / "scripts" / "python_reference.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()):
        module.main(folder)


def body(check, folder):
    texts = folder / "python-reference"
    write_reference(texts)
    questions = json.loads((asking.HERE / "python_questions.json").read_text())["questions"]
    found = asking.judged(check, questions, texts)
    right = sum(x["both"] for x in found["adapter"])
    met = right >= BAR
    print(f"{'ok  ' if met else 'FAIL'} right with the right topic cited: {right} of {len(questions)} (at least {BAR})")
    check.write(what="bar", value=right, wanted=BAR, ok=met)
    return met


if __name__ == "__main__":
    asking.main(body)
