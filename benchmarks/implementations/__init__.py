"""The implementations by name. Each file says what it supports and gives one step on a workload.

supports(w)              whether a user of the library would write this workload with it
build(w, start, batch)   a function without arguments: the meta-gradient, {name: tensor}, of the mean loss over
                         tasks; for a workload that predicts, {"logits": (queries, ways)}
"""

OURS = {"fewstep": "auto", "fewstep-loop": "loop", "fewstep-vectorized": "vectorized"}
"""Ours by strategy: as it chooses, and forced."""

REFERENCE = "loop"
"""What every result is compared with."""

IMPLEMENTATIONS = {
    **dict.fromkeys(OURS, "benchmarks.implementations.ours"),
    REFERENCE: "benchmarks.implementations.plain_loop",
    "vmap": "benchmarks.implementations.vmap_grad",
    "higher": "benchmarks.implementations.with_higher",
    "torchopt": "benchmarks.implementations.with_torchopt",
    "learn2learn": "benchmarks.implementations.with_learn2learn",
}
