"""The compiled kernels: how they are built and found, and what they promise of numbers."""

import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch

import warm_python
from peft_lightning.files import user_cache
from peft_lightning.kernels.attention_cpu import Causal, cpu_attention
from peft_lightning.kernels.native import elementwise, library
from peft_lightning.kernels.native.attention import multiplied, native_attention, takes_attention

pytestmark = pytest.mark.usefixtures("with_kernels")
SAYS = "from peft_lightning.kernels.native.library import kernels_state; print(kernels_state())"


# A compiler that writes the library that c++ has made of the same sources. It takes no processor
# time, but a second, so that builds that begin together do overlap.
QUICK_COMPILER = """#!/bin/sh
[ "$1" = --version ] && exec c++ --version
for word; do [ "$before" = -o ] && target=$word; before=$word; done
case " $* " in *" -shared "*) exec cp {made} "$target" ;; esac
sleep 1
: > "$target"
"""


def in_a_process(code, cache=None, **environment):
    """Return what a new interpreter prints; ``cache`` replaces the user's cache folder."""
    caches = {"XDG_CACHE_HOME": str(cache)} if cache else {}
    variables = {**os.environ, **caches, **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


@pytest.fixture
def quick_compiler(tmp_path):
    name = library._identity(shutil.which("c++"))
    file = tmp_path / "quick_c++"
    file.write_text(QUICK_COMPILER.format(made=user_cache("kernels") / f"{name}.so"))
    file.chmod(0o755)
    return str(file)


def require_products(dtype):
    """Skip a test where attention in ``dtype`` is torch's, kernels or not."""
    if dtype not in multiplied():
        pytest.skip(f"the matrix library has no products of {dtype} on this processor")


def attend(length=150, dtype=torch.bfloat16):
    """Return the outputs and gradients of two sequences' attention, from a fixed seed."""
    torch.manual_seed(0)
    parts = [torch.randn(1, h, 2 * length, 16).to(dtype).requires_grad_() for h in (4, 2, 2)]
    assert takes_attention(*parts, 0.25)
    out = native_attention(*parts, [length] * 2, [length] * 2, 0.25, None)
    return [out, *torch.autograd.grad(out.float().square().sum(), parts)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_number_of_threads_changes_no_bit(dtype, threads):
    require_products(dtype)
    threads(1)
    alone = attend(dtype=dtype)
    for count in (2, 5):
        threads(count)
        for one, other in zip(alone, attend(dtype=dtype), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_sequence_has_the_same_bits_wherever_it_lies_in_a_batch(dtype):
    require_products(dtype)
    torch.manual_seed(0)
    parts = [torch.randn(1, h, 97, 16).to(dtype) for h in (4, 2, 2)]
    together = native_attention(*parts, [20, 77], [20, 77], 0.25, None)
    alone = native_attention(*(x[:, :, 20:] for x in parts), [77], [77], 0.25, None)
    assert torch.equal(together[:, 20:], alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scores_of_a_run_that_goes_astray_give_gradients_like_those_of_torch(dtype, monkeypatch):
    torch.manual_seed(0)
    parts = [torch.randn(1, h, 90, 16) * size for h, size in ((4, 1e4), (2, 1e4), (2, 1.0))]
    parts = [x.to(dtype).requires_grad_() for x in parts]
    lens, causal = [90], Causal(0.25)

    def gradients():
        out = cpu_attention(*parts, lens, lens, causal)
        return torch.autograd.grad(out.float().square().sum(), parts)

    ours = gradients()
    monkeypatch.setattr(library, "_library", lambda: (None, "a test does without"))
    for found, theirs in zip(ours, gradients(), strict=True):
        assert found.abs().max() <= 2 * theirs.abs().max() + 1


@pytest.mark.parametrize("window", [None, 7, 50])
@pytest.mark.parametrize("dims", [(64, 64), (6, 10), (2, 34), (40, 18)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_without_queries_come_before_those_of_the_queries(dtype, dims, window):
    require_products(dtype)
    torch.manual_seed(0)
    lens, key_lens = [1, 49, 96, 13], [5, 49, 130, 14]
    sizes = [(4, sum(lens), dims[0]), (2, sum(key_lens), dims[0]), (2, sum(key_lens), dims[1])]
    parts = [torch.randn(1, *size).to(dtype).requires_grad_() for size in sizes]
    exact = [x.detach().double().requires_grad_() for x in parts]
    found = native_attention(*parts, lens, key_lens, 0.3, window)
    pieces, first, first_key = [], 0, 0
    for n, m in zip(lens, key_lens, strict=True):
        query = exact[0][0, :, first : first + n]
        key, value = (x[0, :, first_key : first_key + m].repeat_interleave(2, 0) for x in exact[1:])
        age = torch.arange(m - n, m)[:, None] - torch.arange(m)
        seen = (age >= 0) & (age < (window or m))
        scores = (query @ key.transpose(1, 2) * 0.3).masked_fill(~seen, -torch.inf)
        pieces.append((scores.softmax(-1) @ value).transpose(0, 1))
        first, first_key = first + n, first_key + m
    expected = torch.cat(pieces)[None]
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad((found * weight).sum(), parts)
    exact_gradients = torch.autograd.grad((expected * weight).sum(), exact)
    # sums of some 100 terms, and in bfloat16 rounded weights and gradients of scores
    allowed = 16 * torch.finfo(dtype).eps
    for ours, theirs in zip([found, *gradients], [expected, *exact_gradients], strict=True):
        assert (ours.double() - theirs).norm() <= allowed * theirs.norm()


def test_vectors_are_no_wider_than_those_of_torch():
    """The library may be there already: its name is a hash of the flags, too."""
    code = f"{SAYS}; from peft_lightning.kernels.native.library import _flags; print(*_flags())"
    said, _ = in_a_process(code, ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")
    assert said.startswith("compiled kernels")
    assert "-mno-avx512f" in said.split()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    parts = [torch.randn(1, 1, 8, 16) for _ in range(3)]
    parts[1][0, 0, 4, 0] = bad
    out = native_attention(*parts, [8], [8], 0.25, None)
    assert out[0, :4].isfinite().all(), "queries that do not see that key"
    assert not out[0, 4:].isfinite().all()
    x = torch.randn(3, 16)
    x[1, 2] = torch.nan
    for found in (
        elementwise.norm(x, torch.ones(16), 1e-5)[0],
        elementwise.gated(x, torch.ones_like(x)),
        elementwise.gated_backward(x, torch.ones_like(x), torch.ones_like(x))[0],
    ):
        assert found[1].isnan().any()
        assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu_is_itself_at_every_size_of_number(dtype):
    gate = torch.cat([torch.linspace(-100, 100, 999), torch.tensor([0.0, 1e-30, -1e30, 1e30])])
    gate = gate.to(dtype)
    ours = elementwise.gated(gate, torch.ones_like(gate))
    exact = gate.double() * torch.sigmoid(gate.double())
    torch.testing.assert_close(ours.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-30)


def test_other_tensors_are_left_to_torch():
    x = torch.randn(4, 16)
    taken = [
        elementwise.gated(x.double(), x.double()),
        elementwise.gated(x, x.bfloat16()),
        elementwise.gated(x.T, x.T),
        elementwise.gated(x.to("meta"), x.to("meta")),
        elementwise.norm(x.half(), torch.ones(16).half(), 1e-5),
    ]
    assert taken == [None] * 5


def test_the_library_is_built_once_and_leaves_nothing_else(tmp_path, quick_compiler):
    cache = tmp_path / "cache"
    killed = cache / f"peft_lightning/kernels/.build.999999999.{platform.node()}.tmp"
    killed.mkdir(parents=True)
    said, told = in_a_process(SAYS, cache)
    assert said == "compiled kernels"
    assert "compiling" in told
    (file,) = (cache / "peft_lightning" / "kernels").iterdir()
    before = file.stat().st_mtime_ns
    said, told = in_a_process(SAYS, cache)
    assert (said, "compiling" in told) == ("compiled kernels", False)
    file.write_bytes(b"")
    said, _ = in_a_process(SAYS, cache, CXX=quick_compiler)
    assert said == "compiled kernels"
    assert file.stat().st_mtime_ns > before


def test_processes_that_build_it_at_once_do_not_disturb_each_other(tmp_path, quick_compiler):
    cache = tmp_path / "cache"
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), "CXX": quick_compiler}
    files = [(tmp_path / str(number)).open("w+") for number in range(3)]
    running = [warm_python.start(["-c", SAYS], env=variables, stdout=file) for file in files]
    assert [program.wait(60) for program in running] == [0] * 3
    for file in files:
        file.seek(0)
        assert file.read().strip() == "compiled kernels"
        file.close()
    assert len(list((cache / "peft_lightning" / "kernels").iterdir())) == 1


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({library.SWITCH: "off"}, "PEFT_LIGHTNING_KERNELS is off"),
        ({"CXX": "no-such-compiler", "PATH": "/nowhere"}, "no C++ compiler"),
        ({"CXX": "broken"}, "the compiler failed: fatal error: no room"),
        ({"XDG_CACHE_HOME": "/proc"}, "/proc/peft_lightning"),
    ],
    ids=["switched off", "no compiler", "a compiler that fails", "no cache folder"],
)
def test_without_the_library_the_reason_is_said(environment, reason, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] || { echo "fatal error: no room" >&2; exit 1; }'
    )
    broken.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}
    caches = {"XDG_CACHE_HOME": str(tmp_path)}
    done = warm_python.run(["-c", SAYS], env={**os.environ, **caches, **variables})
    assert done.stdout.startswith("no compiled kernels: ")
    assert reason in done.stdout


def test_a_switch_that_is_neither_on_nor_off_is_an_error():
    done = warm_python.run(["-c", SAYS], env={**os.environ, library.SWITCH: "0"})
    assert done.returncode == 1
    assert "PEFT_LIGHTNING_KERNELS must be on or off, got '0'" in done.stderr
