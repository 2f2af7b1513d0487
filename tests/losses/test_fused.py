"""The kernels for GPUs, on a GPU or else in Triton's interpreter on the CPU."""

from __future__ import annotations

import numpy as np
import os
import subprocess
import sys
import pytest
import torch
from helpers.emulated_gpu import EmulatedGPU
from helpers.loss_cases import errors_for, total
from helpers.reference import rs_reference
from torch.testing import assert_close
from triton.runtime import interpreter

from alrp.losses import rs_loss
from alrp.losses.backends import choice, fused, operators
from alrp.losses.backends.interface import HARD_STEP, Rows, SortingErrors, Step, Update

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BOTH = [(operators, operators.OperatorMatrix), (fused, fused.FusedMatrix)]


def case(size=400, num_positives=40, dtype=torch.float32, scale=2.0):
    """Logits with ties, targets of all three kinds; on ``DEVICE``."""
    generator = torch.Generator().manual_seed(size)
    logits = (scale * torch.randn(size, generator=generator).mul(8).round() / 8).to(dtype)
    targets = torch.zeros(size, dtype=torch.int8)
    targets[torch.randperm(size, generator=generator)[: size // 10]] = -1
    targets[torch.randperm(size, generator=generator)[:num_positives]] = 1
    logits[targets == -1] = float("nan")
    return logits.to(DEVICE), targets.to(DEVICE)


@pytest.fixture
def use(monkeypatch):
    """``use(fused)`` or ``use(operators)`` for the losses on any device."""

    def choose(module):
        monkeypatch.setattr(choice, "_has_numba", lambda: False)
        monkeypatch.setattr(choice, "_has_triton", lambda device: module is fused)

    return choose


def value_of(loss, logits, targets, errors, **options):
    """One scalar; for RS Loss, IoUs are made of the errors."""
    if loss != "rs":
        return total(loss, logits, targets, errors, **options)
    output = rs_loss(logits, targets, errors.detach() / 2, **options)
    return 3 * output.ranking + output.sorting


def differentiated(loss, logits, targets, errors, **options):
    """Value and gradients of a loss."""
    leaf, errors = logits.clone().requires_grad_(), errors.clone().requires_grad_()
    value = value_of(loss, leaf, targets, errors, **options)
    value.backward()
    return value.detach(), leaf.grad, errors.grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["alrp", "ap", "rs"])
def test_losses_are_those_of_the_operators(use, loss, dtype):
    logits, targets = case(dtype=dtype)
    errors = errors_for(targets, False, dtype).to(DEVICE)
    results = []
    for module in (operators, fused):
        use(module)
        results.append(differentiated(loss, logits, targets, errors, delta=0.75))
    tolerance = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps
    assert results[0][1].any() and [x.dtype for x in results[1][:2]] == [
        torch.promote_types(dtype, torch.float32),
        dtype,
    ]
    assert_close(results[1], results[0], rtol=2 * tolerance, atol=1e-3 * tolerance)


all_three = pytest.mark.parametrize("loss", ["alrp", "ap", "rs"])


@all_three
@pytest.mark.parametrize("num_positives, scale", [(1, 2.0), (40, 1e5), (40, 0.0), (399, 2.0)])
def test_odd_batches_are_those_of_the_operators(use, loss, num_positives, scale):
    """One positive; huge logits; all logits equal; hardly a negative."""
    logits, targets = case(num_positives=num_positives, scale=scale, dtype=torch.float64)
    errors = errors_for(targets, False, torch.float64).to(DEVICE)
    results = []
    for module in (operators, fused):
        use(module)
        results.append(differentiated(loss, logits, targets, errors))
    # Sums by levels lose digits where logits are huge beside delta; sums of pairs do not.
    assert_close(results[1], results[0], rtol=1e-8 if loss == "rs" else 1e-10, atol=1e-13)


@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_rs_loss_is_the_sum_over_all_pairs(use, delta):
    """With ties among logits, and among IoUs."""
    use(fused)
    logits, targets = case(dtype=torch.float64)
    ious = torch.linspace(0, 1, 40, dtype=torch.float64).mul(10).round().flip(0) / 10
    leaf = logits.clone().requires_grad_()
    found = rs_loss(leaf, targets, ious.to(DEVICE), delta=delta)
    found.ranking.backward(retain_graph=True)
    grad_ranking = leaf.grad.clone()
    (3 * found.sorting).backward()
    finite = logits.nan_to_num().cpu().numpy()
    expected = rs_reference(finite, targets.cpu().numpy(), ious.numpy(), delta)
    assert expected.sorting > 0.01
    values = [found.ranking.item(), found.sorting.item()]
    np.testing.assert_allclose(values, expected[:2], rtol=1e-12)
    for actual, wanted in (
        (grad_ranking, expected.grad_ranking),
        (leaf.grad - grad_ranking, 3 * expected.grad_sorting),
    ):
        np.testing.assert_allclose(actual.cpu(), wanted, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("step", [Step(0.5), HARD_STEP], ids=["smooth", "hard"])
@pytest.mark.parametrize("num_positives", [1, 2, 16, 65, 200])
def test_sorting_by_pairs_is_sorting_by_levels(num_positives, step, monkeypatch):
    """Also on either side of the end of a tile."""
    generator = torch.Generator().manual_seed(num_positives)
    logits = torch.randn(num_positives, generator=generator).mul(4).round().sort().values
    logits = logits.double().to(DEVICE)
    ious = torch.rand(num_positives, generator=generator).mul(20).round().div(20).double()
    ious = ious.to(DEVICE)
    by_pairs = fused.sorting_errors(logits, ious, step)
    monkeypatch.setattr(fused, "_MOST_PAIRED", 0)
    by_levels = fused.sorting_errors(logits, ious, step)
    assert_close(tuple(by_pairs), tuple(by_levels), rtol=1e-12, atol=1e-14)
    assert num_positives < 16 or by_pairs.gradient.any()


def test_a_survey_finds_what_the_operators_find(monkeypatch):
    monkeypatch.setattr(fused, "_BLOCK", 128)
    logits, targets = case()
    values = torch.linspace(-0.2, 1.2, 300, device=DEVICE)
    logits[3:9], targets[:12] = float("inf"), torch.arange(12, device=DEVICE) % 3 - 1
    values[7] = float("nan")
    for most in (1.0, float("inf")):
        expected = operators.survey(logits, targets, values, most)
        found = fused.survey(logits, targets, values, most)
        assert found[2:5] == expected[2:5] and found.num_bad_logits
        assert_close(found[:2], expected[:2], rtol=0, atol=0)
    logits = logits.nan_to_num()
    for marks in (targets, targets.long(), targets == 1, torch.zeros_like(targets)):
        expected = operators.survey(logits, marks, values)
        found = fused.survey(logits, marks, values)
        assert found[2:] == expected[2:]
        assert_close(found[:2], expected[:2], rtol=0, atol=0)


@pytest.mark.parametrize("num_values, slots", [(0, 256), (0, 7), (3, 256), (100, 256)])
def test_all_positives_of_many_programs_are_found(monkeypatch, num_values, slots):
    """With room for more of them, for fewer and for as many."""
    monkeypatch.setattr(fused, "_BLOCK", 16)
    monkeypatch.setattr(fused, "_SLOTS", slots)
    targets = torch.arange(300, device=DEVICE) % 3
    values = torch.zeros(num_values, device=DEVICE)
    found = fused.survey(torch.arange(300.0, device=DEVICE), targets, values)
    assert_close(found.logits, found.positives.float(), rtol=0, atol=0)
    found = found.in_targets_order()
    expected = targets.eq(1).nonzero().squeeze(1)
    assert_close(found.positives, expected, rtol=0, atol=0)
    assert_close(found.logits, expected.float(), rtol=0, atol=0)


@all_three
def test_more_positives_than_all_pairs_are_formed_of(use, loss, monkeypatch):
    use(fused)
    logits, targets = case(dtype=torch.float64)
    errors = errors_for(targets, False, torch.float64).to(DEVICE)
    by_pairs = differentiated(loss, logits, targets, errors)
    monkeypatch.setattr(fused, "_MOST_SORTED", 10)
    assert_close(differentiated(loss, logits, targets, errors), by_pairs, rtol=0, atol=0)


@all_three
def test_logits_may_lie_anywhere(use, loss):
    """At an odd address, in a column of a matrix; also when the kernels are known."""
    logits, targets = case(dtype=torch.float64)
    errors = errors_for(targets, False, torch.float64).to(DEVICE)
    use(operators)
    expected = differentiated(loss, logits, targets, errors)
    use(fused)
    for _ in range(2):
        odd = torch.cat([logits[:1], logits])[1:]
        column = torch.stack([torch.full_like(logits, float("nan")), logits], dim=1)[:, 1]
        for view in (odd, column):
            leaf = view.detach().requires_grad_()  # clone() would change the strides
            value = value_of(loss, leaf, targets, errors)
            (gradient,) = torch.autograd.grad(value, leaf)
            assert_close((value.detach(), gradient), expected[:2], rtol=1e-10, atol=1e-13)


@all_three
def test_compiled_autograd_takes_the_gradient_as_it_is(use, loss):
    use(fused)
    logits, targets = case()
    errors = errors_for(targets, False).to(DEVICE)

    def step(leaf):
        (2 * value_of(loss, leaf, targets, errors)).backward()
        return leaf.grad

    expected = step(logits.clone().requires_grad_())
    with torch._dynamo.config.patch(compiled_autograd=True):
        found = torch.compile(step, backend="eager")(logits.clone().requires_grad_())
    assert_close(found, expected, rtol=0, atol=0)
    torch._dynamo.reset()


@all_three
def test_what_autograd_saves_may_come_back_in_another_layout(use, loss):
    use(fused)
    logits, targets = case()
    errors = errors_for(targets, False).to(DEVICE)
    expected = differentiated(loss, logits, targets, errors)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: torch.stack([x, x], dim=-1), lambda x: x[..., 1]
    ):
        assert_close(differentiated(loss, logits, targets, errors), expected, rtol=0, atol=0)


@all_three
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("scale", [-1.0, float("inf"), float("nan")])
def test_ignored_entries_stay_0_whatever_comes_down(use, loss, scale):
    """As when a scale of mixed precision is too large."""
    use(fused)
    logits, targets = case()
    leaf = logits.clone().requires_grad_()
    value = value_of(loss, leaf, targets, errors_for(targets, False).to(DEVICE))
    (scale * value).backward()
    ignored = leaf.grad[targets == -1]
    assert not ignored.any() and not ignored.signbit().any() and leaf.grad.any()


def ranked_together(kind, num_own):
    """Rows of 40 positives and of 300 entries, of which ``num_own`` are positives; the entries."""
    generator = torch.Generator().manual_seed(num_own)
    queries = torch.randn(40, generator=generator).sort().values.double().to(DEVICE)
    logits = torch.randn(300, generator=generator).to(DEVICE)
    targets = torch.zeros(300, dtype=torch.int8, device=DEVICE)
    targets[:num_own] = 1
    matrix = kind(queries, 0.5)
    return Rows(matrix, matrix.locate(logits, targets), lambda sums: 3 * sums), logits


@pytest.mark.parametrize("num_before, num_own", [(0, 12), (9, 31), (40, 0)])
def test_gradients_are_those_of_this_process(num_before, num_own):
    """Of 40 positives that are ranked together; the negatives are this process's."""
    generator = torch.Generator().manual_seed(num_own)
    rank, errors, among = torch.rand(3, 40, dtype=torch.float64, generator=generator).to(DEVICE)
    scale = torch.tensor([0.7, 1.3], device=DEVICE)
    order = torch.randperm(40, generator=generator).to(DEVICE)
    positives = torch.arange(num_own, device=DEVICE)
    found = []
    for module, kind in BOTH:
        rows, logits = ranked_together(kind, num_own)
        values = module.rs_values(rows, SortingErrors(rank, errors, among), torch.float32)
        update = Update(values.pushes, order, positives, num_before, 3)
        gradient = rows.matrix.gradient(
            update, rows.keys.cells, logits, scale[0], (among, scale[1])
        )
        found.append([*values[:2], gradient])
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
    assert found[0][2].any()


def test_false_positives_of_all_processes_are_ranked():
    generator = torch.Generator().manual_seed(1)
    errors = torch.rand(40, dtype=torch.float64, generator=generator).to(DEVICE)
    order = torch.randperm(40, generator=generator).to(DEVICE)
    found = []
    for module, kind in BOTH:
        rows, logits = ranked_together(kind, 12)
        dtypes = torch.float64, torch.float64
        precision, pushes = module.ap_values(rows, dtypes[0])
        cls, loc, other_pushes, *others = module.alrp_values(rows, errors, order, 0.1, *dtypes)
        gradients = []
        for x in (pushes, other_pushes):
            update = Update(x, order, torch.arange(12, device=DEVICE), 28, 3)
            scale = torch.ones((), device=DEVICE)
            gradients.append(rows.matrix.gradient(update, rows.keys.cells, logits, scale))
        found.append([precision, cls, loc, *others, *gradients])
    assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)
    alone = fused.ap_values(rows._replace(add_up=None), torch.float64).value
    assert alone < found[1][0] - 0.01


