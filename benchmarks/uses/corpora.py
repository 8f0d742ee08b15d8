"""Two bags of words: one made from a known topic model, one that every Python brings along."""

from __future__ import annotations

import ast
import platform
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STOP = frozenset(
    """a about after all also an and any are argument arguments as at be been before but by call
    called can default do does each else for from function get given has have if in into is it its
    may method more must new no none not object objects of on one only optional or other otherwise
    return returned returns same see self set should so some such than that the their them then
    there these they this to true false two up use used using value values was were when where
    whether which while will with without would you your instance class type example args""".split()  # noqa: SIM905  (they read better so)
)


@dataclass(frozen=True)
class Corpus:
    """Counts `x [documents, words]`; `topics [K, words]` where they are known."""

    x: np.ndarray
    words: tuple[str, ...] = ()
    topics: np.ndarray | None = None
    shares: np.ndarray | None = None  # of topics in each document, [documents, K]


def made(
    documents: int = 2_500, words: int = 300, topics: int = 10, length: int = 100, seed: int = 0
) -> Corpus:
    """Latent Dirichlet allocation: topics ~ Dirichlet(0.1), shares ~ Dirichlet(0.2)."""
    rng = np.random.default_rng(seed)
    beta = rng.dirichlet(np.full(words, 0.1), topics)
    theta = rng.dirichlet(np.full(topics, 0.2), documents)
    lengths = 1 + rng.poisson(length - 1, documents)
    x = [rng.multinomial(n, t @ beta) for n, t in zip(lengths, theta, strict=True)]
    return Corpus(np.stack(x), topics=beta, shares=theta)


def docstrings(words: int = 500, least: int = 10, limit: int | None = None) -> Corpus:
    """What the standard library says of itself: a document is a docstring.

    Of the modules, classes and functions of the Python that runs this, read and not imported; with
    at least so many words of the vocabulary, which are those in most documents. In random order.
    """
    texts = []
    for path in _sources(limit):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # a library's tests of bad files
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    texts.append(_words(text))
    often = Counter(word for text in texts for word in set(text))
    kept = sorted(often, key=lambda word: (-often[word], word))[:words]
    place = {word: i for i, word in enumerate(kept)}
    x = np.zeros((len(texts), len(kept)), dtype=np.int64)
    for row, text in zip(x, texts, strict=True):
        for word in text:
            if word in place:
                row[place[word]] += 1
    x = np.unique(x[x.sum(1) >= least], axis=0)  # each text once, wherever it stands
    return Corpus(x[np.random.default_rng(0).permutation(len(x))], tuple(kept))


def _sources(limit: int | None) -> Iterator[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    left = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo")
    tops = [top for top in root.iterdir() if top.name not in left]
    paths = [p for top in tops for p in ([top] if top.is_file() else top.rglob("*.py"))]
    paths = [p for p in paths if p.suffix == ".py" and not set(p.relative_to(root).parts) & {*left}]
    yield from sorted(paths, key=lambda p: p.relative_to(root).as_posix())[:limit]


def _words(text: str) -> list[str]:
    found = re.findall(r"(?<![\w.])[a-z]{3,}(?![\w(])", text.lower())
    return [word for word in found if word not in STOP]


def source() -> str:
    return f"docstrings of Python {platform.python_version()}'s standard library"
