"""What the rows of a run are, read before any training as ``fit`` reads them.

``reading.py`` reads the sources, and ``note_taker.py`` takes notes on each row, some numbers, so
that a million rows fit into memory. ``near_duplicates.py`` compares them. ``report.py`` makes rows
to show, counts and findings of the notes, and ``terminal.py`` and ``page.py`` show them.
"""