@pytest.fixture(params=["backwards", "shuffled"])
def other_order(request, monkeypatch):
    """``other_order()`` lets the interpreter run programs in another order than that of numbers."""

    def choose():
        builder = interpreter.interpreter_builder
        set_index = builder.set_grid_idx

        def set_other_index(x, y, z):
            number = builder.grid_dim[0]
            order = np.random.default_rng(number).permutation(number)
            set_index(number - 1 - x if request.param == "backwards" else int(order[x]), y, z)

        monkeypatch.setattr(builder, "set_grid_idx", set_other_index)

    return choose


@pytest.fixture
def rubbish(monkeypatch):
    """What PyTorch makes without values is NaN, or the greatest number."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@all_three
def test_two_runs_give_the_same_bits(use, loss, monkeypatch, other_order, rubbish):
    """Though programs add to common sums, and come to their ends, in any order."""
    assert torch.empty(1).isnan().all()
    use(fused)
    monkeypatch.setattr(fused, "_BLOCK", 256)
    logits, targets = case(size=1500)
    errors = errors_for(targets, False).to(DEVICE)
    first = differentiated(loss, logits, targets, errors)
    other_order()
    for least, cleared in ((1, 1), (7, 5)):
        monkeypatch.setattr(fused, "_LEAST_COPIES", least)
        monkeypatch.setattr(fused, "_CLEARED_COPIES", cleared)
        assert_close(differentiated(loss, logits, targets, errors), first, rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="launches are counted by emulation")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    "loss, options, num_launches",
    [
        ("alrp", {}, (13, 10)),
        ("ap", {}, (10, 8)),
        ("rs", {}, (13, 11)),
        ("rs", {"delta": 0.0}, (18, 16)),
    ],
)
def test_a_call_launches_few_kernels_and_waits_once(loss, options, num_launches, dtype):
    """Forward and backward, as docs/performance.md says; a survey's read is the wait."""
    logits, targets = case(size=3000, dtype=dtype)
    counts = []
    with EmulatedGPU() as gpu:
        assert choice.backend(torch.device("cuda", 0)).matrix is fused.FusedMatrix
        for size in (300, 3000):
            marks = targets[:size].cuda()
            errors = errors_for(targets[:size], False, dtype).cuda().requires_grad_()
            leaf = logits[:size].cuda().requires_grad_()
            ious = errors.detach() / 2
            gpu.clear()
            if loss == "rs":
                value = torch.add(*rs_loss(leaf, marks, ious, **options))
            else:
                value = total(loss, leaf, marks, errors)
            value.backward()
            counts.append(len(gpu.launches))
            assert len(gpu.waits) == 1
    assert counts == 2 * [num_launches[dtype == torch.float32]]


