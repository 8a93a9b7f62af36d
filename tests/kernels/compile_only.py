"""The table of what every shipped kernel uses, resources.csv, and the command that compares and rewrites it.

    python tests/kernels/compile_only.py              compile everything, compare with resources.csv
    python tests/kernels/compile_only.py layer_norm   only the cases with that in their name
    python tests/kernels/compile_only.py --write      compile everything and rewrite resources.csv
"""

import argparse
import csv
import difflib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from compile_gate import TARGETS, Case, Outcome, Resources, Target, compile_all, faults, key

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("resources.csv")
REWRITE = "python tests/kernels/compile_only.py --write"
# What the table says of a kernel, and of which one.
COLUMNS = ["kernel", "registers", "stack", "shared", "tensor_core", "spills", "wide_loads", "ptxas"]
HEADER = ["room", "entry", "features", "dtype", "target", "triton", *COLUMNS]


def rows(case: Case, target: Target, triton_version: str, kernels: Iterable[Resources]) -> list[dict[str, str]]:
    """Return the rows of the table for one case on one GPU."""
    which = (case.room, case.entry, case.features, case.dtype, target.name, triton_version)
    return [
        dict(zip(HEADER, [*which, *(str(getattr(kernel, column)) for column in COLUMNS)], strict=True))
        for kernel in kernels
    ]


def read_table() -> list[dict[str, str]]:
    """Return the rows of resources.csv, none if it is not there."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def of_case(table: Iterable[dict[str, str]], case: Case, target: Target) -> list[dict[str, str]]:
    """Return the rows of a table that are about one case on one GPU."""
    which = (case.room, case.entry, case.features, case.dtype, target.name)
    return [row for row in table if tuple(row[column] for column in HEADER[:5]) == which]


def difference(committed: list[dict[str, str]], now: list[dict[str, str]]) -> str:
    """Return the rows that differ, a line for each, empty if none does."""
    before, after = ([" ".join(f"{column} {row[column]}" for column in COLUMNS) for row in r] for r in (committed, now))
    return "\n".join(line for line in difflib.ndiff(before, after) if line[0] in "+-")


def main() -> None:
    sys.path.insert(0, str(ROOT))
    import compile_cases
    import triton

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="", help="only cases with this in their name")
    parser.add_argument("--write", action="store_true", help="rewrite resources.csv")
    parser.add_argument("--toys", action="store_true", help="the cases that shall fail, too")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file and judge nothing")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    arguments = parser.parse_args()
    if arguments.write and arguments.name:
        parser.error("--write rewrites the whole table: give no name")
    cases = compile_cases.cases()
    if arguments.toys:
        import compile_toys

        cases += compile_toys.CASES
    cases = [case for case in cases if arguments.name in case.name]
    outcomes = compile_all(cases, arguments.jobs)
    if arguments.json:
        arguments.json.write_text(json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}))
        return
    table, committed, bad = [], read_table(), False
    for case in cases:
        for target in TARGETS.values():
            outcome = outcomes[key(case, target)]
            now = rows(case, target, triton.__version__, outcome.kernels)
            table += now
            found = [outcome.error] if outcome.error else faults(outcome.kernels, target)
            for kernel in outcome.kernels:
                print(f"{key(case, target)} {outcome.seconds:.1f} s: " + " ".join(f"{c} {getattr(kernel, c)}" for c in COLUMNS))
            for line in found:
                print(f"  FAULT {line}")
            bad |= bool(found)
    if arguments.write:
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, HEADER, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    sys.exit(bad)


if __name__ == "__main__":
    main()
