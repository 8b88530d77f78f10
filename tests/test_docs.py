"""docs/methods.md is what the presets say, and its code runs."""

import importlib.util
import re
from pathlib import Path

import pytest

import fewstep
from fewstep.methods import differences

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "methods.md").read_text()
SECTIONS = {s.splitlines()[0]: s for s in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}


def test_the_page_is_the_one_that_the_presets_give():
    spec = importlib.util.spec_from_file_location("build", DOCS / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert build.page() == PAGE, "run: python docs/build.py"


def test_every_preset_has_a_section_with_equation_paper_and_differences():
    assert list(SECTIONS) == fewstep.preset_names()
    for section in SECTIONS.values():
        assert re.search(r"^    .*θ", section, flags=re.MULTILINE), section[:20]
        assert "Paper: " in section
        assert "Differences" in section


@pytest.mark.parametrize("name", SECTIONS)
def test_a_preset_is_maml_with_the_parts_shown(name):
    (block,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], flags=re.DOTALL)
    assert 'fewstep.preset("maml"' in block.replace("\n    ", "")  # built from maml, not named
    shown: dict = {}
    exec(compile(block, "methods.md", "exec"), shown)
    assert differences(shown["method"], fewstep.preset(name)) == {}
