"""`python -m app.llama.builds current|oldest`: installs the build of that role and prints its path."""

from __future__ import annotations

import argparse
import sys

from app.llama.builds.install import BuildUnavailable, of_role, provide
from app.llama.builds.known_builds import Role


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.llama.builds", description=__doc__)
    parser.add_argument("role", type=Role, choices=list(Role), metavar="current|oldest")
    try:
        print(provide(of_role(parser.parse_args().role)))
    except BuildUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
