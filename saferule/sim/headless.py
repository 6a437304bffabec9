"""Safety-Gymnasium worlds without textures and materials.

Safety-Gymnasium compiles a new MuJoCo model at every reset, and nearly all of that time goes into decoding
the PNG files of its textures, which nothing but a renderer looks at. A headless world compiles the same XML
without them; bodies, geoms, joints and their numbering stay, so the physics is the same to the last bit
(tests/test_envs.py).
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from types import FunctionType, SimpleNamespace
from typing import Any

import mujoco

from saferule.sim.shim import load_safety_gymnasium

load_safety_gymnasium()

from safety_gymnasium.world import World  # noqa: E402  (only importable through the shim)


def strip_textures(xml: str) -> str:
    """The MJCF model without texture and material assets and without references to them."""
    root = ElementTree.fromstring(xml)
    for asset in root.iter("asset"):
        for element in [child for child in asset if child.tag in ("texture", "material")]:
            asset.remove(element)
    for element in root.iter():
        element.attrib.pop("material", None)
    return ElementTree.tostring(root, encoding="unicode")


_headless_mujoco = SimpleNamespace(
    MjModel=SimpleNamespace(from_xml_string=lambda xml: mujoco.MjModel.from_xml_string(strip_textures(xml))),
    MjData=mujoco.MjData,
    mj_forward=mujoco.mj_forward,
)


class HeadlessWorld(World):
    """Safety-Gymnasium's world, compiled without textures.

    `build` is the stock function with its own globals, in which `mujoco` strips the XML before it compiles:
    nothing is patched, so an environment that somebody else makes in this process keeps its textures.
    """

    build = FunctionType(
        World.build.__code__, {**World.build.__globals__, "mujoco": _headless_mujoco}, "build", (), None
    )

    def rebuild(self, config: dict[str, Any] | None = None, state: bool = True) -> None:
        """As the stock world; the first time it does what the stock task does with a fresh world."""
        if self.engine.model is None:
            self.parse(config)
            self.build()
        else:
            super().rebuild(config, state)


def use_headless_world(builder: Any) -> None:
    """Give a Safety-Gymnasium Builder that was not reset yet a world without textures."""
    builder.task.world = HeadlessWorld(builder.task.agent, builder.task._obstacles)
