"""Off-screen OpenGL for the MuJoCo tasks; the Bullet task is drawn in software."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

from saferule.environment import drawing, graphics, use_graphics
from saferule.errors import SettingsError


def use_offscreen_gl() -> None:
    """Choose EGL or OSMesa for MuJoCo's renderer: MUJOCO_GL if it is set, else the first that works.

    Raises SettingsError if none does.
    """
    asked = graphics()
    backends = (asked,) if asked else ("egl", "osmesa")
    for backend in backends:
        if backend == "glfw" or _works(backend):
            return use_graphics(backend)
    tried = f"MUJOCO_GL={asked} gives no" if asked else "neither EGL nor OSMesa gives an"
    raise SettingsError(
        f"Cannot draw this task: {tried} OpenGL context here; install Mesa (for example the package "
        "libosmesa6, then set MUJOCO_GL=osmesa), or leave rendering off."
    )


@cache
def _works(backend: str) -> bool:
    """Whether an off-screen context can be made.

    Tried in a process of its own, as PyOpenGL binds to the first backend that is imported, working or not.
    """
    program = f"from mujoco.{backend} import GLContext; GLContext(8, 8).make_current()"
    done = subprocess.run([sys.executable, "-c", program], env=drawing(backend), capture_output=True)
    return done.returncode == 0
