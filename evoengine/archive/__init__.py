"""The study database, and the only room that touches it: Optuna's tables through Optuna, ours beside them, one URL.

Whole studies alone, which Optuna cannot move in one transaction, are moved row by row (`rows`).

Optuna's tables hold the trials (config, where it came from, objective), so its dashboard and `optuna.load_study` work
on the same URL. Ours hold what Optuna has no place for: who works on what, verdicts with their evidence, builds,
baselines and elites. What a trial was born from is in both: other programs read it in Optuna's tables, we in ours.
"""
