"""Run a notebook and write its outputs into it: python scripts/run_notebook.py examples/read_the_credit.ipynb

What goes to stderr is left out, for it names folders of the machine; of a picture PNG is kept.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in the folder at hand.

    Raises:
        nbclient.exceptions.CellExecutionError: With the cell and its error.
    """
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(run(Path(name)), name)
