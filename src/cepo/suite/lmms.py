"""Starts lmms-eval, as `python -m lmms_eval` does, with what its tasks need to score answers rightly.

Run by its path, in an environment that may not have this package; so it imports nothing of it.
"""

import sys
from pathlib import Path


def main() -> None:
    # A script's own folder comes first among those that are searched, and its neighbours' names are common ones.
    sys.path[:] = [folder for folder in sys.path if folder != str(Path(__file__).parent)]
    # MathVision's rules import latex2sympy2, whose version beside today's antlr (1.5.4) cannot be imported: lmms-eval
    # says so once, and then every answer fails with a NameError. math-verify brings a kept fork with the same function.
    import latex2sympy2_extended

    sys.modules["latex2sympy2"] = latex2sympy2_extended
    from lmms_eval.cli.dispatch import main as lmms_eval

    lmms_eval()


if __name__ == "__main__":
    main()
