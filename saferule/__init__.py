"""Safe-RULE: safe reinforcement unlearning, reproduced. Heavy libraries are imported by the modules that use them."""

__version__ = "0.1.0"
