"""YAML: plain data in, plain data out, and one readable line for everything else."""

import datetime
import math
import os

import pytest

from pyro_vae.errors import SpecError
from pyro_vae.yaml_files import MAX_BYTES, dump_yaml, load_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e-4", -2.5e-4),
        (".5e1", 5.0),
        ("+1.e2", 100.0),
        ("1.0e-3", 1e-3),
        ("0.001", 1e-3),
        ("3", 3),
        ("1e", "1e"),
        ("e3", "e3"),
        ("'1e-3'", "1e-3"),
        ("1e-3x", "1e-3x"),
    ],
)
def test_numbers(text, value):
    found = parse_yaml(f"lr: {text}")["lr"]
    assert found == value
    assert type(found) is type(value)


JUNK = {
    "a python tag": "!!python/object/apply:os.system ['true']",
    "a python name": "a: !!python/name:os.system",
    "an own tag": "a: !mine 3",
    "an alias": "a: &x [1]\nb: *x",
    "nine aliases of aliases": "a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]",
    "a merge key": "a: {<<: {b: 1}}",
    "a repeated key": "a: 1\nb: 2\na: 3",
    "a repeated key inside": "a: {b: 1, b: 1}",
    "a list as key": "? [1, 2]\n: 3",
    "a mapping as key": "? {a: 1}\n: 3",
    "deep lists": "[" * 3000,
    "deep mappings": "{a: " * 3000,
    "deep dashes": "- " * 3000,
    "deep keys": "? " * 3000,
    "a NUL": "a: \x00",
    "a tab": "a:\n\t- 1",
    "two documents": "a: 1\n---\nb: 2",
    "no end": "a: [1, 2",
    "no quote": "a: 'b",
    "two colons": "a: b: c",
    "an odd list": "!!map [1]",
    "an odd word": "!!map word",
    "an odd set": "!!set [1]",
    "an odd number": "!!int ''",
    "an odd bool": "!!bool maybe",
    "an odd date": "!!timestamp never",
    "no such date": "a: 2020-99-99",
    "odd bytes": "!!binary zz!",
}


@pytest.mark.parametrize("text", JUNK.values(), ids=JUNK.keys())
def test_junk_is_refused_in_one_line(text):
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "spec.yaml")
    said = str(caught.value)
    assert said.startswith("spec.yaml")
    assert "not readable as YAML" in said
    assert "\n" not in said
    assert len(said) < 300


def test_the_place_of_a_mistake_is_said():
    with pytest.raises(SpecError, match=r"spec\.yaml line 3, column 1: .* 'a' stands twice"):
        parse_yaml("a: 1\nb: 2\na: 3", "spec.yaml")
    with pytest.raises(SpecError, match=r"line 2, column 4: .*aliases are not supported"):
        parse_yaml("a: &x [1]\nb: *x")


def test_files_that_cannot_be_read(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(256)) * 8)
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * MAX_BYTES)
    files = {
        tmp_path / "none.yaml": "no such file",
        tmp_path: "cannot be read as text",
        binary: "cannot be read as text",
        binary / "below": "cannot be read as text",
        large: "larger than",
        f"{tmp_path}/a\0b": "cannot be read as text",
    }
    if os.path.exists("/dev/zero"):
        files["/dev/zero"] = "larger than"
    for path, reason in files.items():
        with pytest.raises(SpecError) as caught:
            load_yaml(path)
        said = str(caught.value)
        assert reason in said
        assert len(said.splitlines()) == 1
        assert str(path).split("\0")[0] in said


@pytest.mark.parametrize(
    "data",
    [
        {"a": 1, "b": [1e-3, 1e-300, 1e22, -0.0, 3.5], "c": {"d": None, "e": True, "f": []}},
        {"words": ["1e-3", "1", "true", "null", "~", "", " a ", "a: b", "# no", "2020-01-01", "é"]},
        {"words": ["0x1", "1_000", "1:30", ".inf", "<<", "=", "*x", "&x", "!x", "two\nlines"]},
        [],
        {},
        "word",
        7,
    ],
)
def test_round_trip(data, tmp_path):
    text = dump_yaml(data)
    assert parse_yaml(text) == data
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_yaml(path) == load_yaml(str(path)) == data


def test_one_object_twice_is_written_twice():
    hidden = [300, 300]
    text = dump_yaml({"encoder": hidden, "decoder": hidden})
    assert "&" not in text
    assert parse_yaml(text) == {"encoder": hidden, "decoder": hidden}


def test_order_is_kept_and_yaml_1_1_words_are_known():
    assert list(parse_yaml(dump_yaml({"z": 1, "a": 2}))) == ["z", "a"]
    assert parse_yaml("") is None
    assert parse_yaml("a: yes") == {"a": True}
    assert parse_yaml("a: 2020-01-02") == {"a": datetime.date(2020, 1, 2)}
    assert math.isinf(parse_yaml("a: .inf")["a"])
