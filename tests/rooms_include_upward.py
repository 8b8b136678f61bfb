"""Checks how the sources under src/mneme include each other.

The rooms and their order are those of the `mneme_room(...)` calls in CMakeLists.txt. Then
  - every folder of src/mneme that holds sources is a room;
  - a file includes our own headers as "mneme/<room>/...", they exist, and their room is its own or
    one before it;
  - no header includes torch/torch.h;
  - headers do not include each other in a circle.

usage: rooms_include_upward.py [--self-test] [REPOSITORY]
Prints each violation as file:line and exits 1 if there is one. --self-test breaks each rule in a
small made-up tree and checks that exactly this is found.
"""

import pathlib
import re
import sys
import tempfile

SOURCES = {".cpp", ".h", ".inl", ".cu", ".cuh"}
HEADERS = {".h", ".inl", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')
ROOM = re.compile(r"^\s*mneme_(?:room\((\w+)[^)]*\)|(kernels)\(\))", re.MULTILINE)


def rooms_of(repository):
    """The names of the rooms, from the ground up."""
    text = (repository / "CMakeLists.txt").read_text(encoding="utf-8")
    return [m.group(1) or m.group(2) for m in ROOM.finditer(text)]


def includes_of(path):
    """Yields (line number, file included, whether in double quotes)."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if m := INCLUDE.match(line):
            yield number, m.group(1) or m.group(2), m.group(1) is not None


def circles(graph):
    """The circles of headers that include each other, one for each back edge of a depth-first walk."""
    found, finished, path = [], set(), []

    def walk(node):
        path.append(node)
        for following in graph.get(node, ()):
            if following in path:
                found.append(path[path.index(following) :] + [following])
            elif following not in finished:
                walk(following)
        path.pop()
        finished.add(node)

    for start in sorted(graph):
        if start not in finished:
            walk(start)
    return found


def violations(repository):
    source = repository / "src"
    rooms = rooms_of(repository)
    rank = {name: i for i, name in enumerate(rooms)}
    if not rooms:
        return ["CMakeLists.txt: no mneme_room(...) found"]
    found, graph = [], {}
    for path in sorted(p for p in (source / "mneme").rglob("*") if p.suffix in SOURCES):
        name = path.relative_to(source).as_posix()
        parts = name.split("/")
        room = parts[1] if len(parts) > 2 else None  # the precompiled header belongs to no room
        if room is not None and room not in rank:
            found.append(
                f"src/{name}:1: '{room}' is no room of CMakeLists.txt (rooms: {', '.join(rooms)})"
            )
            continue
        for line, included, quoted in includes_of(path):
            where = f"src/{name}:{line}"
            if included == "torch/torch.h" and path.suffix in HEADERS:
                found.append(f"{where}: a header includes torch/torch.h; take ATen/core/Tensor.h")
            if not included.startswith("mneme/"):
                if quoted:
                    found.append(
                        f'{where}: "{included}" must be included by its full name, "mneme/<room>/..."'
                    )
                continue
            if not (source / included).is_file():
                found.append(f"{where}: there is no src/{included}")
                continue
            if path.suffix in HEADERS:
                graph.setdefault(name, []).append(included)
            target = included.split("/")[1] if included.count("/") > 1 else None
            if room is not None and target is not None and rank.get(target, -1) > rank[room]:
                found.append(
                    f"{where}: {room} includes {included}, but {target} comes after {room}"
                )
    for circle in circles(graph):
        found.append(f"src/{circle[0]}:1: headers include each other: {' -> '.join(circle)}")
    return found


def self_test():
    sound = {
        "CMakeLists.txt": "project(x)\nmneme_room(core)\nmneme_room(text PLAIN)\nmneme_kernels()\n  mneme_room(kv)\n",
        "src/mneme/pch.h": "#include <ATen/ATen.h>\n",
        "src/mneme/core/error.h": "#include <string>\n",
        "src/mneme/text/span.h": '#include "mneme/core/error.h"\n',
        "src/mneme/kernels/dot.inl": "#include <cstdint>\n",
        "src/mneme/kernels/base.cpp": '#include "mneme/kernels/dot.inl"\n#include <torch/torch.h>\n',
        "src/mneme/kv/deep/cache.cpp": '#include "mneme/core/error.h"\n  #  include "mneme/text/span.h"\n// #include "mneme/none.h"\n',
    }
    # name: (files changed or added, what the one violation must say)
    cases = {
        "sound": ({}, None),
        "downward": (
            {"src/mneme/core/error.cpp": '\n#include "mneme/text/span.h"\n'},
            "error.cpp:2: core includes mneme/text/span.h",
        ),
        "downward with <>": (
            {"src/mneme/text/a.cpp": "#include <mneme/kernels/dot.inl>\n"},
            "kernels comes after text",
        ),
        "downward from a folder": (
            {"src/mneme/core/x/a.h": '#include "mneme/text/span.h"\n'},
            "src/mneme/core/x/a.h:1",
        ),
        "torch/torch.h": (
            {"src/mneme/core/a.h": "#include <torch/torch.h>\n"},
            "a.h:1: a header includes torch/torch.h",
        ),
        "torch/torch.h in .inl": (
            {"src/mneme/kernels/dot.inl": "#include <torch/torch.h>\n"},
            "dot.inl:1: a header includes torch/torch.h",
        ),
        "no such file": (
            {"src/mneme/kv/a.cpp": '#include "mneme/core/none.h"\n'},
            "there is no src/mneme/core/none.h",
        ),
        "short name": ({"src/mneme/core/a.cpp": '#include "error.h"\n'}, "full name"),
        "unknown room": ({"src/mneme/attic/a.cpp": "int x;\n"}, "'attic' is no room"),
        "circle": (
            {
                "src/mneme/core/a.h": '#include "mneme/core/b.h"\n',
                "src/mneme/core/b.h": '#include "mneme/core/a.h"\n',
            },
            "mneme/core/a.h -> mneme/core/b.h -> mneme/core/a.h",
        ),
        "itself": (
            {"src/mneme/core/error.h": '#include "mneme/core/error.h"\n'},
            "mneme/core/error.h -> mneme/core/error.h",
        ),
        "no rooms": ({"CMakeLists.txt": "project(x)\n"}, "no mneme_room"),
    }
    failed = 0
    for name, (changed, expected) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, text in (sound | changed).items():
                path = pathlib.Path(folder, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            found = violations(pathlib.Path(folder))
        right = not found if expected is None else len(found) == 1 and expected in found[0]
        if not right:
            failed += 1
            print(f"self-test '{name}': wanted {expected!r}, found {found}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


def main(arguments):
    if arguments[:1] == ["--self-test"]:
        return self_test()
    repository = (
        pathlib.Path(arguments[0]) if arguments else pathlib.Path(__file__).resolve().parent.parent
    )
    found = violations(repository)
    print(
        "\n".join(found) or f"{len(rooms_of(repository))} rooms include only from those before them"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