@pytest.mark.parametrize("error", [ImportError("triton"), RuntimeError("no C compiler")])
def test_where_triton_does_not_work_operators_rank_with_one_warning(monkeypatch, error):
    def try_out(device):
        raise error

    choice._has_triton.cache_clear()
    monkeypatch.setattr(fused, "try_out", try_out)
    device = torch.device("cuda", 7)
    with pytest.warns(UserWarning, match="Triton do not run on cuda:7.*install Triton") as caught:
        for _ in range(2):
            assert choice.backend(device).matrix is operators.OperatorMatrix
    assert len(caught) == 1
    choice._has_triton.cache_clear()


COMPILE = """
import itertools, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature
from alrp.losses.backends import fused, fused_kernels, pair_kernels

TARGET = GPUTarget("cuda", 90, 32)
DTYPES = {
    **dict.fromkeys(["cls_value", "loc_value", "own_ranks", "loc_weights", "value"], torch.float32),
    **dict.fromkeys(["ranking_value", "sorting_value"], torch.float32),
    **dict.fromkeys(["gradient", "among_gradient"], torch.float32),
    **dict.fromkeys(["facts", "positives", "sorted_positives", "order", "sums"], torch.int64),
}
NARROW = {"cells": torch.int16, "targets": torch.int8}
NARROW.update(dict.fromkeys("logits pos_logits sorted_logits results".split(), torch.float32))
WIDE = {"cells": torch.int32, "targets": torch.int64, "queries": torch.float32}
FLAGS = "COUNT", "AMONG", "VALUED"
ENTRIES = {"BLOCK": fused._BLOCK, "NUM_STEPS": 12}
PAIRS = {"ROWS": fused._ROWS, "COLUMNS": fused._COLUMNS}
SEQUENTIAL = {"BLOCK": fused._SEQUENTIAL_BLOCK}
KERNELS = {
    **dict.fromkeys("survey merge locate evaluate".split(), (ENTRIES, 4)),
    **dict.fromkeys("sort_positives find_sorting_errors find_sorting_gradient".split(), (PAIRS, 4)),
    **dict.fromkeys(
        "count alrp_values ap_values rs_values".split(), (SEQUENTIAL, fused._SEQUENTIAL_WARPS)
    ),
}


def told_apart(function, kinds, constants):
    '''What Triton tells apart: of equal dtypes, for sizes and addresses of any kind.'''
    binder = create_function_from_signature(
        function.signature, function.params, make_backend(TARGET)
    )
    for size, wide, offset in ((16, 0, 0), (1, 2**62, 1), (7, 1, 2)):
        arguments = []
        for name in function.arg_names:
            if name.endswith("_bits") or name in ("num_entries", "num_sums"):
                arguments.append(wide)
            elif name.startswith("num_"):
                arguments.append(size)
            elif name == "most":
                arguments.append(float(size))
            elif name.isupper():
                arguments.append(constants[name])
            else:
                array = torch.zeros(9, dtype=kinds.get(name) or DTYPES.get(name, torch.float64))
                arguments.append(array[offset:])
        yield binder(*arguments)[1]


for (kernel, (sizes, num_warps)), kinds, flag in itertools.product(
    KERNELS.items(), (NARROW, WIDE), (True, False)
):
    function = getattr(fused_kernels, kernel, None) or getattr(pair_kernels, kernel)
    flags = [name for name in function.arg_names if name in FLAGS]
    if kinds is WIDE and kernel not in ("survey", "merge", "locate", "evaluate"):
        continue
    if not (flag or flags):
        continue
    options = {**sizes, **dict.fromkeys(FLAGS, flag), "ASCENDING": not flag}
    constants = {name: options[name] for name in function.arg_names if name.isupper()}
    first, *others = told_apart(function, kinds, constants)
    assert others == [first, first], kernel
    signature = {name: kind for name, (kind, _) in zip(function.arg_names, first)}
    source = ASTSource(function, signature, constants)
    compiled = triton.compile(source, target=TARGET, options={"num_warps": num_warps})
    assert len(compiled.asm["cubin"]) > 1000
    print(kernel)
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu(tmp_path):
    """With the compiler of NVIDIA that comes with Triton; no GPU is needed.

    And only once: ``launching`` would else launch what was compiled for other arguments.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 21


