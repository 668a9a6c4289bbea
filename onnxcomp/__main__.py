"""``python -m onnxcomp``: the command."""

from onnxcomp.cli import main

if __name__ == "__main__":
    main()
