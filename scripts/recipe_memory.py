"""Writes the memory that `cepo train --dry_run` estimates into the tables of recipes/README.md.

python scripts/recipe_memory.py
"""

import os
import re
from pathlib import Path

from cepo.commands.dry_run import GIB, batches_that_fit, dry_run
from cepo.planning.estimate import PHASES, at
from cepo.trainer.arguments import read_command_line

ROOT = Path(__file__).parents[1]
_ROW = re.compile(r"^\| (.*?) \| (\d+ x (\d+) GB) \| .* \| (.*?) \|$", re.M)


def _filled(row: re.Match[str]) -> str:
    configs = [part for name in re.findall(r"`([^`]+)`", row[1]) for part in ("--config", f"recipes/{name}.yaml")]
    plan = dry_run(read_command_line([*configs, "--device_memory", row[3]])).plan
    assert plan is not None
    parts = plan.memory()
    phases = " / ".join(f"{at(parts, phase) / GIB:.1f}" for phase in PHASES)
    return f"| {row[1]} | {row[2]} | {phases} | {batches_that_fit(plan)} | {row[4]} |"


if __name__ == "__main__":
    os.chdir(ROOT)
    path = Path("recipes/README.md")
    path.write_text(_ROW.sub(_filled, path.read_text(encoding="utf-8")), encoding="utf-8")
