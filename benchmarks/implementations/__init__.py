"""The implementations by name. Each file gives one step on a workload:

build(w, start, batch)   a function without arguments: the meta-gradient, {name: tensor}, of the mean loss over
                         tasks; for a workload that predicts, {"logits": (queries, ways)}
"""

OURS = {"fewstep": "auto", "fewstep-loop": "loop", "fewstep-vectorized": "vectorized"}
"""Ours by strategy: as it chooses, and forced."""

REFERENCE = "loop"
"""What every result is compared with."""

WITHOUT_PLUS = ("learn2learn",)
"""Whose MAML++ is an example of nine hundred lines beside the library, not a part of it."""

IMPLEMENTATIONS = {
    **dict.fromkeys(OURS, "benchmarks.implementations.ours"),
    REFERENCE: "benchmarks.implementations.plain_loop",
    "vmap": "benchmarks.implementations.vmap_grad",
    "higher": "benchmarks.implementations.with_higher",
    "torchopt": "benchmarks.implementations.with_torchopt",
    "learn2learn": "benchmarks.implementations.with_learn2learn",
}
