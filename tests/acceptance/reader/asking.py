"""What the checks outside of SQuAD share: texts read into a memory on two sides, questions put to it, answers judged.

The sides are the adapter (the model's own, or the one of --adapter) and the base, the same model without one. Every
question is put to both, so that their difference is paired. A check leaves one JSON object a line in its output and
exits 1 where a bar is missed, 2 where it cannot be run.
"""
import argparse
import collections
import datetime
import json
import pathlib
import random
import re
import string
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "harness"))  # also where a check is run by itself
from step import DATA, MNEME, ROOT, CannotRun

SIDES = ("adapter", "base")
NO_ADAPTER = "none"  # as mneme says it
RESAMPLES = 4000

# ASCII punctuation but for the underscore, which tells names of Python apart, and typographic quotation marks.
PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation.replace("_", "") + "‘’“”", ""))


def words(text):
    """The words of an answer as SQuAD's evaluation compares them: lower case, no punctuation, no articles."""
    text = re.sub(r"[–—]", " ", text.lower()).translate(PUNCTUATION)
    return [word for word in text.split() if word not in ("a", "an", "the")]


def word_f1(answer, gold):
    """Harmonic mean of word precision and recall."""
    said, wanted = words(answer), words(gold)
    common = sum((collections.Counter(said) & collections.Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def holds(text, part):
    """Whether the words of `part` stand in `text` one after another."""
    inside, wanted = words(text), words(part)
    return bool(wanted) and any(inside[i:i + len(wanted)] == wanted for i in range(len(inside) - len(wanted) + 1))


def interval(values, seed=1):
    """Mean of `values`, and the bounds of its 95 % bootstrap interval; the same questions are drawn for every list of one length."""
    draw, n = random.Random(seed), len(values)
    means = sorted(sum(draw.choices(values, k=n)) / n for _ in range(RESAMPLES))
    return sum(values) / n, means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]


def percent(value, low, high):
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


class Check:
    """One check: what it was told, a folder of its own, and the rows that it writes down."""

    def __init__(self, arguments=lambda parser: None):
        document = sys.modules["__main__"].__doc__
        parser = argparse.ArgumentParser(description=document.split("\n")[0])
        parser.add_argument("program", nargs="?", type=pathlib.Path, default=MNEME, metavar="MNEME", help="the program, default %(default)s")
        parser.add_argument("--data", type=pathlib.Path, default=DATA, metavar="FOLDER",
                            help="the data sets; unset: MNEME_DATA, or %(default)s")
        parser.add_argument("-o", "--output", type=pathlib.Path, metavar="JSONL", help="where the rows go; unset: they are only counted")
        parser.add_argument("--adapter", metavar="NAME", help="the adapter to compare with none; unset: the model's own")
        parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads of mneme; 0: as many as there are cores")
        arguments(parser)
        self.options = parser.parse_args()
        self.name = pathlib.Path(sys.argv[0]).stem
        self.program = self.options.program.resolve()
        self.data = pathlib.Path(self.options.data)
        self.rows = []
        self.adapters = {}
        self.started = time.time()

    def write(self, **row):
        self.rows.append(dict(check=self.name, **row))

    def note(self, what, value, **more):
        """A figure: printed, and a row."""
        print(f"{what}: {value}")
        self.write(what=what, value=value, **more)

    def save(self):
        if not self.options.output:
            return
        head = dict(check=self.name, at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), program=self.version,
                    adapters=self.adapters, seconds=round(time.time() - self.started, 1))
        self.options.output.parent.mkdir(parents=True, exist_ok=True)
        self.options.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [head, *self.rows]))
        print(f"{len(self.rows)} rows are in {self.options.output}")

    def run(self, verb, *arguments):
        """What mneme prints for --json."""
        command = [self.program, verb, "--json", "--quiet", "--threads", self.options.threads, *arguments]
        out = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if out.returncode:
            raise CannotRun(f"mneme {verb} exits {out.returncode}: {out.stderr.strip()[-500:]}")
        return json.loads(out.stdout)

    def check_program(self):
        if not self.program.is_file():
            raise CannotRun(f"no {self.program}: make build")
        self.version = subprocess.run([self.program, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
        if "--adapter" not in subprocess.run([self.program, "read", "--help"], capture_output=True, text=True).stdout:
            raise CannotRun(f"{self.program} knows no --adapter")

    def read(self, side, folder):
        """A fresh memory of a folder of texts, beside it."""
        memory = folder.with_name(f"{folder.name}-{side}.mneme")
        adapter = NO_ADAPTER if side == "base" else self.options.adapter
        started = time.time()
        found = self.run("read", folder, "-o", memory, *(["--adapter", adapter] if adapter else []))
        print(f"{side}: {len(found['sources'])} sources, {found['tokens_read']} tokens read in {time.time() - started:.1f} s", flush=True)
        return memory

    def ask(self, side, memory, question, *flags):
        """mneme's answer, with `cited`: the first citation, None where there is none."""
        # Behind the flags and `--`: a question may begin with a dash.
        answer = self.run("ask", *flags, "--", memory, question)
        adapter = answer.get("adapter") or NO_ADAPTER
        if (adapter == NO_ADAPTER) != (side == "base"):
            advice = ": the model has none of its own, name one with --adapter" if side == "adapter" else ""
            raise CannotRun(f"the side '{side}' is answered by the adapter '{adapter}'{advice}")
        self.adapters[side] = adapter
        answer["cited"] = next(iter(answer["citations"]), None)
        return answer

    def ask_all(self, side, memory, questions, flags=lambda question: ()):
        """The answers to a list of {"question": ...}, in their order."""
        answers = []
        for done, question in enumerate(questions):
            answers.append(self.ask(side, memory, question["question"], *flags(question)))
            if done % 20 == 19 or done + 1 == len(questions):
                print(f"{side}: {done + 1} of {len(questions)} questions", file=sys.stderr, flush=True)
        return answers


def main(body, arguments=lambda parser: None):
    """Runs body(check, folder), which returns whether the bar is met."""
    check = Check(arguments)
    try:
        check.check_program()
        with tempfile.TemporaryDirectory(prefix="mneme-") as folder:
            met = body(check, pathlib.Path(folder))
    except CannotRun as reason:
        print(f"{check.name}: cannot be run: {reason}", file=sys.stderr)
        sys.exit(2)
    check.save()
    sys.exit(0 if met else 1)


# Questions with accepted answers and with the sections that hold them.


class Sections:
    """Where the questions of a file are answered in the texts of a folder; refuses questions that the texts do not answer there."""

    def __init__(self, questions, folder):
        self.lines = {}  # of a source: where each of its lines begins, and the last one ends
        for question in questions:
            echoed = next((part for part in question["accepted"] if holds(question["question"], part)), None)
            if echoed:
                raise CannotRun(f"question {question['id']} says its own answer: {echoed}")
            for section in question["sections"]:
                source, (first, last) = section["source"], section["lines"]
                if not (folder / source).is_file():
                    raise CannotRun(f"question {question['id']}: no source {source}")
                text = (folder / source).read_bytes()
                begins = self.lines.setdefault(source, [0, *(at + 1 for at, byte in enumerate(text) if byte == ord("\n")), len(text)])
                held = " ".join(text[begins[first - 1]:begins[last]].decode().split()) if 1 <= first <= last < len(begins) else ""
                if not any(evidence in held for evidence in question["evidence"]):
                    raise CannotRun(f"question {question['id']}: lines {first} to {last} of {source} do not say it: "
                                    "the questions are written for another version of the text")

    def hold(self, question, citation):
        """Whether a citation overlaps a section of the question."""
        for section in question["sections"] if citation else ():
            if section["source"] != citation["source"]:
                continue
            first, last = section["lines"]
            begins = self.lines[section["source"]]
            if citation["start"] < begins[last] and citation["end"] > begins[first - 1]:
                return True
        return False


def judge(question, answer, sections):
    """Whether an answer is right, and whether its first citation is in a section that holds the topic."""
    said = answer["answer"] if answer["found"] else ""
    right = any(holds(said, gold) or word_f1(said, gold) >= 0.5 for gold in question["accepted"])
    topic = sections.hold(question, answer["cited"])
    return dict(answer=said, found=answer["found"], right=right, topic=topic, both=right and topic)


def judged(check, questions, texts):
    """Puts questions with sections to a folder of texts on both sides; returns the judgements of each side.

    Prints one table and, a side, how many are right, with intervals over questions.
    """
    sections = Sections(questions, texts.parent)
    found = {}
    for side in SIDES:
        memory = check.read(side, texts)
        answers = check.ask_all(side, memory, questions)
        found[side] = [judge(question, answer, sections) for question, answer in zip(questions, answers)]
        for question, answer, judgement in zip(questions, answers, found[side]):
            cited = answer["cited"]
            check.write(side=side, id=question["id"], question=question["question"], accepted=question["accepted"], **judgement,
                        citation=cited and {key: cited[key] for key in ("source", "start", "end", "line")})
    cell = lambda text: " ".join(text.split()).replace("|", "\\|")
    mark = lambda yes: "yes" if yes else "no"
    print("\n| question | expected | " + " | ".join(f"{side} | right | topic cited" for side in SIDES) + " |")
    print("|---|---|" + "---|---|---|" * len(SIDES))
    for i, question in enumerate(questions):
        sides = (found[side][i] for side in SIDES)
        print(f"| {cell(question['question'])} | {cell(' / '.join(question['accepted']))} | " +
              " | ".join(f"{cell(x['answer']) if x['found'] else '*not found*'} | {mark(x['right'])} | {mark(x['topic'])}" for x in sides) + " |")
    print()
    for side in SIDES:
        for what, key in (("right", "right"), ("topic cited", "topic"), ("right with the right topic cited", "both")):
            values = [float(x[key]) for x in found[side]]
            mean, low, high = interval(values)
            check.note(f"{side}, {what}", f"{sum(values):.0f} of {len(values)}, {percent(mean, low, high)}", side=side, count=sum(values),
                       mean=mean, low=low, high=high)
    difference(check, "right with the right topic cited", *([float(x["both"]) for x in found[side]] for side in SIDES))
    return found


def difference(check, what, adapter, base):
    """The paired difference of two lists over the same questions."""
    mean, low, high = interval([a - b for a, b in zip(adapter, base)])
    check.note(f"adapter minus base, {what}", percent(mean, low, high), mean=mean, low=low, high=high)
