"""Pages for a browser: plots, tables and what a run or a comparison of runs has to show.

Start at ``page.py``: a ``Page`` grows by sections of blocks; ``tables.py`` and ``plots.py`` make
them. Its style and script are ``page.css`` and ``page.js``.
"""
