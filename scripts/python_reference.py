"""Writes the Python Language Reference that ships inside every Python: a text file a topic."""

import argparse
import pathlib
import sys
from pydoc_data.topics import topics


def main(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.txt"):
        old.unlink()
    for name, text in topics.items():
        (folder / f"{name}.txt").write_text(text.strip() + "\n", encoding="utf-8")
    version = ".".join(map(str, sys.version_info[:2]))
    print(f"{len(topics)} topics of the Python {version} Language Reference are in {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER")
    main(parser.parse_args().folder)
