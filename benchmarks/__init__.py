"""fewstep beside other ways to the same meta-gradient, in one run: `python -m benchmarks` or `make bench`.

workloads.py        W1 to W7: shapes, method, target
implementations/    one file each: fewstep, a plain loop, vmap(grad), higher, torchopt, learn2learn
network.py          the network, weights and tasks that every implementation is given
worker.py           a process that runs one implementation on one workload
rounds.py           checks equal results, then times live workers in turn; peak memory of fresh ones
flops.py, peak.py   what a workload asks of convolutions, and what this machine's convolutions reach
shares.py           sampling, transfer, checkpoints and validation in a real training
efficiency.py       an outer step by several processes, under torchrun
summary.py          ratios from the recorded seconds; text.py and table.py print them
scaling.py          how the cost grows along one axis at a time: `python -m benchmarks.scaling`
points.py           what is measured there, and what it asks for; a process that tells its memory
exponents.py        power laws and prices by least squares; scaling_table.py and scaling_figure.py show them
"""
