import json
import re

import plotly.graph_objects as go
import pytest

from fewstep.errors import BadInput
from fewstep.reporting.adaptation import adaptation
from fewstep.reporting.curves import curves
from fewstep.reporting.page import write_page
from fewstep.reporting.rates import moved, rates, with_rates
from fewstep.training.run import Run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def config(name="maml++", ways=5, epochs=2, iterations=2):
    tasks = {"name": "strokes", "ways": ways, "shots": 1} if ways else {"name": "sinusoid", "shots": 10}
    return {
        "method": {"name": name, "steps": 2, "rule": {"part": "PerLayerPerStep", "rate": 0.1}},
        "tasks": tasks,
        "training": {"epochs": epochs, "iterations": iterations, "meta_batch": 4, "validation_tasks": 20},
        "parameters": {"model.conv.weight": [8, 1, 3, 3], "model.norm.weight": [8], "rates.conv.weight": [2],
                       "rates.conv.bias": [2], "rates.head.weight": [2]},
    }  # fmt: skip


def train(step, accuracy=0.5, loss=1.25):
    return {"kind": "train", "step": step, "epoch": (step - 1) // 2, "loss": loss, "accuracy": accuracy,
            "outer_rate": 1e-3 / step, "tasks_per_second": 7.5, "seconds": 40.0 * step}  # fmt: skip


def validation(step, value=0.6123, metric="accuracy", **more):
    learned = {"conv.weight": [0.21, -0.0123], "conv.bias": [0.1, 0.1001], "head.weight": [0.05, 0.3]}
    return {"kind": "validation", "step": step, "epoch": step // 2 - 1, "metric": metric, "value": value,
            "interval95": 0.0321, "count": 20, "statistics": "batch", "best_epoch": 0, "order": "first",
            "rates": learned, "seconds": 41.0 * step, **more}  # fmt: skip


def score(metric="accuracy", **more):
    return {"metric": metric, "value": 0.8765, "interval95": 0.0123, "per_task": [0.8, 1.0, 0.8, 0.9],
            "by_step": [0.2104, 0.7, 0.8765], "chance": 0.2 if metric == "accuracy" else None, "statistics": "batch",
            "per_query": 0.8654 if metric == "accuracy" else None, "per_query_interval95": 0.0134, "count": 4,
            "steps": 2, "members": 1, "seconds": 1.0, **more}  # fmt: skip


@pytest.fixture
def page(tmp_path):
    """Write a run directory, then its page; returns the page without the library it carries."""

    def write(records=(), scored=None, settings=None, environment=None):
        (tmp_path / "config.json").write_text(json.dumps(settings or config()))
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        if environment:
            (tmp_path / "environment.json").write_text(json.dumps(environment))
        if scored:
            (tmp_path / "score.json").write_text(json.dumps(scored))
        path = write_page(Run(tmp_path))
        assert path == tmp_path / "report.html"
        return re.sub(r"<script>/\*\*.*?</script>", "", path.read_text(), count=1, flags=re.S)

    return write


def drawn(text):
    """The figures of a page, each one checked by plotly."""
    figures = json.loads(re.search(r"const figures = (\{.*?\});\n", text, re.S)[1])
    for figure in figures.values():
        go.Figure(figure)
    assert set(figures) == set(re.findall(r'class="plot" id="([^"]+)"', text))
    return figures


def test_a_run_that_has_only_begun(page):
    text = page()
    assert "maml++ on strokes" in text
    assert "5-way 1-shot" in text
    assert "outer step 0 of 4" in text
    assert "Nothing has been measured yet" in text
    assert drawn(text) == {}


def test_training_before_the_first_validation(page):
    text = page([train(1), train(2, 0.4321, 1.0987)])
    assert "outer step 2 of 4" in text
    assert "43.21%" in text
    assert "1.0987" in text
    assert "fewstep evaluate" in text
    assert list(drawn(text)) == ["accuracy", "loss", "outer-rate"]


