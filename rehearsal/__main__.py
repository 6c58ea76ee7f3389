"""Run cases on the simulated GPU and on the CPU, and compare: `python -m rehearsal [PART OF A NAME ...]`."""

import argparse
import json
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from rehearsal import SHORT, stub


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m rehearsal", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names of cases; all cases without")
    parser.add_argument("--short", action="store_true", help="the cases of `make test-rehearsal`")
    parser.add_argument("--output", type=Path, help="write the outcomes as JSON")
    args = parser.parse_args()
    stub.restart("rehearsal")
    from rehearsal import cases

    chosen = [
        case
        for name, case in cases.all_cases().items()
        if (not args.short or name in SHORT) and (not args.names or any(part in name for part in args.names))
    ]
    rehearsal, outcomes, results, failed = cases.Rehearsal(), {}, {}, 0
    for case in chosen:
        started = time.perf_counter()
        print(f"{case.name:36} ", end="", flush=True)
        try:
            on_gpu, on_cpu = rehearsal.run(case)
        except Exception:  # a fault of this case; the others run
            results[case.name] = {"faults": [traceback.format_exc()]}
            print(f"fails\n{results[case.name]['faults'][0]}", flush=True)
            failed += 1
            continue
        outcomes[case.name] = on_gpu
        found = cases.faults(case, on_gpu, on_cpu, outcomes.get(case.baseline))
        results[case.name] = {"faults": found, **asdict(on_gpu)}
        failed += bool(found)
        seconds = time.perf_counter() - started
        waits = " ".join(f"{phase} {number}" for phase, number in on_gpu.phases.items())
        print(f"{seconds:5.1f} s  waits {sum(on_gpu.waits.values()):4} ({waits})  ", end="")
        print("; ".join(found) or "passes", flush=True)
        if args.output:
            args.output.write_text(json.dumps(results, indent=1))
    print(f"{len(chosen) - failed} of {len(chosen)} cases pass")
    return failed > 0


if __name__ == "__main__":
    raise SystemExit(main())
