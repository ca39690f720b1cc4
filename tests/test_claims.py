"The ledger's pages: one for each section, showing what the ledger says now"
import json
from pathlib import Path
import pytest
import vidlit.lab.claims as ledger
from vidlit.lab.claims import Claim, agrees, claims_of, in_words, measured, sections, table_of, verdict_of

NBS = Path(ledger.claims_dir()).parents[1]/'nbs'


def shown(page):
    "Markdown that a page keeps as outputs"
    cells = json.loads((NBS/'claims'/f'{page}.ipynb').read_text())['cells']
    outs = [o for c in cells if c['cell_type'] == 'code' for o in c['outputs']]
    return [''.join(o['data']['text/markdown']).strip() for o in outs if 'text/markdown' in o.get('data', {})]


@pytest.mark.parametrize('section', sections)
def test_a_page_shows_its_section(section):
    claims = claims_of(section)
    first = ledger.important(claims)
    rest = [c for c in claims if c.measure and c not in first]
    here = [in_words(first), table_of(claims), in_words(rest) or 'None.',
        ledger.sources_of([c for c in claims if not c.measure])]
    assert shown(sections[section]) == [o.strip() for o in here], f'run nbs/claims/{sections[section]}.ipynb again'
    assert table_of(claims).count('\n') == len(claims)+1 and len(claims) <= 45


def test_every_claim_stands_on_a_page():
    assert ledger.wings() == ['depth', 'pretrain', 'pyramid', 'pyramid_tokens', 'refiner', 'splat']
    assert sum(sum(ledger.counts_of(claims_of(s)).values()) for s in sections) == len(claims_of())
    assert {p.stem for p in (NBS/'claims').glob('*.ipynb')} == set(sections.values())


def test_links_lead_to_pages():
    import re
    for s in sections:
        for to in re.findall(r'\]\(\.\./([^)]+)\)', table_of(claims_of(s))): assert (NBS/to).exists(), (s, to)


def result(at, **fact):
    (at/'demo').mkdir()
    (at/'demo'/'metrics.json').write_text(json.dumps(dict(seeds=3, facts=dict(x=dict(text='it is', **fact)))))


def claim(verdict, note=''): return Claim('a', 'S', 'c', '', '', '', 'demo:x', verdict, '', note)


def test_a_comparison_with_chance_says_so(tmp_path):
    result(tmp_path, supports=True, at_chance=True)
    fact = measured(claim('reproduced'), tmp_path)
    assert not agrees(claim('reproduced'), fact) and agrees(claim('reproduced', 'The other side is at chance.'), fact)
    assert verdict_of(claim('reproduced'), tmp_path) == 'reproduced at toy scale; the worse side is at chance'


def test_a_verdict_says_no_more_than_its_measurement(tmp_path):
    result(tmp_path, supports=None)
    fact = measured(claim('undecided'), tmp_path)
    assert agrees(claim('undecided'), fact) and not agrees(claim('contradicted'), fact)
    assert verdict_of(claim('undecided'), tmp_path) == 'undecided'


def test_no_private_words():
    import re
    private = re.compile(r'\b(films?|stills|slow copy|painted|moods?|dealt|twins?|heir|crew|farewell)\b', re.I)
    for c in claims_of():
        said = ' '.join((c.claim, c.document, c.official, c.note))
        assert not private.search(re.sub(r'`[^`]*`', '', said)), c.id
