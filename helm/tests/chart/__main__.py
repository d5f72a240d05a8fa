"""Runs the checks and prints a table: id, outcome, what was shown, and the reason if it was not."""

import concurrent.futures
import sys
import time
import traceback

from chart import registry
from chart.checks import config, controllers, groups, image, kubelet, kubernetes, logstores, network, observe, pods, process, refusals, replicate, security, shape, upgrade  # noqa: F401


def outcome(check):
    """(outcome, reason, seconds)"""
    begun = time.monotonic()
    result, reason = "pass", ""
    try:
        check.run()
    except registry.Skip as skip:
        result, reason = "skip", str(skip)
    except AssertionError as error:
        result, reason = "fail", str(error) or traceback.format_exc()
    except Exception:
        result, reason = "fail", traceback.format_exc()
    return result, reason, time.monotonic() - begun


def on_request():
    raise registry.Skip("asks a real Kubernetes: helm/tests/run K")


def main():
    chosen = sys.argv[1:]
    known = {check.id for check in registry.CHECKS}
    unknown = set(chosen) - known - {id[0] for id in known}
    if unknown:
        sys.exit(f"no such check: {', '.join(sorted(unknown))}")
    started = time.monotonic()
    counts = {"pass": 0, "fail": 0, "skip": 0}
    checks = sorted(registry.CHECKS, key=lambda check: (check.id[0], int(check.id[1:])))
    checks = [check for check in checks if not chosen or check.id in chosen or check.id[0] in chosen]
    for check in checks:
        # What takes minutes to build, and more to run beside other work, is not part of every run.
        if check.id[0] == "K" and not chosen:
            check.run = on_request
    # Processes mostly wait and renders mostly compute: one lane each.
    with concurrent.futures.ThreadPoolExecutor(1) as processes, concurrent.futures.ThreadPoolExecutor(1) as renders:
        running = [(check, (processes if check.id[0] == "P" else renders).submit(outcome, check)) for check in checks]
        for check, future in running:
            result, reason, seconds = future.result()
            counts[result] += 1
            print(f"{check.id:<4} {result}  {seconds:5.1f}s  {check.title}", flush=True)
            if reason:
                print("".join(f"                   {line}\n" for line in reason.strip().splitlines()), end="", flush=True)
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped in {time.monotonic() - started:.0f} s")
    return 1 if counts["fail"] else 0


sys.exit(main())
