"""The core: inner loop, meta-gradient, learner."""
