"""Memory of large tensors that is used again as soon as they are gone."""

import threading

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from peft_lightning.kernels.native import buffers
from peft_lightning.kernels.native.buffers import LARGE, Buffers
from tiny_run import fit

SHAPE = (1000, 300)


@pytest.fixture
def memory():
    return Buffers()


def test_a_tensor_gets_the_memory_of_one_that_is_gone(memory):
    place = memory.empty(SHAPE, torch.float32).data_ptr()
    assert memory.empty(SHAPE, torch.float32).data_ptr() == place
    assert memory.empty((600, 1000), torch.bfloat16).data_ptr() == place


def test_a_view_keeps_the_memory_of_its_tensor(memory):
    view = memory.empty(SHAPE, torch.float32).fill_(1.0)[5:, 7]
    other = memory.empty(SHAPE, torch.float32).fill_(2.0)
    assert (view == 1.0).all()
    assert (other == 2.0).all()


def test_what_autograd_keeps_is_not_used_again(memory):
    weight = torch.ones(SHAPE, requires_grad=True)
    loss = (weight * memory.empty(SHAPE, torch.float32).fill_(2.0)).sum()
    memory.empty(SHAPE, torch.float32).fill_(5.0)
    loss.backward()
    assert (weight.grad == 2.0).all()


def test_a_write_into_one_tensor_is_no_write_into_another_for_autograd(memory):
    weight = torch.ones(SHAPE, requires_grad=True)
    kept = memory.empty(SHAPE, torch.float32).fill_(2.0)
    loss = (weight * kept).sum()
    memory.empty(SHAPE, torch.float32).add_(5.0)
    loss.backward()
    assert (weight.grad == 2.0).all()


def test_shape_and_dtype_are_those_asked_for(memory):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        tensor = memory.empty((3, 500, 700), dtype)
        assert tensor.shape == (3, 500, 700)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0


def test_memory_that_a_larger_batch_outgrew_is_given_back(memory):
    small = [memory.empty((1000, 300), torch.float32) for _ in range(5)]
    small.clear()
    large = [memory.empty((1100, 300), torch.float32) for _ in range(5)]
    large.clear()
    again = [memory.empty((1050, 300), torch.float32) for _ in range(5)]
    assert len(memory._lent) == 5
    assert not memory._free
    assert not memory._returned
    assert all(len(taken) >= 1100 * 300 * 4 for _, taken in memory._lent.values())
    again.clear()


def test_a_small_tensor_does_not_hold_the_memory_of_a_much_larger_one(memory):
    place = memory.empty((3000, 300), torch.float32).data_ptr()
    assert memory.empty(SHAPE, torch.float32).data_ptr() != place
    assert memory.empty((3000, 300), torch.float32).data_ptr() == place


def test_what_is_free_is_given_back_before_memory_is_said_to_lack(memory, monkeypatch):
    asked, mapped = [], buffers._mapped

    def lacking(size):
        asked.append(len(memory._free))
        if len(asked) == 1:
            raise OSError(12, "Cannot allocate memory")
        return mapped(size)

    memory.empty((3, *SHAPE), torch.float32)
    monkeypatch.setattr(buffers, "_mapped", lacking)
    assert memory.empty(SHAPE, torch.float32).shape == SHAPE
    assert asked == [1, 0]


def test_lack_of_memory_is_a_memory_error_with_the_bytes(memory, monkeypatch):
    def lacking(size):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(buffers, "_mapped", lacking)
    with pytest.raises(MemoryError, match=r"a tensor of 1,2\d\d,\d\d\d bytes"):
        memory.empty(SHAPE, torch.float32)


def test_a_larger_batch_trims_the_heap_and_an_equal_one_does_not(memory, monkeypatch):
    trimmed = []
    monkeypatch.setattr(buffers, "trim_heap", lambda: trimmed.append(True))
    for rows, expected in ((1000, 0), (1100, 1), (1100, 1), (1050, 1)):
        batch = [memory.empty((rows, 300), torch.float32) for _ in range(3)]
        batch.clear()
        assert len(trimmed) == expected


def test_threads_do_not_share_memory(memory):
    mixed = []

    def work(number):
        for i in range(200):
            tensor = memory.empty((100 + i, 700), torch.float32).fill_(number)
            if not (tensor == number).all():
                mixed.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not mixed
    assert not memory._lent


def test_only_large_tensors_on_a_cpu_have_memory_of_their_own():
    lent = buffers._BUFFERS._lent
    before = len(lent)
    few = buffers.empty((LARGE // 4 - 1,), torch.empty(0))
    meta = buffers.empty((LARGE,), torch.empty(0, device="meta"))
    assert len(lent) == before
    many = buffers.empty((LARGE // 4,), torch.empty(0))
    assert len(lent) == before + 1
    assert (few.device.type, meta.device.type, many.device.type) == ("cpu", "meta", "cpu")


def test_a_forward_pass_finds_no_gradient_of_the_step_before(base, rows, tmp_path):
    class Held(Callback):
        gradients = None

        def on_train_batch_start(self, trainer, module, *args):
            self.gradients = [p.grad for p in module.trainable_parameters() if p.grad is not None]
            assert not self.gradients

    held = Held()
    fit(base, rows, tmp_path / "run", callbacks=[held], max_steps=3)
    assert held.gradients == []


def test_micro_batches_add_up_to_the_gradient_of_a_step(base, rows, tmp_path):
    class Held(Callback):
        found = ()

        def on_train_batch_start(self, trainer, module, *args):
            held = any(p.grad is not None for p in module.trainable_parameters())
            self.found = (*self.found, held)

    held = Held()
    options = {"accumulate_grad_batches": 3, "data": {"batch_size": 2}, "max_steps": 2}
    fit(base, rows, tmp_path / "run", callbacks=[held], **options)
    assert held.found == (False, True, True) * 2
