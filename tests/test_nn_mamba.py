"""State-space blocks against transformers' from the same weights, and properties of the scans."""
import pytest
import torch
from hypothesis import given, settings, strategies as st
from vidlit.nn.mamba import Mamba, Mamba2, causal_conv, conv_silu
from vidlit.nn.ssm import scan, scan_ref, scan_step, ssd, ssd_ref, ssd_step
from vidlit.nn.temporal_cores import core_kinds, make_core

transformers = pytest.importorskip('transformers')


def gen(seed=0): return torch.Generator().manual_seed(seed)


def both_ways(f, x):
    "Output and the gradient of the input"
    x = x.detach().clone().requires_grad_()
    y = f(x)
    y.square().sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize('bias', [False, True])
def test_mamba_equals_transformers(bias):
    from transformers.models.mamba.modeling_mamba import MambaMixer
    cfg = transformers.MambaConfig(hidden_size=24, state_size=8, conv_kernel=4, expand=2, num_hidden_layers=1,
        use_bias=bias, time_step_rank=2)
    theirs = MambaMixer(cfg, 0).eval()
    with torch.no_grad():
        for p in theirs.parameters(): p.add_(.1*torch.randn(p.shape, generator=gen(1)))
    ours = Mamba.from_official(theirs.state_dict())
    x = torch.randn(3, 13, 24, generator=gen())
    for a,b in zip(both_ways(lambda o: ours(o)[0], x), both_ways(theirs, x)): torch.testing.assert_close(a, b,
        rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('groups', [1, 2])
def test_mamba2_equals_transformers(groups):
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    cfg = transformers.Mamba2Config(hidden_size=16, state_size=8, expand=2, num_heads=4, head_dim=8, n_groups=groups,
        num_hidden_layers=1, chunk_size=5, use_bias=False)
    theirs = Mamba2Mixer(cfg, 0).eval()
    with torch.no_grad():
        for p in theirs.parameters(): p.add_(.1*torch.randn(p.shape, generator=gen(1)))
    ours = Mamba2.from_official(theirs.state_dict(), groups=groups)
    ours.norm.eps = cfg.layer_norm_epsilon
    x = torch.randn(3, 13, 16, generator=gen())
    for form in ('dual', 'recurrent'):
        ours.form = form
        for a,b in zip(both_ways(lambda o: ours(o)[0], x), both_ways(theirs, x)): torch.testing.assert_close(a, b,
            rtol=1e-4, atol=1e-5)


def test_a_published_layout_loads():
    "transformers' whole model, one block of it"
    cfg = transformers.MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=2, vocab_size=11)
    model = transformers.MambaModel(cfg)
    state = {f'backbone.{k}': v for k,v in model.state_dict().items()}
    block = Mamba.from_official(state, 'backbone.layers.1.mixer.')
    x = torch.randn(1, 7, 16, generator=gen())
    with torch.no_grad(): torch.testing.assert_close(block(x)[0], model.layers[1].mixer(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='no in_proj.weight'): Mamba.from_official(state, 'layers.9.')


def draw(b, l, d, n, seed):
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    g = gen(seed)
    return r(b, l, d), r(b, l, d).exp(), -r(d, n).exp(), r(b, l, n), r(b, l, n), r(d), r(b, d, n)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_scan_is_its_reference(b, l, d, n, seed):
    "Any size, with steps as large as they come; chunks of sequences included"
    *args,D,state = draw(b, l, d, n, seed)
    outs = []
    for f in (scan, scan_ref):
        xs = [o.clone().requires_grad_() for o in (*args, D, state)]
        y,last = f(*xs)
        (y.sin().sum()+last.square().sum()).backward()
        outs.append([y, last, *(o.grad for o in xs)])
    for a,c in zip(*outs): torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 2), st.integers(1, 2), st.integers(1, 9),
    st.integers(0, 10**6))
