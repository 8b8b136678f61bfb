"""The trainer beside PyTorch, and trainings that are killed and go on."""
import json
import random
import re
import signal
import subprocess
import time

import step

STEPS, KILLS = 30, 5


def own_questions(path):
    """Questions of a user's: what the demo's text could be asked, made up so that no data set is needed."""
    draw = random.Random(5)
    things, places, years = ["bridge", "mill", "school", "tower", "harbour", "chapel"], ["Varn", "Lorne", "Tarrow", "Osk", "Mirr"], range(1700, 1990)
    with path.open("w") as out:
        for _ in range(60):
            thing, place, year = draw.choice(things), draw.choice(places), draw.choice(years)
            text = f"The {thing} of {place} was built in {year}. It stands beside the river and is open to visitors in summer."
            out.write(json.dumps({"text": text, "question": f"When was the {thing} of {place} built?", "answers": [str(year)]}) + "\n")
            out.write(json.dumps({"text": text, "question": f"Who built the {thing} of {place}?", "answers": []}) + "\n")


def config(folder, steps):
    path = folder / "train.toml"
    path.write_text(f"""output = "{folder}/trained.safetensors"
[task]
spec = 'reading(data="own", spans=2, questions=2)'
[adapter]
rank = 4
[train]
steps = {steps}
batch = 2
validate_every = 0
validate_limit = 4
checkpoint_every = 3
""")
    return path


def last_step(folder):
    """The last step in the log, 0 for none; a resumed training cuts what is behind its checkpoint off."""
    log = folder / "trained.jsonl"
    return max([0, *map(int, re.findall(r'"step":(\d+),"loss"', log.read_text() if log.exists() else ""))])


def body(s):
    step.parity(s, "trainer_parity.py", step.BUILD / "trainer_tool", "--gguf", step.weights(), "--steps", 4 if s.quick else 20, "--slowest", 0 if s.quick else 0.9,
                note=lambda line: not line.startswith("step "))
    steps, kills = (8, 2) if s.quick else (STEPS, KILLS)
    own_questions(s.folder / "own.jsonl")
    trained = {}
    for name in ("through", "killed"):
        folder = s.folder / name
        folder.mkdir()
        command = [step.MNEME, "train", config(folder, steps), "--data", s.folder / "own.jsonl"]
        if name == "through":
            subprocess.run(command, check=True, capture_output=True)
        else:
            at, done = [], False
            # Behind the last of these there are steps left to go on with.
            for kill, wanted in enumerate(sorted(random.Random(7).sample(range(1, steps - 2), kills))):
                process = subprocess.Popen([*command, *(["--resume"] if kill else [])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                while process.poll() is None and last_step(folder) < wanted:
                    time.sleep(0.01)
                done = process.poll() is not None
                process.send_signal(signal.SIGKILL)
                process.wait()
                at.append(last_step(folder))
                if done:
                    break
            s.note("killed behind steps", ", ".join(map(str, at)))
            s.check("every kill came before the end", not done)
            if not done:
                subprocess.run([*command, "--resume"], check=True, capture_output=True)
        trained[name] = (folder / "trained.safetensors").read_bytes()
    s.check(f"killed {kills} times, the adapter is the same, byte for byte", trained["through"] == trained["killed"])


if __name__ == "__main__":
    step.main(body)
