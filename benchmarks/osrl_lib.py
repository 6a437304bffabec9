"""osrl-lib's training steps, set up as its own example scripts do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def quiet_trainer(backbone: str, cfg: Any, device: str, statistics: tuple[float, Any, Any]) -> Any:
    """The osrl-lib trainer of a backbone at our settings, with a logger that keeps nothing.

    statistics  for COptiDICE: proportion of initial states, std of observations (1, S) and of actions (1, A)
    """
    from fsrl.utils import DummyLogger
    from osrl import algorithms as osrl

    sizes = {
        "state_dim": cfg.observation_dim,
        "action_dim": cfg.action_dim,
        "max_action": 1.0,
        "a_hidden_sizes": list(cfg.hidden),
        "c_hidden_sizes": list(cfg.hidden),
        "gamma": cfg.gamma,
        "cost_limit": cfg.cost_limit,
        "episode_len": cfg.episode_len,
        "device": device,
    }
    if backbone == "coptidice":
        proportion, observation_std, action_std = statistics
        model = osrl.COptiDICE(
            **sizes,
            f_type=cfg.f_type,
            init_state_propotion=proportion,
            observations_std=observation_std,
            actions_std=action_std,
            alpha=cfg.alpha,
            cost_ub_epsilon=cfg.cost_ub_epsilon,
            num_nu=cfg.num_nu,
            num_chi=cfg.num_chi,
        )
        rates = {"actor_lr": cfg.actor_lr, "critic_lr": cfg.critic_lr, "scalar_lr": cfg.scalar_lr}
        return osrl.COptiDICETrainer(model, None, DummyLogger(), **rates, device=device)
    sizes |= {
        "vae_hidden_sizes": cfg.vae_hidden,
        "sample_action_num": cfg.samples,
        "tau": cfg.tau,
        "beta": cfg.beta,
        "num_q": cfg.num_q,
        "num_qc": cfg.num_q,
    }
    rates = {"actor_lr": cfg.actor_lr, "critic_lr": cfg.critic_lr, "vae_lr": cfg.vae_lr}
    if backbone == "cpq":
        model = osrl.CPQ(**sizes, qc_scalar=cfg.qc_scalar)
        return osrl.CPQTrainer(model, None, DummyLogger(), **rates, alpha_lr=cfg.alpha_lr, device=device)
    if backbone == "bcq-lag":
        model = osrl.BCQL(**sizes, phi=cfg.phi, lmbda=cfg.lmbda, PID=list(cfg.gains))
        return osrl.BCQLTrainer(model, None, DummyLogger(), **rates, device=device)
    model = osrl.BEARL(
        **sizes,
        lmbda=cfg.lmbda,
        PID=list(cfg.gains),
        mmd_sigma=cfg.mmd_sigma,
        target_mmd_thresh=cfg.target_mmd_thresh,
        num_samples_mmd_match=cfg.mmd_samples,
        kernel=cfg.kernel,
        start_update_policy_step=cfg.start_update_policy_step,
    )
    return osrl.BEARLTrainer(model, None, DummyLogger(), **rates, alpha_lr=cfg.alpha_lr, device=device)


def stepper(backbone: str, trainer: Any, batches: Callable[[], list[Tensor]]) -> Callable[[], None]:
    """One training step of osrl-lib on the next batch (COptiDICE's trainer takes the batch as one list)."""

    def step() -> None:
        batch = batches()
        trainer.train_one_step(batch) if backbone == "coptidice" else trainer.train_one_step(*batch)

    return step


def loader(
    data: dict[str, np.ndarray], cfg: Any, state_init: bool, workers: int, device: str
) -> Iterator[list[Tensor]]:
    """Batches from osrl-lib's own TransitionDataset through a DataLoader, as its training scripts draw them."""
    from osrl.common import TransitionDataset
    from torch.utils.data import DataLoader

    dataset = TransitionDataset(dict(data), reward_scale=cfg.reward_scale, cost_scale=1.0, state_init=state_init)
    batches = DataLoader(dataset, batch_size=cfg.batch_size, num_workers=workers, pin_memory=device != "cpu")
    for batch in batches:
        yield [part.to(device) for part in batch]


def seed_everything(seed: int) -> None:
    """osrl-lib draws from the global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed)
