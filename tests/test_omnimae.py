"OmniMAE against a plain second writing of it, its layout both ways, its loader's promises, and what is refused."
import copy
import math
from collections import Counter
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from vidlit.nn.tokens import Grid
from vidlit.nn.vit import ViTConfig, count_params, flat_pos
from vidlit.nn.weights import WeightsError
from vidlit.pretrain.omni_batches import (
    OmniLoader,
    OmniMasks,
    OmniSet,
    as_clip,
    coin_order,
    modality,
    omni_mask,
    paired_order,
    ratios,
    recipe_ratios,
    shuffled_order,
)
from vidlit.pretrain.omnimae import OmniMAE, OmniMAEClassifier, OmniMAEConfig, omni_sizes, omnimae_b, pos_rows, presets
from vidlit.pretrain.omnimae_variants import SplitOmniMAE, document_counted, modal_groups
from vidlit.train.checkpoint import share

TINY = OmniMAEConfig(ViTConfig(dim=48, depth=2, heads=3, patch=(2,8,8), qkv_bias='fused'),
    ViTConfig(dim=32, depth=2, heads=4, qkv_bias='none'), (8,32,32))
def gen(s=0): return torch.Generator().manual_seed(s)

def rough(model, s=3):
    "Weights of every kind different from their start"
    for i,p in enumerate(model.parameters()): p.data = p.data + .1*torch.randn(p.shape, generator=gen(s+i))
    return model

