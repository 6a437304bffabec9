"""Jobs on a real Ray cluster of two local nodes: the same results as here, also when one of them is killed."""

import os
import shutil
import threading
import time
from dataclasses import replace

import psutil
import pytest
from tiny_runs import agent_of, assert_same_results, make_from, repairs, trainings

from saferule.errors import RunError, SettingsError
from saferule.runs import execute
from saferule.runs.spec import EvaluationRun
from saferule.runs.store import Store
from saferule.runs.work import EPISODES

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
SETTINGS = {  # a dead node is noticed soon; a slow machine may take its time to start one
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 20,
    "agent_register_timeout_ms": 100_000,
}


class TwoSlots(execute.InProcess):
    """Divides the work as two workers do."""

    slots = 2


@pytest.fixture(scope="module")
def cluster():
    """A head and another node, with a CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args=NODE | {"include_dashboard": False, "_system_config": SETTINGS}
    )
    cluster.add_node(**NODE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def executor(cluster):
    return execute.RayCluster(cluster.address)


@pytest.fixture
def here(empty_store, tmp_path):
    """Another copy of the store that has the forget set."""
    return shutil.copytree(empty_store, tmp_path / "here")


def test_two_nodes_make_what_one_process_makes(executor, fresh, here, data_folder, digest):
    """The same folders, parameters, optimisers, generators, logs and episodes, bit for bit."""
    policies = [*trainings(digest, "cpq"), *repairs(digest, "cpq")]
    evaluation = EvaluationRun(policies[-1], (100, 101))
    for root, where in ((fresh, executor), (here, TwoSlots())):
        make_from(data_folder, [*policies, evaluation], root, executor=where)
    for run in policies:
        assert_same_results(run, fresh, here)
    one, two = ((Store(root).folder(evaluation) / EPISODES).read_text() for root in (fresh, here))
    assert executor.slots == 2 and one == two and not list(fresh.glob(".shared*"))


def test_errors_and_lost_processes_come_as_from_other_executors(executor):
    def fail():
        raise RunError("on purpose")

    with pytest.raises(RunError, match="^on purpose$"):
        executor.submit(fail).result()
    with pytest.raises(execute.BrokenExecutor, match="died"):
        executor.submit(lambda: os._exit(1)).result()
    endless = executor.submit(lambda: time.sleep(1000))
    executor.stop()
    with pytest.raises(execute.BrokenExecutor):
        endless.result(timeout=60)


def test_a_folder_that_a_node_does_not_see_is_named(executor, tmp_path, monkeypatch):
    executor.check(tmp_path)
    monkeypatch.setattr(execute, "_read", lambda file: None)  # what a node without the file answers
    with pytest.raises(RunError, match=f"{tmp_path}: node .* does not see the file .* all nodes share") as told:
        executor.check(tmp_path)
    monkeypatch.setattr(execute, "_read", lambda file: [][0])
    with pytest.raises(RunError, match="cannot run saferule .*list index out of range"):
        executor.check(tmp_path)
    assert not list(tmp_path.iterdir()) and len(str(told.value)) < 300 + len(str(tmp_path))


def test_jobs_that_fit_no_node_are_refused_at_the_start(cluster, executor, tmp_path, monkeypatch):
    """Two nodes with a CPU each and no GPU; then nodes that have what one job needs only together."""
    assert executor.slots == 2
    with pytest.raises(RunError, match="no node has a CPU and 0.5 of a GPU, .*add one, or give another --ray-gpus"):
        execute.RayCluster(cluster.address, 0.5).check(tmp_path)
    nodes = [{"Alive": True, "Resources": has} for has in ({"CPU": 8, "GPU": 1}, {"CPU": 3, "GPU": 2}, {"GPU": 8})]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    rooms = {share: execute.RayCluster(cluster.address, share)._rooms() for share in (0.0, 0.3, 1.0, 2.0)}
    assert rooms == {0.0: [8, 3, 0], 0.3: [3, 3, 0], 1.0: [1, 2, 0], 2.0: [0, 1, 0]}


@pytest.mark.parametrize("address", ["localhost:1", "nonsense"])
def test_an_address_without_a_cluster_is_named(address):
    with pytest.raises(SettingsError, match=f"--ray {address}: no Ray cluster there"):
        execute.RayCluster(address)


def test_a_node_that_is_killed_while_it_trains(cluster, executor, fresh, here, data_folder, digest):
    """Its job is made again on the node that is left."""
    runs, said = [replace(run, steps=300, snapshots=1) for run in trainings(digest, "cpq")], []
    node = next(iter(cluster.worker_nodes))

    def kill():
        while len(list(fresh.glob("partial/*/runs.json"))) < 2:
            time.sleep(0.01)
        of_node = [psutil.Process(p.process.pid) for listed in node.all_processes.values() for p in listed]
        for process in [*(child for parent in of_node for child in parent.children(recursive=True)), *of_node]:
            process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    make_from(data_folder, runs, fresh, said.append, executor)
    killer.join()
    make_from(data_folder, runs, here, executor=TwoSlots())
    for run in runs:
        assert_same_results(run, fresh, here)
        assert agent_of(fresh, run).population.step == 300
    assert sum("its process was lost" in line for line in said) == 1 and not list(fresh.glob("partial/*"))
