"""Circuit `select-v1`: the decode step of `spots` output positions of each of `jobs` jobs, as an ONNX graph.

For each record it checks that the scores descend and that the rank is the one the draw picks, as market/select.rs
defines it. It says nothing about where the scores came from.

Inputs, all int64 and each hashed with Poseidon into one public instance:
    context    [1, jobs]                 one field element per job, passed through
    draws      [1, jobs * spots]         0..4095, passed through
    record_i   [1, 2 * candidates + 1]   rank, ids, scores (1024 per nat, descending, at most 7808 below the first)
Public outputs: context, draws, rank_error [n], order_error [n] with n = jobs * spots. The statement holds when every
error is 0; they are kept apart so that no sum of them can cancel in the field.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DRAW_BITS = 12
SCALE_BITS = 10
SPAN = 7808
IR_VERSION, OPSET = 8, 14


def settings(logrows):
    """EZKL's run arguments. Every value is an exact integer, so nothing is calibrated."""
    return {
        "input_visibility": "hashed/public",
        "output_visibility": "public",
        "param_visibility": "fixed",
        "input_scale": SCALE_BITS,
        "param_scale": SCALE_BITS,
        "scale_rebase_multiplier": 1,
        "rebase_frac_zero_constants": True,
        # The exponential's table. EZKL pads it above 0; scores above the first one are refused by order_error.
        "lookup_range": (-SPAN, 0),
        "logrows": logrows,
        # Comparisons: 1024^3 is above 4096 * 1024 * candidates for up to 256 candidates.
        "decomp_base": 1024,
        "decomp_legs": 3,
        # A context is a full field element.
        "ignore_range_check_inputs_outputs": True,
        # With more columns or with Freivalds' check the verifier outgrows EIP-170's 24576 bytes.
        "num_inner_cols": 1,
        "disable_freivalds": True,
    }


def build(path, jobs, spots, candidates):
    """Writes the graph to `path`; the same arguments give the same bytes."""
    n, k = jobs * spots, candidates
    nodes, constants = [], []

    def constant(value, dtype):
        name = f"constant_{len(constants)}"
        constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def op(kind, *inputs, **attributes):
        output = attributes.pop("output", None) or f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def columns(tensor, start, end):
        return op("Slice", tensor, *(constant([x], np.int64) for x in (start, end, 1)))

    def real(tensor):
        return op("Cast", tensor, to=TensorProto.FLOAT)

    def total(tensor):
        return op("ReduceSum", tensor, constant([1], np.int64), keepdims=1)

    names = [f"record_{i}" for i in range(n)]
    records = op("Concat", *names, axis=0) if n > 1 else names[0]
    rank = real(columns(records, 0, 1))
    scores = op("Mul", real(columns(records, k + 1, 2 * k + 1)), constant([[2.0**-SCALE_BITS]], np.float32))
    weights = op("Exp", op("Sub", scores, columns(scores, 0, 1)))
    cumulated = op("MatMul", weights, constant(np.triu(np.ones((k, k))), np.float32))
    draws = op("Reshape", real("draws"), constant([n, 1], np.int64))
    below = op(
        "LessOrEqual",
        op("Mul", cumulated, constant([[2.0**DRAW_BITS]], np.float32)),
        op("Mul", draws, columns(cumulated, k - 1, k)),
    )
    rising = op("Less", columns(scores, 0, k - 1), columns(scores, 1, k))
    op("Identity", "context", output="context_out")
    op("Identity", "draws", output="draws_out")
    op("Sub", rank, total(real(below)), output="rank_error")
    op("Identity", total(real(rising)), output="order_error")

    def tensor(name, kind, *shape):
        return helper.make_tensor_value_info(name, kind, shape)

    integer, floating = TensorProto.INT64, TensorProto.FLOAT
    inputs = [tensor("context", integer, 1, jobs), tensor("draws", integer, 1, n)]
    inputs += [tensor(name, integer, 1, 2 * k + 1) for name in names]
    outputs = [tensor("context_out", integer, 1, jobs), tensor("draws_out", integer, 1, n)]
    outputs += [tensor("rank_error", floating, n, 1), tensor("order_error", floating, n, 1)]
    graph = helper.make_graph(nodes, "select-v1", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    with open(path, "wb") as file:
        file.write(model.SerializeToString(deterministic=True))
