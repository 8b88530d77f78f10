"""What a run prints: a workload at a time, as soon as it is measured."""

from statistics import median
from typing import Any

from benchmarks.summary import OWN, Ratio, epoch_shares, others, ratio, step_shares, summary


def workload(name: str, record: dict[str, Any], peak: float) -> str:
    """Every implementation of a workload in both settings, then the verdict."""
    lines = [f"{name}  {record['what']}", f"    {record['shapes']}; {record['flops'] / 1e9:.3g} GFLOP of convolutions"]
    for setting, found in record["settings"].items():
        lines.append(f"    {setting:32} seconds (least–most)     ratio (least–most)   memory MB   of the peak")
        lines += [f"      {_line(label, record, found, peak)}" for label in found]
    lines += [f"    left out: {label}: {reason}" for label, reason in record["left_out"].items()]
    return "\n".join([*lines, *(f"    {line}" for line in _verdict(record, peak))])


def _line(label: str, record: dict[str, Any], found: dict[str, Any], peak: float) -> str:
    seconds, memory = found[label]["seconds"], found[label]["memory"]
    if not seconds:
        return label
    strategy = f" ({memory['strategy']})" if label == OWN and "strategy" in memory else ""
    spread = f"{median(seconds):.3f} ({min(seconds):.3f}–{max(seconds):.3f})"
    times = "" if label == OWN or OWN not in found else str(ratio(found, label))
    share = record["flops"] / median(seconds) / peak
    return f"{label + strategy:30} {spread:25} {times:20} {memory['used'] / 1e6:8.0f} {share:11.0%}"


def _verdict(record: dict[str, Any], peak: float) -> list[str]:
    found = summary(record, peak)
    if found.as_run is None:
        return []
    target = record["target"]
    word = {True: "met", False: "not met"}
    run = next(iter(record["settings"].values()))
    lines = [
        f"speed: {found.as_run} against {found.as_run.other}, the fastest of {len(others(run))} others, each as its "
        f"users run it (target {target['faster']:g}: {word[found.met['faster']]})",
        f"       {_against(found.equal)} with our allocator settings for all, {_against(found.untouched)} for nobody",
    ]
    if found.memory:
        lines.append(
            f"memory: {found.memory[0]:.2f} of what {found.memory[1]} takes, the smallest other (target "
            f"{target['memory']:g}: {word[found.met['memory']]})"
        )
    return lines


def _against(found: Ratio | None) -> str:
    return "nothing" if found is None else f"{found} against {found.other}"


def shares(records: list[dict[str, Any]]) -> str:
    """Of a real training: what is not the meta-gradient."""
    lines = ["Of a real training (a checkpoint spread over the steps of its epoch)"]
    for record in records:
        step, epoch = step_shares(record), epoch_shares(record)
        parts = ("sampling", "transfer", "meta_gradient", "rest", "checkpoint")
        shown = ", ".join(f"{part.replace('_', '-')} {step[part]:.2%}" for part in parts)
        lines.append(f"    {record['what']}: a step {sum(record['step'].values()):.3f} s: {shown}")
        lines.append(
            f"      validation on {record['epoch']['validation_tasks']} tasks after {record['epoch']['steps']} steps: "
            f"{epoch['validation']:.1%} of an epoch"
        )
    return "\n".join(lines)
