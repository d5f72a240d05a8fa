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
    assert got == wanted, f"{what}\n     got {got!r}\n  wanted {wanted!r}".strip()