# --- a second writing: functions of the official state dict and nothing of the library ---
def attention(s, at, x, heads):
    b,n,d = x.shape
    qkv = x @ s[f'{at}.qkv.weight'].T + s.get(f'{at}.qkv.bias', torch.zeros(()))
    out = torch.zeros_like(x)
    for h in range(heads):
        lo,hi = h*d//heads, (h+1)*d//heads
        q,k,v = (qkv[..., j*d+lo:j*d+hi] for j in range(3))
        w = torch.exp(q @ k.transpose(1, 2) / math.sqrt(d//heads))
        out[..., lo:hi] = (w/w.sum(-1, keepdim=True)) @ v
    return out @ s[f'{at}.proj.weight'].T + s[f'{at}.proj.bias']

def layer_norm(s, at, x):
    mean = x.mean(-1, keepdim=True)
    var = ((x-mean)**2).mean(-1, keepdim=True)
    return (x-mean)/(var+1e-6).sqrt()*s[f'{at}.weight'] + s[f'{at}.bias']

def block(s, at, x, heads):
    x = x + attention(s, f'{at}.attn', layer_norm(s, f'{at}.norm1', x), heads)
    h = layer_norm(s, f'{at}.norm2', x) @ s[f'{at}.mlp.fc1.weight'].T + s[f'{at}.mlp.fc1.bias']
    h = h*.5*(1+torch.erf(h/math.sqrt(2)))
    return x + h @ s[f'{at}.mlp.fc2.weight'].T + s[f'{at}.mlp.fc2.bias']

def table(n, d):
    return torch.tensor([[(math.sin if j%2==0 else math.cos)(i/10000**(2*(j//2)/d)) for j in range(d)]
        for i in range(n)])

def tokens(s, x, p=(2,8,8)):
    "All embedded tokens with their positions"
    if x.ndim==4: x = torch.stack([x, x], 2)
    b,_,t,h,w = x.shape
    rows = []
    for i in range(t//p[0]):
        for j in range(h//p[1]):
            for k in range(w//p[2]):
                cube = x[:, :, i*p[0]:(i+1)*p[0], j*p[1]:(j+1)*p[1], k*p[2]:(k+1)*p[2]].reshape(b, -1)
                rows.append(cube @ s['trunk.patch_embed.proj.1.weight'].flatten(1).T
                    + s['trunk.patch_embed.proj.1.bias'])
    x = torch.stack(rows, 1)
    return x + table(x.shape[1], x.shape[2])

def second(s, x, mask, heads=3, dec_heads=4):
    "Pixels of every token, sample by sample"
    out = []
    for i in range(len(x)):
        vis = tokens(s, x[i:i+1])[:, ~mask[i]]
        for l in range(2): vis = block(s, f'trunk.blocks.{l}', vis, heads)
        vis = layer_norm(s, 'trunk.norm', vis)
        full = s['trunk.mask_token'].repeat(mask.shape[1], 1)
        full[~mask[i]] = vis[0]
        z = (full+table(*full.shape))[None]
        z = z @ s['trunk.decoder.decoder_embed.weight'].T + s['trunk.decoder.decoder_embed.bias']
        for l in range(2): z = block(s, f'trunk.decoder.decoder_blocks.{l}', z, dec_heads)
        out.append(layer_norm(s, 'trunk.decoder.norm', z) @ s['head.weight'].T + s['head.bias'])
    return torch.cat(out)

def second_loss(pred, x, mask, p=(2,8,8)):
    "Mean over hidden tokens of a token's mean squared error to its normalised pixels"
    if x.ndim==4: x = torch.stack([x, x], 2)
    x = x*torch.tensor([.229, .224, .225]).view(3, 1, 1, 1) + torch.tensor([.485, .456, .406]).view(3, 1, 1, 1)
    b,_,t,h,w = x.shape
    total,n = 0.,0
    for i in range(b):
        for k in mask[i].nonzero().flatten().tolist():
            a,r = divmod(k, (h//p[1])*(w//p[2]))
            j,l = divmod(r, w//p[2])
            cube = x[i, :, a*p[0]:(a+1)*p[0], j*p[1]:(j+1)*p[1], l*p[2]:(l+1)*p[2]].flatten(1)
            y = (cube-cube.mean(1, keepdim=True))/(cube.var(1, keepdim=True)+1e-6).sqrt()
            total,n = total+((pred[i, k]-y.T.flatten())**2).mean(), n+1
    return total/n

@pytest.mark.parametrize('shape', [(2,3,8,32,32), (2,3,32,32), (1,3,4,32,32), (2,3,1,32,32)])
def test_against_the_second_writing(shape):
    model,x = rough(OmniMAE(TINY, gen=gen())),torch.randn(shape, generator=gen(1))
    mask = omni_mask(x[:, :, 0] if shape[2]==1 else x, (2,8,8), recipe_ratios, gen(2))
    s = {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k,v in model.state_dict().items()}
    y = x[:, :, 0] if shape[2]==1 else x
    pred = second(s, y, mask)
    torch.testing.assert_close(model.predict_all(x, mask), pred, atol=1e-4, rtol=1e-4)
    out,ref = model(x, mask),second_loss(pred, y, mask)
    torch.testing.assert_close(out.loss, ref, atol=1e-5, rtol=1e-5)
    out.loss.backward()
    ref.backward()
    for k,p in model.named_parameters():
        torch.testing.assert_close(p.grad, s[k].grad, atol=2e-5, rtol=1e-3, msg=lambda m, k=k: f'{k}: {m}')

@pytest.mark.parametrize('shape', [(2,3,8,32,32), (2,3,32,32)])
def test_classifier_norms_after_the_mean(shape):
    clf,x = rough(OmniMAEClassifier(TINY, 5, gen=gen())),torch.randn(shape, generator=gen(1))
    s = clf.state_dict()
    z = tokens(s, x)
    for l in range(2): z = block(s, f'trunk.blocks.{l}', z, 3)
    torch.testing.assert_close(clf(x), layer_norm(s, 'trunk.norm', z.mean(1)) @ s['head.weight'].T + s['head.bias'],
        atol=1e-5, rtol=1e-4)

# --- positions ---
def test_tables_are_the_sinusoid():
    m = OmniMAE(TINY)
    for o in (m.trunk.pos_embed, m.trunk.decoder.pos_embed):
        torch.testing.assert_close(o[0], table(4*16, 48), atol=1e-6, rtol=1e-5)

@pytest.mark.parametrize('side', [7, 16, 28])
def test_stills_of_other_sizes_stretch_as_officially(side):
    rows = flat_pos(Grid(8,14,14), 32)[None]
    want = F.interpolate(rows[:, :196].reshape(1, 14, 14, 32).permute(0, 3, 1, 2),
        scale_factor=math.sqrt(side*side/196), mode='bicubic')
    torch.testing.assert_close(pos_rows(rows, Grid(8,14,14), Grid(1,side,side)),
        want.permute(0, 2, 3, 1).view(-1, 32), atol=1e-5, rtol=1e-5)

def test_odd_shapes_run():
    m = OmniMAE(TINY)
    for shape in ((1,3,6,40,24), (1,3,48,16)): assert m.features(torch.randn(shape)).shape[-1]==48
    with pytest.raises(ValueError, match='5 slots'): m.features(torch.randn(1, 3, 10, 32, 32))
    with pytest.raises(ValueError, match='width 33'): m.features(torch.randn(1, 3, 32, 33))

# --- sizes and layout ---
def official_keys(depth, dec_depth):
    "Names as the released classes make them"
    blk = [f'{a}.{p}' for a in ('norm1','norm2','attn.proj','mlp.fc1','mlp.fc2')
        for p in ('weight','bias')] + ['attn.qkv.weight']
    out = {f'trunk.blocks.{i}.{k}' for i in range(depth) for k in [*blk, 'attn.qkv.bias']}
    out |= {f'trunk.decoder.decoder_blocks.{i}.{k}' for i in range(dec_depth) for k in blk}
    ends = ('patch_embed.proj.1', 'norm', 'decoder.decoder_embed', 'decoder.norm')
    return out | {f'trunk.{e}.{p}' for e in ends for p in ('weight','bias')} | {
        'trunk.pos_embed', 'trunk.decoder.pos_embed', 'trunk.mask_token', 'head.weight', 'head.bias'}

@pytest.mark.parametrize('name,total,depth,dec_depth',
    [('B', 94_217_856, 12, 4), ('L', 317_803_520, 24, 4), ('H', 657_655_448, 32, 8)])
def test_released_sizes(name, total, depth, dec_depth):
    with torch.device('meta'): m = OmniMAE(presets[name])
    assert count_params(m)==total
    s = m.state_dict()
    assert set(s)==official_keys(depth, dec_depth)
    n = presets[name].grid.n
    assert (s['trunk.pos_embed'].shape==(1, n, presets[name].enc.dim)
        and s['trunk.mask_token'].shape==(1, presets[name].enc.dim))
    assert omni_sizes(s)==presets[name]

@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_official_file_round_trip(suffix, tmp_path):
    from vidlit.nn.weights import write_weights
    m,x = rough(OmniMAE(TINY)),torch.randn(2, 3, 32, 32)
    p = tmp_path/f'model{suffix}'
    if suffix=='.pth': torch.save(m.to_official(), p)
    else: write_weights(m.to_official(), p)
    back = OmniMAE.from_official(p, heads=3, dec_heads=4, frames=8)
    assert back.cfg==TINY
    mask = omni_mask(x, (2,8,8), ratios, gen())
    assert torch.equal(back(x, mask).pred, m(x, mask).pred)

@pytest.mark.parametrize('fault,word', [('missing', 'trunk.decoder.norm.bias'),
    ('extra', 'surprise'), ('shape', 'trunk.mask_token'), ('foreign', 'not an official OmniMAE')])
def test_loading_refuses(fault, word):
    s = OmniMAE(TINY).to_official()
    if fault=='missing': del s['trunk.decoder.norm.bias']
    if fault=='extra': s['surprise'] = torch.zeros(1)
    if fault=='shape': s['trunk.mask_token'] = torch.zeros(1, 9)
    if fault=='foreign': s = {k.removeprefix('trunk.'): v for k,v in s.items()}
    with pytest.raises(WeightsError, match=word): OmniMAE.from_official(s, 3, 4, 8)

def test_layouts_do_not_mix(tmp_path):
    m = OmniMAE(TINY)
    clf = m.classifier(4)
    with pytest.raises(WeightsError, match='decoder'): OmniMAEClassifier.from_official(m.to_official(), 3, 8)
    with pytest.raises(WeightsError, match='mask_token'): OmniMAE.from_official(clf.to_official(), 3, 4, 8)
    with pytest.raises(WeightsError, match='not an OmniMAE classifier'):
        OmniMAEClassifier.from_pretrained(m.save_pretrained(tmp_path/'m'))
    assert OmniMAEClassifier.from_pretrained(clf.save_pretrained(tmp_path/'c')).head.out_features==4

def test_decoder_with_biases_is_read_too():
    "The released configuration asks for them, the hub's classes leave them out"
    m = OmniMAE(OmniMAEConfig(TINY.enc, ViTConfig(dim=32, depth=1, heads=4, qkv_bias='fused'), TINY.size))
    assert OmniMAE.from_official(m.to_official(), 3, 4, 8).cfg.dec.qkv_bias=='fused'

def test_no_pickles(tmp_path):
    class Bomb:
        def __reduce__(self): return (print, ('executed',))
    torch.save({'trunk.pos_embed': Bomb()}, tmp_path/'bad.torch')
    with pytest.raises(WeightsError): OmniMAE.from_official(tmp_path/'bad.torch')

def test_copies_and_precision():
    m,x = OmniMAE(TINY),torch.randn(1, 3, 8, 32, 32)
    mask = omni_mask(x, (2,8,8), recipe_ratios, gen())
    twin = copy.deepcopy(m).double()
    torch.testing.assert_close(twin(x.double(), mask).loss.float(), m(x, mask).loss, atol=1e-5, rtol=1e-5)
    with torch.autocast('cpu', torch.bfloat16): assert abs(m(x, mask).loss-m.float()(x, mask).loss)<.05

# --- telling apart, and masks ---
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_modality_says_or_refuses(shape):
    x = torch.zeros(shape)
    if len(shape) in (4, 5) and shape[1]==3:
        clip = as_clip(x, 2)
        assert modality(x)==('image' if len(shape)==4 else 'video') and clip.ndim==5
        assert clip.shape[2]==(2 if len(shape)==4 or shape[2]==1 else shape[2])
    else:
        with pytest.raises(ValueError, match=str(shape[0])): modality(x)

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 6), st.integers(2, 6), st.booleans())
def test_masks_hide_the_ratio(b, t, h, w, still):
    x = torch.zeros(b, 3, 8*h, 8*w) if still else torch.zeros(b, 3, 2*t, 8*h, 8*w)
    n = h*w*(1 if still else t)
    k = int((.75 if still else .9)*n)
    if not 0<k<n: return
    m = omni_mask(x, (2,8,8), recipe_ratios, gen())
    assert m.shape==(b, n) and set(m.sum(1).tolist())=={k}
    assert torch.equal(m, OmniMasks(0, (2,8,8), recipe_ratios).draw(x, gen()))

# --- the loader ---
class Films:
    "Counts its decodings"
    def __init__(self, n): self.n,self.seen = n,Counter()
    def __len__(self): return self.n
    def __call__(self, i, gen=None):
        self.seen[i] += 1
        return torch.full((3,4,2,2), float(i)), i

def jitter(clip, g): return clip+torch.rand((), generator=g)*.1

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 60), st.sampled_from([1, 2, 4]),
    st.sampled_from([shuffled_order, coin_order, paired_order]), st.integers(0, 3))
def test_blocks(n_images, n_films, views, order, epoch):
    if not n_images+n_films: return
    films = Films(n_films)
    images = torch.rand(n_images, 3, 1, 2, 2) if n_images else None
    dl = OmniLoader(OmniSet(images, films if n_films else None, jitter, views=views), bs=8, order=order, epoch=epoch)
    idxs = dl.get_idxs()
    assert len(idxs)%8==0
    for i in range(0, len(idxs), 8): assert len({j<n_images for j in idxs[i:i+8]})==1
    stills = [i for i in idxs if i<n_images]
    assert len(stills)==len(set(stills))
    if order is shuffled_order: assert len(idxs)//8==len(dl)==n_images//8+n_films//8
    for x,_ in dl: assert x.shape[0]==8 and modality(x)==('image' if x.ndim==4 else 'video')
    assert all(v==1 for v in films.seen.values())

def test_a_film_is_decoded_once_for_different_views():
    films = Films(16)
    dl = OmniLoader(OmniSet(None, films, jitter, views=4), bs=8)
    got = [x for x,_ in dl]
    assert len(got)==2 and sum(films.seen.values())==4
    for x in got:
        level = x[:, 0, 0, 0, 0]
        assert len(level.unique())==8 and len(level.floor().unique())<=3

def test_workers_and_resuming_change_nothing():
    def make(**kw):
        images,films = torch.rand(24, 3, 1, 2, 2, generator=gen()), torch.rand(32, 3, 4, 2, 2, generator=gen(1))
        return OmniLoader(OmniSet(images, films, jitter, views=2), bs=4, **kw)
    alone,many = list(make()),list(make(num_workers=2))
    assert len(alone)==len(many)==6+8
    assert all(torch.equal(a[0], b[0]) for a,b in zip(alone, many))
    dl = make()
    rest = share(dl.get_idxs(), dl.bs, 5, 0, 1)
    dl.get_idxs = lambda: rest
    assert all(torch.equal(a[0], b[0]) for a,b in zip(alone[5:], dl))

@pytest.mark.parametrize('kw,word', [(dict(bs=6, video_bs=4), '4 views'), (dict(bs=0), 'bs must be')])
def test_loader_refuses(kw, word):
    with pytest.raises(ValueError, match=word): OmniLoader(OmniSet(None, Films(8), views=1), **kw)

# --- variants ---
def test_document_counts_what_nobody_saw():
    keep = torch.tensor([[0, 1], [2, 3]])
    assert document_counted(keep, 6).tolist()==[[False]*4+[True]*2]*2

def test_split_network_shares_blocks_only():
    m = SplitOmniMAE(TINY)
    x = torch.randn(2, 3, 32, 32)
    m(x, omni_mask(x, (2,8,8), recipe_ratios, gen())).loss.backward()
    assert all(p.grad is None for p in m.video.parameters()) and all(p.grad is not None for p in m.blocks.parameters())
    assert sum(p.numel() for g in modal_groups(m) for p in g['params'])==count_params(m)
    assert sum(p.numel() for g in modal_groups(m, literal=True) for p in g['params'])<count_params(m)

def test_default_is_the_released_base():
    assert (omnimae_b.enc.qkv_bias=='fused' and omnimae_b.dec.qkv_bias=='none' and omnimae_b.dec.heads==16
        and omnimae_b.size==(16,224,224))
