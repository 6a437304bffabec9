"""Whatever is in a checkpoint: it is read, or refused in one sentence. Bytes are changed, and entries are replaced."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from saferule.agents import get_backbone
from saferule.agents.checkpoint import load_agent, save_agent
from saferule.agents.osrl import export_osrl, import_acting, import_osrl
from saferule.agents.population import create
from saferule.errors import SaferuleError

CFG = get_backbone("cpq").Config(observation_dim=8, action_dim=2, episode_len=300, hidden=(4,), vae_hidden=4, num_q=1)
PLAIN = st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
TENSOR = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8]),
)
FEW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small agent in both forms, and a place for what becomes of it."""
    made = tmp_path_factory.mktemp("fuzz")
    save_agent(create(get_backbone("cpq"), CFG, [0]), 0, made / "agent.safetensors", "CarCircle", "cpq", CFG, {})
    export_osrl(load_agent(made / "agent.safetensors"), made / "model.pt")
    return made


def judged(load, path):
    """Read it, or be refused in one sentence; True where it was read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(path)
    except SaferuleError as error:
        assert "\n" not in str(error) and len(str(error)) <= 300 + len(str(path)), error
        return False
    return True


def osrl(path):
    import_acting(path, "CarCircle")
    import_osrl(path, "CarCircle")


@FEW
@given(st.data())
def test_changed_bytes(files, data):
    name, load = data.draw(st.sampled_from([("agent.safetensors", load_agent), ("model.pt", osrl)]))
    content = bytearray((files / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (files / f"changed-{name}").write_bytes(content)
    judged(load, files / f"changed-{name}")


@FEW
@given(st.data())
def test_replaced_entries_of_the_header(files, data):
    with safe_open(files / "agent.safetensors", framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    meta = json.loads(header["saferule"])
    place = data.draw(st.sampled_from([meta, meta["config"]]))
    name = data.draw(st.sampled_from([*place, "new"]))
    place[name] = data.draw(JSON)
    header["saferule"] = json.dumps(data.draw(st.sampled_from([meta, place[name]])))
    header["format"] = data.draw(st.sampled_from(["1", "0", "true", "[]", "1e9", "{"]))
    path = files / "changed.safetensors"
    save_file(tensors, path, header)
    judged(load_agent, path)


@FEW
@given(st.data())
def test_replaced_tensors(files, data):
    with safe_open(files / "agent.safetensors", framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = torch.load(files / "model.pt", weights_only=True)["model_state"]
    for held in (tensors, state):
        for name in data.draw(st.lists(st.sampled_from([*held, "new", "a/b/c/d"]), max_size=2)):
            held[name] = data.draw(TENSOR)
            if data.draw(st.booleans()):
                held.pop(name)
    save_file(tensors, files / "changed.safetensors", header)
    judged(load_agent, files / "changed.safetensors")
    beside = data.draw(
        st.dictionaries(st.text(max_size=5), PLAIN.map(lambda v: np.float64(v) if isinstance(v, float) else v))
    )
    torch.save({"model_state": state} | beside, files / "changed.pt")
    judged(osrl, files / "changed.pt")


def test_what_was_not_changed_is_read(files):
    assert judged(load_agent, files / "agent.safetensors") and judged(osrl, files / "model.pt")
