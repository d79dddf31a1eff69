"""Graph capture on the CPU: replays follow inputs, and what a device's graph would get wrong is wrong or refused."""

import numpy as np
import pytest
import torch

from tests.support.ascend_links import link
from tools.ascend import graph as graphs
from tools.ascend.emulation import CallRecord, install
from tools.ascend.graph import CaptureError, NPUGraph, graph

pytestmark = link(5, attention=False)


@pytest.fixture(scope="module", autouse=True)
def torch_npu():
    install()
    import torch_npu

    return torch_npu


def capture(function, *inputs, **options):
    """A captured graph of a function, and its results."""
    captured = NPUGraph()
    with graph(captured, **options):
        results = function(*inputs)
    return captured, results


def test_a_replay_follows_the_inputs_contents_at_fixed_addresses(torch_npu):
    x, gamma = torch.randn(4, 64).half(), torch.randn(64).half()

    def layer(x):
        normed, _ = torch_npu.npu_rms_norm(x, gamma, 1e-6)
        gated = torch_npu.npu_swiglu(torch.cat((normed, normed), -1))
        return gated * 2, gated.argmax(-1), gated.view(2, -1)[1]

    captured, results = capture(layer, x)
    assert captured.operations == (
        "npu::npu_rms_norm", "aten::cat", "npu::npu_swiglu", "aten::mul", "aten::argmax",
    )  # fmt: skip
    addresses = [result.data_ptr() for result in results]
    for _ in range(2):
        x.copy_(torch.randn(4, 64))
        captured.replay()
        assert all(torch.equal(got, want) for got, want in zip(results, layer(x), strict=True))
        assert [result.data_ptr() for result in results] == addresses


def test_a_replay_makes_emulated_calls_that_are_checked_as_any(torch_npu):
    x = torch.randn(2, 8).half()
    captured, _ = capture(torch_npu.npu_swiglu, x)
    with CallRecord() as record:
        captured.replay()
    assert record.counts == {"npu_swiglu": 1}


def test_a_number_of_the_host_stays_as_it_was_captured():
    x, state = torch.arange(4.0), {"step": 1}
    captured, result = capture(lambda: x * state["step"])
    state["step"] = 2
    captured.replay()
    assert result.tolist() == [0, 1, 2, 3]


def test_a_branch_of_the_host_stays_as_it_was_captured():
    x, flags = torch.ones(2), {"double": True}
    captured, result = capture(lambda: x * 2 if flags["double"] else x + 10)
    flags["double"] = False
    captured.replay()
    assert result.tolist() == [2, 2]


def test_a_list_of_the_host_stays_as_it_was_captured():
    x, dims = torch.arange(6.0).reshape(2, 3), [0]
    captured, result = capture(lambda: x.flip(dims))
    dims[0] = 1
    captured.replay()
    assert result.tolist() == [[3, 4, 5], [0, 1, 2]]


def test_a_capture_computes_nothing():
    x, state = torch.ones(2), torch.zeros(3)

    def step():
        state.add_(1)
        state[:2].mul_(5)
        return x + 1, x.argmax(), x > 0

    captured, (total, index, _) = capture(step)
    assert state.tolist() == [0, 0, 0]
    assert total.isnan().all()
    assert int(index) == torch.iinfo(torch.int64).max
    captured.replay()
    assert state.tolist() == [5, 5, 1]
    assert total.tolist() == [2, 2]
    assert int(index) == 0


def test_writes_to_tensors_of_the_capture_happen_in_order():
    x = torch.tensor([1.0, 2.0])

    def step():
        buffer = torch.zeros(2)
        buffer.add_(x)
        return buffer.mul_(3), buffer

    captured, (result, buffer) = capture(step)
    for _ in range(2):
        captured.replay()
        assert result.tolist() == buffer.tolist() == [3, 6]


def test_captures_in_inference_mode_replay_outside_it():
    x = torch.ones(2)
    with torch.inference_mode():
        captured, result = capture(lambda: x + 1)
    x.fill_(5)
    captured.replay()
    assert result.tolist() == [6, 6]


F = torch.ones(4)
SYNCHRONISING = {
    "item": lambda: F[0].item(),
    "float": lambda: float(F[0]),
    "bool": lambda: bool(F[0] > 0),
    "index": lambda: list(range(F[0].int())),
    "equal": lambda: torch.equal(F, F),
    "nonzero": lambda: F.nonzero(),
    "where": lambda: torch.where(F > 0),
    "read by a mask": lambda: F[F > 0],
    "write by a mask": lambda: F.__setitem__(F > 0, 1.0),
    "repeats of unknown sum": lambda: F.repeat_interleave(torch.arange(4)),
    "unique": lambda: F.unique(),
    "synchronize": lambda: graphs.synchronize(),
    "a second capture": lambda: NPUGraph().capture_begin(),
}
COPYING = {
    "cpu": lambda: F.cpu(),
    "to the cpu": lambda: F.to("cpu"),
    "numpy": lambda: F.numpy(),
    "an array": lambda: np.asarray(F),
    "tolist": lambda: F.tolist(),
    "print": lambda: f"{F}",
    "a tensor of host data": lambda: torch.tensor([1, 2]),
    "a tensor of an array": lambda: torch.from_numpy(np.ones(2)),
    "an index of host data": lambda: F[[0, 2]],
}


