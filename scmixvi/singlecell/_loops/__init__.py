"""Loops that numba compiles for CPUs, and what stands in for them elsewhere."""