def test_validated_and_finished(page):
    records = [train(1), train(2), validation(2), train(3), train(4), validation(4, 0.6, order="second")]
    text = page(records, environment={"device": "cpu", "threads": 2, "command": "/opt/fewstep train maml++"})
    assert "finished after 4 outer steps" in text
    assert "61.23%" in text
    assert "± 3.21%" in text
    assert "best epoch (1)" in text
    assert "2 min 44 s" in text
    assert "<code><span>fewstep</span> <span>train</span> <span>maml++</span></code>" in text
    figures = drawn(text)
    assert list(figures) == ["accuracy", "loss", "outer-rate", "rates", "rates-course"]
    assert figures["accuracy"]["layout"]["shapes"][0]["x0"] == 2, "second order began after the first epoch"
    assert figures["rates"]["data"][0]["z"] == [[0.21, -0.0123], [0.05, 0.3]]
    assert len(figures["rates"]["layout"]["shapes"]) == 1, "the one negative rate is outlined"
    assert "stayed where they began: <code>conv.bias</code>" in text


def test_scored(page):
    many = score(value=0.9012, members=3, by_step=[0.9012], per_query=None)
    whole = {"split": "test", "epoch": 1, "single": score(), "ensemble": many}
    text = page([train(4), validation(4)], whole)
    for shown in ("87.65%", "± 1.23%", "86.54%", "± 1.34%", "90.12%", "ensemble of the 3 best", "21.04%", "20.00%",
                  "best validation epoch (2)", "4 test tasks, 2 inner steps", "transductive"):  # fmt: skip
        assert shown in text
    figures = drawn(text)
    assert figures["by-step"]["data"][0]["y"] == [0.2104, 0.7, 0.8765]
    assert dict(zip(figures["per-task"]["data"][0]["x"], figures["per-task"]["data"][0]["y"], strict=True)) == {
        0.8: 2, 0.9: 1, 1.0: 1}  # fmt: skip


def test_a_bare_score_from_python_and_no_norm_layers(page):
    settings = config()
    del settings["parameters"]
    text = page([], score(per_query=None), settings)
    assert "87.65%" in text
    assert "transductive" not in text


def test_regression(page):
    records = [train(1, None), train(2, None), validation(2, 0.7, "loss", rates={})]
    single = score("loss", by_step=[3.5, 0.9, 0.8765], per_task=[0.1, 0.2, 0.3, 2.9])
    text = page(records, {"split": "test", "epoch": 0, "single": single, "ensemble": None}, config("maml", ways=None))
    assert "maml on sinusoid" in text
    assert "10 support points" in text
    assert "0.8765" in text
    assert "3.5000" in text
    assert "chance" not in text
    assert "accuracy" not in text.split("<h2>Configuration")[0].split("<main>")[1]
    assert list(drawn(text)) == ["loss", "outer-rate", "by-step", "per-task"]
    assert len(drawn(text)["loss"]["data"]) == 4, "training, band, validation, best"


def test_hostile_names_stay_text(page):
    settings = config(HOSTILE)
    settings["tasks"]["name"] = HOSTILE
    settings["parameters"] = {f"rates.{HOSTILE}": [2]}
    text = page([train(2), validation(2, rates={HOSTILE: [0.2, 0.3]})], {"single": score(), "split": HOSTILE},
                settings, {"command": HOSTILE})  # fmt: skip
    assert "&lt;img src=x onerror=alert(2)&gt;" in text
    assert "<img" not in text
    assert "alert(1)</script>" not in text
    assert text.count("<script>") == 1
    shown = drawn(text)["rates"]["data"][0]["customdata"][0][0]
    assert "<" not in shown, "plotly reads its texts as a kind of HTML"


def test_nothing_is_loaded_from_anywhere(page):
    text = page([train(4), validation(4)], {"single": score()})
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?:", text)
    assert "default-src 'none'" in text


def test_the_page_can_be_read_without_seeing_it(page):
    text = page([train(2), validation(2)], {"single": score()})
    assert '<html lang="en">' in text
    assert "<title>maml++ on strokes · fewstep</title>" in text
    alts = re.findall(r'role="img" aria-label="([^"]+)"', text)
    assert len(alts) == len(drawn(text)) == text.count("<figcaption>") == text.count("<h3>")
    assert any("61.23%" in alt for alt in alts)


