"""Mutated models, and what the command does with them: for ``benchmarks/fuzz.py`` and the tests."""
