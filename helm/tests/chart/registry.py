"""The list of checks. An id is a letter (R: rendered, V: a validator, P: processes, I: image, K: an API server) and a number."""

import dataclasses
import typing

CHECKS = []


@dataclasses.dataclass
class Check:
    id: str
    title: str
    run: typing.Callable[[], None]


class Skip(Exception):
    """The check cannot be made here; the text says why."""


def check(id, title):
    def register(function):
        CHECKS.append(Check(id, title, function))
        return function

    return register


def equal(got, wanted, what=""):
    assert got == wanted, f"{what}\n     got {shown(got, wanted)}\n  wanted {shown(wanted, got)}".strip()


def shown(one, other):
    """What differs of a long value, with what is around it."""
    one, other = repr(one), repr(other)
    at = next((at for at, (left, right) in enumerate(zip(one, other)) if left != right), min(len(one), len(other)))
    begin = max(0, at - 300)
    return ("…" if begin else "") + one[begin : at + 300] + ("…" if len(one) > at + 300 else "")
