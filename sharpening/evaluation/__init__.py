"""Judging a run: paired statistics, tables, plots, sample grids, the cost account and the run folder."""
