"""Code in a process that has imported nothing of ours: one Python with torch in it, and a fork of it for each piece, so
that many pieces cost one start."""
import json
import subprocess
import sys

FORKS = """
import json, os, sys, torch
codes, out = json.load(sys.stdin), {}
for name, code in codes.items():
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(r)
        os.dup2(w, 1)
        os.dup2(w, 2)
        try: exec(code, {'__name__': '__main__'})
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f: out[name] = f.read()
    os.waitpid(pid, 0)
json.dump(out, sys.stdout)
"""


def fresh(codes):
    "What each of `codes`, a dict of Python texts, prints (or the traceback of its error)"
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', FORKS], input=json.dumps(codes), capture_output=True,
        text=True, check=True)
    return json.loads(run.stdout)
