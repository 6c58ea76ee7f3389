"""Writes the parts of README.md and docs/ that are made from the code.

    python scripts/make_docs.py

A part stands between `<!-- made: NAME -->` and `<!-- end -->`. With `--check` nothing is written, and the exit status
says whether all parts are up to date.
"""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

from cepo.methods import METHODS
from cepo.methods.options import SELECTIVE, presets
from cepo.methods.shared_options import GROUPS
from cepo.trainer.cepo_config import own_options
from cepo.trainer.trl_options import TRL_OPTIONS, Standing

ROOT = Path(__file__).parents[1]
_PART = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.S)


def _source(text: str) -> str:
    number = text.removeprefix("arXiv ")
    return f"[{number}](https://arxiv.org/abs/{number})" if number != text else text


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def methods() -> str:
    """One line a method."""
    return _table(
        ["`method`", "source", "what a token gets of its rollout's advantage"],
        [[f"`{m.name}`", _source(m.source), m.summary] for m in METHODS.values()],
    )


def facts() -> str:
    """Formula, hints, sign, bounds and passes of every method."""
    return _table(
        ["`method`", "token advantage A_t", "teachers are told", "keeps the sign of A", "bounds", "passes"],
        [
            [f"`{m.name}`", m.facts.formula, m.facts.told, m.facts.sign, m.facts.bounds, m.facts.passes]
            for m in METHODS.values()
        ],
    )


def constants() -> str:
    """Each method's own constants, and the shared options that it reads."""
    parts = []
    for method in METHODS.values():
        own = [f"`{f.name}` {f.default!r}" for f in fields(method.constants) if f.default is not MISSING]
        reads = ", ".join(f"`{name}`" for name in SELECTIVE if name in method.options)
        defaults = ", ".join(f"`{name}` {value!r}" for name, value in method.defaults.items())
        lines = [f"- reads {reads}." if reads else "- reads no shared option."]
        lines += [f"- its own defaults: {defaults}."] if defaults else []
        lines += [f"- its own constants (`method_kwargs`): {', '.join(own)}."] if own else []
        lines += [f"- preset `{name}`: {_listed(values)}." for name, values in method.presets.items()]
        parts.append(f"**`{method.name}`** {_source(method.source)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _listed(values) -> str:
    return ", ".join(f"`{name}` {value!r}" for name, value in values.items())


def options() -> str:
    """Every option of ours by group, with its default."""
    own = own_options()
    parts = []
    for group, title in GROUPS.items():
        rows = [[f"`{name}`", default, text] for name, (of, text, default) in own.items() if of == group]
        parts.append(f"## {title[0].upper()}{title[1:]}\n{_table(['option', 'default', 'what it is'], rows)}")
    return "\n".join(parts)


def preset_names() -> str:
    """The presets."""
    rows = [[f"`{name}`", f"`{values['method']}`", _listed({k: v for k, v in values.items() if k != "method"})]
            for name, values in presets().items()]  # fmt: skip
    return _table(["preset", "of", "values"], rows)


def trl_options() -> str:
    """TRL's options beside the methods, those of one standing together."""
    together: dict[Standing, list[str]] = {}
    for name, standing in TRL_OPTIONS.items():
        together.setdefault(standing, []).append(f"`{name}`")
    rows = [[", ".join(names), one.placing, one.distilling, one.note] for one, names in together.items()]
    return _table(["options", "token advantages", "distillation", "what is to be known"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "methods": methods,
    "facts": facts,
    "constants": constants,
    "options": options,
    "presets": preset_names,
    "trl_options": trl_options,
}


def made(text: str) -> str:
    """A document with its made parts as the code has them."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if something would change")
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
