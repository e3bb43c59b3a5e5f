"""A graph as TensorRT's own parser reads it: whether it is accepted, which shapes it takes, and which products it quantizes.

This module needs TensorRT, so import it inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simmim_export.engines.tensorrt.callbacks import indented, log
from simmim_export.engines.tensorrt.library import trt, used
from simmim_export.engines.tensorrt.request import Profile
from simmim_export.errors import EXPORT_AGAIN, BundleError
from simmim_export.spec import GraphSpec

# How an ONNX node is named in the metadata of a layer.
_ONNX_LAYER = "[ONNX Layer: {}]"
# Layers between a DequantizeLinear and the product that reads it: changes of shape and of layout.
_MOVES = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE")


@dataclass(frozen=True)
class Network:
    """A parsed graph. It keeps alive what TensorRT needs: a parser reads from its network, and a network from its builder."""

    builder: trt.Builder
    network: trt.INetworkDefinition
    parser: trt.OnnxParser


def parse(graph: Path, spec: GraphSpec, *, module_of: Callable[[str], str], fix: str) -> Network:
    """The network in the ONNX file ``graph``.

    ``module_of`` gives the PyTorch module of a node by the node's name, or "" if that is not known. Raise :class:`BundleError`
    with ``fix`` if the parser refuses the file, naming nodes and modules; and if the network is empty or has other inputs than
    ``spec``.
    """
    log().clear()
    builder = trt.Builder(log())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log())
    if not parser.parse_from_file(str(graph)):
        listed = "".join(f"\n  {text}" for text in _errors(parser, module_of)) or log().quoted()
        raise BundleError(f"{used().title}'s parser refuses {spec.name}:{listed}", where=graph, fix=fix)
    if not network.num_layers:
        # The parser accepts an empty file.
        raise BundleError(f"{graph.name} holds no node", where=graph, fix=EXPORT_AGAIN)
    names = sorted(network.get_input(index).name for index in range(network.num_inputs))
    wanted = sorted(tensor.name for tensor in spec.inputs)
    if names != wanted:
        what = f"{graph.name} has the inputs {', '.join(names) or 'none'}, but {spec.name} takes {', '.join(wanted)}"
        raise BundleError(what, where=graph, fix=EXPORT_AGAIN)
    return Network(builder, network, parser)


def _errors(parser: trt.OnnxParser, module_of: Callable[[str], str]) -> list[str]:
    texts = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name = error.node_name()
        place = f"{error.node_operator()} {name}" if name else "the file"
        module = module_of(name) if name else ""
        place += f" of {module}" if module else ""
        code = str(error.code()).rpartition(".")[2]
        texts.append(f"{place}: {code}: {indented(error.desc())}")
    return texts


def add_profile(parsed: Network, config: trt.IBuilderConfig, *, spec: GraphSpec, ranges: Profile) -> None:
    """Add the shapes of ``ranges`` to ``config``. Raise :class:`BundleError` if the network does not take them.

    TensorRT itself accepts shapes out of order and names that no input has, and fails minutes later.
    """
    sizes = {}
    for index in range(parsed.network.num_inputs):
        tensor = parsed.network.get_input(index)
        sizes[tensor.name] = [tensor.shape[axis] for axis in range(len(tensor.shape))]
    profile = parsed.builder.create_optimization_profile()
    for one in spec.inputs:
        shapes = ranges.shapes(one)
        fixed = sizes[one.name]
        in_order = all(1 <= low <= middle <= high for low, middle, high in zip(*shapes, strict=True))
        fits = len(fixed) == len(shapes[0]) and all(
            size in (-1, wanted) for shape in shapes for size, wanted in zip(fixed, shape, strict=True)
        )
        if not in_order or not fits:
            listed = ", ".join(str(list(shape)) for shape in shapes)
            what = f"{one.name} of {spec.name} is {fixed} in the network, which does not take the shapes {listed}"
            raise BundleError(what, fix=EXPORT_AGAIN)
        least, best, largest = (trt.Dims(list(shape)) for shape in shapes)
        profile.set_shape(one.name, least, best, largest)
    if config.add_optimization_profile(profile) < 0:
        raise BundleError(f"{used().title} refuses the shapes of {spec.name}: {ranges}", fix="report this as a bug")


def quantized_products(parsed: Network) -> frozenset[str]:
    """The names of the products and convolutions whose operands are all dequantized: those that should run in INT8."""
    network = parsed.network
    makers: dict[str, trt.ILayer] = {}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in layers:
        for index in range(layer.num_outputs):
            makers[layer.get_output(index).name] = layer
    products = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION)
    return frozenset(
        _name(layer)
        for layer in layers
        if layer.type in products
        and layer.num_inputs >= 2
        and all(_is_dequantized(layer.get_input(index), makers) for index in (0, 1))
    )


def _is_dequantized(tensor: trt.ITensor | None, makers: dict[str, trt.ILayer]) -> bool:
    """Whether a DequantizeLinear makes ``tensor``, directly or before a change of its layout."""
    while tensor is not None:
        maker = makers.get(tensor.name)
        if maker is None:
            return False
        if maker.type == trt.LayerType.DEQUANTIZE:
            return True
        if maker.type.name not in _MOVES:
            return False
        tensor = maker.get_input(0)
    return False


def _name(layer: trt.ILayer) -> str:
    """The ONNX node of ``layer``: its metadata has ``[ONNX Layer: NAME]``, where a builder adds a suffix to the layer's own
    name."""
    text = layer.metadata
    start, end = _ONNX_LAYER.split("{}")
    return text.removeprefix(start).removesuffix(end) if text.startswith(start) and text.endswith(end) else layer.name
