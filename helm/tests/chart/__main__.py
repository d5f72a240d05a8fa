"""Runs the checks and prints a table: id, outcome, what was shown, and the reason if it was not."""

import sys
import time
import traceback

from chart import registry
from chart.checks import config, image, logstores, network, observe, pods, process, refusals, shape, upgrade  # noqa: F401


def main():
    chosen = sys.argv[1:]
    unknown = set(chosen) - {check.id for check in registry.CHECKS}
    if unknown:
        sys.exit(f"no such check: {', '.join(sorted(unknown))}")
    failed = 0
    started = time.monotonic()
    counts = {"pass": 0, "fail": 0, "skip": 0}
    for check in sorted(registry.CHECKS, key=lambda check: (check.id[0], int(check.id[1:]))):
        if chosen and check.id not in chosen:
            continue
        begun = time.monotonic()
        outcome, reason = "pass", ""
        try:
            check.run()
        except registry.Skip as skip:
            outcome, reason = "skip", str(skip)
        except AssertionError as error:
            outcome, reason = "fail", str(error) or traceback.format_exc()
        except Exception:
            outcome, reason = "fail", traceback.format_exc()
        counts[outcome] += 1
        failed += outcome == "fail"
        print(f"{check.id:<4} {outcome}  {time.monotonic() - begun:5.1f}s  {check.title}", flush=True)
        if reason:
            print("".join(f"                   {line}\n" for line in reason.strip().splitlines()), end="", flush=True)
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped in {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


sys.exit(main())
