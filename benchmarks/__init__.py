"""fewstep beside other ways to the same meta-gradient, and what it costs by itself: `make bench`.

workloads.py, network.py, implementations/    W1 to W7; what everyone is given; fewstep and others, one file each
__main__.py, rounds.py, contender.py          everyone in turn: equal results, memory, seconds; each in its own process
flops.py, peak.py, kernels.py, shares.py      operations asked for, and reached; time by kernel; parts of a training
scaling.py                                    how the cost grows along one axis at a time
memory.py, options.py, cost.py, efficiency.py memory; bf16 and compile; every preset beside maml; several processes

command.py, timing.py, held.py, processes.py  options and records, rounds, memory, fresh processes: one of each for all
tables.py, figures.py, *_page.py              any record as Markdown and SVG: `python -m benchmarks table RECORD`
"""
