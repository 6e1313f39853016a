"""The command line: `sparsefill info | draw | profile | prefill | search | eval | report`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exit code 2 for anything wrong with what the user gave."""
    try:
        from sparsefill.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        sys.stderr.write(
            f"the sparsefill command needs {error.name}, which is not installed;"
            " run: pip install 'sparsefill[demo]'\n"
        )
        raise SystemExit(2) from None
    if sys.argv[1:2] == ["eval"]:  # thousands of prompts ask for the same large blocks
        from sparsefill.memory import keep_freed

        keep_freed()
    app()
