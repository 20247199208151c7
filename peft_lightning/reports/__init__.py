"""Pages for a browser: plots, tables and what a run or a comparison of runs has to show."""
