"""Where a network is cut: the nodes of its graph, the part up to one of them, and its fusing into less work."""

import math

import torch
from torch import fx, nn

from utils import BadInput, did_you_mean


def trace(network: nn.Module, *, timm: bool) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """Trace a network in evaluation mode: its graph, and its nodes by the names that torchvision gives them.

    torchvision's `create_feature_extractor` does the same twice, in training mode too, and keeps what either needs.
    """
    import torchvision
    from torchvision.models.feature_extraction import NodePathTracer

    leaves = [kind for kind in vars(torchvision.ops).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    functions = []
    if timm:
        from timm.models import get_notrace_functions, get_notrace_modules

        leaves += get_notrace_modules()
        functions += get_notrace_functions()
    tracer = NodePathTracer(
        autowrap_modules=(math, torchvision.ops), autowrap_functions=tuple(functions), leaf_modules=leaves
    )
    graph = tracer.trace(network)
    return graph, {path: node for node, path in tracer.node_to_qualname.items() if node.op != "output"}


def output_layer(network: nn.Module) -> str | None:
    """Return the node that a timm model without its classifier ends in; None if the model cannot be traced."""
    try:
        graph, nodes = trace(network, timm=True)
    except Exception:  # control flow that depends on values stops tracing in many ways; the model itself still runs
        return None
    end = next(iter(reversed(graph.nodes))).args[0]
    return next((path for path, node in nodes.items() if node is end), None)


def penultimate_layer(name: str, network: nn.Module, side: int | None) -> str:
    """Return the node before the classifier: the input of the last linear layer (convolution for SqueezeNet).

    side: None, or of the network's input in pixels; then the last node before it that still has space, (1, C, H, W),
    (1, H, W, C) or tokens (1, N, C). Raises BadInput if it has none.
    """
    graph, nodes = trace(network, timm=False)
    paths = {node: path for path, node in nodes.items()}
    modules = dict(network.named_modules())

    def module(node: fx.Node) -> nn.Module | None:
        return modules[str(node.target)] if node.op == "call_module" else None

    end = next(node for node in reversed(graph.nodes) if isinstance(module(node), nn.Linear | nn.Conv2d))
    end = end.all_input_nodes[0]
    while isinstance(module(end), nn.Dropout):
        end = end.all_input_nodes[0]
    if side is None:
        return paths[end]
    from torch.fx.passes.shape_prop import ShapeProp

    with torch.inference_mode():
        ShapeProp(fx.GraphModule(network, graph)).propagate(torch.zeros(1, 3, side, side))
    order = list(graph.nodes)
    for node in reversed(order[: order.index(end) + 1]):
        shape = tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))
        if len(shape) == 3 or (len(shape) == 4 and shape[2] > 1):
            return paths[node]
    raise BadInput(f"`map`: {name} keeps no spatial map; leave `map` out, or name a node with `layer`")


def cut(name: str, network: nn.Module, layer: str) -> nn.Module:
    """Cut the network behind node `layer`: what is left has no module that the node does not depend on.

    `layer` may be the beginning of a name: "layer4" is the last node within layer4, as torchvision reads it.
    Raises BadInput that names the nearest known node.
    """
    try:
        graph, nodes = trace(network, timm=name.startswith("timm:") or name == "efficientnet_lite0")
    except Exception as error:
        raise BadInput(
            f"`layer` {layer}: the graph of {name} cannot be traced, so it has no other layer; leave `layer` out"
        ) from error
    inside = [path for path in nodes if path == layer or path.startswith(f"{layer}.")]
    if not inside:
        parts = {".".join(path.split(".")[:depth]) for path in nodes for depth in range(1, path.count(".") + 2)}
        hint = did_you_mean(layer, sorted(parts), f"its last nodes: {', '.join(list(nodes)[-8:])}")
        raise BadInput(f"`layer` {layer}: {name} has no such node; {hint}")
    end = nodes[inside[-1]]
    whole = fx.GraphModule(network, graph)
    for node in reversed(whole.graph.nodes):
        if node is end:
            break
        whole.graph.erase_node(node)
    whole.graph.output(end)
    whole.graph.eliminate_dead_code()
    return fx.GraphModule(whole, whole.graph).eval()  # a GraphModule takes over only what its graph uses


def fuse_conv_bn(body: nn.Module) -> nn.Module:
    """Multiply every batch normalization into the convolution before it: a third less time, equal up to rounding.

    Changes `body` and returns it. Works on the graph, and inside `nn.Sequential`s that the graph takes as one node.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    if not isinstance(body, fx.GraphModule):
        return body
    for part in [module for module in body.modules() if isinstance(module, nn.Sequential)]:
        for i in range(len(part) - 1):
            convolution, norm = part[i], part[i + 1]
            if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                part[i], part[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    modules = dict(body.named_modules())
    calls = [node for node in body.graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    for node, target in zip(calls, targets, strict=True):
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        source = str(before.target)
        convolution, norm = modules[source], modules[target]
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if targets.count(source) > 1 or targets.count(target) > 1:
            continue  # a layer with two uses cannot be fused for one of them
        body.set_submodule(source, fuse_conv_bn_eval(convolution, norm))
        # timm's BatchNormAct2d goes on with an activation
        body.set_submodule(target, getattr(norm, "act", nn.Identity()))
    body.recompile()
    return body
