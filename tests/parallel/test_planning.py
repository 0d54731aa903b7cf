"""Plans: against a deeper program, count_params, and the papers' arithmetic."""

import math

import pytest

from keras_megatron import MegatronBertBackbone, MegatronBertMaskedLM
from keras_megatron.parallel.planning import Workload, formulas, make_plans, plans
from keras_megatron.parallel.planning.collectives import Sent, collectives

pytestmark = pytest.mark.backend_independent

DEPTH, HIDDEN, BATCH, SEQUENCE = 6, 32, 8, 16
CONFIG = {
    "vocabulary_size": 128,
    "num_layers": DEPTH,
    "num_heads": 4,
    "hidden_dim": HIDDEN,
    "intermediate_dim": 64,
    "max_sequence_length": SEQUENCE,
}
BLOCKS = ("attention", "feed-forward")


def workload(data: int, model: int, dtype: str = "float32", **changes) -> Workload:
    arguments = {"batch": BATCH, "sequence": SEQUENCE, **changes}
    return Workload("small", CONFIG, data, model, dtype=dtype, **arguments)


WORKLOADS = {"1x1": workload(1, 1), "1x4": workload(1, 4), "2x2": workload(2, 2, "bfloat16")}
CHECKED = "1x4"  # against a program of all the layers


@pytest.fixture(scope="module")
def planned():
    """Plans by mesh, and what the program of the whole depth says: one process compiles all."""
    compiled, deep = plans._compiled, []

    def with_deep(requests, devices):
        index = 2 * list(WORKLOADS).index(CHECKED)
        results = compiled([*requests, {**requests[index], "config": CONFIG}], devices)
        for _ in requests:
            yield next(results)
        deep.extend(results)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "_compiled", with_deep)
        found = make_plans(list(WORKLOADS.values()))
    return dict(zip(WORKLOADS, found, strict=True)), deep[0]


def test_the_line_through_two_depths_leads_to_the_third(planned):
    plan, deep = planned[0][CHECKED], planned[1]
    for name in ("parameters", "gradients", "optimizer"):
        assert getattr(plan, name) == deep[name], name
    assert set(plan.sent) == {Sent(**sent) for sent in deep["sent"]}
    assert plan.compiled_activations == pytest.approx(deep["activations"], rel=0.01)


def test_parameters_are_counted(planned):
    model = MegatronBertMaskedLM(MegatronBertBackbone(**CONFIG), preprocessor=None)
    count = model.count_params()
    plan = planned[0]["1x1"]
    assert plan.parameters == plan.gradients == 4 * count
    assert 0 <= plan.optimizer - 8 * count <= 8  # and its iteration and rate
    split = (10 / 2, planned[0]["2x2"])
    whole = 2 * count
    assert whole / 2 < split[1].parameters < whole
    assert split[1].gradients == split[1].parameters


def test_what_is_sent_is_the_papers(planned):
    """Two all-reduces a layer and direction; today attention's backward has three arrays in one."""
    for mesh, size in (("1x4", 4), ("2x2", 2)):
        plan = planned[0][mesh]
        array = BATCH // plan.workload.data * SEQUENCE * HIDDEN * size
        assert plan.expected == (4 * DEPTH, 4 * DEPTH * array)
        blocks = {s.part: s for s in plan.sent if s.part.startswith(BLOCKS)}
        assert sorted(blocks) == [f"{b}, {d}" for b in BLOCKS for d in ("backward", "forward")]
        for part, sent in blocks.items():
            most = 3 if part == "attention, backward" else 1
            assert DEPTH <= sent.arrays <= most * DEPTH, part
            assert (sent.kind, sent.axis, sent.bytes) == (
                "all-reduce",
                "model",
                sent.arrays * array,
            )
        others = plan.sent_along("model", layers=False)[1]
        assert others < 2 * array  # the table's rows; head, loss and clipping are less


def test_gradients_are_sent_over_the_data_axis(planned):
    assert planned[0]["1x1"].sent == ()
    assert planned[0]["1x4"].sent_along("data") == (0, 0)
    plan = planned[0]["2x2"]
    pooler, table = 2 * (HIDDEN * HIDDEN + HIDDEN), 2 * 128 * HIDDEN // 2
    sent = plan.sent_along("data")[1]
    # The pooler has none, the tied table two; those of LayerNorms are added up in 32 bits.
    assert sent == pytest.approx(plan.gradients - pooler + table, rel=0.05)


