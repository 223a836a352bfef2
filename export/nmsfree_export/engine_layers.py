"""The layers of an engine as it runs; without a GPU, those of the network it was built from."""

import json
from dataclasses import dataclass
from typing import Any

from nmsfree.engines.flavour import Flavour
from nmsfree.engines.vendor_log import reason
from nmsfree_export.engine_network import Layer


@dataclass(frozen=True)
class LayerTable:
    """Layers, and whose they are.

    Attributes:
        layers: in order.
        source: "engine", fused as they run, or "network", as the parser read them.
        note: why they are not the engine's; "" where they are.
    """

    layers: tuple[Layer, ...]
    source: str
    note: str = ""

    def to_json(self) -> dict[str, object]:
        rows = [layer.to_json() for layer in self.layers]
        return {"source": self.source, "note": self.note, "layers": rows}


def read_layers(flavour: Flavour, plan: bytes, network: tuple[Layer, ...]) -> LayerTable:
    """Ask the engine for its layers, which takes a GPU that it was built for.

    Args:
        plan: just built, in detail.
        network: the layers that the parser read, for want of a GPU.
    """
    runtime = flavour.create_runtime()
    with flavour.log.collect() as messages:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        note = f"the engine's own layers show on a GPU it was built for ({reason(messages)})"
        return LayerTable(network, "network", note)
    inspector = engine.create_engine_inspector()
    form = flavour.module.LayerInformationFormat.JSON
    try:
        found = parse_inspection(inspector.get_engine_information(form))
    except (TypeError, ValueError, AttributeError) as error:
        # No reason to throw away what was built.
        return LayerTable(network, "network", f"the engine's own cannot be read ({error})")
    return LayerTable(found, "engine")


def parse_inspection(text: str) -> tuple[Layer, ...]:
    """Read the JSON of the vendor's engine inspector."""
    return tuple(map(_layer, json.loads(text).get("Layers", [])))


def _layer(entry: Any) -> Layer:
    if isinstance(entry, str):  # an engine that was not built in detail knows names only
        return Layer(entry, "", "", ())
    outputs = entry.get("Outputs") or [{}]
    return Layer(
        str(entry.get("Name", "")),
        str(entry.get("LayerType", "")).lower(),
        str(outputs[0].get("Format/Datatype", "")),
        tuple(outputs[0].get("Dimensions", ())),
    )
