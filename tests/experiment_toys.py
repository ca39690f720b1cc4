"Jobs that say when they ran, and in which process"
import os
import time
from pathlib import Path


def nap(ctx, seconds):
    start = time.time()
    (ctx.path/'pid').write_text(str(os.getpid()))
    time.sleep(seconds)
    return dict(start=start, end=time.time(), pid=os.getpid(), malloc=os.environ.get('GLIBC_TUNABLES', ''))


def fail(ctx): raise ValueError('no such video')


def steps(ctx, n, seconds):
    "A training in small: every step leaves a mark, and a job that starts again goes on after the last one"
    marks = ctx.path/'marks'
    for i in range(len(marks.read_text().split()) if marks.exists() else 0, n):
        time.sleep(seconds)
        with marks.open('a') as f: f.write(f'{os.getpid()}:{i}\n')
    return dict(done=n)


def both(ctx): return dict(sum=sum(ctx.result(k)['done'] for k in ctx.job.needs))


if slow := os.environ.get('TOY_IMPORT'): # where an import takes a minute, as on a busy network folder
    Path(slow).touch()
    time.sleep(60)


if __name__ == '__main__':
    import sys
    from vidlit.lab.jobs import Job, run_jobs
    if 'slow' in sys.argv: os.environ['TOY_IMPORT'] = f'{sys.argv[1]}/importing'
    run_jobs([Job(f'nap/{i}', 'experiment_toys:nap', dict(seconds=120)) for i in range(2)], Path(sys.argv[1]),
        workers=2)