@pytest.mark.parametrize("size", [2, 4])
def test_activations_are_the_papers(size):
    """arXiv 2205.05198, equations 1, 2 and 4, where an element has 16 bits."""
    h, a, s, b, layers = 1024, 16, 512, 8, 24
    config = {"vocabulary_size": 0, "num_layers": layers, "num_heads": a, "hidden_dim": h}
    config["intermediate_dim"] = 4 * h

    def layer(t: int, sequence_parallel: bool = False) -> float:
        with_head, without = (
            formulas.activation_bytes({**config, "num_layers": n}, t, b, s, size, sequence_parallel)
            for n in (layers, 0)
        )
        return (with_head - without) / layers / (s * b * h)

    if size == 2:
        assert layer(1) == pytest.approx(34 + 5 * a * s / h)
        assert layer(8) == pytest.approx(10 + 24 / 8 + 5 * a * s / (h * 8))
        assert layer(8, True) == pytest.approx((34 + 5 * a * s / h) / 8)
    else:  # only the masks, of a byte, stay as they are
        assert layer(1) == pytest.approx(2 * (34 + 5 * a * s / h) - 2 - a * s / h)


def test_compiled_activations_are_more_than_the_formulas(planned):
    for plan in planned[0].values():
        assert plan.activations <= plan.compiled_activations < 6 * plan.activations
        assert plan.compiled_total - plan.total == plan.compiled_activations - plan.activations


@pytest.mark.parametrize(
    ("groups", "axis"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x", "model"),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", "data"),
        ("replica_groups=[2,4]<=[8]", "model"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "data"),
        ("replica_groups=[1,8]<=[8]", "both"),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=4] {'c'}", "model"),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", "data"),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", "model"),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", "data"),
    ],
)
def test_devices_of_a_collective(groups, axis):
    line = f'  %x = f32[2,3]{{1,0}} all-reduce(%y), {groups}, to_apply=%add.clone, op_name=""'
    (sent,) = collectives(line, 2, 4)
    assert (sent.axis, sent.arrays, sent.bytes) == (axis, 1, 24)


def test_sizes_of_collectives():
    rest = "(%y), replica_groups=[2,4]<=[8], to_apply=%add"
    for text, arrays, size in (
        (f"%x = bf16[5]{{0}} all-gather{rest}", 1, 10),
        (f"%x = f32[5]{{0}} all-reduce{rest}.clone_promoted", 1, 10),
        (f"%x = f32[5]{{0}} reduce-scatter{rest}", 1, 80),
        (f"%x = (f32[5]{{0}}, f32[]) all-reduce{rest}", 2, 24),
        (f"%x = (f32[5]{{0}}, f32[5]{{0}}) all-to-all{rest}", 1, 40),
    ):
        (sent,) = collectives(text, 2, 4)
        assert (sent.arrays, sent.bytes) == (arrays, size), text
    assert collectives("%x = f32[5]{0} all-reduce(%y), replica_groups={{0},{1}}", 2, 1) == []
    with pytest.raises(ValueError, match="which devices take part is not known"):
        collectives("%x = f32[5]{0} all-reduce(%y), replica_groups=new", 2, 4)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (workload(1, 3), "num_heads=4 of small cannot be split over the 3 model devices"),
        (workload(1, 0), "model must be from 1 to 2\\*\\*31 - 1, not 0"),
        (workload(64, 64), "a mesh of 64x64 is more than 1024 devices"),
        (workload(3, 1), "a batch of 8 cannot be split over the 3 data devices of mesh 3x1"),
        (workload(1, 1, sequence=17), "17 tokens is longer than the 16 positions of small"),
        (workload(1, 1, "int8_from_float32"), "dtype must be one to train in"),
        (workload(1, 1, "float64"), "dtype must be one to train in, such as bfloat16, not"),
        (
            Workload("small", {**CONFIG, "vocabulary_size": 130}, 1, 4, 8, 16),
            "vocabulary_size=130 of small cannot be split over .*: pad it to 512",
        ),
    ],
)
def test_errors_name_the_numbers(work, message):
    with pytest.raises(ValueError, match=message):
        make_plans([work])


def test_without_jax(monkeypatch):
    monkeypatch.setattr(plans.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"JAX, which is not installed: pip install"):
        make_plans([workload(1, 1)])


def test_a_process_that_fails(monkeypatch):
    monkeypatch.setattr(plans.sys, "executable", "false")
    with pytest.raises(ValueError, match="the step could not be compiled: it did not say why"):
        make_plans([workload(1, 1)])


def test_masks_are_berts_share():
    assert formulas.masks(512) == math.ceil(0.15 * 512) == 77
