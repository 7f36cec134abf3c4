"""Draw the result table of a finished study: `python docs/picture.py runs/demo/result.json OUT.svg`."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from heterosis.summary import result_table, task_table


def main(source: Path, target: Path) -> None:
    """Record what `heterosis run` prints at the end, without the web fonts that Rich would ask for."""
    result = json.loads(source.read_text(encoding="utf-8"))
    console = Console(record=True, width=122, file=io.StringIO(), highlight=False)
    console.print(result_table(result))
    console.print(task_table(result))
    console.print(f"[bold]{escape(result['verdict'])}[/bold]")
    svg = console.export_svg(title=f"heterosis run {result['study']}")
    target.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
