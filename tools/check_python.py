"""Say in one sentence when the Python or the compiler is not fit to build Gallium; used by the Makefile."""

import shutil
import sys


def main() -> int:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found = ".".join(map(str, sys.version_info[:3]))
        print(
            f"Gallium needs Python 3.11 to 3.13; this is {found}. Try: make PYTHON=python3.11 ...",
            file=sys.stderr,
        )
        return 1
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        print("Gallium builds its kernels at install time and needs a C++17 compiler: g++ or clang++.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
