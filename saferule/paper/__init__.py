"""The paper as data: printed numbers (`numbers`), settings (`settings`), readings of its gaps (`readings`).

"Safe-RULE: Safe Reinforcement UnLEarning" (Jiang, Zhu, Kong). `tables/` holds its Tables 1-7, transcribed as
printed.
"""

from saferule.paper.readings import ATTACK, READINGS, UNLEARNING, Reading, check, default_readings
from saferule.paper.settings import TABLE7

__all__ = ["ATTACK", "READINGS", "TABLE7", "UNLEARNING", "Reading", "check", "default_readings"]
