"""The examples of README.md and of the public docstrings run as they are printed."""

import inspect
import pathlib
import re
import textwrap

import pytest

import keras_megatron

README = pathlib.Path(__file__).parents[1] / "README.md"
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def examples() -> dict[str, str]:
    """Return the examples by where they stand; those that download 1.2 GB are left out."""
    texts = {"README": README.read_text("utf-8")}
    for name in keras_megatron.__all__:
        if inspect.isclass(public := getattr(keras_megatron, name)):
            texts[name] = inspect.getdoc(public)
    blocks = {
        f"{name} {number}": textwrap.dedent(code)
        for name, text in texts.items()
        for number, code in enumerate(CODE.findall(text))
    }
    return {name: code for name, code in blocks.items() if "345m" not in code}


def test_every_public_class_has_an_example():
    classes = [n for n in keras_megatron.__all__ if inspect.isclass(getattr(keras_megatron, n))]
    assert {f"{name} 0" for name in [*classes, "README"]} <= set(examples())


@pytest.mark.parametrize("name", examples())
def test_it_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(examples()[name], name, "exec"), {"__name__": "example"})
