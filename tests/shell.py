"""The command line as its users meet it: as a process of its own, or `here`, in this process through the same
`main`."""
import subprocess
import sys
from pathlib import Path

VIDLIT = str(Path(sys.executable).parent/'vidlit')


def vidlit(*args, **kw):
    return subprocess.run([VIDLIT, *map(str, args)], capture_output=True, text=True, timeout=120, **kw)


def here(monkeypatch, capfd, *args):
    "The command in this process: what `vidlit` gives, exit code and all that reached the two streams"
    from vidlit.cli.app import main
    monkeypatch.setattr(sys, 'argv', [VIDLIT, *map(str, args)])
    capfd.readouterr()
    try: main()
    except SystemExit as e: code = 0 if e.code is None else e.code
    else: raise AssertionError('main left without an exit code')
    out, err = capfd.readouterr()
    return subprocess.CompletedProcess(sys.argv, code, out, err)
