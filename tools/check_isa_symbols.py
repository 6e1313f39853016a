"""Refuse an object of one instruction set that shares symbols with another.

A weak or unique symbol (an inline function, a template instance, their variables) may be
defined by several objects; the linker keeps one copy for all callers. If that copy was
compiled with AVX-512, an older CPU that calls it dies of an illegal instruction. So every
such symbol of an object must carry the object's own namespace, `sparsefill::<isa>`, in its
name. The build runs this before it links:

    python tools/check_isa_symbols.py avx2 kernels.cc.o
"""

from __future__ import annotations

import argparse
import subprocess
import sys

SHARED = "uvVwW"  # nm's letters: unique globals, weak objects, other weak symbols
PERSONALITY = "DW.ref.__gxx_personality_v0"  # a pointer, the same whatever the flags


def foreign_symbols(listing: str, isa: str) -> list[str]:
    """List the symbols that other objects may share, from the output of `nm -C`."""
    symbols = (line.split(maxsplit=2) for line in listing.splitlines() if line.strip())
    return [
        name
        for _, letter, name in symbols
        if letter in SHARED and f"sparsefill::{isa}::" not in name and name != PERSONALITY
    ]


def main() -> int:
    """Check the objects named on the command line; return 1 if one is refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("isa", help="namespace inside sparsefill that the objects may use")
    parser.add_argument("objects", nargs="+")
    parser.add_argument("--nm", default="nm", help="program that lists symbols")
    given = parser.parse_args()
    refused = False
    for path in given.objects:
        command = [given.nm, "-C", "--defined-only", path]
        listing = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        for name in foreign_symbols(listing, given.isa):
            print(f"{path}: {name} is shared with other objects", file=sys.stderr)
            refused = True
    if refused:
        print(
            f"error: symbols of the {given.isa} kernels must be static, in an unnamed namespace"
            f" or inside sparsefill::{given.isa}, and use no standard library",
            file=sys.stderr,
        )
    return int(refused)


if __name__ == "__main__":
    sys.exit(main())