def test_ssd_is_its_reference(b, l, g, per, chunk, seed):
    r,rng,h = lambda *s: torch.randn(*s, generator=rng, dtype=torch.float64),gen(seed),g*per
    args = r(b, l, h, 3), r(b, l, h).exp(), -r(h).exp(), r(b, l, g, 2), r(b, l, g, 2), r(b, h, 3, 2), r(h)
    outs = []
    for f in (lambda *a: ssd(*a, chunk=chunk), ssd_ref):
        xs = [o.clone().requires_grad_() for o in args]
        y,last = f(*xs)
        (y.sin().sum()+last.square().sum()).backward()
        outs.append([y, last, *(o.grad for o in xs)])
    for a,c in zip(*outs): torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-8)


def test_steps_are_the_scan():
    u,dt,A,B,C,D,state = draw(3, 8, 4, 5, 0)
    y,last = scan(u, dt, A, B, C, D, state)
    for t in range(8):
        o,state = scan_step(state, u[:,t], dt[:,t], A, B[:,t], C[:,t], D)
        torch.testing.assert_close(o, y[:,t])
    torch.testing.assert_close(state, last)
    x,state2 = u.unflatten(2, (2, 2)),torch.zeros(3, 2, 2, 5, dtype=u.dtype)
    want,_ = ssd(x, dt[...,:2], A[:2,0], B[:,:,None], C[:,:,None])
    for t in range(8):
        o,state2 = ssd_step(state2, x[:,t], dt[:,t,:2], A[:2,0], B[:,t,None], C[:,t,None])
        torch.testing.assert_close(o, want[:,t])


def test_huge_steps_give_no_nan():
    "A step that erases everything, and one that does nothing, forwards and backwards"
    u,dt,A,B,C,D,_ = draw(2, 9, 3, 2, 0)
    dt = dt.clone()
    dt[:,3],dt[:,5] = 1e4,0.
    for f,args in ((scan, (u, dt, A, B, C)), (ssd, (u[...,None], dt, A[:,0], B[:,:,None], C[:,:,None]))):
        xs = [o.float().requires_grad_() for o in args]
        f(*xs)[0].sum().backward()
        assert all(o.grad.isfinite().all() for o in xs)


def test_memory_is_linear_in_length():
    "What autograd keeps doubles with the length, and holds no state"
    def kept(l):
        args,seen = [o.float().requires_grad_() for o in draw(2, l, 8, 16, 0)[:5]],{}
        def note(x):
            seen[x.data_ptr()] = x.untyped_storage().nbytes()
            return x
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x): scan(*args)
        return sum(seen.values())
    assert kept(400) < 2.1*kept(200) and kept(400) < 400*2*8*16*4


@pytest.mark.parametrize('kind', core_kinds)
def test_core_trains_and_saves(kind):
    "Every parameter gets a gradient, and a state of a stream survives saving"
    core = make_core(kind, 16, gen=gen())
    x = torch.randn(2, 6, 16, 12, 13, generator=gen())
    core(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n,p in core.named_parameters() if not n.endswith('far'))
    if not core.causal: return
    with torch.no_grad():
        _,state = core(x[:,:4])
        again = core(x[:,4:], state)[0]
        torch.testing.assert_close(again, core(x)[0][:,4:], rtol=1e-5, atol=1e-5)


def test_bf16_autocast_keeps_the_state_whole():
    for kind in ('mamba', 'mamba2'):
        core,x = make_core(kind, 16, gen=gen()),torch.randn(4, 9, 16, generator=gen())
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            y,state = core(x)
        want,_ = core(x)
        assert state.ssm.dtype==torch.float32
        assert (y-want).abs().mean() < .02*want.abs().mean()


def test_short_pieces_of_a_convolution():
    "One input at a time, before the kernel is full"
    conv,x = torch.nn.Conv1d(3, 3, 4, groups=3),torch.randn(2, 7, 3, generator=gen())
    want,_ = causal_conv(x, conv.weight, conv.bias)
    past,ys = None,[]
    for t in range(7):
        y,past = conv_silu(x[:,t:t+1], conv.weight, conv.bias, past)
        ys.append(y)
    torch.testing.assert_close(torch.cat(ys, 1), torch.nn.functional.silu(want))
    assert past.shape==(2, 3, 3)
