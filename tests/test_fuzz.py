"""Every reader of the library against damaged files: a refusal that names the file, or what is right; in ten seconds of
processor time and 1 GiB of memory.

Short here: six of each. `VIDLIT_FUZZ=200 pytest tests/test_fuzz.py -s` takes 200 of each and prints the table."""
import importlib.util
import os
import sys
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parent))
fuzzing = pytest.importorskip('fuzzing')
from fuzz_readers import READERS  # noqa: E402 (a module beside this one)

TRIES = int(os.environ.get('VIDLIT_FUZZ', 6))
NEEDS = {'depth, exr': 'OpenEXR', 'trajectory, h5': 'h5py', 'trajectory, json': 'h5py',
    'video of the neural codec': 'constriction'}
rows = []


@pytest.fixture(scope='module', autouse=True)
def table():
    yield
    if TRIES<50 or not rows: return
    total = [sum(o[k] for o in rows) for k in ('tries', 'refused', 'same', 'other', 'wrong')]
    print('\n\n| what is damaged | tries | refused | same content | other content, no checksum in the format |'
        ' wrong |\n|---|---|---|---|---|---|')
    for o in rows: print(f"| {o['name']} | {o['tries']} | {o['refused']} | {o['same']} | {o['other']} | {o['wrong']} |")
    print('| all | '+' | '.join(map(str, total))+' |')


@pytest.mark.parametrize('reader', READERS, ids=lambda r: r.name)
def test_damaged(reader, tmp_path):
    need = NEEDS.get(reader.name)
    if need and not importlib.util.find_spec(need): pytest.skip(f'no {need}')
    counts, wrong = fuzzing.fuzz(reader, tmp_path/'x', range(TRIES))
    rows.append(dict(name=reader.name, wrong=len(wrong), **counts))
    assert not wrong, '\n'.join(f'{k}: {v}' for k,v in list(wrong.items())[:20])
    assert counts['tries']==TRIES and counts['refused']+counts['same']+counts['other']==TRIES


def test_the_harness_finds_what_is_wrong(tmp_path):
    "A reader of each bad kind is found out"
    def make(p): (p/'a.txt').write_text('12345678'*20)
    def hungry(p): return bytearray(4<<30)
    def silent(p):
        from vidlit.floor.reading import StoreError
        raise StoreError('something is wrong')
    def crash(p): os.kill(os.getpid(), 9)
    def lies(p): return (p/'a.txt').read_bytes()
    def slow(p):
        while True: pass
    def tell(read, exact=False, n=2):
        def first(p): # undamaged it reads well
            return 1 if (p/'a.txt').read_bytes()==b'12345678'*20 else read(p)
        r = fuzzing.Reader('x', make, 'a.txt', first, exact=exact)
        return ' '.join(fuzzing.fuzz(r, tmp_path/str(len(list(tmp_path.iterdir()))), range(n))[1].values())
    assert 'MemoryError' in tell(hungry)
    assert 'no file named' in tell(silent)
    assert 'the process died' in tell(crash)
    assert 'other content' in tell(lies, exact=True)
    assert 'ZeroDivisionError' in tell(lambda p: 1/0)
    old, fuzzing.SECONDS = fuzzing.SECONDS, 1
    try: assert 'more than 1 seconds' in tell(slow, n=3)
    finally: fuzzing.SECONDS = old