@pytest.mark.parametrize("wrong", SYNCHRONISING.values(), ids=SYNCHRONISING)
def test_waiting_for_the_device_is_refused(wrong):
    with pytest.raises(CaptureError, match=r"during a graph capture: .*error code is 107027"):
        capture(wrong)
    assert not graphs.is_current_stream_capturing()


@pytest.mark.parametrize("wrong", COPYING.values(), ids=COPYING)
def test_copies_between_host_and_device_are_refused(wrong):
    with pytest.raises(CaptureError, match=r"during a graph capture: .*error code is 107030"):
        capture(wrong)
    assert not graphs.is_current_stream_capturing()


def test_what_needs_no_host_is_captured():
    def step():
        repeated = F.repeat_interleave(torch.arange(4), output_size=6)
        return repeated * torch.tensor(2.0), F.to(torch.half), F.masked_fill(F > 2, 0.0), F[torch.arange(2)]

    captured, results = capture(step)
    captured.replay()
    assert [result.tolist() for result in results] == [[2.0] * 6, [1.0] * 4, [1.0] * 4, [1.0] * 2]


def test_a_failed_capture_leaves_nothing_behind():
    state, captured = torch.zeros(2), NPUGraph()

    def step():
        state.add_(1)
        return state.tolist()

    with pytest.raises(CaptureError), graph(captured):
        step()
    assert state.tolist() == [0, 0]
    assert captured.operations == ()
    with pytest.raises(RuntimeError, match="has not been captured"):
        captured.replay()


def test_results_of_another_size_at_a_replay_are_an_error():
    sizes = [torch.ones(2), torch.ones(3)]
    library = torch.library.Library("upwell_test_graph", "DEF")
    library.define("any_size() -> Tensor")
    library.impl("any_size", lambda: sizes.pop(0).clone(), "CompositeExplicitAutograd")
    captured, _ = capture(torch.ops.upwell_test_graph.any_size)
    assert captured.operations == ("upwell_test_graph::any_size",)
    with pytest.raises(RuntimeError, match=r"gives \[3\], but \[2\] when captured"):
        captured.replay()


def test_an_operation_may_use_the_host_inside():
    library = torch.library.Library("upwell_test_host", "DEF")
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: torch.from_numpy(np.asarray(x.tolist()) * 2), "CPU")
    x = torch.ones(2)
    captured, result = capture(torch.ops.upwell_test_host.double, x)
    x.fill_(4)
    captured.replay()
    assert result.tolist() == [8, 8]


def test_misuse_of_a_graph_is_refused():
    captured, _ = capture(lambda: F + 1)
    with pytest.raises(RuntimeError, match="has been captured; reset it"):
        captured.capture_begin()
    with pytest.raises(RuntimeError, match="no capture of this graph is under way"):
        captured.capture_end()
    with pytest.raises(RuntimeError, match="needs a capture with auto_dispatch_capture"):
        captured.update([{}])
    with pytest.raises(RuntimeError, match="is unknown"):
        capture(lambda: F + 1, capture_error_mode="lenient")
    captured.reset()
    with pytest.raises(RuntimeError, match="has not been captured"):
        captured.replay()


def attention(torch_npu, query, cache, table, lengths):
    return torch_npu.npu_fused_infer_attention_score(
        query, cache, cache, block_table=table, num_heads=2, num_key_value_heads=1, input_layout="TND", block_size=16,
        actual_seq_lengths=[1], actual_seq_lengths_kv=lengths,
    )[0]  # fmt: skip


def test_lengths_of_attention_are_updated_before_each_replay(torch_npu):
    query, cache = torch.randn(1, 2, 16).half(), torch.randn(2, 16, 16).half()
    table = torch.tensor([[0, 1]], dtype=torch.int32)
    arguments = (torch_npu, query, cache, table)
    captured, result = capture(attention, *arguments, [5], auto_dispatch_capture=True)
    with pytest.raises(RuntimeError, match="waits for its host lists"):
        captured.replay()
    for length in (5, 20):
        captured.update([{"actual_seq_lengths_kv": [length]}])
        captured.replay()
        assert torch.equal(result, attention(*arguments, [length]))
    with pytest.raises(RuntimeError, match="waits for its host lists"):
        captured.replay()
    with pytest.raises(RuntimeError, match="1 operations are to be updated, but there are 2"):
        captured.update([{}, {}])
    with pytest.raises(RuntimeError, match="was not captured with a list num_heads"):
        captured.update([{"num_heads": 4}])


def test_lengths_of_attention_go_stale_without_updates(torch_npu):
    query, cache = torch.randn(1, 2, 16).half(), torch.randn(2, 16, 16).half()
    table, lengths = torch.tensor([[0, 1]], dtype=torch.int32), [5]
    captured, result = capture(attention, torch_npu, query, cache, table, lengths)
    lengths[0] = 20
    captured.replay()
    assert torch.equal(result, attention(torch_npu, query, cache, table, [5]))


def test_the_stand_ins_take_the_place_of_torch_npu_s(torch_npu):
    original = torch.npu.NPUGraph
    with graphs.emulated_graphs():
        captured = torch.npu.NPUGraph()
        with torch.npu.graph(captured, pool=torch.npu.graph_pool_handle()):
            assert torch.npu.is_current_stream_capturing()
            result = F + 1
            with pytest.raises(CaptureError, match="synchronize"):
                torch.npu.synchronize()
        captured.replay()
        torch.npu.synchronize()
    assert result.tolist() == [2] * 4
    assert torch.npu.NPUGraph is original
