"""Six things that go wrong, done to a few commands; and the record of all commands, which the page `safety` shows."""
import json
import re
import faults
import kills
import pytest

SOME = 'tracks', 'flow'
TURNED = 'is held by process|waited|is there already' # away
SAYS = {'full disk': r'the disk .* is full, No space left on device: .*kept; make room, and the same command goes on',
    'read-only': r'nothing can be written there, the disk .*, Read-only file system: .*kept; make it writable, and the '
        r'same command goes on, or name another place'}


@pytest.fixture(scope='module')
def box(tmp_path_factory):
    kills.warm()
    return kills.inputs(tmp_path_factory.mktemp('faults')/'inputs')


def wrong(o):
    "What must not be in a row"
    if 'traceback' in o: return 'a traceback'
    if o['fault']=='writes nothing': return f"exit code {o['code']}: {o['said']}" if o['code'] else None
    if o['code']==2 and not o['said']: return 'nothing was said'
    if o['fault'] in SAYS and (o['code']!=2 or not re.search(SAYS[o['fault']], o['said'])):
        return f"exit code {o['code']}: {o['said']}"
    if o['fault']=='other source' and o['kept']!='all' and o['command']!='tracks': return f"not kept: {o['kept']}"
    if o['fault']=='two writers' and not re.search(TURNED, o['said']): return 'two wrote'
    if o.get('first'): return f"the first writer ended with {o['first']}"
    if 'again' not in o: return None
    there = o['again']==2 and 'is there already' in o['again_said'] # a file that is made once, and never written over
    if o['again'] and not there: return f"the same command ended with {o['again']}: {o['again_said']}"
    return 'other bytes, or something left' if o['other']+o['left'] else None


@pytest.mark.parametrize('name', SOME)
def test_faults(box, name):
    try: rows = faults.table(name, box)
    except PermissionError as e: pytest.skip(str(e))
    assert [o['fault'] for o in rows]==[*faults.FAULTS] and not [(o, why) for o in rows if (why := wrong(o))]


def test_a_row_can_be_wrong():
    good = dict(command='flow', fault='two writers', code=2, said='x.lock is held by process n', kept='', first=0,
        again=0, again_said='', other=[], left=[])
    assert wrong(good) is None
    for bad in (dict(said=''), dict(said='x', code=0), dict(first=2), dict(again=1), dict(other=['a']),
        dict(left=['b']), dict(traceback='T'), *(dict(fault=k) for k in ('full disk', 'read-only', 'other source'))):
        assert wrong(good|bad), bad


def test_the_record_is_whole():
    rows = json.loads(faults.OUT.read_text())
    asked = {(c, f) for c in faults.CASES for f in faults.FAULTS if f!='other source' or c not in faults.NO_SOURCE}
    assert {(o['command'], o['fault']) for o in rows}==(asked|{(c, 'writes nothing') for c in faults.READS})-faults.OPEN
    assert not [(o['command'], o['fault'], why) for o in rows if (why := wrong(o))]
