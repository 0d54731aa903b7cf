"""Fuzzes the readers; run in a process of its own, as `python -m fuzzing.run -h` says.

Its last line is JSON: for each kind how many files were read and refused, and what was wrong.
"""

import argparse
import collections
import gc
import json
import os
import pathlib
import random
import re
import sys
import time

MOST_REPORTED = 40
SORT = re.compile(r"[^:\d]*")  # of what was wrong, what does not depend on the file


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=pathlib.Path, help="an empty folder")
    parser.add_argument("--seeds", type=pathlib.Path, help="the folder of the real files")
    parser.add_argument("--thousands", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only this kind of file")
    parser.add_argument("--only", type=int, help="only the file of this number, and its traceback")
    parser.add_argument("--control", action="store_true", help="readers that do what none may")
    parser.add_argument("--crash", action="store_true", help="with --control: one that crashes")
    arguments = parser.parse_args()
    report = control(arguments) if arguments.control else fuzz(arguments)
    print(json.dumps(report))


def control(arguments):
    """What the harness says of readers that misbehave."""
    from fuzzing.controls import CONTROLS, GOOD
    from fuzzing.harness import Harness

    harness = Harness(arguments.scratch / "own")
    harness.limit_address_space()
    if arguments.crash:
        harness.judge(os.abort, 1000)
    readers = {**GOOD, **{name: read for name, (read, _) in CONTROLS.items()}}
    return {name: harness.judge(read, 1000, True)[1] for name, read in readers.items()}


def fuzz(arguments):
    from fuzzing.harness import Harness
    from fuzzing.kinds import KINDS

    harness = Harness(arguments.scratch)
    kinds = [
        (kind(arguments.seeds, arguments.scratch), arguments.thousands * count)
        for kind, count in KINDS.items()
        if arguments.kind in (None, kind.__name__)
    ]
    warm_up(kinds)
    report = {"outcomes": {}, "wrong": [], "seconds": {}}
    found = collections.Counter()
    for kind, count in kinds:
        name, outcomes, start = type(kind).__name__, collections.Counter(), time.process_time()
        numbers = range(count) if arguments.only is None else [arguments.only]
        for number in numbers:
            rng = random.Random(f"{arguments.seed} {name} {number}")
            size = kind.place(kind.mutated(rng))
            if arguments.only is not None:
                kind.read()
            if number % 1000 == 0:
                harness.limit_address_space()
            outcome, wrong = harness.judge(kind.read, size, number % 16 == 0)
            kind.clean()
            outcomes[outcome] += 1
            for what in wrong:
                sort = f"{name} {SORT.match(what)[0]} {what.rpartition('(')[2][:60]}"
                found[sort] += 1
                if found[sort] <= 2 and len(report["wrong"]) < MOST_REPORTED:
                    report["wrong"].append(f"{name} {number} {what}")
        report["outcomes"][name] = dict(outcomes)
        report["seconds"][name] = round(time.process_time() - start, 1)
        print(name, dict(outcomes), report["seconds"][name], file=sys.stderr, flush=True)
    report["found"] = sum(found.values())
    report["sorts"] = dict(found.most_common(MOST_REPORTED))
    report["slowest"] = round(harness.slowest, 3)
    return report


def warm_up(kinds):
    """Read each kind's real file, and some changed ones, so that all that is imported is there."""
    for kind, _ in kinds:
        for number in range(300):
            try:
                kind.place(kind.mutated(random.Random(f"warm {number}")))
                kind.read()
            except Exception:  # it is judged later
                pass
            finally:
                kind.clean()
    gc.collect()


if __name__ == "__main__":
    main()
