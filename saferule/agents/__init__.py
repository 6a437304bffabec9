"""The four backbones, each a module of pure functions of one agent, and the trainer that runs them as a population.

Every backbone module has the same names:

    NAME, LABEL           its name here, and as the paper writes it
    Config                osrl-lib's settings as a frozen dataclass
    CRITICS               whether the value interface below is here
    ACTING                {network: prefix of the parameters, or None for all}: exactly what `act` reads
    DRAWS                 whether osrl-lib draws when it evaluates, where `act` without noise takes the mode
    init                  (cfg, generator) -> networks, scalars
    noise_shapes          (cfg, B) -> the standard normal draws of one step, by name; "policy" is what `act` takes
    LOSSES                ((networks, loss), ...) in the order in which they are applied;
                          loss(nets, scalars, batch, noise, cfg) -> (scalar, info, changed scalars)
    TARGETS               {target network: network it follows}
    act                   (nets, observations, noise or None, cfg) -> actions
    statistics            (observations, actions, is_init) of an agent's training data -> scalars; or None
    regulariser           a loss like those above, what ties the actor to the data (BEAR-Lag); or None

and, with critics, the value interface that unlearning needs: ``bellman_targets``, ``q_reward``, ``q_cost``, ``policy``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from saferule.errors import SettingsError

BACKBONES = ("bcq-lag", "bear-lag", "cpq", "coptidice")


def get_backbone(name: str) -> ModuleType:
    """The module of a backbone; SettingsError for an unknown name."""
    if name not in BACKBONES:
        raise SettingsError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    return importlib.import_module(f"saferule.agents.{name.replace('-', '_')}")
