"""``python -m peft_lightning report``: the page of a run, written anew."""

from __future__ import annotations

import json as json_module
from datetime import datetime


def report(run: str, /, *, out: str | None = None, json: bool = False) -> None:
    """Write the page of a run anew, finished or running: its curves, samples, sizes and options.

    Training writes the same page as report.html in the run's folder. docs/reports.md describes it.

    Args:
        run: Folder of the run.
        out: File to write to, its name ends in .html; without, report.html in the run's folder.
        json: Print the file's name and the status of the run as one JSON object.
    """
    from pathlib import Path

    from peft_lightning.files import Kind, atomic_text, marked_file, require_output
    from peft_lightning.messages import UserError
    from peft_lightning.reports.run_facts import read_facts
    from peft_lightning.reports.run_page import REPORT_FILE, Moment, run_page
    from peft_lightning.reports.run_record import read_run

    record = read_run(run)
    file = record.folder / REPORT_FILE if out is None else Path(out)
    if file.suffix != ".html":
        raise UserError(f"--out {out}: the name of the file must end in .html")
    require_output(file, Kind("page", marked_file("<!-- report -->")), overwrite=True)
    step = max((line["step"] for line in record.history), default=0)
    now = Moment(datetime.now(), record.status, step)
    atomic_text(file, run_page(record, read_facts(record.folder), now))
    found = {"run": str(record.folder), "status": record.status, "page": str(file)}
    print(json_module.dumps(found) if json else f"{record.status}; written to {file}")
