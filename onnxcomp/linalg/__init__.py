"""Algorithms on arrays, pure NumPy and SciPy; no graph in sight."""
