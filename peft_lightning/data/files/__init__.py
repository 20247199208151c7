"""From bytes on disk or a data set on the hub to records with their locations.

``sources.py`` is where to start: ``find_source`` says which files a path stands for, and a
``Source`` reads their records. ``readers.py`` has the reader of each kind of file, ``encodings.py``
tells what a text file that is not UTF-8 may be.
"""

from peft_lightning.data.files.sources import Source, find_source

__all__ = ["Source", "find_source"]
