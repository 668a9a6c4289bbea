"""Integer arrays as an NNC bitstream, in the environment of nncodec: prints bytes and seconds as JSON.

python size_nncodec.py codes.npz
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time

import numpy as np
from nncodec.nn import decode, encode


def main() -> None:
    """Encode, decode, compare."""
    archive = np.load(sys.argv[1])
    codes = {name: archive[name].astype(np.int32) for name in archive.files}
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        stream = encode(codes, args={"verbose": False})
        decoded = decode(stream)
    seconds = time.process_time() - start
    if not all(np.array_equal(decoded[name], codes[name]) for name in codes):
        raise SystemExit("the bitstream holds other weights")
    print(json.dumps({"bytes": len(stream), "seconds": seconds}))


if __name__ == "__main__":
    main()
