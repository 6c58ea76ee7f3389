"""Writes the generated parts of README.md and docs/.

    python scripts/make_docs.py

A part lies between `<!-- made: NAME -->` and `<!-- end -->`. With `--check`, no file is written, and
the exit status is 1 if a part is stale.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from cepo.methods import METHODS, Method, MethodOptions
from cepo.methods.option_fields import GROUPS, option_fields
from cepo.methods.registry import presets
from cepo.trainer.cepo_config import option_docs

ROOT = Path(__file__).parents[1]
COMMON = option_fields(MethodOptions)
_PART = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.S)


def _source(text: str) -> str:
    number = text.removeprefix("arXiv ")
    return f"[{number}](https://arxiv.org/abs/{number})" if number != text else text


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def methods() -> str:
    """Name, source and summary of every method."""
    return _table(
        ["`method`", "source", "share of its rollout's advantage that a token gets"],
        [[f"`{m.name}`", _source(m.doc.source), m.doc.summary] for m in METHODS.values()],
    )


def facts() -> str:
    """Formula, hints, sign, bounds and passes of every method."""
    return _table(
        ["`method`", "token advantage A_t", "hints carry", "keeps the sign of A", "bounds", "scoring passes"],
        [[f"`{m.name}`", m.doc.formula, m.doc.hints, m.doc.sign, m.doc.bounds, m.doc.passes] for m in METHODS.values()],
    )


def constants() -> str:
    """The options of each method, with its defaults, and its presets."""
    parts = []
    for method in METHODS.values():
        known = option_fields(method.options)
        shared = [f"`{name}`" for name, one in known.items() if one.group != "method"]
        own = {name: one.default for name, one in known.items() if one.group == "method" and name not in COMMON}
        changed = {name: one.default for name, one in known.items() if _redeclared(method, name) and name not in own}
        lines = [f"- shared options: {', '.join(shared)}."]
        lines += [f"- defaults of its own: {_listed(changed)}."] if changed else []
        lines += [f"- further options: {_listed(own)}."] if own else []
        lines += [f"- preset `{name}`: {_listed(values)}." for name, values in method.presets.items()]
        parts.append(f"**`{method.name}`** {_source(method.doc.source)}".rstrip() + "\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _redeclared(method: Method, name: str) -> bool:
    return name in inspect.get_annotations(method.options)


def _listed(values) -> str:
    return ", ".join(f"`{name}` {value!r}" for name, value in values.items())


def options() -> str:
    """Every option that cepo adds to TRL's, by group, with its default."""
    docs = option_docs()
    parts = []
    for group, title in GROUPS.items():
        rows = [[f"`{name}`", default or "none", text] for name, (of, text, default) in docs.items() if of == group]
        parts.append(f"## {title[0].upper()}{title[1:]}\n{_table(['option', 'default', 'description'], rows)}")
    return "\n".join(parts)


def preset_names() -> str:
    """The presets."""
    rows = [
        [f"`{name}`", f"`{values['method']}`", _listed({k: v for k, v in values.items() if k != "method"})]
        for name, values in presets().items()
    ]
    return _table(["preset", "method", "values"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "methods": methods,
    "facts": facts,
    "constants": constants,
    "options": options,
    "presets": preset_names,
}


def made(text: str) -> str:
    """A document with its generated parts up to date."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write no file; exit status 1 if a part is stale")
    check = parser.parse_args().check
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if made(text) != text:
            stale.append(path.name)
            if not check:
                path.write_text(made(text), encoding="utf-8")
    print(f"{'stale' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