def test_what_cannot_be_read_is_said(page, tmp_path):
    with pytest.raises(BadInput, match=r"has no config\.json"):
        write_page(Run(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="holds no score"):
        page([], {"single": {"metric": "accuracy"}})
    (tmp_path / "score.json").write_text('{"single"')
    with pytest.raises(BadInput, match=r"score\.json cannot be read"):
        page()
    (tmp_path / "score.json").write_text("[]")
    with pytest.raises(BadInput, match=r"score\.json is not a record"):
        page()
    assert not (tmp_path / "report.html").exists()


def test_one_task_has_no_interval_and_a_loss_that_diverged_no_value(page):
    one = validation(2, value=0.5, metric="loss", interval95=None)
    text = page([one], {"single": score("loss", interval95=None, per_task=[0.5, None, 0.75])})
    figures = drawn(text)
    assert sum(figures["per-task"]["data"][0]["y"]) == 2
    assert "± –" in text
    assert "NaN" not in text


@pytest.mark.parametrize(
    "damage",
    [{"metric": 3}, {"value": None}, {"interval95": "0.1"}, {"by_step": None}, {"by_step": []}, {"by_step": ["x"]},
     {"per_task": 0.5}, {"per_task": [None]}, {"statistics": []}, {"count": None}, {"steps": "two"}, {"chance": "a"},
     {"per_query": "a"}, {"per_query": 0.5, "per_query_interval95": "0.1"}, {"members": None}],
)  # fmt: skip
def test_a_damaged_score_is_said(page, damage):
    for scored in ({"single": score(**damage)}, {"single": score(), "ensemble": score(**damage)}, score(**damage)):
        with pytest.raises(BadInput, match=r"score\.json holds no score; evaluate the run again, or remove it"):
            page([], scored)


@pytest.mark.parametrize(
    "scored",
    [{"single": 3}, {"single": None}, {"single": [score()]}, {"single": score(), "ensemble": 3},
     {"single": score(), "epoch": "first"}],
)  # fmt: skip
def test_what_is_no_score_is_said(page, scored):
    with pytest.raises(BadInput, match="holds no score"):
        page([], scored)


def test_a_run_of_ones_own_loop_with_hardly_any_configuration(page):
    text = page([train(3)], settings={"note": "mine"})
    assert "a method on own tasks" in text
    assert "outer step 3<" in text


def test_rates_that_only_rounding_moved_are_left_out():
    first = {"rates": {"w": [0.1, 0.2], "b": [0.1, 0.1004], "frozen": [0.1, 0.1]}}
    assert moved([first], 0.1) == (["w"], ["b", "frozen"])
    assert moved([first], None) == (["w", "b", "frozen"], []), "one record without a start tells nothing"
    still = [{"epoch": e, "rates": {"w": [0.1]}} for e in range(2)]
    assert moved(still, None) == ([], ["w"])
    assert rates(still, None) == []


def test_only_rates_of_layers_and_steps_are_drawn():
    records = [{"epoch": 0, "rates": {"w": [0.1, 0.1]}}, {"epoch": 1, "rates": {}}]
    assert with_rates(records, {"rates.w": [2]}) == records[:1]
    assert with_rates(records, {"rates.w": [2], "rates.v": [3]}) == []
    assert with_rates(records, {"rates.w": [2, 2]}) == []
    assert with_rates(records, {}) == []


def test_many_steps_and_layers_have_figures_too():
    learned = {f"block.{i}.a.long.name.of.a.layer.weight": [0.1 + i / 100] * 20 for i in range(20)}
    heatmap, course = rates([{"epoch": e, "rates": learned} for e in range(2)], 0.0)
    assert heatmap.data[0]["texttemplate"] == ""
    assert course.layout["showlegend"] is False
    for figure in (heatmap, course):
        go.Figure(figure.data, figure.layout)


def test_one_task_or_one_value_needs_no_histogram():
    assert [f.name for f in adaptation(score(per_task=[0.5], by_step=[0.5]), None, "test", 5)] == []
    (spread,) = adaptation(score(per_task=[1.0] * 3, by_step=[1.0]), None, "test", 5)
    assert (spread.data[0]["x"], spread.data[0]["y"]) == ([1.0], [3])
    (same,) = adaptation(score("loss", per_task=[0.5] * 3, by_step=[0.5]), None, "test", 5)
    assert same.data[0]["y"] == [3]


def test_a_constant_outer_rate_lies_in_the_middle():
    figure = curves([{**train(s), "outer_rate": 1e-3} for s in (1, 2)], [])[-1]
    low, high = figure.layout["yaxis"]["range"]
    assert (low + high) / 2 == pytest.approx(-3)


def test_values_that_are_not_numbers_leave_a_gap(page):
    text = page([train(1), {**train(2), "accuracy": float("nan")}, train(3)])
    assert "NaN" in text, "a number to JavaScript, a gap to plotly"