LAUNCH = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature
from alrp.losses.backends import fused, fused_kernels
from alrp.losses.backends.interface import Rows, Step, Update

TARGET = make_backend(GPUTarget("cuda", 90, 32))
launches = {"compiled": 0, "direct": 0}
num_positives = 1


def find(kernel, arguments):
    if kernel is fused_kernels.survey:  # that there are positives
        arguments[4][0] = num_positives


class Compiled:
    def __init__(self, kernel, arguments):
        self.kernel = kernel
        self.binder = create_function_from_signature(kernel.signature, kernel.params, TARGET)
        self.kinds = self.binder(*arguments)[1]

    def __getitem__(self, grid):
        def run(*arguments):
            assert self.binder(*arguments)[1] == self.kinds, self.kernel
            launches["direct"] += 1
            find(self.kernel, arguments)

        return run


def compile(self, *arguments, grid, warmup, **options):
    launches["compiled"] += 1
    find(self, arguments)
    return Compiled(self, arguments)


JITFunction.run = compile
float_dtypes = torch.float32, torch.float64
for size in (1, 16, 17, 1000):
    for num_positives in (1, 16, 16_384):
        for dtype, targets_dtype in zip(float_dtypes, (torch.int8, torch.bool)):
            logits = torch.zeros(size, dtype=dtype)
            targets = torch.zeros(size, dtype=targets_dtype)
            values = torch.zeros(num_positives, dtype=dtype)
            for half_width, delta, eps in ((1.0, 1.0, 0.1), (1e-30, 5e-324 * size, 0.0)):
                found = fused.survey(logits, targets, values, size / 16)
                order, queries, errors, positives = fused.sort(
                    found.logits, values, found.positives
                )
                matrix = fused.FusedMatrix(queries, half_width)
                rows = Rows(matrix, matrix.locate(logits, targets))
                sorting = fused.sorting_errors(matrix.queries, errors, Step(delta, delta))
                for rows in (rows, rows._replace(add_up=torch.clone)):
                    fused.alrp_values(rows, errors, order, eps, dtype, dtype)
                    fused.ap_values(rows, dtype)
                    pushes = fused.rs_values(rows, sorting, dtype).pushes
                for among in (None, (sorting.gradient, logits[:1])):
                    update = Update(pushes, order, positives, size, 1 + size)
                    scale = logits[:1].to(float_dtypes[among is None])
                    matrix.gradient(update, rows.keys.cells, logits, scale, among)
print(*launches.values())
"""


def test_what_is_launched_at_once_is_what_triton_would_launch(tmp_path):
    """By Triton's own binder, for all launches of this backend; on tensors of the CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", LAUNCH], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    num_compiled, num_direct = map(int, result.stdout.split())
    assert num_direct > 5 * num_compiled > 100
