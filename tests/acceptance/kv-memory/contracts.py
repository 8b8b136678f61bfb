"""What every enrolled stage must do, alone and with every other that it composes with."""
import re
import subprocess

import step


def body(s):
    for program, wanted in (("test_contracts", "*Kv*"), ("test_kv", "*")):
        out = subprocess.run([step.BUILD / program, "--gtest_brief=1", f"--gtest_filter={wanted}"], capture_output=True, text=True, cwd=step.ROOT)
        ran = re.search(r"(\d+) tests? from .* ran", out.stdout)
        s.check(f"{program}: {ran.group(1) if ran else 'no'} tests", out.returncode == 0 and ran, out.stdout.strip()[-300:] if out.returncode else "")


if __name__ == "__main__":
    step.main(body)
