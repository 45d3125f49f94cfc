"""Benchmarks: each runs its contenders in turn, in the same run, and quotes ratios."""
