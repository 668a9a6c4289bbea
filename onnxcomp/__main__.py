"""``python -m onnxcomp``: the command."""

from onnxcomp.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
