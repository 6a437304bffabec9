"""The paper as data: printed numbers (`numbers`), settings (`settings`), readings of its gaps (`readings`).

"Safe-RULE: Safe Reinforcement UnLEarning" (Jiang, Zhu, Kong). `tables/` holds its Tables 1-7, transcribed as
printed.
"""
