"""Every example runs as written, on a smaller budget, and adapting helps."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs(path, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    score = example.main(str(tmp_path / "run"), iterations=6, count=40)
    assert "unseen" in capsys.readouterr().out
    better = score.value - score.by_step[0]
    assert (better if score.metric == "accuracy" else -better) > 0
