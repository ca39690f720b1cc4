"""Bytecode is kept where the environment keeps none: tests start many processes, and without it each compiles
torch and fastai again, for fifteen seconds. And one thread each, however pytest is called: a fork of a process in which
OpenMP has had several waits for ever for those that it does not have."""
import os
import sys

for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'): os.environ.setdefault(name, '1')


def pytest_configure(config):
    "In pytest's cache, which `make clean` removes; not beside the sources, since somebody asked for that"
    if not sys.dont_write_bytecode or not hasattr(config, 'cache'): return
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(config.cache.mkdir('bytecode'))
    os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
    os.environ['PYTHONPYCACHEPREFIX'] = sys.pycache_prefix # processes that xdist and tests start


LONG = ('test_reproduce', 'test_chunk_run', 'test_docs', 'test_sharding', 'test_video_depth_study',
    'test_distributed', 'test_cli', 'test_stjepa')


def pytest_collection_modifyitems(items):
    "Long files first, so that no process ends alone with one of them (`--no-loadscope-reorder` keeps this order)"
    items.sort(key=lambda i: LONG.index(i.path.stem) if i.path.stem in LONG else len(LONG))
