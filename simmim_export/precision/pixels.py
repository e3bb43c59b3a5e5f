"""Lets the first convolution read the bytes of the image, in place of floats that are scaled, shifted and rounded again.

An image graph computes x = a * bytes + b with a and b per channel, and convolves x. Here a DequantizeLinear with one scale and
the zero point 0 takes the bytes: a goes into the weights and b into the bias, and the bytes are not rounded at all. (With another
zero point OpenVINO computed the first convolution in float.) The convolution pads x with zeros. Each channel has its own byte
value for x = 0, so this color is added around the image beforehand, and the convolution no longer pads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from simmim_export.precision.surgery import array_of, constant, is_float_constant, operator


@dataclass(frozen=True)
class Pixels:
    """Image ``bytes`` uint8 [b, H, W, C]; the convolution reads ``factor`` * bytes + ``summand``, both [C]."""

    bytes: ir.Value
    factor: np.ndarray
    summand: np.ndarray


def find_pixels(value: ir.Value | None, channels: int) -> Pixels | None:
    """The pixels that ``value`` float32 [b, C, H, W] is computed from by Mul, Add and Sub, and by a Transpose and a Cast."""
    factor, summand = np.ones(channels), np.zeros(channels)
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in ("Mul", "Add", "Sub"):
            constants = [each for each in node.inputs if is_float_constant(each)]
            if len(constants) != 1 or constants[0] is None or value.is_graph_output():
                return None
            if node.op_type == "Sub" and node.inputs[1] is not constants[0]:
                return None
            number = _by_channel(array_of(constants[0]), channels)
            if number is None:
                return None
            if node.op_type == "Mul":
                factor = factor * number
            else:
                summand = summand + factor * (number if node.op_type == "Add" else -number)
            value = next(each for each in node.inputs if each is not constants[0])
        elif node.op_type in ("Transpose", "Cast"):
            other = None if node.inputs[0] is None else node.inputs[0].producer()
            if other is None or {node.op_type, other.op_type} != {"Transpose", "Cast"}:
                return None
            turn = node if node.op_type == "Transpose" else other
            image, is_turned = other.inputs[0], list(turn.attributes.get_ints("perm", ())) == [0, 3, 1, 2]
            return Pixels(image, factor, summand) if is_turned and image is not None and _is_image(image) else None
        else:
            return None
    return None


def _is_image(value: ir.Value) -> bool:
    """Whether ``value`` is uint8 [b, H, W, C] with known H and W."""
    shape = value.shape
    return value.dtype == ir.DataType.UINT8 and shape is not None and all(isinstance(size, int) for size in shape[1:])


def _by_channel(number: np.ndarray, channels: int) -> np.ndarray | None:
    """A constant that meets [b, C, H, W] as float64 [C]; None if it differs along another axis."""
    shape = (1,) * (4 - number.ndim) + number.shape
    if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, channels) or shape[2:] != (1, 1):
        return None
    return np.broadcast_to(number.reshape(shape[1]), channels).astype(np.float64)


def read_bytes(graph: ir.Graph, node: ir.Node) -> None:
    """Let the convolution ``node`` read bytes if it reads an image. Its weight and bias change, so that its result does not.

    Only the color of the padding is rounded, to whole bytes.
    """
    weight = array_of(node.inputs[1]).astype(np.float64)
    pixels = find_pixels(node.inputs[0], weight.shape[1])
    is_plain = node.attributes.get_int("group", 1) == 1 and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    if pixels is None or not is_plain or (pixels.factor <= 0).any():
        return
    black = -pixels.summand / pixels.factor  # the byte of each channel that x = 0 stands for
    if (black < 0).any() or (black > 255).any():
        return
    name = str(node.name)
    source = _pad(graph, node, pixels.bytes, np.rint(black).astype(np.uint8))
    scale = np.float32(pixels.factor.mean())
    levels = [constant(graph, f"{name}.bytes.scale", scale), constant(graph, f"{name}.bytes.zero", np.uint8(0))]
    dequantize = operator("DequantizeLinear", [source, *levels], f"{name}.bytes")
    transpose = operator("Transpose", [dequantize.outputs[0]], f"{name}.pixels", perm=[0, 3, 1, 2])
    graph.insert_before(node, [dequantize, transpose])
    bias = np.einsum("ocij,c->o", weight, pixels.summand)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias += array_of(node.inputs[2])
    folded = weight * (pixels.factor / scale)[:, None, None]
    node.resize_inputs(3)
    node.replace_input_with(0, transpose.outputs[0])
    node.replace_input_with(1, constant(graph, f"{name}.folded", folded.astype(np.float32)))
    node.replace_input_with(2, constant(graph, f"{name}.folded.bias", bias.astype(np.float32)))


def _pad(graph: ir.Graph, node: ir.Node, pixels: ir.Value, color: np.ndarray) -> ir.Value:
    """``pixels`` [b, H, W, C] with the padding of ``node`` in ``color`` [C] around each image; ``node`` then pads nothing."""
    pads = list(node.attributes.get_ints("pads", ()))
    if not any(pads):
        return pixels
    name = str(node.name)
    top, left, bottom, right = pads
    shape = pixels.shape
    height, width = int(shape[1]), int(shape[2])
    batch = operator("Shape", [pixels], f"{name}.batch", start=0, end=1)
    one = constant(graph, f"{name}.ones", np.ones(3, np.int64))
    size = operator("Concat", [batch.outputs[0], one], f"{name}.size", axis=0)
    nodes = [batch, size]

    def bar(where: str, rows: int, columns: int) -> list[ir.Value]:
        if not rows or not columns:
            return []
        tile = constant(graph, f"{name}.{where}", np.broadcast_to(color, (1, rows, columns, len(color))))
        nodes.append(operator("Expand", [tile, size.outputs[0]], f"{name}.{where}.bar"))
        return [nodes[-1].outputs[0]]

    def join(axis: int, where: str, parts: list[ir.Value]) -> ir.Value:
        nodes.append(operator("Concat", parts, f"{name}.{where}", axis=axis))
        return nodes[-1].outputs[0]

    wide = join(2, "columns", [*bar("left", height, left), pixels, *bar("right", height, right)])
    whole = left + width + right
    padded = join(1, "padded", [*bar("top", top, whole), wide, *bar("bottom", bottom, whole)])
    graph.insert_before(node, nodes)
    node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])
    return padded
