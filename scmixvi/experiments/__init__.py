"""The paper's tables and figures as commands: `python -m scmixvi.experiments.NAME`.

Each takes one seed, writes JSON with versions, device and date, and takes up where it left off.
"""
