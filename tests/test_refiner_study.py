"""The refiner's study: cores and parts are ranked only where the paired interval excludes zero"""
import pytest
from vidlit.studies.refiner import decides, filters, summary
from vidlit.studies.refiner_jobs import cores, parts, refiner_jobs, tests


def results(shares, seeds=3):
    "Jobs' results: `shares` maps a training to its flicker for each seed"
    def row(f): return dict(log_flicker=f, abs_rel=f, rmse=f, delta1=1., boundary_f=1., hit=0.) | {
        'change/high': 0., 'off/high': 0.}
    watch = [dict(step=0, flicker=1., corr=.2, hit=0., unchanged=.97, residual=0.)]
    out = {}
    for s in range(seeds):
        out[f'controls/seed{s}'] = {t: {k: row(1.) for k in ('raw', *filters)} for t in tests}
        for k, v in shares.items():
            out[f'train/{k}/seed{s}'] = {t: row(v[s]) for t in tests} | dict(params=9, watch=watch)
    return out


SHARES = {k: (.30, .31, .32) for k in ('refiner', *cores, *parts)}


def test_what_differs_is_named_and_nothing_else():
    res = results(SHARES | {
        'core gru': (.40, .41, .42), 'core conv': (.20, .40, .33), 'mid-res branch': (.2, .21, .22)})
    assert decides(res, cores) == 'more flicker than the refiner: gru (still), gru (hand); less: none'
    assert decides(res, parts) == 'more flicker than the refiner: none; less: mid-res branch (still), '\
        'mid-res branch (hand)'
    m = summary(res, None)
    assert [r['variant'] for r in m['variants']] == ['refiner', *cores, *parts]
    assert 'gru (still)' in m['facts']['cores']['text']
    pair = next(p for p in m['paired'] if p['a'] == 'variant, flicker, still: core conv')
    assert pair['low']<0<pair['high'] and pair['b'] == 'variant, flicker, still: refiner'


def test_without_variants_there_are_none():
    m = summary(results({'refiner': (.3, .31, .32)}), None)
    assert 'cores' not in m['facts'] and [r['variant'] for r in m['variants']] == ['refiner']
    assert not [p for p in m['paired'] if p['a'].startswith('variant')]


def test_every_seed_trains_every_variant():
    keys = [j.key for j in refiner_jobs('toy', range(3), variants=True)]
    assert all(f'train/{k}/seed{s}' in keys for k in (*cores, *parts) for s in range(3))
    with pytest.raises(KeyError): refiner_jobs('huge', [0])
