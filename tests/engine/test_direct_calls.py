"""What else can be handed to the compiled functions: no tensor at all, odd tensors, odd memory. Never a crash."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest
import torch
from engine.helpers_engine import run_script

from pyalign import _cpu

RAISED = (ValueError, TypeError, BufferError, IndexError, RuntimeError)


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


def memory(count, dtype=torch.float64):
    """One stretch of memory, to give to several arguments."""
    return torch.zeros(count, dtype=dtype)


def moments(x, **changes):
    given = {
        "x": x, "y": torch.rand(5, 4), "mask": None, "axis_x": 1, "axis_y": 1, "full": False,
        "count": zeros(), "mean_a": zeros(3), "mean_b": zeros(4), "comoment": zeros(3, 4), "square_a": zeros(3),
        "square_b": zeros(4), "threads": 1,
    }  # fmt: skip
    return _cpu.cross_moments(**{**given, **changes})


def answer(n=3, m=4, **changes):
    fields = {"perm": zeros(n, dtype=torch.int64), "u": zeros(n), "v": zeros(m), "gap": zeros(), "objective": zeros()}
    return [*{**fields, **changes}.values()]


def assignment(cost, fields=None, start=(), threads=1):
    return _cpu.linear_assignment([cost], False, list(start), [answer() if fields is None else fields], threads)


def blend(tensor, out=None, perms=(None, None), weights=(0.5,), threads=1):
    return _cpu.permuted_sum(zeros(3, 4).float() if out is None else out, [tensor], weights, [perms], threads)


CALLS = {
    "moments": lambda x: moments(x.T if isinstance(x, torch.Tensor) and x.dim() == 2 and x.is_floating_point() else x),
    "assignment": assignment,
    "blend": blend,
}


class Exporter:
    """Something that says it exports, and gives what it was told to."""

    def __init__(self, capsule, device=(1, 0)):
        self.capsule, self.device = capsule, device

    def __dlpack__(self, **_):
        if isinstance(self.capsule, BaseException):
            raise self.capsule
        return self.capsule

    def __dlpack_device__(self):
        return self.device


def capsule(name, pointer=1):
    """A PyCapsule of that name; its pointer must not be followed."""
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return make(pointer, name, None)


def freed():
    tensor = torch.rand(3, 4)
    tensor.untyped_storage().resize_(0)
    return tensor


def fake():
    with torch._subclasses.FakeTensorMode():
        return torch.empty(3, 4)


def misaligned():
    return torch.frombuffer(bytearray(64), dtype=torch.float32, count=12, offset=1).view(3, 4)


def read_only():
    array = np.zeros((3, 4), dtype=np.float32)
    array.setflags(write=False)
    return array


def used():
    given = torch.utils.dlpack.to_dlpack(torch.rand(3, 4))
    blend(given)
    return given


exported = torch.utils.dlpack.to_dlpack
NO_TENSORS = {
    "none": lambda: None,
    "a number": lambda: 3.5,
    "a string": lambda: "costs",
    "a list": lambda: [[1.0]],
    "a type": lambda: torch.Tensor,
    "a nameless capsule": lambda: capsule(None),
    "a capsule of another name": lambda: capsule(b"dltensor_versioned"),
    "a used capsule": used,
    "exports none": lambda: Exporter(None),
    "exports another capsule": lambda: Exporter(capsule(b"arrow_schema")),
    "exports a used capsule": lambda: Exporter(used()),
    "exporting fails": lambda: Exporter(RuntimeError("no")),
    "device none": lambda: Exporter(None, None),
    "device empty": lambda: Exporter(None, ()),
    "device strings": lambda: Exporter(None, ("cpu", "0")),
    "device cuda": lambda: Exporter(AssertionError("exported"), (2, 0)),
    "meta": lambda: torch.empty(3, 4, device="meta"),
    "meta of float64": lambda: torch.empty(3, 4, device="meta", dtype=torch.float64),
    "fake": fake,
    "fake, exported": lambda: exported(fake()),
    "freed": freed,
    "freed, exported": lambda: exported(freed()),
    "misaligned": misaligned,
    "misaligned, exported": lambda: exported(misaligned()),
    "sparse": lambda: torch.rand(3, 4).to_sparse(),
    "sparse, exported": lambda: exported(torch.rand(3, 4).to_sparse()),
    "sparse rows, exported": lambda: exported(torch.rand(3, 4).to_sparse_csr()),
    "quantised": lambda: torch.quantize_per_tensor(torch.rand(3, 4), 0.1, 0, torch.quint8),
    "quantised, exported": lambda: exported(torch.quantize_per_tensor(torch.rand(3, 4), 0.1, 0, torch.quint8)),
    "nested": lambda: torch.nested.nested_tensor([torch.rand(4), torch.rand(3)]),
    "conjugate": lambda: torch.zeros(3, 4, dtype=torch.cfloat).conj(),
    "complex": lambda: torch.zeros(3, 4, dtype=torch.cfloat),
    "boolean": lambda: torch.zeros(3, 4, dtype=torch.bool),
    "8-bit floats": lambda: torch.zeros(3, 4).to(torch.float8_e4m3fn),
    "requires grad": lambda: torch.rand(3, 4, requires_grad=True),
    "a scalar": lambda: torch.tensor(1.0),
    "eleven axes": lambda: torch.zeros([1] * 11),
    "read-only numpy": read_only,
    "numpy of the other byte order": lambda: np.zeros((3, 4), dtype=">f4"),
    "numpy objects": lambda: np.full((3, 4), None),
    "numpy long doubles": lambda: np.zeros((3, 4), dtype=np.longdouble),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", NO_TENSORS)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_usable_tensor_raises(case, call):
    with pytest.raises(RAISED):
        CALLS[call](NO_TENSORS[case]())


OUTPUTS = {
    "numpy, read-only": read_only,
    "meta": lambda: torch.empty(3, 4, device="meta"),
    "freed": freed,
    "misaligned": misaligned,
    "one row for all": lambda: torch.zeros(4).expand(3, 4),
    "rows that overlap": lambda: torch.zeros(12).as_strided((3, 4), (2, 1)),
    "too small": lambda: torch.zeros(3, 3),
    "empty": lambda: torch.zeros(0, 4),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_that_cannot_be_written_raise(case):
    with pytest.raises(RAISED):
        blend(torch.rand(3, 4), out=OUTPUTS[case]())
    with pytest.raises(RAISED):
        moments(torch.rand(5, 3), comoment=OUTPUTS[case]())
    with pytest.raises(RAISED):
        assignment(torch.rand(3, 4), answer(u=OUTPUTS[case]()))


SHARED = {
    "mean_a and square_a": lambda m: {"mean_a": m[:3], "square_a": m[:3]},
    "mean_a and mean_b, in part": lambda m: {"mean_a": m[:3], "mean_b": m[2:6]},
    "count and comoment": lambda m: {"count": m[11], "comoment": m[:12].view(3, 4)},
    "x and square_a": lambda m: {"x": m[:15].view(5, 3), "square_a": m[12:15]},
    "y, backwards, and mean_b": lambda m: {"y": m[:20].numpy()[::-1].reshape(5, 4), "mean_b": m[:4]},
    "y, every other, and mean_b": lambda m: {"y": m[:40:2].view(5, 4), "mean_b": m[3:7]},
    "mask and mean_a": lambda m: {"mask": m.view(torch.bool)[:5], "mean_a": m[:3]},
}


@pytest.mark.parametrize("case", SHARED)
def test_outputs_that_share_memory_raise(case):
    changes = {"x": torch.rand(5, 3), **SHARED[case](memory(40))}
    with pytest.raises(ValueError, match=r"given memory that \w+ has too"):
        moments(**changes)


def test_outputs_beside_each_other_in_memory_are_written():
    m = memory(40)
    x = torch.rand(5, 3)
    assert moments(x, count=m[0], mean_a=m[1:4], mean_b=m[4:8], comoment=m[8:20].view(3, 4), square_a=m[20:23])
    assert m[0] == 5 and torch.allclose(m[1:4], x.double().mean(0)) and not m[23:].any()
    assert moments(x, y=x.repeat(1, 2)[:, :4], mask=torch.ones(5, dtype=torch.bool)) is True
    assert moments(x, y=x, comoment=zeros(3, 3), mean_b=zeros(3), square_b=zeros(3)) is True


ARGUMENTS = {
    "threads negative": lambda: blend(torch.rand(3, 4), threads=-1),
    "threads zero": lambda: assignment(torch.rand(3, 4), threads=0),
    "threads least": lambda: moments(torch.rand(5, 3), threads=-(2**31)),
    "threads too large": lambda: moments(torch.rand(5, 3), threads=2**31),
    "threads a float": lambda: moments(torch.rand(5, 3), threads=1.5),
    "axis beyond int64": lambda: moments(torch.rand(5, 3), axis_x=2**63),
    "weights none": lambda: blend(torch.rand(3, 4), weights=None),
    "weights text": lambda: blend(torch.rand(3, 4), weights="1"),
    "weights too many": lambda: blend(torch.rand(3, 4), weights=[1.0, 2.0]),
    "perms none": lambda: blend(torch.rand(3, 4), perms=None),
    "perms numbers": lambda: blend(torch.rand(3, 4), perms=(0, 1)),
    "perms text": lambda: blend(torch.rand(3, 4), perms="ab"),
    "perms strided": lambda: blend(torch.rand(3, 4), perms=(torch.arange(6)[::2], None)),
    "perms huge": lambda: blend(torch.rand(3, 4), perms=(torch.tensor([0, 1, 2**62]), None)),
    "perms least": lambda: blend(torch.rand(3, 4), perms=(torch.tensor([0, 1, -(2**63)]), None)),
    "perms of two axes": lambda: blend(torch.rand(3, 4), perms=(torch.zeros(1, 3, dtype=torch.int64), None)),
    "answer a number": lambda: assignment(torch.rand(3, 4), 5),
    "answer text": lambda: assignment(torch.rand(3, 4), "abcde"),
    "answer of nones": lambda: assignment(torch.rand(3, 4), [None] * 5),
    "answer too long": lambda: assignment(torch.rand(3, 4), [*answer(), zeros()]),
    "answer a mapping": lambda: assignment(torch.rand(3, 4), dict(enumerate(answer()))),
    "start a number": lambda: assignment(torch.rand(3, 4), start=[7]),
    "start of nones": lambda: assignment(torch.rand(3, 4), start=[[None] * 3]),
    "start of int32": lambda: assignment(torch.rand(3, 4), start=[[zeros(3), zeros(4), zeros(3, dtype=torch.int32)]]),
    "start of another shape": lambda: assignment(
        torch.rand(3, 4), start=[[zeros(4), zeros(3), zeros(3, dtype=torch.int64)]]
    ),
    "costs a tensor": lambda: _cpu.linear_assignment(torch.rand(1, 3, 4), False, [], [answer()], 1),
    "costs more than answers": lambda: _cpu.linear_assignment([torch.rand(3, 4)] * 2, False, [], [answer()], 1),
    "path none": lambda: _cpu.use_simd(None),
    "path empty": lambda: _cpu.use_simd(""),
    "path with a null": lambda: _cpu.use_simd("avx2\0"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_wrong_arguments_raise(case):
    with pytest.raises((TypeError, ValueError)):
        ARGUMENTS[case]()


def test_nothing_to_do_is_done():
    assert _cpu.linear_assignment([], True, [], [], 1) is None
    assert _cpu.permuted_sum(zeros(3), [], [], [], 1) is None
    assert _cpu.permuted_sum(zeros(0, 4), [zeros(0, 4)], [1.0], [(torch.arange(0), None)], 2) is None
    assert assignment(zeros(0, 0), answer(0, 0)) is None and assignment(zeros(2, 0, 0), answer_of_batch(2)) is None
    strange = torch.zeros(0).as_strided((0, 3), (-0, 2**40))
    assert _cpu.permuted_sum(torch.zeros(0, 3), [strange], [1.0], [(None, None)], 1) is None


def answer_of_batch(count):
    return [zeros(count, 0, dtype=torch.int64), zeros(count, 0), zeros(count, 0), zeros(count), zeros(count)]


def test_more_threads_than_work():
    tensor, out = torch.rand(300, 400), torch.zeros(300, 400)
    _cpu.permuted_sum(out, [tensor], [1.0], [(torch.arange(299, -1, -1), None)], 2**31 - 1)
    assert torch.equal(out, tensor.flip(0))


def test_a_tensor_that_moved_is_read_where_it_is():
    tensor, out = torch.zeros(3, 4), torch.zeros(3, 4)
    tensor.data = torch.ones(3, 4)
    blend(tensor, out=out, weights=[1.0])
    assert bool((out == 1).all())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_refused_thread_is_an_error_and_the_pool_lives_on():
    script = """
        import resource, torch
        from pyalign import _cpu
        tensor, out = torch.rand(4096, 256), torch.zeros(4096, 256)
        def blend(threads):
            _cpu.permuted_sum(out.zero_(), [tensor], [1.0], [(None, None)], threads)
            return torch.equal(out, tensor)
        torch.set_num_threads(1)
        assert blend(2)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, hard))  # room for few stacks
        try:
            blend(60)
        except RuntimeError as error:
            print("refused:", error)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        assert blend(2) and blend(60)
    """
    assert run_script(script).startswith("refused:")
