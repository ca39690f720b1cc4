"""Jobs of the lab on a Ray cluster of three nodes on this machine; one is killed in the middle. Needs `vidlit[ray]`."""
import os
import socket
import threading
import time
from pathlib import Path
import pytest

ray = pytest.importorskip('ray', reason="Ray is not installed: pip install 'vidlit[ray]'")
from vidlit.lab.jobs import Job, JobError, read_result, run_jobs  # noqa: E402
from vidlit.lab.ray import ray_workers  # noqa: E402

MARKS = 6  # steps of each long job


def ports():
    "Fixed ports: a raylet does not wait for slow agents to say theirs"
    def free():
        with socket.socket() as s:
            s.bind(('', 0))
            return s.getsockname()[1]
    names = 'metrics_agent_port', 'runtime_env_agent_port', 'dashboard_agent_listen_port', 'metrics_export_port'
    return {k: free() for k in names}


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster
    env = dict(RAY_raylet_start_wait_time_s=180, RAY_agent_register_timeout_ms=240000, RAY_enable_metrics_collection=0,
        OMP_NUM_THREADS=1)
    for k, v in env.items(): monkeypatch.setenv(k, str(v))
    small = dict(object_store_memory=80 << 20)
    head = dict(num_cpus=0, include_dashboard=False, include_log_monitor=False, **small, **ports())
    c = Cluster(initialize_head=True, head_node_args=head)
    c.two = [c.add_node(num_cpus=1, **small, **ports()) for _ in range(2)]
    yield c
    ray.shutdown()
    c.shutdown()


def steps(name): return Job(f'steps/{name}', 'experiment_toys:steps', dict(n=MARKS, seconds=1.), weight=float(MARKS))


def at_work(root):
    "Process of each long job that has begun and is not done"
    begun = {p.parent.name: p.read_text().split() for p in root.glob('steps/*/marks')}
    return {k: int(v[-1].split(':')[0]) for k, v in begun.items() if len(v) < MARKS}


@pytest.mark.timeout(600)
def test_a_node_is_killed(cluster, tmp_path):
    jobs = [steps('a'), steps('b'), Job('both', 'experiment_toys:both', needs=('steps/a', 'steps/b'))]
    root, got, failed = tmp_path/'jobs', {}, []

    def go():
        try: got.update(run_jobs(jobs, root, ray_workers(cluster.address)))
        except BaseException as e: failed.append(e)
    t = threading.Thread(target=go)
    t.start()
    end = time.monotonic()+300
    while len(at_work(root)) < 2 and t.is_alive() and time.monotonic() < end: time.sleep(.05)
    before = at_work(root)
    assert len(set(before.values())) == 2 and os.getpid() not in before.values(), failed
    cluster.remove_node(cluster.two[0], allow_graceful=False)
    t.join(300)
    assert not t.is_alive() and not failed
    assert got['both'] == dict(sum=2*MARKS) == read_result(jobs[2], root)
    pids = {k: [o.split(':')[0] for o in (root/'steps'/k/'marks').read_text().split()] for k in 'ab'}
    assert sorted(len(set(v)) for v in pids.values()) == [1, 2], 'one job moved to the other node, and went on there'
    assert all(len(v) == MARKS for v in pids.values()), 'no step was done twice'
    stamps = {p: p.stat().st_mtime_ns for p in root.rglob('result.json')}
    more = [*jobs, Job('bad', 'experiment_toys:fail')]
    with pytest.raises(JobError, match='bad: .*no such video') as e: run_jobs(more, root, ray_workers(cluster.address))
    assert set(e.value.failed) == {'bad'} and {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_no_cluster(tmp_path):
    with pytest.raises(ValueError, match='no Ray cluster at .auto.*ray start --head'):
        run_jobs([steps('a')], tmp_path, ray_workers())
    assert not Path(tmp_path/'steps'/'a'/'result.json').exists()
