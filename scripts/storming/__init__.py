"""The parts of ``storm.py``: what is disturbed, and how."""
