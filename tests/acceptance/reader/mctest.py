"""MCTest's test questions asked openly: short answers from children's stories, adapter against base; reported, without a bar.

All stories lie in one memory, and each question searches its own story only (--source): "What did the boy eat?" means
nothing among sixty stories, and one memory is read once. The options are not shown to the model. An answer is scored
by its word F1 with the right option, and by whether the right option is the one of the four with the highest word F1:
ties, and so answers without a word of any option, count as wrong. So do questions that are not answered.
"""
import json
import random

import asking

LETTERS = "ABCD"
EXAMPLES = 10


def stories(check):
    """Of a part: (name, story, [{"question", "options", "right", "story"}])."""
    part = check.options.part
    table, answers = (check.data / "mctest" / f"{part}.{end}" for end in ("tsv", "ans"))
    for path in (table, answers):
        if not path.is_file():
            raise asking.CannotRun(f"no {path}: name the folder of the data sets with --data, the part with --part")
    rows = table.read_text(encoding="utf-8").splitlines()
    for line, keys in list(zip(rows, answers.read_text().splitlines(), strict=True))[:check.options.stories]:
        fields = [field.replace("\\newline", "\n").replace("\\tab", "\t").strip() for field in line.split("\t")]
        name, _, story, *rest = fields
        questions = []
        for i, key in enumerate(keys.split()):
            question, *options = rest[5 * i:5 * i + 5]
            # "one: " and "multiple: " say how many sentences the writer thought of.
            questions.append(dict(question=question.split(":", 1)[1].strip(), options=options, right=LETTERS.index(key), story=name))
        yield name, story, questions


def score(question, answer):
    said = answer["answer"] if answer["found"] else ""
    f1 = [asking.word_f1(said, option) for option in question["options"]]
    best = max(f1)
    return dict(answer=said, found=answer["found"], f1=f1[question["right"]], picks=f1.count(best) == 1 and f1.index(best) == question["right"])


def show_failures(check, questions, scores):
    wrong = [(question, x) for question, x in zip(questions, scores) if not x["picks"]]
    print(f"\nFailures of the adapter, {min(EXAMPLES, len(wrong))} of {len(wrong)}:")
    for question, x in random.Random(1).sample(wrong, min(EXAMPLES, len(wrong))):
        said = f"\"{x['answer']}\"" if x["found"] else "not found"
        print(f"- {question['story']}: {question['question']} {said}, wanted \"{question['options'][question['right']]}\" (F1 {x['f1']:.2f})")


def body(check, folder):
    texts = folder / "mctest"
    texts.mkdir()
    questions = []
    for name, story, of_story in stories(check):
        (texts / f"{name}.txt").write_text(story + "\n", encoding="utf-8")
        questions += of_story
    flags = ["--always"] if check.options.always else []
    scores = {}
    for side in asking.SIDES:
        memory = check.read(side, texts)
        answers = check.ask_all(side, memory, questions, lambda question: ["--source", f"mctest/{question['story']}.txt", *flags])
        scores[side] = [score(question, answer) for question, answer in zip(questions, answers)]
        for question, x in zip(questions, scores[side]):
            check.write(side=side, story=question["story"], question=question["question"], wanted=question["options"][question["right"]], **x)
    print()
    for side in asking.SIDES:
        answered = [x for x in scores[side] if x["found"]]
        check.note(f"{side}, answered", f"{len(answered)} of {len(questions)}", side=side)
        for where, chosen in (("all questions", scores[side]), ("those answered", answered)):
            for what, key in (("word F1", "f1"), ("picks the right option", "picks")):
                if chosen:
                    mean, low, high = asking.interval([float(x[key]) for x in chosen])
                    check.note(f"{side}, {what}, {where}", asking.percent(mean, low, high), side=side, mean=mean, low=low, high=high)
    for what, key in (("word F1", "f1"), ("picks the right option", "picks")):
        asking.difference(check, what, *([float(x[key]) for x in scores[side]] for side in asking.SIDES))
    show_failures(check, questions, scores["adapter"])
    return True


def arguments(parser):
    parser.add_argument("--part", default="mc160.test", help="part of MCTest, default %(default)s: 60 stories, 240 questions")
    parser.add_argument("--stories", type=int, metavar="N", help="only the first N stories")
    parser.add_argument("--always", action="store_true", help="have every question answered, also where nothing relevant was found")


if __name__ == "__main__":
    asking.main(body, arguments)
