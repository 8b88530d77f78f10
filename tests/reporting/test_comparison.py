"""A comparison in words: the sentence says what the numbers say."""

import csv
import io

import pytest

from fewstep.reporting.comparison import as_csv, cells, headline, remarks
from fewstep.training.comparison import Entry, compare

LOW, HIGH = Entry("low", {0: (0.5, 0.5, 0.6)}), Entry("high", {0: (0.8, 0.7, 0.8)})
NOISY = Entry("noisy", {0: (0.0, 1.0, 0.7)})


def test_the_best_beside_the_first():
    assert headline(compare([LOW, HIGH])) == (
        "high is best: 76.67 % against 53.33 % of low, a difference of +23.33 ± 14.34 points, "
        "outside its interval over tasks."
    )
    assert headline(compare([LOW, NOISY])).endswith("within its interval: these tasks cannot tell them apart.")


def test_where_the_first_is_best_the_nearest_stands_beside_it():
    said = headline(compare([HIGH, LOW, NOISY]))
    assert said.startswith("high is best: 76.67 %; nearest to it is noisy with 56.67 %, a difference of -20.00 ± ")
    assert said.endswith("within its interval: these tasks cannot tell them apart.")
    assert "outside its interval over tasks" in headline(compare([HIGH, LOW]))


def test_losses_have_no_percent():
    rows = compare([Entry("a", {0: (1.0, 2.0)}), Entry("b", {0: (0.5, 1.5)})], metric="loss")
    assert headline(rows).startswith(
        "b is best: loss 1.0000 against loss 1.5000 of a, a difference of -0.5000 ± 0.0000,"
    )
    assert cells(rows[1])[4] == "-0.5000 ± 0.0000"


def test_one_entry_is_not_called_best():
    assert headline(compare([LOW])) == "low has 53.33 %; there is nothing to compare it with."


def test_remarks_say_what_was_paired_and_what_is_not_known():
    two = Entry("two", {0: (0.5, 0.5, 0.6), 1: (0.5, 0.5, 0.6)})
    assert remarks(compare([two, HIGH]), {}) == ["high is compared with two over the seeds that both have: 0"]
    assert remarks(compare([two, Entry("same", two.per_task)]), {}) == []
    assert remarks(compare([LOW, HIGH]), {"low": "batch", "high": "batch"}) == [
        "one training each: how much another seed would change is not known",
        "queries normalised by their own batch: transductive",
    ]
    assert remarks(compare([LOW, HIGH]), {"low": "batch", "high": "support"})[1:] == [
        "queries normalised by their own batch: transductive (low)",
        "queries normalised by the support set (high)",
    ]


def test_csv_keeps_full_precision():
    rows = compare([LOW, Entry('a, "b"', {0: (1 / 3, 0.1, 0.2), 4: (0.0, 0.0, 0.0)}, 1.5, 0.5, 12345)])
    first, second = csv.DictReader(io.StringIO(as_csv(rows)))
    assert first["difference"] == first["training_seconds"] == first["peak_memory"] == ""
    assert second["name"] == 'a, "b"'
    assert second["seeds"] == "0 4"
    assert second["paired_seeds"] == "0"
    assert float(second["value"]) == rows[1].value
    assert float(second["difference_interval95"]) == rows[1].difference_interval95
    assert second["peak_memory"] == "12345"


@pytest.mark.parametrize(
    ("seconds", "memory", "shown"),
    [(None, None, ["–", "2 s", "–"]), (3723.4, 512_400_000, ["3,723 s", "2 s", "512 MB"])],
)
def test_what_was_not_recorded_is_a_dash(seconds, memory, shown):
    assert cells(compare([Entry("a", {0: (0.5,)}, seconds, 2.1, memory)])[0])[5:] == shown
