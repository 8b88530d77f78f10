"""docs/methods.md is what the presets say, and its code runs."""

import importlib.util
import re
from pathlib import Path

import pytest

import fewstep

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "methods.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_is_the_one_that_the_presets_give():
    spec = importlib.util.spec_from_file_location("build", DOCS / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert build.page() == PAGE, "run: python docs/build.py"


def test_every_preset_has_a_section_with_equation_paper_and_differences():
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    assert [s.splitlines()[0] for s in sections] == fewstep.preset_names()
    for section in sections:
        assert re.search(r"^    .*θ", section, flags=re.MULTILINE), section[:20]
        assert "Paper: " in section
        assert "Differences" in section


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][-30:])
def test_a_preset_is_maml_with_the_parts_shown(block):
    exec(compile(block, "methods.md", "exec"), {})
