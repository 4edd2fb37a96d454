"""Names of functions that outlive a build: what hot-cc and find-hot have in common.

Symbols are those of Rust's v0 mangling (RFC 2603), which says what a function is an instance of. What differs from one
version of a crate to the next, and from one build to the next, is left out; of the rest twelve digits of its SHA-256 are
kept, because whole names would be a megabyte.
"""

import hashlib
import os
import re
import subprocess

LIST = os.environ.get("TERRAPOOL_HOT_LIST") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "hot.txt")


def short(symbol):
    symbol = re.sub(r"\.llvm\.\d+$", "", symbol)
    symbol = re.sub(r"Cs[0-9A-Za-z]+_", "C", symbol)
    return hashlib.sha256(symbol.encode()).hexdigest()[:12]


def hot():
    """Short names in the order in which they are to lie."""
    with open(LIST, encoding="ascii") as lines:
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def functions(files):
    """Symbols of the functions that are defined in object files, archives or programs."""
    for start in range(0, len(files), 200):
        command = ["nm", "--defined-only", "--format=posix", *files[start : start + 200]]
        # Some members of archives are no objects, and nm says so.
        listed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        for line in listed.stdout.splitlines():
            parts = line.split()
            if len(parts) >= 3 and parts[1] in "tTwW":
                yield parts[0]
