"""Which of many cases that are alike `make test` runs; `make test-all` runs them all."""

import pytest


def each(every, cases, *, unpack=False):
    """Cases to parametrize with: every so many-th as it is, the others marked slow.

    `unpack`: a case is a tuple of several arguments.
    """
    return [
        case
        if i % every == 0
        else pytest.param(*(case if unpack else (case,)), marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]
