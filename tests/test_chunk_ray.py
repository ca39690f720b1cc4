"""A Ray cluster of three nodes on this machine; one is killed in the middle. Needs `pip install 'vidlit[ray]'`."""
import socket
import threading
import time
from pathlib import Path
import pytest

ray = pytest.importorskip('ray', reason="Ray is not installed: pip install 'vidlit[ray]'")
from vidlit.depth.windows import n_windows  # noqa: E402
from vidlit.pipeline.job import ChunkError, make_job  # noqa: E402
from vidlit.pipeline.pool import Plan, make_plan, work_on  # noqa: E402
from vidlit.pipeline.ray import run_on_ray  # noqa: E402
from vidlit.pipeline.worker import status  # noqa: E402
from vidlit.video.writing import numbered_frame, write_video  # noqa: E402


def contents(path):
    return {o.relative_to(path).as_posix(): o.read_bytes() for o in sorted(path.glob('chunk_*/*')) if o.suffix!='.lock'}


def ports():
    "Fixed ports: a raylet does not wait for slow agents to say theirs"
    def free():
        with socket.socket() as s:
            s.bind(('', 0))
            return s.getsockname()[1]
    return {k: free() for k in ('metrics_agent_port', 'runtime_env_agent_port', 'dashboard_agent_listen_port',
        'metrics_export_port')}


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster
    env = dict(RAY_raylet_start_wait_time_s=180, RAY_agent_register_timeout_ms=240000, RAY_enable_metrics_collection=0,
        OMP_NUM_THREADS=1, TOY_SLOW=.4)
    for k, v in env.items(): monkeypatch.setenv(k, str(v))
    small = dict(object_store_memory=80<<20)
    c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False,
        include_log_monitor=False, **small, **ports()))
    c.two = [c.add_node(num_cpus=1, **small, **ports()) for _ in range(2)]
    yield c
    ray.shutdown()
    c.shutdown()


@pytest.mark.timeout(600)
def test_a_node_is_killed(cluster, tmp_path, monkeypatch):
    video = write_video(tmp_path/'video.mp4', (numbered_frame(i) for i in range(300)), 25)
    jobs = [make_job(tmp_path/o, video, 6, 12) for o in ('whole', 'job')]
    for o in jobs: make_plan(o.path, Plan('chunk_toys:drifting'))
    monkeypatch.setenv('TOY_SLOW', '0') # the nodes have it from before
    work_on(jobs[0].path, threads=1, model='chunk_toys:drifting')
    job, failed = jobs[1], []

    def go():
        try: run_on_ray(job.path, cluster.address, ttl=5, model='chunk_toys:drifting')
        except BaseException as e: failed.append(e)
    t = threading.Thread(target=go)
    t.start()
    end = time.monotonic()+300
    def working(): return {o['pid'] for o in status(job.path)['workers'] if o['windows'] and o['state']=='working'}
    while len(working())<2 and t.is_alive() and time.monotonic()<end: time.sleep(.05)
    two = working()
    assert len(two)==2, failed
    cluster.remove_node(cluster.two[0], allow_graceful=False)
    t.join(300)
    assert not t.is_alive() and not failed
    assert contents(job.path)==contents(jobs[0].path)
    gone = [o for o in status(job.path)['workers'] if o['state']=='gone']
    assert len(gone)==1 and gone[0]['pid'] in two and gone[0]['windows']>=1
    total = sum(n_windows(job.length(c)) for c in range(6))
    assert total<=sum(o['windows'] for o in status(job.path)['workers'])<=total+1
    other = make_job(tmp_path/'other', write_video(tmp_path/'other.mp4', (numbered_frame(i) for i in range(40)), 25))
    make_plan(other.path, Plan('chunk_toys:nobody'))
    with pytest.raises(ChunkError, match="1 of 1 chunks are not done.*chunk_toys:nobody"):
        run_on_ray(other.path, cluster.address, model='chunk_toys:nobody')


def test_no_cluster(tmp_path):
    job = make_job(tmp_path/'job', write_video(tmp_path/'f.mp4', (numbered_frame(i) for i in range(9)), 25))
    make_plan(job.path, Plan('chunk_toys:drifting'))
    with pytest.raises(ChunkError, match='no Ray cluster at .auto.*ray start --head'):
        run_on_ray(job.path, model='chunk_toys:drifting')
    assert Path(job.path/'plan.json').exists()
