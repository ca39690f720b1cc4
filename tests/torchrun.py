"""The same script as two processes and as one: what test_distributed and test_sharding share."""
import os
import socket
import subprocess
import sys


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def two_and_one(script, main, out, alone):
    "Run `script` as two processes that write into `out`, and meanwhile `main(alone)` here"
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    for k in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'): env.pop(k, None)
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_addr', '127.0.0.1',
        '--master_port',
        str(free_port()), script, str(out)]
    with subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as p:
        try:
            main(alone)
            said = p.communicate(timeout=240)[0]
        finally: p.kill()
    assert p.returncode==0, said[-4000:]
