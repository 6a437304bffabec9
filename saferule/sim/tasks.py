"""The four tasks of the paper: simulator, horizon, sizes, and the reference returns for normalisation."""

from __future__ import annotations

from dataclasses import dataclass

from saferule.errors import SettingsError


@dataclass(frozen=True)
class Task:
    """One task, by the paper's name.

    env_id is registered by Safety-Gymnasium or Bullet-Safety-Gym, dsrl_id by dsrl. min_return and max_return
    are those of the DSRL dataset (dsrl.infos), the reference points of the normalised return.
    """

    name: str
    env_id: str
    dsrl_id: str
    engine: str  # "mujoco" or "bullet"
    horizon: int
    observation_dim: int
    action_dim: int
    min_return: float
    max_return: float
    dsrl_file: str


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="PointGoal",
            env_id="SafetyPointGoal1-v0",
            dsrl_id="OfflinePointGoal1Gymnasium-v0",
            engine="mujoco",
            horizon=1000,
            observation_dim=60,
            action_dim=2,
            min_return=0.01196012764197707,
            max_return=30.071114857340543,
            dsrl_file="SafetyPointGoal1Gymnasium-v0-100-2022.hdf5",
        ),
        Task(
            name="PointPush",
            env_id="SafetyPointPush1-v0",
            dsrl_id="OfflinePointPush1Gymnasium-v0",
            engine="mujoco",
            horizon=1000,
            observation_dim=76,
            action_dim=2,
            min_return=0.0014001545292344209,
            max_return=16.518654299293367,
            dsrl_file="SafetyPointPush1Gymnasium-v0-150-2379.hdf5",
        ),
        Task(
            name="AntVelocity",
            env_id="SafetyAntVelocity-v1",
            dsrl_id="OfflineAntVelocityGymnasium-v1",
            engine="mujoco",
            horizon=1000,
            observation_dim=27,
            action_dim=8,
            min_return=6.1519012451171875,
            max_return=2976.276611328125,
            dsrl_file="SafetyAntVelocityGymnasium-v1-250-2249.hdf5",
        ),
        Task(
            name="CarCircle",
            env_id="SafetyCarCircle-v0",
            dsrl_id="OfflineCarCircle-v0",
            engine="bullet",
            horizon=300,
            observation_dim=8,
            action_dim=2,
            min_return=3.484419822692871,
            max_return=534.3060913085938,
            dsrl_file="SafetyCarCircle-v0-100-1450.hdf5",
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of that name; raises SettingsError with the known names."""
    try:
        return TASKS[name]
    except KeyError:
        raise SettingsError(f"Unknown task {name!r}: choose one of {', '.join(TASKS)}.") from None
