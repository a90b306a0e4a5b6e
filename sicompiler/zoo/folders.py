"""Folders as diffusers writes them: a model's class, its configuration, and the VAE and pipeline it belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sicompiler.errors import BadInput
from sicompiler.zoo.autoencoders import AUTOENCODERS
from sicompiler.zoo.family import Family
from sicompiler.zoo.geometry import Sizes
from sicompiler.zoo.inputs import FAMILIES
from sicompiler.zoo.presets import PRESETS

INDEX, CONFIG = "model_index.json", "config.json"
DENOISER = re.compile(r"(unet|transformer|prior)(_\d+)?|controlnet")
_MAIN = re.compile(r"(unet|transformer)(_\d+)?")
ENCODER = re.compile(r"(text_encoder|image_encoder|prompt_encoder)(_\d+)?")


@dataclass(frozen=True)
class KnownClass:
    """A model whose calls are known.

    Attributes:
        class_name: of diffusers.
        config: its configuration, as far as it is said.
        family: what its calls look like, behind its own VAE.
        sizes: default sizes in pixels and video frames.
    """

    class_name: str
    config: Mapping[str, Any]
    family: Family
    sizes: Sizes


@dataclass(frozen=True)
class Component:
    """A component that a pipeline's index lists and whose folder has a configuration.

    Attributes:
        name: in the pipeline.
        class_name: of diffusers or transformers.
        folder: of its configuration.
    """

    name: str
    class_name: str
    folder: Path

    def config(self) -> dict[str, Any]:
        """Its configuration.

        Raises:
            BadInput: it can't be read.
        """
        return read_json(self.folder / CONFIG)


def is_pipeline_folder(spec: str) -> bool:
    """Whether a user's name of a model is the folder of a whole pipeline; the names of presets go before folders."""
    return bool(spec.strip()) and spec not in PRESETS and (Path(spec).expanduser() / INDEX).is_file()


def index_of(folder: Path) -> dict[str, Any]:
    """What the index of a pipeline says; empty for a folder without one.

    Raises:
        BadInput: it can't be read.
    """
    path = folder / INDEX
    return read_json(path) if path.is_file() else {}


def listed(index: Mapping[str, Any]) -> dict[str, str]:
    """The classes of the components of an index by name; those that are left out (null) are not among them."""
    rows = {name: row for name, row in index.items() if isinstance(row, list) and len(row) == 2}
    return {name: row[1] for name, row in rows.items() if isinstance(row[1], str)}


def components_of(folder: Path) -> dict[str, Component]:
    """The components of a pipeline that are models: those that have a configuration of their own."""
    components = {name: Component(name, cls, folder / name) for name, cls in listed(index_of(folder)).items()}
    return {name: row for name, row in components.items() if (row.folder / CONFIG).is_file()}


def denoisers_of(folder: Path) -> list[str]:
    """The names of what runs in every step by the index of a pipeline, the denoiser itself first.

    Raises:
        BadInput: there are none.
    """
    names = listed(index_of(folder))
    denoisers = sorted(filter(DENOISER.fullmatch, names), key=lambda name: (_MAIN.fullmatch(name) is None, name))
    if not any(map(_MAIN.fullmatch, denoisers)):
        raise BadInput(f"{folder / INDEX} has no unet or transformer, only {', '.join(names) or 'nothing'}")
    return denoisers


def read_folder(folder: Path) -> KnownClass:
    """The model in the folder of a component, or the first denoiser in that of a pipeline.

    Where the folder is one of a pipeline's, the VAE beside it says what the latents are.

    Raises:
        BadInput: there is none, it can't be read, or nothing is known of its calls.
    """
    if (folder / INDEX).is_file():
        folder = folder / denoisers_of(folder)[0]
    path = folder / CONFIG
    if not path.is_file():
        raise BadInput(f"there is no {path}; a diffusers folder has a {INDEX} (pipeline) or a {CONFIG}")
    config = read_json(path)
    class_name = config.get("_class_name")
    if not isinstance(class_name, str):
        raise BadInput(f"{path} has no _class_name, so it is no configuration of a diffusers model")
    if class_name not in FAMILIES:
        raise BadInput(
            f"{path} is of class {class_name}, for which no example inputs are known (they are for "
            f"{', '.join(FAMILIES)}); write a function that returns (module, args, kwargs) and name it instead, "
            "as package.module:function"
        )
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    family = FAMILIES[class_name]
    if class_name not in AUTOENCODERS:
        family = _in_its_pipeline(family, own, folder.absolute().parent)
    return KnownClass(class_name, own, family, family.default_sizes(own))


def _in_its_pipeline(family: Family, config: Mapping[str, Any], folder: Path) -> Family:
    """A denoiser's family behind the VAE of its pipeline, called as that pipeline calls it.

    Raises:
        BadInput: no VAE is there, and the latents are not those of the usual one.
    """
    index = index_of(folder)
    vae = components_of(folder).get("vae")
    if vae is not None and vae.class_name in AUTOENCODERS:
        geometry = AUTOENCODERS[vae.class_name].geometry_of(vae.config())
        return family.called_by(index).behind(geometry)
    if vae is None and family.latent_channels is not None:
        key, usual = family.latent_channels
        if config.get(key, usual) != usual:
            raise BadInput(
                f"the latents have {config[key]} channels, not the {usual} of the usual VAE, so what they compress is "
                f"not known; put the folder beside its vae and {INDEX}, as in the pipeline, and name it there"
            )
    return family.called_by(index)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadInput: the file can't be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} must hold a JSON object, it holds a {type(content).__name__}")
    return content
