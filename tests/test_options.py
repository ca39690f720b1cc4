"""Every numeric option of every command refuses numbers that are none of its own: one line, exit code 2, nothing
made."""
import importlib
import inspect
import math
import shlex
from pathlib import Path
import pytest
import typer
import vidlit.cli.app as A
from vidlit.cli.app import app, option_type, option_types, run_app

for _o in 'finetune pretrain stjepa depth chunks tracks refine stereo splat pyramid live codec'.split():
    importlib.import_module(f'vidlit.cli.{_o}')


def commands(group=app, at=()):
    "Every command: its path, and the parameters of its function"
    for c in group.registered_commands: yield (*at, c.name), inspect.signature(c.callback).parameters
    for g in group.registered_groups: yield from commands(g.typer_instance, (*at, g.name))


def numeric():
    for path, ps in commands():
        for k,p in ps.items():
            if getattr(p.annotation.__metadata__[0], 'hidden', False): continue # an older name of another option
            anno = getattr(p.annotation, '__args__', [None])[0]
            kinds = {anno, *getattr(anno, '__args__', ())}
            for kind in (int, float):
                if kind in kinds: yield path, k, kind, p.default, [n for n,q in ps.items() if q.default is q.empty]


ALL = list(numeric())


def outside(path, k, kind, default):
    "Numbers that must not pass"
    t = option_type(path[-1], k)
    out = [t.lo-1, t.lo-10**6, *([t.lo] if t.above else []), *([t.hi*2] if t.hi<1e12 else [])]
    if kind is float: out += [float('nan'), -math.inf, *([math.inf] if default!=math.inf else [])]
    else: out += [10**30, -2]
    return [o for o in out if o!=default and (o!=o or not t.lo<=o<=t.hi or t.above and o==t.lo)]


def test_there_are_many(): assert len(ALL)>70 and len({p for p,*_ in ALL})>14


def test_every_number_has_a_type():
    "A new option is put into the table, not forgotten"
    lost = [(*path, k) for path,k,*_ in ALL if k not in option_types and f'{path[-1]}.{k}' not in option_types]
    assert not lost


@pytest.mark.parametrize('path,k,kind,default,needs', ALL, ids=lambda o: '.'.join(o) if isinstance(o, tuple) else '')
def test_out_of_range_is_refused(path, k, kind, default, needs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flag = f"--{k.removeprefix('as_').replace('_', '-')}"
    for v in outside(path, k, kind, default):
        v = int(v) if kind is int else v
        code = run_app(app, [*path, *['nothing']*len(needs), f'{flag}={v}'])
        err = capsys.readouterr().err.strip()
        assert code==2 and flag in err and '\n' not in err, (v, code, err)
    assert not list(tmp_path.iterdir())


def test_the_defaults_pass():
    for path, k, _, default, _ in ALL:
        if default is None or isinstance(default, typer.models.ParameterInfo): continue
        assert not option_type(path[-1], k).wrong(default, default), (path, k, default)
        assert A.Within(1).wrong(0) and not A.Within(1).wrong(0, 0)


def examples():
    "Commands that README and the help pages show"
    for l in (Path(__file__).resolve().parents[1]/'README.md').read_text().splitlines():
        if l.startswith('vidlit '): yield l
    todo = [typer.main.get_command(app)]
    while todo:
        c = todo.pop()
        todo += getattr(c, 'commands', {}).values()
        yield from (l.strip() for l in (c.help or '').splitlines() if l.strip().startswith('vidlit '))


def test_there_are_examples(): assert len({*examples()})>60


@pytest.mark.parametrize('line', sorted({*examples()}))
def test_an_example_is_a_command(line):
    "What we show can be typed: command, options and their types are there"
    c,args = typer.main.get_command(app),shlex.split(line, comments=True)[1:]
    while hasattr(c, 'commands') and args: c = c.commands[args.pop(0)]
    with c.make_context('vidlit', args): pass
