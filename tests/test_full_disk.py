"""A full disk, a read-only one: for every command that writes, a line that says which, what is kept, what to do."""
import os
import re
import subprocess
import kills
import pytest

CASES = kills.CASES
TOO_SMALL = dict(tracks=4, codec=4, stereo=0, pyramid=8, jobs=0) # KiB that are free for those that write little
SAYS = re.compile(r'vidlit: .*the disk (\S+) \(.* of .* free\) is full, No space left on device: .*kept.*; make room, '
    r'and the same command goes on.*')


@pytest.fixture(scope='module')
def box(tmp_path_factory):
    kills.warm()
    return kills.inputs(tmp_path_factory.mktemp('full')/'inputs')


@pytest.fixture
def disk(tmp_path):
    "A disk of a megabyte, which can be filled; root only"
    d = tmp_path/'disk'
    d.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', d]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('nobody but root may mount a small disk')
    yield d
    subprocess.run(['umount', '-l', d], check=True)


SHUT = re.compile(r'nothing can be written there, the disk \S+ \(.*\), Read-only file system: .*kept; make it '
    r'writable, and the same command goes on, or name another place')


def fill(d, kib):
    "Leave so many KiB"
    use = os.statvfs(d)
    with open(d/'ballast', 'wb') as f: f.write(bytes(max(0, use.f_bavail*use.f_frsize-kib*1024)))


def said(got): return [o for o in got.said.splitlines() if o.startswith('vidlit: ')]


@pytest.mark.parametrize('name', CASES)
def test_full(box, disk, tmp_path, name):
    "Full after a few KiB; with room again the same command ends in the bytes of an undisturbed run"
    fill(disk, TOO_SMALL.get(name, 24))
    r = disk/'r'
    r.mkdir()
    got = kills.forked(lambda: CASES[name](box, r), tmp_path/'note')
    assert got.code==2 and 'Traceback' not in got.said, got.said[-3000:]
    assert len(said(got))==1 and SAYS.fullmatch(said(got)[0]) and SAYS.fullmatch(said(got)[0])[1]==str(disk), said(got)
    if m := re.search(r'(\d+) of 34 frames are kept', said(got)[0]): assert 0<=int(m[1])<=34
    (disk/'ballast').unlink()
    subprocess.run(['mount', '-o', 'remount,size=64m', disk], check=True)
    again = kills.forked(lambda: CASES[name](box, r), tmp_path/'note')
    assert again.code==0 and not kills.left_over(r), again.said[-2000:]
    (tmp_path/'want').mkdir()
    whole = kills.forked(lambda: CASES[name](box, tmp_path/'want'), tmp_path/'note')
    assert whole.code==0 and not kills.unlike(kills.contents(r), kills.contents(tmp_path/'want'))


@pytest.mark.parametrize('name', CASES)
def test_read_only(box, disk, tmp_path, name):
    subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
    got = kills.forked(lambda: CASES[name](box, disk/'r'), tmp_path/'note')
    assert got.code==2 and len(said(got))==1 and SHUT.search(said(got)[0]), got.said[-3000:]
    assert str(disk) in said(got)[0] and 'Traceback' not in got.said
